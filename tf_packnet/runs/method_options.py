"""The fields of `Config` about the method: the approach, its budget, and how it prunes and retrains."""

import math
import re
from dataclasses import dataclass

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning import shares, timing
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
from tf_packnet.pruning.shares import AUTO, EQUAL, ROUND_EPOCHS, UNIFORM, PruneRounds
from tf_packnet.runs.options import Check, StageKey, integer, one_of, option, optional

APPROACHES = ("packnet", "memory", "multinet")
BUDGETS = ("steps", "epochs")
_PER_TASK = "/task"

# A limit that catches typing errors.
MAX_EPOCHS = 1_000_000


_LENGTHS = r"((0|[1-9][0-9]{0,6})[,+])*[1-9][0-9]{0,6}"


def _are_round_epochs(value: str) -> bool:
    return value in ROUND_EPOCHS or bool(re.fullmatch(f"{_LENGTHS}(/{_LENGTHS})*", value))


def _is_retrain_time(value: str) -> bool:
    return timing.seconds_of(value.removesuffix(_PER_TASK)) is not None


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
        Check(
            _are_round_epochs,
            "uniform, growing, shrinking, or the epochs after each round, such as 1,2,5 (the last at least 1), or such "
            "a list for each task, as in 1,2,5/1,1,3",
        ),
        StageKey.PRUNE_RETRAIN_STAGE,
        "How the B retraining epochs are divided between the N rounds: uniform, B/N each; growing, in proportion to "
        "1, 2, ..., N; shrinking, the reverse; or the epochs after each round, such as 1,2,5 (1+2+5 in a --sweep), or "
        "for each task, such as 1,2,5/1,1,3; B is then the largest sum.",
        neutral=UNIFORM,
    )
    retrain_time: str | None = option(
        "Method",
        None,
        optional(Check(_is_retrain_time, f"{timing.DURATION}, or such a time per task, such as 2h/task")),
        StageKey.PRUNE_RETRAIN_STAGE,
        "Time for the retraining of all tasks together, such as 8h, 90s or 1h30m, or of each task, such as 2h/task: in "
        "place of --retrain_epochs. All prune rounds run, and the time is divided between them.",
        sweepable=False,
        neutral=None,
    )
    deadline: str | None = option(
        "Method",
        None,
        optional(Check(timing.is_deadline, timing.DEADLINE)),
        StageKey.NO_EFFECT,
        "When the run must end: the next time that it is 07:00, or 2030-01-31T07:00. Training takes its "
        "--train_epochs; the rest of the time is for retraining, in place of --retrain_epochs, or at most "
        "--retrain_time.",
        sweepable=False,
        neutral=None,
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

    @property
    def is_timed(self) -> bool:
        """Whether a time, not a number of epochs, limits the retraining."""
        return self.retrain_time is not None or self.deadline is not None

    def time_of_retraining(self) -> tuple[float | None, bool]:
        """Return the seconds of `retrain_time`, None without it, and whether they are for each task."""
        time = self.retrain_time or ""
        return timing.seconds_of(time.removesuffix(_PER_TASK)), time.endswith(_PER_TASK)

    def canonical_time(self) -> str | None:
        """Return `retrain_time` in canonical form: equal text for equal times."""
        seconds, is_per_task = self.time_of_retraining()
        return None if seconds is None else timing.shown(seconds) + _PER_TASK * is_per_task

    def check_rounds(self) -> None:
        """Raise ArgumentError unless the retraining epochs can be divided between the prune rounds."""
        if self.prune_rounds == AUTO and self.retrain_rate in RESTARTING:
            expected = f"constant, linear or cosine with --prune_rounds={AUTO}, whose rounds are not known in advance"
            raise ArgumentError("retrain_rate", expected, self.retrain_rate)
        if self.is_timed:
            self._check_timed()
            return
        lengths = self.lengths_by_task()
        if len(lengths) == 1:
            self._check_rounds(self.retrain_epochs, lengths[0])
            return
        sums = [sum(map(int, each)) for each in lengths]
        if max(sums) != self.retrain_epochs:
            raise ArgumentError(
                "retrain_epochs", f"{max(sums)}, the largest sum of --round_epochs", self.retrain_epochs
            )
        for epochs, each in zip(sums, lengths, strict=True):
            self._check_rounds(epochs, each)

    def _check_timed(self) -> None:
        flag = "--deadline" if self.retrain_time is None else "--retrain_time"
        epochs = MethodOptions.__dataclass_fields__["retrain_epochs"].default
        if self.retrain_epochs != epochs:
            raise ArgumentError("retrain_epochs", f"no value with {flag}", self.retrain_epochs)
        if self.prune_rounds == AUTO:
            raise ArgumentError("prune_rounds", f"a number of rounds with {flag}", self.prune_rounds)
        if self.round_epochs not in ROUND_EPOCHS:
            raise ArgumentError("round_epochs", f"{', '.join(ROUND_EPOCHS)} with {flag}", self.round_epochs)
        if self.retrain_rate != CONSTANT:
            expected = f"{CONSTANT} with {flag}: the other rates depend on the number of epochs"
            raise ArgumentError("retrain_rate", expected, self.retrain_rate)

    def _check_rounds(self, epochs: int, lengths: str | tuple[int, ...]) -> None:
        try:
            shares.check_rounds(epochs, self.prune_rounds, lengths)
        except ArgumentError as error:
            names = {"rounds": "prune_rounds", "epochs": "retrain_epochs"}
            argument = names.get(error.argument, error.argument)
            expected = error.expected.replace("in round_epochs", "in --round_epochs")
            expected = expected.replace("of round_epochs", "of --round_epochs")
            expected = expected.replace(f"the {self.retrain_epochs} epochs", f"--retrain_epochs={self.retrain_epochs}")
            received = self.round_epochs if argument == "round_epochs" else error.received
            raise ArgumentError(argument, expected, received) from error

    def check_shares(self) -> None:
        """Raise ArgumentError if `shares` is given for an approach that freezes nothing."""
        if self.shares != EQUAL and self.approach != "packnet":
            raise ArgumentError("shares", f"{EQUAL} with --approach={self.approach}", self.shares)

    def share_of_each_task(self) -> list[float] | None:
        """Return `shares` as numbers; None if they are equal."""
        return None if self.shares == EQUAL else [float(part) for part in self.shares.split(",")]

    def lengths_by_task(self) -> list[str | tuple[int, ...]]:
        """Return `round_epochs` in the form that `EqualShare` takes: one for all retrainings, or one for each."""
        if self.round_epochs in ROUND_EPOCHS:
            return [self.round_epochs]
        return [tuple(map(int, re.split("[,+]", lengths))) for lengths in self.round_epochs.split("/")]
