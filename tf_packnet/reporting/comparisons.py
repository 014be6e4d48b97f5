"""Compares settings over seeds: paired differences of their accuracies, with bootstrap intervals.

Runs with the same seed have the same data order and initial weights. The difference of two settings is therefore
computed seed by seed, and the interval comes from resampling the seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 9999


class Interval(NamedTuple):
    """A statistic with its bootstrap interval.

    Attributes:
        value: The statistic of all seeds.
        low: Lower end of the interval; NaN with a single seed.
        high: Upper end.
        seeds: Number of seeds.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __format__(self, spec: str) -> str:
        """Format all three numbers: `+0.12 [+0.01, +0.30]`."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def by_seed(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the average accuracy over the tasks, one row per setting and one column per seed; NaN if a run is missing.

    Args:
        frame: As `frames.tidy` returns it.
        axes: Columns that identify a setting.
    """
    averages = frame.groupby([*axes, "seed"], sort=False, dropna=False)["accuracy"].mean()
    return averages.unstack("seed").sort_index(axis=1)


def interval(accuracies: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Compute a statistic of the mean accuracies of several settings, and its percentile bootstrap interval.

    Args:
        accuracies: `(settings, seeds)`. Seeds with a missing accuracy are left out.
        statistic: Maps mean accuracies `(settings, samples)` to the statistic of each sample, `(samples,)`.
    """
    complete = accuracies[:, ~np.isnan(accuracies).any(axis=0)]
    seeds = complete.shape[1]
    if seeds == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    value = float(statistic(complete.mean(axis=1, keepdims=True))[0])
    if seeds == 1:
        return Interval(value, np.nan, np.nan, 1)

    def of_samples(*samples: np.ndarray, axis: int) -> np.ndarray:
        means = np.stack([sample.mean(axis) for sample in samples])
        return statistic(means.reshape(len(means), -1)).reshape(means.shape[1:])

    ends = stats.bootstrap(
        tuple(complete),
        of_samples,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high), seeds)


def difference(accuracies: pd.DataFrame, setting: Any, reference: Any) -> Interval:
    """Return the mean of the paired differences in accuracy, `setting` minus `reference`, of two rows of `by_seed`."""
    return interval(accuracies.loc[[reference, setting]].to_numpy(), lambda means: means[1] - means[0])


def differences(frame: pd.DataFrame, axes: Sequence[str], axis: str) -> pd.DataFrame:
    """Compare each setting with the one that has the first value of `axis` and agrees in all other axes.

    Args:
        frame: As `frames.tidy` returns it.
        axes: Columns that identify a setting.
        axis: One of `axes`.

    Returns:
        One row per setting that differs from its reference. Columns: the axes, `difference`, `low`, `high`, and `n`
        seeds; no rows with a single seed.
    """
    accuracies = by_seed(frame, axes)
    first = frame[axis].iloc[0]
    rows: list[Mapping[str, Any]] = []
    for setting in accuracies.index:
        values = dict(zip(axes, setting if isinstance(setting, tuple) else (setting,), strict=True))
        reference = tuple({**values, axis: first}[name] for name in axes)
        key = reference if isinstance(setting, tuple) else reference[0]
        if values[axis] == first or key not in accuracies.index:
            continue
        found = difference(accuracies, setting, key)
        if found.seeds > 1:
            rows.append({**values, "difference": found.value, "low": found.low, "high": found.high, "n": found.seeds})
    return pd.DataFrame(rows)
