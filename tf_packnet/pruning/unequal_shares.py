"""`Shares`, a pruning schedule in which tasks get different shares of the network."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.pruning.shares import UNIFORM, PruneRounds

# A share may exceed the free fraction by this much, because numbers of weights are rounded.
_ROUNDING = 1e-3


class Shares(EqualShare):
    """Pruning schedule in which each task keeps a given share of all prunable weights.

    ```python
    tp.PruneRoundScheduler(tp.Shares([0.5, 0.2, 0.1], rounds=8))               # by the number of the task
    tp.PruneRoundScheduler(tp.Shares({"cats_dogs": 0.5, "cars": 0.2}))         # by its name
    tp.PruneRoundScheduler(tp.Shares.by_accuracy({"cats_dogs": 0.99, "cars": 0.9}, total=0.8))
    ```

    The rounds are those of `EqualShare`: each prunes the same fraction of the remaining candidates.

    Args:
        shares: Share of each task, in (0, 1], by number or by name. Their sum is at most 1.
        rounds: As for `EqualShare`.
        epochs: As for `EqualShare`.
        round_epochs: As for `EqualShare`.

    Raises:
        ArgumentError: If a share is not in (0, 1], the sum exceeds 1, or another argument is invalid. A `fit` raises it
            if the open task has no share, or if its share exceeds the free fraction.
    """

    @checked
    def __init__(
        self,
        shares: Sequence[float] | Mapping[str, float],
        rounds: PruneRounds | None = None,
        epochs: int | None = None,
        round_epochs: str | Sequence[int] = UNIFORM,
    ):
        self.shares = _checked(shares)
        super().__init__(0.5, len(self.shares), rounds, epochs, round_epochs)
        self.final_prune = max(0.0, 1.0 - math.fsum(_values(self.shares)))
        self._kept: float | None = None
        self._cap = 1.0

    @classmethod
    def by_accuracy(
        cls,
        accuracy: Mapping[str, float],
        total: float,
        smallest: float = 0.5,
        num_tasks: int | None = None,
        **arguments: Any,
    ) -> "Shares":
        """Give tasks with higher error rates larger shares.

        With `smallest=0`, shares are proportional to the error rates; with 1, they are equal.

        With `num_tasks`, the accuracies of later tasks need not be known yet: train a task, then decide its share.

        ```python
        history = packed.fit(train, validation_data=validation, epochs=10)
        accuracy[name] = history.history["val_accuracy"][-1]
        shares = tp.Shares.by_accuracy(accuracy, total=0.8, num_tasks=5)
        packed.fit(train, epochs=10, callbacks=[tp.PruneRoundScheduler(shares), tp.TaskMaskSnapshot()])
        ```

        Args:
            accuracy: Validation accuracy of each task by name, for example after a short trial, of another network, or
                after training on the task and before its prune rounds.
            total: Share of all tasks together, in (0, 1].
            smallest: Smallest share that a task gets, as a fraction of an equal share, in [0, 1].
            num_tasks: Number of all tasks, if `accuracy` contains only the first ones, in the order in which they are
                learned. Each share is then computed from what the earlier tasks leave, in proportion to the error rate
                of the task relative to the mean error rate up to this task. The shares do not change when later tasks
                are added.
            **arguments: Further arguments of `Shares`.

        Raises:
            ArgumentError: If a number is out of range.
        """
        if not isinstance(accuracy, Mapping) or not accuracy:
            raise ArgumentError("accuracy", "the validation accuracy of each task by name", accuracy)
        for name, value in accuracy.items():
            if not _is_number(value) or not 0 <= value <= 1:
                raise ArgumentError("accuracy", f"a number from 0 to 1 for task {name!r}", value)
        for argument, value in {"total": total, "smallest": smallest}.items():
            if not _is_number(value) or not 0 <= value <= 1 or (argument == "total" and value == 0):
                raise ArgumentError(argument, "a fraction from 0 to 1", value)
        errors = [1.0 - float(value) for value in accuracy.values()]
        if num_tasks is None:
            parts = [total / len(errors) * each for each in _relative(errors, smallest)]
        elif isinstance(num_tasks, bool) or not isinstance(num_tasks, numbers.Integral) or num_tasks < len(errors):
            expected = f"a whole number of at least {len(errors)}, as many tasks as have an accuracy"
            raise ArgumentError("num_tasks", expected, num_tasks)
        else:
            parts = _in_turn(errors, total, smallest, int(num_tasks))
        return cls(dict(zip(accuracy, parts, strict=True)), **arguments)

    @property
    def released(self) -> float:
        """The fraction of its candidates that the task of `for_task` releases."""
        if self._kept is None:
            raise ValueError("Shares has no task yet: call for_task, or use it in PruneRoundScheduler")
        return 1.0 - self._kept

    def names(self, done: Sequence[str] = ()) -> list[str] | None:
        """Return the names of the tasks that have a share and are not in `done`; None if the shares are by number."""
        return [name for name in self.shares if name not in done] if isinstance(self.shares, Mapping) else None

    def for_task(self, number: int, names: Sequence[str], free: float) -> "Shares":
        if isinstance(self.shares, Mapping):
            if names[-1] not in self.shares:
                expected = f"a share for task {names[-1]!r}"
                raise ArgumentError("shares", expected, dict(self.shares))
            share = self.shares[names[-1]]
            later = [self.shares[name] for name in self.shares if name not in names]
        elif number <= len(self.shares):
            share, later = self.shares[number - 1], list(self.shares[number:])
        else:
            expected = f"at least {number} shares, because {number - 1} tasks are already committed"
            raise ArgumentError("shares", expected, list(self.shares))
        if share > free + _ROUNDING:
            expected = f"at most {free:.4g}, the share that is free, for task {names[-1]!r}"
            raise ArgumentError("shares", expected, share)
        schedule = type(self)(**self.get_config())
        schedule._kept = min(1.0, share / free) if free else 1.0
        schedule._cap = share / math.fsum([share, *later])
        return schedule

    def kept_fraction(self, prune_round: int) -> float:
        if prune_round == self.rounds:
            return 1.0 - self.released  # without rounding errors
        return super().kept_fraction(prune_round)

    def largest_share(self, committed_tasks: int) -> float:
        """Return the share of the task divided by the sum of its share and those of the later tasks."""
        return self._cap

    def for_epochs(self, epochs: int) -> "Shares":
        schedule = type(self)(**{**self.get_config(), "epochs": epochs})
        schedule._kept, schedule._cap = self._kept, self._cap
        return schedule

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {"shares": self.shares, **{name: config[name] for name in config if name.startswith(("r", "e"))}}


def _relative(errors: Sequence[float], smallest: float) -> list[float]:
    """Return the share of each task as a multiple of an equal share.

    Args:
        errors: Error rate of each task.
        smallest: Smallest multiple.
    """
    mean = math.fsum(errors) / len(errors)
    return [smallest + (1 - smallest) * (error / mean if mean else 1.0) for error in errors]


def _in_turn(errors: Sequence[float], total: float, smallest: float, num_tasks: int) -> list[float]:
    """Return the share of each task, computed in order, each without the error rates of later tasks."""
    shares: list[float] = []
    for number in range(1, len(errors) + 1):
        left, later = total - math.fsum(shares), num_tasks - number
        equal = left / (later + 1)
        share = equal * _relative(errors[:number], smallest)[-1]
        shares.append(min(share, left - later * smallest * equal))
    return shares


def _checked(shares: Any) -> tuple[float, ...] | dict[str, float]:
    """Return checked shares, by number or by name."""
    expected = "a share in (0, 1] for each task, by number as in [0.5, 0.2], or by name as in {'cats_dogs': 0.5}"
    if isinstance(shares, Mapping):
        if not all(isinstance(name, str) for name in shares):
            raise ArgumentError("shares", expected, shares)
        found: tuple[float, ...] | dict[str, float] = dict(shares)
    elif isinstance(shares, (str, bytes)) or not hasattr(shares, "__iter__"):
        raise ArgumentError("shares", expected, shares)
    else:
        found = tuple(shares)
    values = _values(found)
    if not values or not all(_is_number(value) and 0 < value <= 1 for value in values):
        raise ArgumentError("shares", expected, found)
    if math.fsum(values) > 1 + 1e-9:
        raise ArgumentError("shares", "shares whose sum is at most 1", found)
    return found


def _values(shares: Sequence[float] | Mapping[str, float]) -> list[float]:
    return list(shares.values() if isinstance(shares, Mapping) else shares)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__float__") and not hasattr(value, "__len__")
