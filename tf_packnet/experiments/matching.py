"""The matching experiment (appendix B): how much further the bounds can be pruned before they are as bad as PackNet.

For each `p`, and each of Memory and Multinet, the pruning is sought at which their average accuracy is PackNet's at
`p`. Seeds are fixed, so that what is minimised is a function of the pruning alone; every evaluation is kept.
"""

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize

from tf_packnet.experiments.definitions import Experiment
from tf_packnet.runs.config import Config

if TYPE_CHECKING:
    from tf_packnet.experiments.executor import Runs
    from tf_packnet.experiments.workers import Outcome

BOUNDS = ("memory", "multinet")
# Compression is sought on a logarithmic scale, from half as many weights saved to sixteen times.
LOG2_COMPRESSION = (-1.0, 4.0)
LOG2_TOLERANCE = 0.05
# Average accuracies that differ by less are called equal: 0.1 points.
REACHED = 0.001


@dataclass
class Match:
    """What was found for one `p`: PackNet's runs (without `evaluations`), or the search of one bound.

    Attributes:
        final_prune: PackNet's `p`.
        approach: Whose pruning was sought; `packnet` for the runs to be matched.
        target: PackNet's mean accuracy at `p`; None if its runs failed.
        evaluations: One dict each: `final_prune`, `compression`, `accuracy`, in the order they were asked for.
        outcomes: All runs behind it.
    """

    final_prune: float
    approach: str
    target: float | None
    evaluations: list[dict[str, float]]
    outcomes: "list[Outcome]"

    @property
    def best(self) -> dict[str, float] | None:
        """The evaluation closest to the target; of equals the one that compresses most."""
        if not self.evaluations:
            return None
        return min(self.evaluations, key=lambda each: (abs(each["accuracy"] - self.target), -each["compression"]))

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        best = self.best
        gap = best["accuracy"] - self.target
        return {
            "final_prune": self.final_prune,
            "approach": self.approach,
            "target": self.target,
            "matched_prune": best["final_prune"],
            "accuracy": best["accuracy"],
            "gap": gap,
            "compression": best["compression"],
            "reached": abs(gap) <= REACHED,
            "evaluations": self.evaluations,
        }


def match_all(experiment: Experiment, runs: "Runs") -> list[Match]:
    """PackNet at every `p` of the experiment, and the matching of both bounds to each, side by side."""
    prunes = experiment.axes["final_prune"]
    for config in experiment.configs:
        runs.submit(config)
    with ThreadPoolExecutor(len(prunes) * (1 + len(BOUNDS))) as threads:
        wanted = [(p, approach) for p in prunes for approach in ("packnet", *BOUNDS)]
        try:
            return list(threads.map(lambda one: _match(experiment, runs, *one), wanted))
        except BaseException:  # interrupted: the threads would wait for runs that never come
            runs.close()
            raise


def compression(final_prune: float, matched_prune: float) -> float:
    """How many times fewer weights are used at `matched_prune` than at `final_prune`."""
    return (1.0 - final_prune) / (1.0 - matched_prune)


def _match(experiment: Experiment, runs: "Runs", final_prune: float, approach: str) -> Match:
    target, outcomes = _evaluate(experiment, runs, "packnet", final_prune)
    if approach == "packnet" or target is None:
        return Match(final_prune, approach, target, [], outcomes if approach == "packnet" else [])
    found = Match(final_prune, approach, target, [], [])

    def difference(log2_compression: float) -> float:
        # Rounded, so that the setting can be written down and asked for again.
        prune = round(1.0 - (1.0 - final_prune) / 2.0**log2_compression, 6)
        accuracy, its_outcomes = _evaluate(experiment, runs, approach, prune)
        found.outcomes.extend(its_outcomes)
        if accuracy is None:
            raise _FailedEvaluation
        ratio = compression(final_prune, prune)
        found.evaluations.append({"final_prune": prune, "compression": ratio, "accuracy": accuracy})
        return (accuracy - target) ** 2

    options = {"xatol": LOG2_TOLERANCE, "maxiter": experiment.evaluations}
    with contextlib.suppress(_FailedEvaluation):  # its runs are among the failed ones
        optimize.minimize_scalar(difference, bounds=LOG2_COMPRESSION, method="bounded", options=options)
    return found


def _evaluate(
    experiment: Experiment, runs: "Runs", approach: str, final_prune: float
) -> "tuple[float | None, list[Outcome]]":
    """Mean accuracy over the seeds, None if a run failed; and the runs."""
    outcomes = runs.get([setting(experiment.base, approach, final_prune, seed) for seed in experiment.seeds])
    if any(outcome.results is None for outcome in outcomes):
        return None, outcomes
    return float(np.mean([outcome.results["average_accuracy"] for outcome in outcomes])), outcomes


def setting(base: Config, approach: str, final_prune: float, seed: int) -> Config:
    """One run of the matching."""
    return dataclasses.replace(base, approach=approach, final_prune=final_prune, seed=seed)


class _FailedEvaluation(Exception):  # noqa: N818  it carries no message: it only ends a search
    """A run of an evaluation failed."""
