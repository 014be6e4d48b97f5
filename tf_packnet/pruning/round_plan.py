"""Which epochs of one `fit` begin with a prune round, and what each round keeps.

A plan is made from the schedule, the first epoch of the `fit` and its last one, and from nothing else. Whoever needs to
know about rounds asks it: the check before a `fit`, every epoch, and a `fit` that resumes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.schedules import EqualShare

Schedule = Callable[[Any], tuple[Any, Any]]

# Sparsities are float32 in TF-MOT: smaller differences are rounding.
ROUNDING = 1e-6
# How many steps, or rounds where the schedule says where they are, are looked at after the end of a `fit`.
LOOK_AHEAD = 1000
ROUNDS_AHEAD = 100


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """The prune rounds of one `fit`.

    Attributes:
        schedule: The schedule, on the budget of the `fit`.
        kept: The share of the task's candidates that each round keeps, by the epoch that begins with it, in order.
    """

    schedule: Schedule
    kept: Mapping[int, float]

    @classmethod
    def of(cls, schedule: Schedule, first_epoch: int, epochs: int) -> "RoundPlan":
        """The rounds of `schedule` in a `fit(epochs=epochs, initial_epoch=first_epoch)`.

        Args:
            schedule: `EqualShare`, or any TF-MOT `PruningSchedule`; its step counts epochs from `first_epoch`.
            first_epoch: The first epoch of the `fit`.
            epochs: The epoch before which it ends.

        Raises:
            ArgumentError: If not every round of the schedule falls within the `fit`, or it makes no sense.
        """
        budget = epochs - first_epoch
        if budget < 1 and first_epoch == 0:
            raise ArgumentError("epochs", "at least 1: prune rounds need epochs to run in", epochs)
        if budget < 1:
            expected = f"less than the {epochs} epochs of the fit: prune rounds need epochs to run in"
            raise ArgumentError("initial_epoch", expected, first_epoch)
        if isinstance(schedule, EqualShare):
            schedule = _with_budget(schedule, budget)
            kept = _kept_by_equal_share(schedule, budget)
        else:
            kept = _kept_by_tfmot(schedule, budget)
        _check_order(schedule, kept)
        return cls(schedule, {first_epoch + step: fraction for step, fraction in kept.items()})

    @property
    def last_epoch(self) -> int:
        """The epoch that begins with the last round."""
        return max(self.kept)

    def rounds_by(self, epoch: int) -> int:
        """How many rounds have to be done when the training of `epoch` begins."""
        return sum(at <= epoch for at in self.kept)

    def kept_after(self, prune_round: int) -> float:
        """The share of the task's candidates that is left after a round (1-based)."""
        return list(self.kept.values())[prune_round - 1]

    def check_resumed(self, epoch: int, planned: int, done: int) -> None:
        """Checks that a `fit` can go on at `epoch` with its rounds where they were.

        Args:
            epoch: The first epoch that is still to do.
            planned: Rounds that the interrupted `fit` had planned.
            done: Rounds of it that were run.

        Raises:
            ArgumentError: If it was interrupted in another `fit` than this one.
        """
        # More may be done than that: Keras's BackupAndRestore can be asked to save in the middle of an epoch.
        if planned == len(self.kept) and done >= self.rounds_by(epoch - 1):
            return
        expected = (
            f"the backup of this fit, which has {len(self.kept)} prune rounds, "
            f"{self.rounds_by(epoch - 1)} of them before epoch {epoch}, where it resumes"
        )
        raise ArgumentError("callbacks", expected, f"a backup with {done} of {planned} prune rounds")


def _with_budget(schedule: EqualShare, budget: int) -> EqualShare:
    if schedule.epochs is None:
        return schedule.for_epochs(budget)
    if schedule.epochs != budget:
        expected = f"{budget} in {type(schedule).__name__}, the number of epochs that this fit trains (or None)"
        raise ArgumentError("epochs", expected, schedule.epochs)
    return schedule


