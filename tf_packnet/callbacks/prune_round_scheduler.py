"""Prune rounds on a schedule, as a Keras callback."""

import warnings
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.pruning.policies import PRUNE_SCOPES
from tf_packnet.pruning.ranking import keep_masks
from tf_packnet.pruning.round_schedule import RoundSchedule
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.pruning.tfmot import PruningSchedule
from tf_packnet.training import optimizers
from tf_packnet.training.fit_checks import FitRequest

# Under these names the callbacks of one `fit` find each other in `params`, a dict that Keras gives to all of them.
SCHEDULER, SNAPSHOT = "tf_packnet/scheduler", "tf_packnet/snapshot"


class PruneRoundScheduler(keras.callbacks.Callback):
    """Prunes the open task's candidates at the start of the epochs that `schedule` names (Algorithm 1, the `N` rounds).

    ```python
    packed.fit(data, epochs=72, callbacks=[
        tp.PruneRoundScheduler(tp.EqualShare(final_prune=0.95, num_tasks=5, rounds=8)), ...])
    ```

    After round `n` of a task that began with `c` candidates in a layer, exactly `round(c * (1-z)^n)` of them remain:
    those of largest magnitude, ties to the lower index. `sparsity`, the pruned share of the task's candidates, is added
    to the epoch's logs.

    Every round of the schedule runs, or the `fit` is refused before its first step. Rounds count from the
    `initial_epoch` of the `fit`. A `fit` that resumes with `tp.EpochBackup` or Keras's `BackupAndRestore` continues its
    rounds where it was interrupted.

    Args:
        schedule: `EqualShare`, or any TF-MOT `PruningSchedule`; its step counts the epochs of this `fit`, from 0.
        scope: How a round's count is shared between layers: `layer`, `global` or `erk`.
        reset_optimizer: Whether the optimizer starts afresh at the start of the `fit`, unless that resumes.

    Attributes:
        rounds: What was done, one dict a round: `round`, `epoch` (0-based), `kept` (by weight path), `sparsity`.
    """

    def __init__(self, schedule: PruningSchedule, scope: str = "layer", reset_optimizer: bool = True):
        super().__init__()
        if not callable(schedule):
            raise ArgumentError("schedule", "tp.EqualShare or another TF-MOT PruningSchedule", schedule)
        check_choice("scope", scope, PRUNE_SCOPES)
        self.schedule = schedule
        self.scope = scope
        self.reset_optimizer = reset_optimizer
        self.rounds: list[dict[str, Any]] = []
        self._plan: RoundSchedule | None = None
        self._before_reset: list[tuple[keras.Variable, np.ndarray]] = []

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raises ArgumentError if not every round can run in a `fit`, or a callback beside it undoes them."""
        last = self._plan_for(model, request.initial_epoch, request.epochs).last_epoch
        for other in request.callbacks:
            if isinstance(other, PruneRoundScheduler) and other is not self:
                raise _one_scheduler(other)
            if not isinstance(other, keras.callbacks.EarlyStopping) or not other.restore_best_weights:
                continue
            if max(other.start_from_epoch, request.initial_epoch) < last:
                raise ArgumentError(
                    "start_from_epoch",
                    f"at least {last} in EarlyStopping(restore_best_weights=True), the epoch of the last prune round: "
                    "the best weights of before are not pruned",
                    other.start_from_epoch,
                )

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Once BackupAndRestore has resumed a fit, Keras would begin all later ones at the same epoch.
        model._initial_epoch = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to prune: call begin_task before this fit")
        if self.params.get("epochs") is None:
            raise ArgumentError("callbacks", "CallbackList(..., epochs=...) with the epochs of the fit", "none")
        if self.params.setdefault(SCHEDULER, self) is not self:
            raise _one_scheduler(self)
        self.rounds = []
        self._plan = None
        if self.reset_optimizer and not self._resumes():
            self._reset_optimizer()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._plan is None:
            self._begin(epoch)
        records = lifecycle.records(self.model)
        number = self._plan.rounds_by(epoch)
        if number > records.rounds_planned - records.rounds_due:
            self._prune(epoch, number)
            records.round_was_run()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs["sparsity"] = self.rounds[-1]["sparsity"] if self.rounds else self._sparsity

    def on_train_end(self, logs: dict | None = None) -> None:
        self.settle()
        if lifecycle.records(self.model).rounds_due and SNAPSHOT not in self.params:
            advice = "or commit it as it is with packed.commit_task()"
            warnings.warn(f"{missing_rounds(self.model)} {advice}", stacklevel=2)

    def settle(self) -> None:
        """At the end of a `fit`, counts the rounds that are still to run; before a task is committed.

        Raises:
            ArgumentError: If the `fit` ends without an epoch.
        """
        if self._plan is None and not self._resumes():
            self._undo_reset()
            expected = "more than `initial_epoch`: prune rounds need epochs to run in"
            raise ArgumentError("epochs", expected, self.params["epochs"])
        if lifecycle.has_open_task(self.model):
            left = {path: _candidates(w.owner_map()) for path, w in lifecycle.masked_weights(self.model).items()}
            while self.rounds and any(left[path] > kept for path, kept in self.rounds[-1]["kept"].items()):
                del self.rounds[-1]  # weights of before that round were loaded, by EarlyStopping for instance
                lifecycle.records(self.model).round_was_undone()

    def _resumes(self) -> bool:
        """Whether a backup has set the epoch from which this `fit` goes on: Keras's way, which EpochBackup follows."""
        return self.model._initial_epoch is not None

    def _begin(self, epoch: int) -> None:
        """Makes the plan before the first step: only now have all callbacks begun, and the first epoch is known."""
        records = lifecycle.records(self.model)
        resumes = self._resumes()
        first_epoch = records.rounds_from if resumes else epoch
        try:
            plan = self._plan_for(self.model, first_epoch, self.params["epochs"])
        except ArgumentError:
            self._undo_reset()
            raise
        if resumes:
            plan.check_resumed(epoch, records.rounds_planned, records.rounds_planned - records.rounds_due)
        else:
            records.plan_rounds(len(plan.kept), first_epoch)
        self._plan = plan
        self._before_reset = []
        owners = [weight.owner_map() for weight in lifecycle.masked_weights(self.model).values()]
        self._sparsity = _pruned_share([_candidates(owner) for owner in owners], owners)

    def _plan_for(self, model: keras.Model, first_epoch: int, epochs: int) -> RoundSchedule:
        committed = lifecycle.committed_tasks(model)
        if isinstance(self.schedule, EqualShare) and committed >= self.schedule.num_tasks:
            expected = f"more than the {committed} tasks that the pack has already"
            raise ArgumentError("num_tasks", expected, self.schedule.num_tasks)
        return RoundSchedule.of(self.schedule, first_epoch, epochs)

    def _reset_optimizer(self) -> None:
        every = optimizers.all_of(self.model)
        self._before_reset = [(variable, view(variable)) for each in every for variable in each.variables]
        with lifecycle.strategy_scope(self.model):
            for optimizer in every:
                optimizers.reset(optimizer)

    def _undo_reset(self) -> None:
        with lifecycle.strategy_scope(self.model):
            for variable, value in self._before_reset:
                variable.assign(value)
        self._before_reset = []

    def _prune(self, epoch: int, number: int) -> None:
        weights = lifecycle.masked_weights(self.model)
        owners = [w.owner_map() for w in weights.values()]
        if type(self).score is PruneRoundScheduler.score:
            # Taken chunk by chunk: the magnitudes of the largest kernel would be most of the memory of a round.
            scores, key = (w.importance() for w in weights.values()), np.abs
        else:
            scores, key = (self.score(path, w.values()) for path, w in weights.items()), np.asarray
        keep = keep_masks(
            scores=scores,
            key=key,
            eligible=[ownership.candidates(owner) for owner in owners],
            # While a task is open, whatever is free was its candidate when it began.
            num_candidates=[ownership.count_uncommitted(owner) for owner in owners],
            kept_fraction=self._plan.kept_after(number),
            scope=self.scope,
            erk_cap=self._erk_cap(),
        )
        with lifecycle.strategy_scope(self.model):
            for weight, mask in zip(weights.values(), keep, strict=True):
                weight.prune(mask)
        kept = {path: int(np.count_nonzero(mask)) for path, mask in zip(weights, keep, strict=True)}
        sparsity = _pruned_share(list(kept.values()), owners)
        self.rounds.append({"round": number, "epoch": epoch, "kept": kept, "sparsity": sparsity})

    def score(self, path: str, values: np.ndarray) -> np.ndarray:
        """How much each weight of the kernel at `path` is worth keeping: its magnitude. Override to rank otherwise."""
        return np.abs(values)

    def _erk_cap(self) -> float:
        """No layer gives this task more than an even split of it between the tasks that are still to come."""
        schedule = self._plan.schedule
        if not isinstance(schedule, EqualShare):
            return 1.0
        return schedule.largest_share(lifecycle.committed_tasks(self.model))


def missing_rounds(model: keras.Model) -> str:
    """Says which prune rounds of the open task did not run, and how to run them: the start of a warning."""
    records, number = lifecycle.records(model), lifecycle.committed_tasks(model)
    name = records.names[number] if number < len(records.names) else f"task_{number + 1}"
    missing = f"{records.rounds_due} of its {records.rounds_planned} prune rounds did not run before the fit ended"
    return f"task {name!r} is not committed: {missing}. Fit again with PruneRoundScheduler to run them,"


def _candidates(owner: np.ndarray) -> int:
    return int(np.count_nonzero(ownership.candidates(owner)))


def _pruned_share(kept: list[int], owners: list[np.ndarray]) -> float:
    """The share of the open task's candidates that is pruned, where `kept` are left."""
    return 1.0 - sum(kept) / max(1, sum(ownership.count_uncommitted(owner) for owner in owners))


def _one_scheduler(other: PruneRoundScheduler) -> ArgumentError:
    return ArgumentError("callbacks", "one PruneRoundScheduler a fit", f"another one, {type(other).__name__}")
