"""Algorithm 2 of the paper as a TF-MOT pruning schedule, so that it is interchangeable with TF-MOT's own schedules."""

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.pruning import auto_rounds
from tf_packnet.pruning.shares import (
    AUTO,
    UNIFORM,
    PruneRounds,
    as_lengths,
    check_rounds,
    pruned_per_round,
    released_fraction,
    round_lengths,
)
from tf_packnet.pruning.tfmot import PruningSchedule


class EqualShare(PruningSchedule):
    """Pruning schedule in which every task releases the same fraction of its candidates (Algorithm 2).

    Each task releases `r = final_prune^(1/num_tasks)` of the weights that were free when the task began. It has
    `rounds` prune rounds, in the paper one every `epochs / rounds` epochs. Each round prunes `z = 1 - (1-r)^(1/rounds)`
    of the remaining candidates.

    A step of the schedule is one epoch of the `fit`, as for all TF-MOT schedules used by `PruneRoundScheduler`.

    Args:
        final_prune: `p`, the fraction of the prunable weights that is free after all tasks, in (0, 1).
        num_tasks: `T`, the number of tasks that share the network.
        rounds: `N`, prune rounds per task. Default: 1, or as many as in `round_epochs`. With `auto`, the validation
            loss decides when to prune and how much, see `tf_packnet.pruning.auto_rounds`: the `fit` needs
            `validation_data`, and ends with the same number of weights as with any `N`.
        epochs: `B`, retraining epochs per task. Default: the number of epochs of the `fit`, or the sum of
            `round_epochs`. A `fit` with a different number of epochs raises ArgumentError.
        round_epochs: How the epochs are divided between the rounds: `uniform`, if `rounds` divides `epochs`; `growing`,
            in proportion to 1, 2, ..., N; `shrinking`, the reverse; or the epochs after each round, such as
            `(1, 2, 5)`. After a round with 0 epochs, the next one runs at once.

    Raises:
        ArgumentError: If an argument is out of range, `rounds` does not divide `epochs`, or they do not match
            `round_epochs`.

    Attributes:
        auto: Whether the validation loss decides when to prune and how much. `rounds` is then the number of steps into
            which the pruning is divided; a prune round does one or more of them.
    """

    @checked
    def __init__(
        self,
        final_prune: float,
        num_tasks: int,
        rounds: PruneRounds | None = None,
        epochs: int | None = None,
        round_epochs: str | Sequence[int] = UNIFORM,
    ):
        if not 0.0 < final_prune < 1.0:
            raise ArgumentError("final_prune", "a fraction between 0 and 1, both exclusive", final_prune)
        if num_tasks < 1:
            raise ArgumentError("num_tasks", "at least 1", num_tasks)
        lengths = round_epochs if isinstance(round_epochs, str) else as_lengths(round_epochs)
        if rounds is None:
            rounds = 1 if isinstance(lengths, str) else len(lengths)
        if isinstance(rounds, str) and rounds != AUTO or not isinstance(rounds, str) and rounds < 1:
            raise ArgumentError("rounds", f"at least 1, or {AUTO}", rounds)
        if epochs is not None and epochs < 1:
            raise ArgumentError("epochs", "at least 1", epochs)
        check_rounds(epochs, rounds, lengths)
        self.final_prune = final_prune
        self.num_tasks = num_tasks
        self.auto = rounds == AUTO
        self.rounds = auto_rounds.STEPS if isinstance(rounds, str) else rounds
        self.epochs = epochs if isinstance(lengths, str) else sum(lengths)
        self.round_epochs = lengths

    @property
    def released(self) -> float:
        """`r`: the fraction of its candidates that a task releases."""
        return released_fraction(self.final_prune, self.num_tasks)

    @property
    def pruned_per_round(self) -> float:
        """`z`: the fraction of the remaining candidates that a round prunes."""
        return pruned_per_round(self.released, self.rounds)

    def kept_fraction(self, prune_round: int) -> float:
        """Return `(1-z)^n`: the fraction of the candidates that remains after round `n` (1-based)."""
        return (1.0 - self.pruned_per_round) ** prune_round

    def largest_share(self, committed_tasks: int) -> float:
        """Return the largest fraction of a layer's candidates that a task may keep with prune scope `erk`.

        Each of the later tasks can then have as many weights of the layer.

        Args:
            committed_tasks: Number of tasks committed so far.
        """
        return 1.0 / max(1, self.num_tasks - committed_tasks)

    def for_task(self, number: int, names: Sequence[str], free: float) -> "EqualShare":
        """Return the schedule of one task.

        Args:
            number: Number of the task (1-based).
            names: Names of the tasks so far, this one included.
            free: Fraction of the prunable weights that no committed task owns.

        Raises:
            ArgumentError: If `number` exceeds the number of tasks of the schedule.
        """
        if number > self.num_tasks:
            expected = f"more than the {number - 1} tasks that are already committed"
            raise ArgumentError("num_tasks", expected, self.num_tasks)
        return self

    def names(self, done: Sequence[str] = ()) -> list[str] | None:
        """Return the names of the tasks that are not in `done`; here None, because this schedule has no names."""
        return None

    def for_epochs(self, epochs: int) -> "EqualShare":
        """Return a copy of this schedule with a budget of `epochs`."""
        return type(self)(**{**self.get_config(), "epochs": epochs})

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Implement TF-MOT's interface.

        Args:
            step: Epoch (0-based).

        Returns:
            Whether a round takes place at the start of this epoch (`bool` scalar), and the sparsity after it
            (`float64` scalar).
        """
        step = int(step)
        done = bisect.bisect_right(self._first_epochs, step)
        return tf.constant(self.round_at(step) is not None), tf.constant(1.0 - self.kept_fraction(done), tf.float64)

    def round_at(self, epoch: int) -> int | None:
        """Return the number of the last round (1-based) at the start of `epoch` (0-based); None without a round."""
        number = bisect.bisect_right(self._first_epochs, epoch)
        return number if number and self._first_epochs[number - 1] == epoch else None

    @functools.cached_property
    def _first_epochs(self) -> tuple[int, ...]:
        """The epochs that begin with a round, in order."""
        if self.epochs is None:
            raise ValueError("EqualShare has no number of epochs: pass `epochs`, or use it in PruneRoundScheduler")
        if self.auto:  # the latest epochs at which the steps can be done
            pace = enumerate(itertools.pairwise([0, *auto_rounds.even_pace(self.epochs)]))
            return tuple(epoch for epoch, (before, done) in pace for _ in range(done - before))
        lengths = round_lengths(self.epochs, self.rounds, self.round_epochs)
        return tuple(itertools.accumulate(lengths[:-1], initial=0))

    def get_config(self) -> dict[str, Any]:
        return {
            "final_prune": self.final_prune,
            "num_tasks": self.num_tasks,
            "rounds": AUTO if self.auto else self.rounds,
            "epochs": self.epochs,
            **({} if self.round_epochs == UNIFORM else {"round_epochs": self.round_epochs}),
        }


class GrowingShare(EqualShare):
    """Pruning schedule for one mask shared by all tasks, which grows with each task.

    After task `task` the mask has as many weights as the first `task` tasks of PackNet have together.

    Args:
        final_prune: As for `EqualShare`.
        num_tasks: As for `EqualShare`.
        rounds: As for `EqualShare`.
        epochs: As for `EqualShare`.
        task: Number (1-based) of the open task.
        round_epochs: As for `EqualShare`.
    """

    @checked
    def __init__(
        self,
        final_prune: float,
        num_tasks: int,
        rounds: PruneRounds | None = None,
        epochs: int | None = None,
        task: int = 1,
        round_epochs: str | Sequence[int] = UNIFORM,
    ):
        super().__init__(final_prune, num_tasks, rounds, epochs, round_epochs)
        if not 1 <= task <= num_tasks:
            raise ArgumentError("task", f"the number of a task, 1 to {num_tasks}", task)
        self.task = task

    def kept_fraction(self, prune_round: int) -> float:
        """Return the fraction of all weights that is in the mask after a round (1-based), earlier weights included."""
        used = 1.0 - self.released ** (self.task - 1)
        return used + (1.0 - used) * super().kept_fraction(prune_round)

    def largest_share(self, committed_tasks: int) -> float:
        """Return 1: all tasks share the mask, so no weights are left for later tasks."""
        return 1.0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "task": self.task}
