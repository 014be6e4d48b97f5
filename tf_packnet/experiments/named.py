"""The experiments with a name: the paper's figures and table, with its values, and `sweep`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tf_packnet.pruning.shares import rounds_that_divide
from tf_packnet.runs.config import Config
from tf_packnet.runs.method_options import APPROACHES

# The paper's p for its two networks: MNIST with the fully connected one, CIFAR-10 with the convolutional one. Other
# networks get those of the convolutional one.
PAPER_PRUNES = {"mlp": (0.95, 0.99, 0.995), "conv": (0.8, 0.9, 0.95)}

# The approaches that a matching experiment compares with PackNet.
BASELINES = ("memory", "multinet")

Values = Callable[[Config], Sequence[Any]]


@dataclass(frozen=True)
class NamedExperiment:
    """What an experiment varies, and how its report presents it.

    Attributes:
        help: What it shows, in the help of `--experiment`.
        title: Title of its report.
        lead: First paragraph of its report.
        varies: The config fields that it varies, in the order of its tables, each with a function that returns the
            default values for a base config.
        seeds: Default number of seeds.
        x: The field on the x axis of its figure. Default: the field with the most values.
        curve: The field with one curve per value. Default: all other fields that vary.
        reference: The field whose first value the others are compared with. Default: `x`.
        matching: Whether it searches the `p` at which the bounds are as accurate as PackNet.
        budget_per_round: Whether each prune round is followed by `retrain_epochs` epochs. Otherwise all rounds share
            them.
    """

    help: str
    title: str
    lead: str
    varies: Mapping[str, Values]
    seeds: int = 5
    x: str | None = None
    curve: str | None = None
    reference: str | None = None
    matching: bool = False
    budget_per_round: bool = False


def _paper_prunes(base: Config) -> Sequence[float]:
    return PAPER_PRUNES["mlp" if base.model == "mlp" else "conv"]


_MATCHING: dict[str, Any] = {
    "help": "the p at which packnet is as accurate as the bounds",
    "title": "Weights needed for the same accuracy: the cost of freezing",
    "lead": "For each p, the final prune fraction at which Memory and Multinet are as accurate as PackNet at p (the "
    "matched p). Compression is (1 - p) / (1 - matched p): how many times fewer weights they need.",
    "varies": {"final_prune": _paper_prunes},
    "matching": True,
}

EXPERIMENTS = {
    "figure1": NamedExperiment(
        help="accuracy against p, for the three approaches",
        title="Accuracy by final prune fraction, three approaches",
        lead="PackNet freezes the weights that a task keeps. Memory trains on the data of all tasks so far and freezes "
        "nothing. Multinet trains on all tasks at once. All end with the same fraction of free weights, p.",
        varies={"approach": lambda base: APPROACHES, "final_prune": _paper_prunes},
        x="final_prune",
        curve="approach",
        reference="approach",
    ),
    "figure2": NamedExperiment(
        help="accuracy against N, on a fixed budget",
        title="Accuracy by number of prune rounds, with a fixed retraining budget",
        lead="The B epochs of retraining are divided equally between N prune rounds.",
        varies={
            "final_prune": _paper_prunes,
            "prune_rounds": lambda base: rounds_that_divide(base.retrain_epochs),
        },
        seeds=10,
        x="prune_rounds",
        curve="final_prune",
    ),
    "figure3": NamedExperiment(**_MATCHING),
    "table1": NamedExperiment(**_MATCHING),
    "figure4": NamedExperiment(
        help="accuracy against N, without a budget",
        title="Accuracy by number of prune rounds, with B epochs in every round",
        lead="N prune rounds, each followed by B epochs of retraining: more rounds take more time.",
        varies={"final_prune": _paper_prunes, "prune_rounds": lambda base: (1, 2, 3)},
        seeds=10,
        x="prune_rounds",
        curve="final_prune",
        budget_per_round=True,
    ),
    "sweep": NamedExperiment(
        help="the values of --sweep",
        title="Accuracy by setting",
        lead="Average test accuracy over the tasks, after the last one.",
        varies={},  # the user chooses
        seeds=1,
    ),
}
