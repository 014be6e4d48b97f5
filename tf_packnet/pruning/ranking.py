"""Which candidates a prune round keeps: exact counts, ties broken by index, in three scopes.

Scores are magnitudes. A scope says how the count is shared between the layers:

- `layer`: every layer keeps the same fraction of its candidates (Mallya & Lazebnik 2018).
- `global`: one ranking over all layers.
- `erk`: layer densities after Erdos-Renyi-Kernel (Evci et al. 2020, "Rigging the Lottery", section 3): the density of a
  layer is proportional to `sum(shape) / prod(shape)`, so that small layers keep more at the same overall fraction.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from tf_packnet.errors import DivergedError, check_choice
from tf_packnet.pruning.policies import PRUNE_SCOPES
from tf_packnet.pruning.selection import Key, above_threshold, any_nan, nth_largest
from tf_packnet.pruning.shares import remaining


def keep_largest(scores: np.ndarray, eligible: np.ndarray, count: int, key: Key = np.asarray) -> np.ndarray:
    """Boolean mask of the `count` largest `scores` among the `eligible`; of equal scores the lower index stays.

    Selects, does not sort: see `tf_packnet.pruning.selection`.

    Args:
        scores: Float array of any shape; higher is more worth keeping.
        eligible: Boolean array of the same shape.
        count: How many to keep, 0 to the number of eligible ones.
        key: Applied to the scores chunk by chunk, such as `np.abs`: no copy of them all is made.

    Raises:
        ValueError: If `count` is out of range.
        DivergedError: If an eligible score is not a number.
    """
    (mask,) = keep_largest_of([scores], [eligible], count, key)
    return mask


def keep_largest_of(
    scores: Sequence[np.ndarray], eligible: Sequence[np.ndarray], count: int, key: Key = np.asarray
) -> list[np.ndarray]:
    """As `keep_largest`, in one ranking over several arrays; of equal scores those of the earlier array stay."""
    available = sum(int(np.count_nonzero(mask)) for mask in eligible)
    if not 0 <= count <= available:
        raise ValueError(f"`count` must lie between 0 and the {available} eligible scores. Received: count={count}")
    if any_nan(scores, eligible):
        raise DivergedError(
            "cannot rank weights that are not a number (NaN): the training has diverged. Try a smaller learning rate"
        )
    if count == 0:
        return [np.zeros(mask.shape, bool) for mask in eligible]
    if count == available:
        return [np.array(mask, bool) for mask in eligible]
    threshold, above = nth_largest(scores, eligible, count, key)
    return above_threshold(scores, eligible, threshold, count - above, key)


def erk_densities(
    shapes: Sequence[tuple[int, ...]], counts: Sequence[int], density: float, cap: float = 1.0
) -> np.ndarray:
    """Erdos-Renyi-Kernel densities of layers that together keep `density` of their candidates.

    A layer that would exceed `cap` is set to it, and the others share what is then left (RigL's own loop).

    Args:
        shapes: Kernel shapes.
        counts: Candidates of each layer.
        density: Fraction of all candidates to keep.
        cap: The highest density a layer may get. A task that takes at most `1 / tasks left` of each layer leaves room
            for the later ones; RigL, with one task, has 1.

    Returns:
        Float array, one density a layer, in [0, 1].
    """
    counts = np.asarray(counts, float)
    if density >= cap:  # no room to favour anyone
        return np.full(len(counts), density)
    raw = np.array([sum(shape) / np.prod(shape, dtype=float) for shape in shapes])
    capped = np.zeros(len(counts), bool)
    while True:
        weight = (raw * counts)[~capped].sum()
        wanted = density * counts.sum() - cap * counts[capped].sum()
        scale = wanted / weight if weight else 0.0
        over = ~capped & (scale * raw > cap)
        if not over.any():
            return np.where(capped, cap, scale * raw)
        capped |= over


def counts_to_keep(
    shapes: Sequence[tuple[int, ...]],
    left: Sequence[int],
    num_candidates: Sequence[int],
    kept_fraction: float,
    scope: str,
    erk_cap: float = 1.0,
) -> list[int]:
    """How many weights each layer keeps in a prune round of scope `layer` or `erk`.

    Args:
        shapes: Kernel shapes.
        left: Candidates of each layer that are left.
        num_candidates: Candidates of each layer when the task began.
        kept_fraction: Share of `num_candidates` that is left after this round.
        scope: `layer` or `erk`.
        erk_cap: See `erk_densities`.
    """
    densities = np.full(len(left), kept_fraction)
    if scope == "erk":
        densities = erk_densities(shapes, num_candidates, kept_fraction, erk_cap)
    # A schedule never asks for more than is left, but a user's own may: nothing that was pruned comes back.
    return [min(n, remaining(c, float(d))) for n, c, d in zip(left, num_candidates, densities, strict=True)]


def keep_masks(
    scores: Iterable[np.ndarray],
    eligible: Sequence[np.ndarray],
    num_candidates: Sequence[int],
    kept_fraction: float,
    scope: str = "layer",
    erk_cap: float = 1.0,
    key: Key = np.asarray,
) -> list[np.ndarray]:
    """One prune round over all layers: what to keep of the `eligible` weights.

    Args:
        scores: One array a layer, higher is more worth keeping. They may be made one by one: only `global` holds all.
        eligible: Boolean arrays of the same shapes: the candidates that are left.
        num_candidates: Candidates of each layer when the task began (not what is left of them).
        kept_fraction: Share of `num_candidates` that is left after this round.
        scope: `layer`, `global` or `erk`.
        erk_cap: See `erk_densities`.
        key: See `keep_largest`.

    Returns:
        One boolean array a layer. With `layer`, layer `l` keeps exactly `round(num_candidates[l] * kept_fraction)`;
        with `global` that holds for the sum; with `erk` it holds for each layer with its own density.

    Raises:
        ArgumentError: If `scope` is unknown.
    """
    check_choice("prune_scope", scope, PRUNE_SCOPES)
    left = [int(np.count_nonzero(mask)) for mask in eligible]
    if scope == "global":
        count = min(sum(left), remaining(sum(num_candidates), kept_fraction))
        return keep_largest_of(list(scores), eligible, count, key)
    counts = counts_to_keep([mask.shape for mask in eligible], left, num_candidates, kept_fraction, scope, erk_cap)
    return [keep_largest(s, e, n, key) for s, e, n in zip(scores, eligible, counts, strict=True)]
