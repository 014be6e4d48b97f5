"""When prune rounds took place and how much they pruned: of interest where the validation loss has decided it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    """Describe the rounds of each task of a run; no lines if their number was given."""
    return [
        f"Prune rounds  task {row['task']}: {row['rounds']}, half of the weights by epoch {row['half pruned']}, "
        f"the last in epoch {row['last round']} of {results['config']['retrain_epochs']}"
        for row in _rows(results)
    ]


def table(runs: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> pd.DataFrame:
    """Return the mean rounds of each setting and task over the seeds; empty if their numbers were given.

    Args:
        runs: The content of each run's `results.json`.
        axes: The config fields in which settings differ.

    Returns:
        Columns: the axes, `task`, `rounds`, and the epochs (1-based) of the round after which half of the candidates
        are pruned, and of the last round.
    """
    rows = [{**{name: run["config"][name] for name in axes}, **row} for run in runs for row in _rows(run)]
    keys = [*axes, "task"]
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index() if rows else pd.DataFrame()


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    if results["config"]["prune_rounds"] != AUTO:
        return []
    rows = []
    for number, rounds in enumerate(results.get("prune_rounds", ()), start=1):
        half = next((each["epoch"] for each in rounds if each["sparsity"] >= 0.5), np.nan)
        rows.append(
            {"task": number, "rounds": len(rounds), "half pruned": half + 1, "last round": rounds[-1]["epoch"] + 1}
        )
    return rows
