"""Computes which epochs of one `fit` begin with a prune round, and which fraction each round keeps.

A `RoundSchedule` depends only on the pruning schedule, the first epoch of the `fit` and the last one. It is used by the
checks before a `fit`, at every epoch, and when a `fit` resumes.
"""

import dataclasses
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning import auto_rounds
from tf_packnet.pruning.schedules import EqualShare

Schedule = Callable[[Any], tuple[Any, Any]]
# The step of a round, and the fraction of the candidates that remains after it.
_Round = tuple[int, float]

# TF-MOT computes sparsities in float32: smaller differences are rounding errors.
_ROUNDING = 1e-6
# How far beyond the end of a `fit` to search a schedule for further rounds: in steps, or in rounds if the schedule has
# the attributes `begin_step`, `end_step` and `frequency`.
_STEPS_AHEAD = 1000
_ROUNDS_AHEAD = 100


@dataclasses.dataclass(frozen=True)
class RoundSchedule:
    """The prune rounds of one `fit`.

    Attributes:
        schedule: The pruning schedule, with the number of epochs of the `fit`.
        kept: Fraction of the task's candidates that each round keeps, in order. With `EqualShare(rounds="auto")`: an
            even pace, which the rounds may exceed.
        first_epochs: The epoch that begins with each round. Empty if a `TimeBudget` decides when they run.
    """

    schedule: Schedule
    kept: tuple[float, ...]
    first_epochs: tuple[int, ...]

    @classmethod
    def of(cls, schedule: Schedule, first_epoch: int, epochs: int, timed: bool = False) -> "RoundSchedule":
        """Compute the rounds of `schedule` in a `fit(epochs=epochs, initial_epoch=first_epoch)`.

        Args:
            schedule: `EqualShare`, or any TF-MOT `PruningSchedule`; its step counts epochs from `first_epoch`.
            first_epoch: First epoch of the `fit`.
            epochs: The epoch before which the `fit` ends.
            timed: Whether a `TimeBudget` decides when the rounds run.

        Raises:
            ArgumentError: If a round of the schedule lies outside the `fit`, or a sparsity is invalid.
        """
        budget = epochs - first_epoch
        if budget < 1 and first_epoch == 0:
            raise ArgumentError("epochs", "at least 1, because prune rounds take place in epochs", epochs)
        if budget < 1:
            expected = f"less than the {epochs} epochs of the fit, because prune rounds take place in epochs"
            raise ArgumentError("initial_epoch", expected, first_epoch)
        if timed:
            return cls(schedule, _kept_by_timed_rounds(schedule), ())
        if isinstance(schedule, EqualShare):
            schedule = _with_budget(schedule, budget)
            rounds = _rounds_of_equal_share(schedule, budget)
        else:
            rounds = _rounds_of_tfmot(schedule, budget)
        _check_order(schedule, rounds)
        return cls(schedule, tuple(kept for _, kept in rounds), tuple(first_epoch + step for step, _ in rounds))

    @property
    def last_epoch(self) -> int:
        """Epoch that begins with the last round."""
        return max(self.first_epochs)

    def rounds_by(self, epoch: int) -> int:
        """Return how many rounds must be done before the first gradient step of `epoch`."""
        return sum(first <= epoch for first in self.first_epochs)

    def kept_after(self, prune_round: int) -> float:
        """Return the fraction of the task's candidates that remains after a round (1-based)."""
        return self.kept[prune_round - 1]

    def check_resumed(self, epoch: int, planned: int, done: int) -> None:
        """Check that a backup belongs to this `fit`, so that training can resume at `epoch`.

        Args:
            epoch: First epoch that is not yet done.
            planned: Number of rounds that the interrupted `fit` had planned.
            done: Number of those rounds that were run.

        Raises:
            ArgumentError: If the interrupted `fit` had other prune rounds.
        """
        # More rounds than expected are possible: Keras's BackupAndRestore can save in the middle of an epoch.
        if planned == len(self.kept) and done >= self.rounds_by(epoch - 1):  # 0 of timed rounds
            return
        expected = (
            f"a backup of this fit, which has {len(self.kept)} prune rounds, {self.rounds_by(epoch - 1)} of them "
            f"before epoch {epoch}, at which it resumes"
        )
        raise ArgumentError("callbacks", expected, f"a backup with {done} of {planned} prune rounds")


def _with_budget(schedule: EqualShare, budget: int) -> EqualShare:
    if schedule.epochs is None:
        return schedule.for_epochs(budget)
    if schedule.epochs != budget:
        expected = f"{budget} in {type(schedule).__name__}, the number of epochs of this fit, or None"
        raise ArgumentError("epochs", expected, schedule.epochs)
    return schedule


def _kept_by_timed_rounds(schedule: Schedule) -> tuple[float, ...]:
    if not isinstance(schedule, EqualShare) or schedule.epochs is not None or schedule.auto:
        expected = "tp.EqualShare with a number of rounds and without `epochs`, because of TimeBudget"
        raise ArgumentError("schedule", expected, _shown(schedule))
    return tuple(schedule.kept_fraction(number) for number in range(1, schedule.rounds + 1))


