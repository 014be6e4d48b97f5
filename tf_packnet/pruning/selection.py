"""Exact selection in linear time and little memory: the n-th largest of many millions of scores, without a sort.

Floyd and Rivest's idea ("Expected time bounds for selection", 1975): a sample says between which two values the wanted
one must lie, one pass counts what is above them and collects the little in between, and only that is partitioned. All
passes go chunk by chunk, so that nothing as large as the scores is ever made.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

CHUNK = 2**20
SAMPLE = 2**16
# Standard deviations of the sampled rank between the guess and either bound: 1 miss in 10^9 on random data. A miss
# costs time, never exactness.
_MARGIN = 6.0

Arrays = Sequence[np.ndarray]
Key = Callable[[np.ndarray], np.ndarray]


def nth_largest(scores: Arrays, eligible: Arrays, count: int, key: Key = np.asarray) -> tuple[float, int]:
    """The `count`-th largest of the eligible scores, over all arrays together.

    Args:
        scores: Float arrays without NaN where eligible.
        eligible: Boolean arrays of the same shapes.
        count: 1 to the number of eligible scores.
        key: Applied to every chunk of scores before it is looked at, such as `np.abs`.

    Returns:
        The value, and how many eligible scores are larger than it (fewer than `count`).
    """
    low, high = _bounds(scores, eligible, count, key)
    above, between = _split(scores, eligible, low, high, key)
    if not above < count <= above + between.size:  # the sample misled
        above, between = _split(scores, eligible, -np.inf, np.inf, key)
    place = between.size - (count - above)
    threshold = np.partition(between, place)[place]
    return threshold, above + int(np.count_nonzero(between > threshold))


def above_threshold(
    scores: Arrays, eligible: Arrays, threshold: float, ties: int, key: Key = np.asarray
) -> list[np.ndarray]:
    """Masks of the eligible scores above `threshold`, and of the first `ties` that equal it."""
    masks = [np.zeros(mask.shape, bool) for mask in eligible]
    for (values, chosen), (mask,) in zip(_chunks(scores, eligible), _chunks(masks), strict=True):
        values = key(values)
        np.greater(values, threshold, out=mask)
        mask &= chosen
        if ties:
            equal = np.flatnonzero((values == threshold) & chosen)[:ties]
            mask[equal] = True
            ties -= equal.size
    return masks


def any_nan(scores: Arrays, eligible: Arrays) -> bool:
    """Whether an eligible score is not a number."""
    # A sum is NaN if a term is, or if both infinities are in it: only then a closer look is needed.
    with np.errstate(invalid="ignore", over="ignore"):
        suspects = [(values, chosen) for values, chosen in _chunks(scores, eligible) if np.isnan(np.sum(values))]
    return any(bool(np.isnan(values[chosen]).any()) for values, chosen in suspects)


def _bounds(scores: Arrays, eligible: Arrays, count: int, key: Key) -> tuple[float, float]:
    """Two values between which the wanted one lies, very probably."""
    total = sum(mask.size for mask in eligible)
    stride = max(1, total // SAMPLE)
    parts = [(s.reshape(-1)[::stride], e.reshape(-1)[::stride]) for s, e in zip(scores, eligible, strict=True)]
    sample = np.sort(np.concatenate([key(values[chosen]) for values, chosen in parts]))[::-1]
    eligible_count = sum(int(np.count_nonzero(mask)) for mask in eligible)
    share = count / eligible_count
    rank, spread = share * sample.size, _MARGIN * np.sqrt(share * (1 - share) * sample.size) + 1
    first, last = int(rank - spread), int(np.ceil(rank + spread))
    return (
        sample[last] if last < sample.size else -np.inf,
        sample[first] if 0 <= first < sample.size else np.inf,
    )


def _split(scores: Arrays, eligible: Arrays, low: float, high: float, key: Key) -> tuple[int, np.ndarray]:
    """How many eligible scores are above `high`, and those from `low` to `high`."""
    above, between = 0, []
    for values, chosen in _chunks(scores, eligible):
        values = key(values)
        larger = values > high
        larger &= chosen
        above += int(np.count_nonzero(larger))
        inside = values >= low
        inside &= chosen
        inside &= ~larger
        between.append(values[inside])
    return above, np.concatenate(between)


def _chunks(*groups: Arrays) -> Iterator[tuple[np.ndarray, ...]]:
    """Corresponding pieces of corresponding arrays, flat, as views."""
    for arrays in zip(*groups, strict=True):
        flat = [array.reshape(-1) for array in arrays]
        for start in range(0, flat[0].size, CHUNK):
            yield tuple(array[start : start + CHUNK] for array in flat)
