"""Fits a monotone curve through the evaluations of a matching, and reads the matching compression from it.

A bound that is pruned further has a lower accuracy on average, but the mean over a few seeds is noisy. The fitted curve
is the non-increasing one with the least squared error (isotonic regression), linear between the evaluations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from tf_packnet.reporting.comparisons import Interval, interval

# How many times larger the largest compression within the tolerance may be than the smallest, before the curve is
# called flat: then the match is no well-defined point.
_FLAT = 2.0


class MatchCurve(NamedTuple):
    """The fitted curve of one search.

    Attributes:
        compression: Compression at which the curve falls below the target, with its bootstrap interval over the seeds.
            Within the range of the evaluations.
        reaches: Whether the curve crosses the target within that range.
        points: Compression and fitted accuracy of each evaluation, by compression.
        within: Smallest and largest compression at which the curve is within the tolerance of the target; None if
            there is none.
    """

    compression: Interval
    reaches: bool
    points: list[tuple[float, float]]
    within: tuple[float, float] | None

    @property
    def is_flat(self) -> bool:
        """Whether the accuracy hardly depends on the compression near the target."""
        return self.within is not None and self.within[1] > _FLAT * self.within[0]


def fit(compressions: Sequence[float], accuracies: np.ndarray, target: np.ndarray, tolerance: float) -> MatchCurve:
    """Fit the curve of a search.

    Args:
        compressions: That of each evaluation, `(evaluations,)`.
        accuracies: Average accuracies, `(evaluations, seeds)`.
        target: Average accuracies to match, `(seeds,)`.
        tolerance: Difference in accuracy at which a match is reached.
    """
    logarithms, first = np.unique(np.log2(compressions), return_index=True)
    accuracies = accuracies[first]

    def crossings(means: np.ndarray) -> np.ndarray:
        return np.array([2.0 ** _crossing(logarithms, _monotone(each[1:]), each[0]) for each in means.T])

    curve, mean_target = _monotone(accuracies.mean(axis=1)), float(target.mean())
    return MatchCurve(
        interval(np.vstack([target, accuracies]), crossings),
        bool(curve[0] >= mean_target > curve[-1]),
        [(float(2.0**logarithm), float(accuracy)) for logarithm, accuracy in zip(logarithms, curve, strict=True)],
        _range_within(logarithms, curve, mean_target, tolerance),
    )


def _monotone(accuracies: np.ndarray) -> np.ndarray:
    return optimize.isotonic_regression(accuracies, increasing=False).x


def _crossing(x: np.ndarray, curve: np.ndarray, target: float) -> float:
    """Return the largest `x` at which a non-increasing curve is at least `target`; the first one if it never is."""
    reached = np.flatnonzero(curve >= target)
    if len(reached) == 0:
        return float(x[0])
    last = reached[-1]
    if last == len(x) - 1:
        return float(x[-1])
    share = (curve[last] - target) / (curve[last] - curve[last + 1])
    return float(x[last] + share * (x[last + 1] - x[last]))


def _range_within(x: np.ndarray, curve: np.ndarray, target: float, tolerance: float) -> tuple[float, float] | None:
    if curve[0] < target - tolerance or curve[-1] > target + tolerance:
        return None
    # From the largest x at which the curve is above the tolerance to the largest at which it is not below it.
    low = _crossing(x, curve, target + tolerance)
    return float(2.0**low), float(2.0 ** _crossing(x, curve, target - tolerance))
