"""Selects the candidates that a prune round keeps. Counts are exact; ties are broken by index.

The prune scope determines how many weights each layer keeps:

- `layer`: every layer keeps the same fraction of its candidates (Mallya & Lazebnik 2018).
- `global`: the candidates of all layers are ranked together.
- `erk`: Erdos-Renyi-Kernel densities (Evci et al. 2020, "Rigging the Lottery", section 3). The density of a layer is
  proportional to `sum(shape) / prod(shape)`, so that small layers keep a larger fraction.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tf_packnet.errors import DivergedError, check_choice
from tf_packnet.pruning.patterns import Pattern
from tf_packnet.pruning.selection import Key, above_threshold, any_nan, nth_largest
from tf_packnet.pruning.shares import remaining


def keep_largest(scores: np.ndarray, eligible: np.ndarray, count: int, key: Key = np.asarray) -> np.ndarray:
    """Return a boolean mask of the `count` largest eligible scores; among equal scores, lower indices are kept.

    Runs in linear time, see `tf_packnet.pruning.selection`.

    Args:
        scores: Float array of any shape; larger scores are kept first.
        eligible: Boolean array of the same shape.
        count: Number of scores to keep, 0 to the number of eligible ones.
        key: Function applied to the scores before ranking, such as `np.abs`. It is applied chunk by chunk, so that the
            array is not copied as a whole.

    Raises:
        ValueError: If `count` is out of range.
        DivergedError: If an eligible score is NaN.
    """
    (mask,) = keep_largest_of([scores], [eligible], count, key)
    return mask


def keep_largest_of(
    scores: Sequence[np.ndarray], eligible: Sequence[np.ndarray], count: int, key: Key = np.asarray
) -> list[np.ndarray]:
    """Like `keep_largest`, for several arrays ranked together; among equal scores, those in earlier arrays are kept."""
    available = sum(int(np.count_nonzero(mask)) for mask in eligible)
    if not 0 <= count <= available:
        raise ValueError(f"`count` must be between 0 and the {available} eligible scores. Received: count={count}")
    _check_numbers(scores, eligible)
    if count == 0:
        return [np.zeros(mask.shape, bool) for mask in eligible]
    if count == available:
        return [np.array(mask, bool) for mask in eligible]
    threshold, above = nth_largest(scores, eligible, count, key)
    return above_threshold(scores, eligible, threshold, count - above, key)


def _check_numbers(scores: Sequence[np.ndarray], eligible: Sequence[np.ndarray]) -> None:
    if any_nan(scores, eligible):
        raise DivergedError(
            "cannot rank the weights, because some are NaN: training has diverged. Try a smaller learning rate"
        )


def equal_densities(
    shapes: Sequence[tuple[int, ...]], counts: Sequence[int], density: float, cap: float = 1.0
) -> np.ndarray:
    """Return `density` for each layer; the arguments are those of `erk_densities`."""
    return np.full(len(counts), density)


def erk_densities(
    shapes: Sequence[tuple[int, ...]], counts: Sequence[int], density: float, cap: float = 1.0
) -> np.ndarray:
    """Compute Erdos-Renyi-Kernel densities of layers that together keep `density` of their candidates.

    Layers whose density would exceed `cap` get `cap`; the excess is distributed over the other layers, as in the
    implementation of RigL.

    Args:
        shapes: Kernel shapes.
        counts: Candidates of each layer.
        density: Fraction of all candidates to keep.
        cap: Largest density of a layer. `1 / (number of remaining tasks)` leaves free weights in each layer for the
            later tasks; RigL, which learns one task, uses 1.

    Returns:
        Float array with one density per layer, in [0, 1].
    """
    candidates = np.asarray(counts, float)
    if density >= cap:  # no layer can get more than the others
        return np.full(len(candidates), density)
    raw = np.array([sum(shape) / np.prod(shape, dtype=float) for shape in shapes])
    capped = np.zeros(len(candidates), bool)
    while True:
        weight = (raw * candidates)[~capped].sum()
        wanted = density * candidates.sum() - cap * candidates[capped].sum()
        scale = wanted / weight if weight else 0.0
        over = ~capped & (scale * raw > cap)
        if not over.any():
            return np.where(capped, cap, scale * raw)
        capped |= over


# The prune scopes. A function with the arguments of `erk_densities` returns the density of each layer, which is then
# ranked alone. With None, all layers are ranked together.
Densities = Callable[[Sequence[tuple[int, ...]], Sequence[int], float, float], np.ndarray]
PRUNE_SCOPES: dict[str, Densities | None] = {
    "layer": equal_densities,
    "global": None,
    "erk": erk_densities,
}


def counts_to_keep(
    shapes: Sequence[tuple[int, ...]],
    left: Sequence[int],
    num_candidates: Sequence[int],
    kept_fraction: float,
    densities_of: Densities,
    cap: float,
) -> list[int]:
    """Compute how many weights each layer keeps in a prune round that ranks each layer alone.

    Args:
        shapes: Kernel shapes.
        left: Remaining candidates of each layer.
        num_candidates: Candidates of each layer when the task began.
        kept_fraction: Fraction of `num_candidates` that remains after this round.
        densities_of: Computes the densities of the layers, as `erk_densities` does.
        cap: `cap` of `densities_of`: the largest density of a layer.

    Returns:
        One count per layer.
    """
    densities = densities_of(shapes, num_candidates, kept_fraction, cap)
    # A user's own schedule may ask for more candidates than remain. Pruned weights do not come back.
    return [min(n, remaining(c, float(d))) for n, c, d in zip(left, num_candidates, densities, strict=True)]


def keep_masks(
    scores: Iterable[np.ndarray],
    eligible: Sequence[np.ndarray],
    num_candidates: Sequence[int],
    kept_fraction: float,
    scope: str = "layer",
    erk_cap: float = 1.0,
    key: Key = np.asarray,
    preferred: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Select the weights that one prune round keeps in each layer.

    Args:
        scores: One array per layer; weights with larger scores are kept first. May be a generator: only `global` needs
            all arrays in memory at once.
        eligible: Boolean arrays of the same shapes: the remaining candidates.
        num_candidates: Candidates of each layer when the task began (not the remaining ones).
        kept_fraction: Fraction of `num_candidates` that remains after this round.
        scope: `layer`, `global` or `erk`.
        erk_cap: `cap` of `erk_densities`.
        key: Function applied to the scores, see `keep_largest`.
        preferred: Boolean arrays of the same shapes: candidates that are pruned only after all other candidates.
            Default: all of them, ranked by score only.

    Returns:
        One boolean array per layer. With `layer`, layer `l` keeps exactly `round(num_candidates[l] * kept_fraction)`
        weights; with `global` this holds for the sum over the layers; with `erk` each layer has its own density.

    Raises:
        ArgumentError: If `scope` is unknown.
    """
    check_choice("prune_scope", scope, PRUNE_SCOPES)
    left = [int(np.count_nonzero(mask)) for mask in eligible]
    densities_of = PRUNE_SCOPES[scope]
    preferred = eligible if preferred is None else preferred
    if densities_of is None:
        count = min(sum(left), remaining(sum(num_candidates), kept_fraction))
        return _keep_preferred_of(list(scores), eligible, preferred, count, key)
    counts = counts_to_keep(
        [mask.shape for mask in eligible], left, num_candidates, kept_fraction, densities_of, erk_cap
    )
    layers = zip(scores, eligible, preferred, counts, strict=True)
    return [_keep_preferred_of([s], [e], [p], n, key)[0] for s, e, p, n in layers]


