"""Results as tidy tables: one row per run and task; means with standard errors over the seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tf_packnet.reporting import metrics
from tf_packnet.text import printable

SETTING = ["approach", "final_prune", "prune_rounds", "train_epochs", "retrain_epochs"]
MEASURES = [*metrics.MEASURES, "capacity_used"]


def tidy(runs: Sequence[dict[str, Any]], axes: Sequence[str], extra: Sequence[dict[str, Any]] = ()) -> pd.DataFrame:
    """Return a table with one row per run and task. All rows of a run repeat its measures of `metrics`.

    Args:
        runs: The content of each run's `results.json`.
        axes: Config fields to add to the columns of `SETTING`.
        extra: Further columns for each run.
    """
    columns = [*SETTING, *(axis for axis in axes if axis not in SETTING), "seed"]
    rows = []
    for run, more in zip(runs, extra or [{}] * len(runs), strict=True):
        setting = {name: _cell(run["config"][name]) for name in columns}
        when_learned = {len(row): row[-1] for row in run["accuracy"]}
        matrix, measures = metrics.matrix_in(run), metrics.measures(run)
        for index, task in enumerate(run["tasks"]):
            validation_rows = run["validation_accuracy"]
            rows.append(
                {
                    "dataset": _cell(run["config"]["dataset"]),
                    **more,
                    **setting,
                    "task": task["number"],
                    "task_name": _cell(task["name"]),
                    # `multinet` learns all tasks at once: one row, after the last task.
                    "accuracy_when_learned": when_learned.get(task["number"], run["accuracy"][-1][index]),
                    "accuracy": run["accuracy"][-1][index],
                    "validation_accuracy": validation_rows[-1][index] if validation_rows else None,
                    "weights_joined": run["weights"]["owned"][index],
                    "free_share": run["free_fraction"]["overall"],
                    "accuracy_untrained": None if matrix is None else matrix[0, index],
                    "accuracy_before": None if matrix is None else matrix[index, index],
                    **measures,
                }
            )
    return pd.DataFrame(rows)


def by_setting(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Average accuracy and error of each setting over the tasks of a run, then over the seeds.

    Returns:
        One row per setting, in order of appearance. Columns: the axes, `accuracy`, `error`, `standard_error` of the
        mean over seeds (the same for both; NaN for one seed), and `n` seeds.
    """
    keys = list(axes)
    averages = frame.groupby([*keys, "seed"], sort=False, dropna=False)["accuracy"].mean()
    if not keys:
        return pd.DataFrame([_statistics(averages.to_numpy())])
    rows = []
    for setting, group in averages.groupby(level=keys, sort=False, dropna=False):
        values = dict(zip(keys, setting if isinstance(setting, tuple) else (setting,), strict=True))
        rows.append({**values, **_statistics(group.to_numpy())})
    return pd.DataFrame(rows)


def _statistics(averages: np.ndarray) -> dict[str, Any]:
    mean = float(np.mean(averages))
    standard_error = float(stats.sem(averages)) if len(averages) > 1 else float("nan")
    return {"accuracy": mean, "error": 1.0 - mean, "standard_error": standard_error, "n": len(averages)}


def measures_by_setting(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return the measures of `metrics` for each setting, averaged over the seeds; NaN if a run lacks one."""
    runs = frame.drop_duplicates([*axes, "seed"])
    runs = runs.astype(dict.fromkeys(MEASURES, float))
    grouped = runs.groupby(list(axes), sort=False, dropna=False)[MEASURES]
    return grouped.agg(lambda values: values.mean(skipna=False)).reset_index()


def per_task(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return mean accuracy and its standard error over seeds, for each setting and task."""
    grouped = frame.groupby([*axes, "task", "task_name"], sort=False)["accuracy"]
    return grouped.agg(accuracy="mean", standard_error=lambda values: _statistics(values.to_numpy())["standard_error"])


def _cell(value: Any) -> Any:
    """Convert a value for a cell: lists become text, and text becomes printable (pandas accepts no lone surrogates)."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return printable(value) if isinstance(value, str) else value
