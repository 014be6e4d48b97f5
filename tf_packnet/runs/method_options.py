"""The fields of `Config` about the method: the approach, its budget, and how it prunes and retrains."""

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
    RESTARTING,
    RETRAIN_RATES,
)
from tf_packnet.pruning.ranking import PRUNE_SCOPES
from tf_packnet.pruning.shares import AUTO, ROUND_EPOCHS, UNIFORM, PruneRounds
from tf_packnet.runs.options import Check, StageKey, integer, one_of, option

APPROACHES = ("packnet", "memory", "multinet")
BUDGETS = ("steps", "epochs")

# A limit that catches typing errors.
MAX_EPOCHS = 1_000_000


def _are_round_epochs(value: str) -> bool:
    return value in ROUND_EPOCHS or bool(re.fullmatch(r"[1-9]\d{0,6}([,+][1-9]\d{0,6})*", value))


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
    prune_rounds: PruneRounds = option(
        "Method",
        3,
        integer(1, MAX_EPOCHS, also=AUTO),
        StageKey.PRUNE_RETRAIN_STAGE,
        "N, prune rounds per task. B/N epochs follow each round, so N must divide B; see --round_epochs. With auto, "
        "the loss on the validation split decides in which of the B epochs to prune, and how much.",
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
        if self.prune_rounds == AUTO and self.retrain_rate in RESTARTING:
            expected = f"constant, linear or cosine with --prune_rounds={AUTO}, whose rounds are not known in advance"
            raise ArgumentError("retrain_rate", expected, self.retrain_rate)
        try:
            shares.check_rounds(self.retrain_epochs, self.prune_rounds, self.lengths_of_rounds())
        except ArgumentError as error:
            names = {"rounds": "prune_rounds", "epochs": "retrain_epochs"}
            argument = names.get(error.argument, error.argument)
            expected = error.expected.replace("in round_epochs", "in --round_epochs")
            expected = expected.replace("of round_epochs", "of --round_epochs")
            expected = expected.replace(f"the {self.retrain_epochs} epochs", f"--retrain_epochs={self.retrain_epochs}")
            received = self.round_epochs if argument == "round_epochs" else error.received
            raise ArgumentError(argument, expected, received) from error

    def lengths_of_rounds(self) -> str | tuple[int, ...]:
        """Return `round_epochs` as `EqualShare` takes it."""
        if self.round_epochs in ROUND_EPOCHS:
            return self.round_epochs
        return tuple(map(int, re.split("[,+]", self.round_epochs)))