def _kept_by_equal_share(schedule: EqualShare, budget: int) -> dict[int, float]:
    rounds = {step: schedule.round_at(step) for step in range(budget)}
    # Asked in its own terms: 1 - (1 - x) is not always x.
    kept = {step: schedule.kept_fraction(number) for step, number in rounds.items() if number is not None}
    if len(kept) != schedule.rounds:
        expected = f"all its {schedule.rounds} prune rounds within the {budget} epochs of the fit"
        raise ArgumentError("schedule", expected, f"{len(kept)} rounds in {_name(schedule)}")
    return kept


def _kept_by_tfmot(schedule: Schedule, budget: int) -> dict[int, float]:
    asked = {step: _ask(schedule, step) for step in range(budget)}
    sparsities = {step: sparsity for step, sparsity in asked.items() if sparsity is not None}
    counted = "a step of the schedule is an epoch, counted from 0 at the first epoch of the fit"
    if not sparsities:
        expected = f"at least one prune round within the {budget} epochs of the fit ({counted})"
        raise ArgumentError("schedule", expected, _name(schedule))
    step, last = max(sparsities.items())
    for later, sparsity in _later_rounds(schedule, budget):
        if sparsity > last + ROUNDING:
            expected = (
                f"all prune rounds within the {budget} epochs of the fit: the last one there, at step {step}, reaches "
                f"a sparsity of {last:.3g}, but step {later} would reach {sparsity:.3g} ({counted})"
            )
            raise ArgumentError("schedule", expected, _name(schedule))
    return {step: 1.0 - sparsity for step, sparsity in sparsities.items()}


def _ask(schedule: Schedule, step: int) -> float | None:
    """The sparsity that a TF-MOT schedule wants at `step`, None without a round there."""
    answer = schedule(np.int64(step))
    try:
        should_prune, sparsity = answer
        return float(sparsity) if bool(should_prune) else None
    except (TypeError, ValueError) as error:
        expected = f"a callable that returns (should_prune, sparsity), two scalars, not {answer!r} at step {step}"
        raise ArgumentError("schedule", expected, _name(schedule)) from error


def _later_rounds(schedule: Schedule, budget: int) -> Iterable[tuple[int, float]]:
    """Rounds after the end of a `fit` of `budget` epochs: step and sparsity."""
    for step in _later_steps(schedule, budget):
        try:
            sparsity = _ask(schedule, step)
        except Exception:  # noqa: BLE001 (a user's own schedule need not be defined after the end of the fit)
            return
        if sparsity is not None:
            yield step, sparsity


def _later_steps(schedule: Schedule, budget: int) -> range:
    bounds = [getattr(schedule, name, None) for name in ("begin_step", "end_step", "frequency")]
    if not all(isinstance(bound, Integral) for bound in bounds) or bounds[2] < 1:
        return range(budget, budget + LOOK_AHEAD)
    begin, end, frequency = map(int, bounds)
    if end < 0:  # TF-MOT: no end
        end = max(begin, budget) + frequency * ROUNDS_AHEAD
    rounds = range(begin, end + 1, frequency)
    inside = max(0, -(-(budget - begin) // frequency))
    return rounds[inside:][-ROUNDS_AHEAD:]


def _check_order(schedule: Schedule, kept: Mapping[int, float]) -> None:
    """Raises ArgumentError if a round asks for an impossible sparsity, or for less than the round before."""
    before = None
    for step, fraction in kept.items():
        if not 0.0 <= fraction <= 1.0:
            received = f"{1.0 - fraction:.3g} at step {step} of {_name(schedule)}"
            raise ArgumentError("schedule", "a sparsity between 0 and 1", received)
        if before is not None and fraction > kept[before] + ROUNDING:
            received = f"{1.0 - fraction:.3g} at step {step} after {1.0 - kept[before]:.3g} at step {before}"
            expected = "a sparsity that does not decrease: a round cannot bring back pruned weights"
            raise ArgumentError("schedule", expected, f"{received} of {_name(schedule)}")
        before = step


def _name(schedule: Schedule) -> str:
    """The schedule with its settings, on one line."""
    name = getattr(schedule, "__name__", type(schedule).__name__)
    config = schedule.get_config() if hasattr(schedule, "get_config") else {}
    config = config.get("config", config)  # TF-MOT's own are nested
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in config.items())})" if config else name
