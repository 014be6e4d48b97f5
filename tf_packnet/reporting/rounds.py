"""When prune rounds took place and how much they pruned, for runs in which the validation loss decided it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tf_packnet.pruning.shares import AUTO


def rounds_in(history: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return the prune rounds of a stage: the epoch (0-based) that began with each, and the sparsity after it.

    Args:
        history: The logs of the stage by name, one value per epoch.
    """
    sparsity = [0.0, *history.get("sparsity", ())]
    return [
        {"epoch": epoch, "sparsity": after}
        for epoch, (before, after) in enumerate(zip(sparsity, sparsity[1:], strict=False))
        if after != before
    ]


def lines(results: Mapping[str, Any]) -> list[str]:
    """Describe the prune rounds of each task of a run; no lines unless `prune_rounds` is `auto`."""
    epochs = results["config"]["retrain_epochs"]
    return [
        f"Prune rounds  task {row['task']}: {row['rounds']}, halfway by epoch {row['halfway']}, "
        f"last in epoch {row['last round']} of {epochs}"
        for row in _rows(results)
    ]


def table(runs: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> pd.DataFrame:
    """Return the prune rounds of each setting and task, averaged over seeds; empty unless `prune_rounds` is `auto`.

    Args:
        runs: The content of each run's `results.json`.
        axes: The config fields in which settings differ.

    Returns:
        Columns: the axes, `task`, `rounds`, and two epochs (1-based): `halfway`, that of the first round after which at
            most the geometric mean of the initial and the final number of weights is left, and `last round`.
    """
    rows = [{**{name: run["config"][name] for name in axes}, **row} for run in runs for row in _rows(run)]
    keys = [*axes, "task"]
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index() if rows else pd.DataFrame()


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    if results["config"]["prune_rounds"] != AUTO:
        return []
    rows = []
    for number, rounds in enumerate(results.get("prune_rounds", ()), start=1):
        if not rounds:  # no round: the task had too few weights to release one
            continue
        halfway = math.sqrt(1.0 - rounds[-1]["sparsity"])
        epoch = next(each["epoch"] for each in rounds if 1.0 - each["sparsity"] <= halfway)
        last = rounds[-1]["epoch"]
        rows.append({"task": number, "rounds": len(rounds), "halfway": epoch + 1, "last round": last + 1})
    return rows
