"""The matching experiment (appendix B of the paper): how far the baselines can be pruned to match PackNet's accuracy.

For each `p`, and each of Memory and Multinet, it searches for the `final_prune` at which the baseline's mean accuracy
equals PackNet's at `p`. Seeds are fixed, so the accuracy depends on `final_prune` alone. All evaluations are kept.
"""

import contextlib
import dataclasses
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize

from tf_packnet.experiments.definitions import Experiment
from tf_packnet.experiments.match_curve import MatchCurve, fit
from tf_packnet.experiments.named import BASELINES
from tf_packnet.runs.config import Config

if TYPE_CHECKING:
    from tf_packnet.experiments.executor import ExperimentRuns
    from tf_packnet.experiments.worker import FinishedRun

# The search interval for log2 of the compression: from twice as many weights as PackNet to a sixteenth.
LOG2_COMPRESSION = (-1.0, 4.0)
LOG2_TOLERANCE = 0.05
# A match is reached if the average accuracies differ by this at most: 0.1 percentage points.
REACHED = 0.001


@dataclass
class Match:
    """The search of one baseline at one `p`; or PackNet's runs at `p`, which have no `evaluations`.

    Attributes:
        final_prune: PackNet's `p`.
        approach: The baseline; `packnet` for the runs to match.
        targets: PackNet's accuracies at `p`, one per seed; None if a run failed.
        evaluations: One dict per evaluation, in order: `final_prune`, `compression`, `accuracy`, and `by_seed`, the
            accuracies of which it is the mean.
        runs: All runs of the search.
    """

    final_prune: float
    approach: str
    targets: list[float] | None
    evaluations: list[dict[str, Any]]
    runs: "list[FinishedRun]"

    @property
    def target(self) -> float | None:
        """PackNet's mean accuracy at `p`; None if a run failed."""
        return None if self.targets is None else float(np.mean(self.targets))

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation closest to the target; among equals the one with the highest compression."""
        target = self.target
        if target is None or not self.evaluations:
            return None
        return min(self.evaluations, key=lambda each: (abs(each["accuracy"] - target), -each["compression"]))

    @property
    def curve(self) -> MatchCurve | None:
        """The curve through the evaluations; None with fewer than two."""
        if self.targets is None or len(self.evaluations) < 2:
            return None
        accuracies = np.array([each["by_seed"] for each in self.evaluations])
        compressions = [each["compression"] for each in self.evaluations]
        return fit(compressions, accuracies, np.array(self.targets), REACHED)

    def to_json(self) -> dict[str, Any] | None:
        """Return the content of `summary.json`; None without evaluations."""
        best, target = self.best, self.target
        if best is None or target is None:
            return None
        gap, curve = best["accuracy"] - target, self.curve
        fitted = curve and {
            "compression": curve.compression.value,
            "interval": [_finite(curve.compression.low), _finite(curve.compression.high)],
            "reaches": curve.reaches,
            "within": curve.within and list(curve.within),
            "flat": curve.is_flat,
            "points": [list(point) for point in curve.points],
        }
        return {
            "final_prune": self.final_prune,
            "approach": self.approach,
            "target": target,
            "matched_prune": best["final_prune"],
            "accuracy": best["accuracy"],
            "gap": gap,
            "compression": best["compression"],
            "reached": abs(gap) <= REACHED,
            "evaluations": self.evaluations,
            "fitted": fitted,
        }


def match_all(
    experiment: Experiment, runs: "ExperimentRuns", chosen: Collection[tuple[float, str]] | None = None
) -> list[Match]:
    """Do PackNet's runs at every `p`, and search matches for both baselines, in parallel.

    Args:
        experiment: The experiment.
        runs: Does the runs.
        chosen: The searches to do, `(p, baseline)`, with PackNet's runs at their `p`; default: all.
    """
    chosen = [(p, name) for p in experiment.axes["final_prune"] for name in BASELINES] if chosen is None else chosen
    prunes = list(dict.fromkeys(p for p, _ in chosen))
    for config in experiment.configs:
        if config.final_prune in prunes:
            runs.submit(config)
    searches = [
        (p, name) for p in prunes for name in ("packnet", *BASELINES) if name == "packnet" or (p, name) in chosen
    ]
    with ThreadPoolExecutor(max(1, len(searches))) as threads:
        try:
            return list(threads.map(lambda search: _match(experiment, runs, *search), searches))
        except BaseException:  # interrupted: else the threads would wait for runs that never finish
            runs.close()
            raise


def compression(final_prune: float, matched_prune: float) -> float:
    """Return how many times fewer weights are used at `matched_prune` than at `final_prune`."""
    return (1.0 - final_prune) / (1.0 - matched_prune)


def _match(experiment: Experiment, runs: "ExperimentRuns", final_prune: float, approach: str) -> Match:
    targets, packnet_runs = _evaluate(experiment, runs, "packnet", final_prune)
    if approach == "packnet" or targets is None:
        return Match(final_prune, approach, targets, [], packnet_runs if approach == "packnet" else [])
    match, target = Match(final_prune, approach, targets, [], []), np.mean(targets)

    def squared_gap(log2_compression: float) -> float:
        # Rounded, so that a user can repeat the run with a short --final_prune.
        prune = round(1.0 - (1.0 - final_prune) / 2.0**log2_compression, 6)
        accuracies, evaluated_runs = _evaluate(experiment, runs, approach, prune)
        match.runs.extend(evaluated_runs)
        if accuracies is None:
            raise _FailedEvaluation
        ratio, accuracy = compression(final_prune, prune), float(np.mean(accuracies))
        evaluation = {"final_prune": prune, "compression": ratio, "accuracy": accuracy, "by_seed": accuracies}
        match.evaluations.append(evaluation)
        return (accuracy - target) ** 2

    options = {"xatol": LOG2_TOLERANCE, "maxiter": experiment.evaluations}
    with contextlib.suppress(_FailedEvaluation):  # reported with the failed runs
        optimize.minimize_scalar(squared_gap, bounds=LOG2_COMPRESSION, method="bounded", options=options)
    return match


def _evaluate(
    experiment: Experiment, runs: "ExperimentRuns", approach: str, final_prune: float
) -> "tuple[list[float] | None, list[FinishedRun]]":
    """Return the accuracy of each seed, None if a run failed; and the runs."""
    finished = runs.get([setting(experiment.base, approach, final_prune, seed) for seed in experiment.seeds])
    accuracies = [run.results["average_accuracy"] for run in finished if run.results is not None]
    return (accuracies if len(accuracies) == len(finished) else None), finished


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def setting(base: Config, approach: str, final_prune: float, seed: int) -> Config:
    """Return the config of one run of the matching."""
    return dataclasses.replace(base, approach=approach, final_prune=final_prune, seed=seed)


class _FailedEvaluation(Exception):  # noqa: N818  not an error to report: it only ends a search
    """A run of an evaluation failed."""