def _rounds_of_equal_share(schedule: EqualShare, budget: int) -> list[_Round]:
    if schedule.auto:
        return [(step, schedule.kept_fraction(done)) for step, done in enumerate(auto_rounds.even_pace(budget))]
    steps: list[int] = []
    for step in range(budget):
        steps += [step] * ((schedule.round_at(step) or 0) - len(steps))  # several, if no epoch is between them
    if len(steps) != schedule.rounds:
        expected = f"a schedule with all its {schedule.rounds} prune rounds within the {budget} epochs of the fit"
        raise ArgumentError("schedule", expected, f"{len(steps)} rounds in {_shown(schedule)}")
    # Not computed from the sparsity: in floating point, 1 - (1 - x) is not always x.
    return [(step, schedule.kept_fraction(number)) for number, step in enumerate(steps, start=1)]


def _rounds_of_tfmot(schedule: Schedule, budget: int) -> list[_Round]:
    by_step = {step: _sparsity_at(schedule, step) for step in range(budget)}
    sparsities = {step: sparsity for step, sparsity in by_step.items() if sparsity is not None}
    note = "a step of the schedule is an epoch, counted from 0 at the first epoch of the fit"
    if not sparsities:
        expected = f"a schedule with at least one prune round within the {budget} epochs of the fit ({note})"
        raise ArgumentError("schedule", expected, _shown(schedule))
    step, last = max(sparsities.items())
    for later, sparsity in _later_rounds(schedule, budget):
        if sparsity > last + _ROUNDING:
            expected = (
                f"a schedule with all prune rounds within the {budget} epochs of the fit: the last round, at step "
                f"{step}, reaches a sparsity of {last:.3g}, but step {later} would reach {sparsity:.3g} ({note})"
            )
            raise ArgumentError("schedule", expected, _shown(schedule))
    return [(step, 1.0 - sparsity) for step, sparsity in sparsities.items()]


def _sparsity_at(schedule: Schedule, step: int) -> float | None:
    """Return the sparsity that a TF-MOT schedule asks for at `step`; None if there is no round."""
    answer = schedule(np.int64(step))
    try:
        should_prune, sparsity = answer
        return float(sparsity) if bool(should_prune) else None
    except (TypeError, ValueError) as error:
        expected = f"a callable that returns two scalars (should_prune, sparsity), not {answer!r} at step {step}"
        raise ArgumentError("schedule", expected, _shown(schedule)) from error


def _later_rounds(schedule: Schedule, budget: int) -> Iterable[tuple[int, float]]:
    """Yield step and sparsity of the rounds after the end of a `fit` of `budget` epochs."""
    for step in _later_steps(schedule, budget):
        try:
            sparsity = _sparsity_at(schedule, step)
        except Exception:  # a user's schedule need not be defined after the end of the fit
            return
        if sparsity is not None:
            yield step, sparsity


def _later_steps(schedule: Schedule, budget: int) -> range:
    """Return the steps after the end of a `fit` of `budget` epochs at which a round is possible."""
    bounds = [getattr(schedule, name, None) for name in ("begin_step", "end_step", "frequency")]
    integers = [int(bound) for bound in bounds if isinstance(bound, Integral)]
    if len(integers) < len(bounds) or integers[2] < 1:
        return range(budget, budget + _STEPS_AHEAD)
    begin, end, frequency = integers
    if end < 0:  # in TF-MOT: a schedule without an end
        end = max(begin, budget) + frequency * _ROUNDS_AHEAD
    steps = range(begin, end + 1, frequency)
    rounds_in_fit = max(0, -(-(budget - begin) // frequency))
    return steps[rounds_in_fit:][-_ROUNDS_AHEAD:]


def _check_order(schedule: Schedule, rounds: Iterable[_Round]) -> None:
    """Raise ArgumentError if a round has a sparsity outside [0, 1], or a smaller one than the previous round."""
    previous: _Round | None = None
    for step, fraction in rounds:
        if not 0.0 <= fraction <= 1.0:
            received = f"{1.0 - fraction:.3g} at step {step} of {_shown(schedule)}"
            raise ArgumentError("schedule", "a sparsity between 0 and 1", received)
        if previous is not None and fraction > previous[1] + _ROUNDING:
            received = f"{1.0 - fraction:.3g} at step {step} after {1.0 - previous[1]:.3g} at step {previous[0]}"
            expected = "a sparsity that does not decrease: a round cannot bring back pruned weights"
            raise ArgumentError("schedule", expected, f"{received} of {_shown(schedule)}")
        previous = step, fraction


def _shown(schedule: Schedule) -> str:
    """Return the class name of the schedule with its settings, on one line, for error messages."""
    name = getattr(schedule, "__name__", type(schedule).__name__)
    config = schedule.get_config() if hasattr(schedule, "get_config") else {}
    config = config.get("config", config)  # the config of TF-MOT's schedules is nested
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in config.items())})" if config else name
