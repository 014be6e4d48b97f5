"""Exact selection of the n-th largest of millions of scores, in linear time, with little memory, without sorting.

After Floyd and Rivest, "Expected time bounds for selection" (1975): a random sample gives two bounds around the wanted
value; one pass counts the scores above the bounds and collects those between them; only these are partitioned. All
passes work on chunks, so that no temporary array is as large as the scores.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

CHUNK = 2**20
SAMPLE = 2**16
# Distance of each bound from the expected rank in the sample, in standard deviations. On random data, the wanted value
# lies outside the bounds once in 10^9 calls; a slower exact pass then finds it.
_MARGIN = 6.0

Arrays = Sequence[np.ndarray]
Key = Callable[[np.ndarray], np.ndarray]


def nth_largest(scores: Arrays, eligible: Arrays, count: int, key: Key = np.asarray) -> tuple[float, int]:
    """Find the `count`-th largest of the eligible scores over all arrays.

    Args:
        scores: Float arrays without NaN where eligible.
        eligible: Boolean arrays of the same shapes.
        count: Rank of the wanted score, from 1 to the number of eligible scores.
        key: Function applied to every chunk of scores before comparison, such as `np.abs`.

    Returns:
        The value, and the number of eligible scores that are larger than it (less than `count`).
    """
    low, high = _bounds(scores, eligible, count, key)
    above, between = _split(scores, eligible, low, high, key)
    if not above < count <= above + between.size:  # the wanted value is outside the bounds
        above, between = _split(scores, eligible, -np.inf, np.inf, key)
    index = between.size - (count - above)
    threshold = np.partition(between, index)[index]
    return threshold, above + int(np.count_nonzero(between > threshold))


def above_threshold(
    scores: Arrays, eligible: Arrays, threshold: float, ties: int, key: Key = np.asarray
) -> list[np.ndarray]:
    """Return masks of the eligible scores above `threshold` and of the first `ties` scores that equal it."""
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
    """Return whether an eligible score is NaN."""
    # A sum is NaN if a term is NaN, or if it contains both infinities: only such chunks are searched.
    with np.errstate(invalid="ignore", over="ignore"):
        suspects = [(values, chosen) for values, chosen in _chunks(scores, eligible) if np.isnan(np.sum(values))]
    return any(bool(np.isnan(values[chosen]).any()) for values, chosen in suspects)


def _bounds(scores: Arrays, eligible: Arrays, count: int, key: Key) -> tuple[float, float]:
    """Return two values between which the `count`-th largest score very probably lies."""
    total = sum(mask.size for mask in eligible)
    stride = max(1, total // SAMPLE)
    parts = [(s.reshape(-1)[::stride], e.reshape(-1)[::stride]) for s, e in zip(scores, eligible, strict=True)]
    sample = np.sort(np.concatenate([key(values[chosen]) for values, chosen in parts]))[::-1]
    eligible_count = sum(int(np.count_nonzero(mask)) for mask in eligible)
    fraction = count / eligible_count
    rank, spread = fraction * sample.size, _MARGIN * np.sqrt(fraction * (1 - fraction) * sample.size) + 1
    first, last = int(rank - spread), int(np.ceil(rank + spread))
    return (
        sample[last] if last < sample.size else -np.inf,
        sample[first] if first >= 0 else np.inf,
    )


def _split(scores: Arrays, eligible: Arrays, low: float, high: float, key: Key) -> tuple[int, np.ndarray]:
    """Return the number of eligible scores above `high`, and the scores from `low` to `high`."""
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
    """Yield corresponding flat chunks of corresponding arrays, as views."""
    for arrays in zip(*groups, strict=True):
        flat = [array.reshape(-1) for array in arrays]
        for start in range(0, flat[0].size, CHUNK):
            yield tuple(array[start : start + CHUNK] for array in flat)
