"""The claims of the paper about its figures, and whether the runs of an experiment support them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tf_packnet.reporting.comparisons import CONFIDENCE, Interval, by_seed, interval

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
# With fewer seeds, a bootstrap interval says little.
MIN_SEEDS = 5

_AXES = ["final_prune", "prune_rounds"]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds.

    Attributes:
        claim: The claim.
        verdict: `HOLDS`, `FAILS` or `UNKNOWN`.
        evidence: The numbers behind the verdict, as part of a sentence.
    """

    claim: str
    verdict: str
    evidence: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        return {"claim": self.claim, "verdict": self.verdict, "evidence": self.evidence}

    def sentence(self) -> str:
        """Return the finding for the report."""
        return f"The paper: {self.claim}. Here this {self.verdict}: {self.evidence}."


def about_rounds(frame: pd.DataFrame, dataset: str) -> list[Verdict]:
    """Check the claims about figure 2, accuracy by `N` with a fixed retraining budget.

    Args:
        frame: PackNet's runs at several `p` and `N`, as `frames.tidy` returns them.
        dataset: Name of the data set.
    """
    prunes, rounds = sorted(set(frame["final_prune"])), sorted(set(frame["prune_rounds"]))
    accuracies = by_seed(frame, _AXES)
    complete = len(accuracies) == len(prunes) * len(rounds)
    verdicts = []
    if complete and len(prunes) > 1 and len(rounds) > 1:
        verdicts.append(_matters_most_at_the_highest(accuracies, prunes, rounds))
    if complete and len(rounds) > 2:
        verdicts.append(_drop_then_better(accuracies, prunes[-1], rounds))
    if complete and len(rounds) > 1 and rounds[0] == 1 and dataset == "cifar10":
        verdicts.extend(_one_shot_is_best(accuracies, p, rounds) for p in prunes)
    return verdicts


def about_compression(compressions: Sequence[tuple[str, Interval]]) -> Verdict | None:
    """Check the claim about table 1: at best, freezing needs over twice as many weights.

    Args:
        compressions: Name and compression of each match.
    """
    if not compressions:
        return None
    name, best = max(compressions, key=lambda each: each[1].value)
    claim = "freezing can need over twice as many weights for the same accuracy"
    return Verdict(claim, _judge([best], threshold=2.0), f"{best:.2f} times as many at best ({name}, {_seeds(best)})")


def _matters_most_at_the_highest(accuracies: pd.DataFrame, prunes: list[float], rounds: list[int]) -> Verdict:
    table = accuracies.loc[[(p, n) for p in prunes for n in rounds]].to_numpy()

    def lead(means: np.ndarray) -> np.ndarray:
        ranges = np.ptp(means.reshape(len(prunes), len(rounds), -1), axis=1)
        return 100 * (ranges[-1] - ranges[:-1].max(axis=0))

    found = interval(table, lead)
    evidence = (
        f"the range of accuracies over N is {found:.2f} percentage points larger at p = {prunes[-1]:g} than at any "
        f"other p ({_seeds(found)})"
    )
    return Verdict("the number of prune rounds matters most at the highest p", _judge([found]), evidence)


def _drop_then_better(accuracies: pd.DataFrame, p: float, rounds: list[int]) -> Verdict:
    table = accuracies.loc[[(p, n) for n in rounds]].to_numpy()
    drop = interval(table, lambda means: 100 * (means[0] - means[1]))
    rise = interval(table, lambda means: 100 * (means[2:].max(axis=0) - means[1]))
    evidence = (
        f"at p = {p:g} the accuracy falls by {drop:.2f} percentage points from N = {rounds[0]} to {rounds[1]}, and "
        f"then rises by up to {rise:.2f} ({_seeds(drop)})"
    )
    return Verdict("with more prune rounds the accuracy first drops and then improves", _judge([drop, rise]), evidence)


def _one_shot_is_best(accuracies: pd.DataFrame, p: float, rounds: list[int]) -> Verdict:
    table = accuracies.loc[[(p, n) for n in rounds]].to_numpy()
    lead = interval(table, lambda means: 100 * (means[0] - means[1:].max(axis=0)))
    evidence = f"the accuracy at N = 1 minus that at the best other N is {lead:+.2f} percentage points ({_seeds(lead)})"
    return Verdict(f"one-shot pruning is best on CIFAR-10 (p = {p:g})", _judge([lead]), evidence)


def _judge(intervals: Sequence[Interval], threshold: float = 0.0) -> str:
    """Judge a claim that all statistics are larger than a threshold."""
    if min(each.seeds for each in intervals) < MIN_SEEDS:
        return UNKNOWN
    if all(each.low > threshold for each in intervals):
        return HOLDS
    return FAILS if any(each.high < threshold for each in intervals) else UNKNOWN


def _seeds(found: Interval) -> str:
    few = f", at least {MIN_SEEDS} are needed" if found.seeds < MIN_SEEDS else ""
    return f"{found.seeds} seed{'s' if found.seeds != 1 else ''}{few}; in brackets {CONFIDENCE:.0%} intervals"
