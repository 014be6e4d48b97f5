"""The fields of `Config` about the method: the approach, its budget, and how it prunes and retrains."""

import math
import re
from dataclasses import dataclass

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning import shares
from tf_packnet.pruning.policies import (
    BIAS_POLICIES,
    CONSTANT,
    CRITERIA,
    FREED_WEIGHTS,
    HEADS,
    MAGNITUDE,
    RETRAIN_RATES,
)
from tf_packnet.pruning.ranking import PRUNE_SCOPES
from tf_packnet.pruning.shares import ROUND_EPOCHS, UNIFORM
from tf_packnet.runs.options import Check, StageKey, integer, one_of, option

APPROACHES = ("packnet", "memory", "multinet")
BUDGETS = ("steps", "epochs")

EQUAL = "equal"  # shares: all tasks release the same fraction

# A limit that catches typing errors.
MAX_EPOCHS = 1_000_000


def _are_round_epochs(value: str) -> bool:
    return value in ROUND_EPOCHS or bool(re.fullmatch(r"[1-9]\d{0,6}([,+][1-9]\d{0,6})*", value))


def _are_shares(value: str) -> bool:
    if value == EQUAL:
        return True
    try:
        numbers = [float(part) for part in re.split("[,+]", value)]
    except ValueError:
        return False
    return all(0 < number <= 1 for number in numbers) and math.fsum(numbers) <= 1 + 1e-9


@dataclass(frozen=True)
class MethodOptions:
    """The settings that choose what a run does with its tasks."""

    approach: str = option(
        "Method",
        "packnet",
        one_of(APPROACHES),
        StageKey.NETWORK,
        "packnet learns task by task and freezes weights. The other two are the paper's bounds, which freeze "
        "nothing: memory trains task i on the data of tasks 1 to i, multinet trains all tasks at once.",
    )
    train_epochs: int = option(
        "Method",
        30,
        integer(1, MAX_EPOCHS),
        StageKey.TRAIN_STAGE,
        "E, epochs of training per task, on the free weights.",
    )
    retrain_epochs: int = option(
        "Method",
        30,
        integer(1, MAX_EPOCHS),
        StageKey.PRUNE_RETRAIN_STAGE,
        "B, epochs of retraining per task, over all its prune rounds.",
    )
    prune_rounds: int = option(
        "Method",
        3,
        integer(1, MAX_EPOCHS),
        StageKey.PRUNE_RETRAIN_STAGE,
        "N, prune rounds per task. B/N epochs follow each round, so N must divide B; see --round_epochs.",
    )
    round_epochs: str = option(
        "Method",
        UNIFORM,
        Check(_are_round_epochs, "uniform, growing, shrinking, or the epochs after each round, such as 1,2,5"),
        StageKey.PRUNE_RETRAIN_STAGE,
        "How the B retraining epochs are divided between the N rounds: uniform, B/N each; growing, in proportion to "
        "1, 2, ..., N; shrinking, the reverse; or the epochs after each round, such as 1,2,5 (1+2+5 in a --sweep).",
        neutral=UNIFORM,
    )
    retrain_rate: str = option(
        "Method",
        CONSTANT,
        one_of(RETRAIN_RATES),
        StageKey.PRUNE_RETRAIN_STAGE,
        "learning rate during retraining. linear and cosine fall over all of it, linear_restarts and cosine_restarts "
        "over each prune round; adaptive begins each round with a rate that depends on how much it has pruned.",
        neutral=CONSTANT,
    )
    final_prune: float = option(
        "Method",
        0.75,
        Check(lambda p: 0.0 < p < 1.0, "a fraction between 0 and 1, both exclusive"),
        StageKey.PRUNE_RETRAIN_STAGE,
        "p, the fraction of the prunable weights that is still free after all tasks.",
    )
    shares: str = option(
        "Method",
        EQUAL,
        Check(_are_shares, "equal, or the share of each task, such as 0.5,0.2,0.1, with a sum of at most 1"),
        StageKey.PRUNE_RETRAIN_STAGE,
        "fraction of the prunable weights that each task keeps, in the order of the tasks, instead of --final_prune: "
        "0.5,0.2,0.1 (0.5+0.2+0.1 in a --sweep); equal: all tasks release the same fraction of the free weights.",
        neutral=EQUAL,
    )
    budget: str = option(
        "Method",
        "steps",
        one_of(BUDGETS),
        StageKey.BASELINES,
        "what memory and multinet have in common with packnet: the number of gradient steps, or of epochs "
        "over their larger data.",
    )
    freed_weights: str = option(
        "Method",
        "zero",
        one_of(FREED_WEIGHTS),
        StageKey.LATER_TRAIN_STAGES,
        "the values with which weights that a task released start the next task: zero, their values when "
        "pruned, or newly drawn ones.",
    )
    head: str = option(
        "Method",
        "per_task",
        one_of(HEADS),
        StageKey.NETWORK,
        "one unpruned output layer per task, or one output layer for all tasks that is pruned like the others.",
    )
    bias_policy: str = option(
        "Method",
        "first_task",
        one_of(BIAS_POLICIES),
        StageKey.NETWORK,
        "biases are trained by task 1 and then frozen, or each task has its own.",
    )
    prune_scope: str = option(
        "Method",
        "layer",
        one_of(tuple(PRUNE_SCOPES)),
        StageKey.PRUNE_RETRAIN_STAGE,
        "weights are ranked per layer, over all layers, or per layer with Erdos-Renyi-Kernel layer densities.",
    )

    prune_criterion: str = option(
        "Method",
        MAGNITUDE,
        one_of(CRITERIA),
        StageKey.PRUNE_RETRAIN_STAGE,
        "weights are ranked by magnitude, by magnitude times the norm of their inputs (Wanda), or by a first-order "
        "Taylor expansion of the loss; the last two see 512 training examples of the task.",
        neutral=MAGNITUDE,
    )

    def check_rounds(self) -> None:
        """Raise ArgumentError unless the retraining epochs can be divided between the prune rounds."""
        try:
            shares.check_rounds(self.retrain_epochs, self.prune_rounds, self.lengths_of_rounds())
        except ArgumentError as error:
            argument = {"rounds": "prune_rounds", "epochs": "retrain_epochs"}[error.argument]
            expected = error.expected.replace("in round_epochs", "in --round_epochs")
            expected = expected.replace("of round_epochs", "of --round_epochs")
            expected = expected.replace(f"the {self.retrain_epochs} epochs", f"--retrain_epochs={self.retrain_epochs}")
            raise ArgumentError(argument, expected, error.received) from error

    def check_shares(self) -> None:
        """Raise ArgumentError if there are shares for an approach that freezes nothing."""
        if self.shares != EQUAL and self.approach != "packnet":
            raise ArgumentError("shares", f"{EQUAL} with --approach={self.approach}", self.shares)

    def share_of_each_task(self) -> list[float] | None:
        """Return `shares` as numbers; None if they are equal."""
        return None if self.shares == EQUAL else [float(part) for part in self.shares.split(",")]

    def lengths_of_rounds(self) -> str | tuple[int, ...]:
        """Return `round_epochs` as `EqualShare` takes it."""
        if self.round_epochs in ROUND_EPOCHS:
            return self.round_epochs
        return tuple(map(int, re.split("[,+]", self.round_epochs)))