def keep_pattern_masks(
    patterns: Sequence[Pattern],
    input_axes: Sequence[Sequence[int]],
    scores: Iterable[np.ndarray],
    eligible: Sequence[np.ndarray],
    uncommitted: Sequence[np.ndarray],
    kept_fraction: float,
    scope: str = "layer",
    erk_cap: float = 1.0,
) -> list[np.ndarray]:
    """Like `keep_masks`, with a pattern for each layer: units of the pattern (weights or blocks) are counted.

    Args:
        patterns: The pattern of each layer.
        input_axes: The axes of each layer's kernel whose weights are summed into one output.
        scores: One array per layer, with scores of at least 0.
        eligible: Boolean arrays of the same shapes: the remaining candidates.
        uncommitted: Boolean arrays of the same shapes: the candidates when the task began.
        kept_fraction: As for `keep_masks`.
        scope: As for `keep_masks`.
        erk_cap: As for `keep_masks`.

    Returns:
        One boolean array per layer, with the shape of its scores.
    """
    scores = list(scores)
    _check_numbers(scores, eligible)
    layers = list(zip(patterns, scores, eligible, strict=True))
    units = keep_masks(
        scores=[pattern.scores(score, mask) for pattern, score, mask in layers],
        eligible=[pattern.units(mask) for pattern, _, mask in layers],
        num_candidates=[int(np.count_nonzero(p.units(mask))) for p, mask in zip(patterns, uncommitted, strict=True)],
        kept_fraction=kept_fraction,
        scope=scope,
        erk_cap=min([erk_cap, *(pattern.densest for pattern in patterns)]),
        preferred=[p.preferred(s, m, axes) for (p, s, m), axes in zip(layers, input_axes, strict=True)],
    )
    return [pattern.weights(kept, mask.shape) & mask for (pattern, _, mask), kept in zip(layers, units, strict=True)]


def _keep_preferred_of(
    scores: Sequence[np.ndarray],
    eligible: Sequence[np.ndarray],
    preferred: Sequence[np.ndarray],
    count: int,
    key: Key,
) -> list[np.ndarray]:
    """Like `keep_largest_of`, but a score that is not in `preferred` is kept only if all of those are."""
    if all(mask_first is mask for mask_first, mask in zip(preferred, eligible, strict=True)):
        return keep_largest_of(scores, eligible, count, key)
    first = sum(int(np.count_nonzero(mask)) for mask in preferred)
    if count <= first:
        return keep_largest_of(scores, preferred, count, key)
    others = [mask & ~mask_first for mask, mask_first in zip(eligible, preferred, strict=True)]
    more = keep_largest_of(scores, others, count - first, key)
    return [one | other for one, other in zip(preferred, more, strict=True)]
