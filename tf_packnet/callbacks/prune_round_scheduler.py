"""Runs prune rounds on a schedule."""

import contextlib
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.callbacks.layer_choice import check_completed, keep_with_patterns, patterns_of
from tf_packnet.callbacks.time_budget import TIME, TimeBudget
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.weights import view
from tf_packnet.pruning import auto_rounds, ownership, timing
from tf_packnet.pruning.policies import CRITERIA, MAGNITUDE
from tf_packnet.pruning.ranking import PRUNE_SCOPES, keep_masks
from tf_packnet.pruning.round_schedule import RoundSchedule, Schedule
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.pruning.selection import Key
from tf_packnet.pruning.tfmot import PruningSchedule
from tf_packnet.system.keras_internals import resume_at, resumed_epoch
from tf_packnet.training import importance, optimizers
from tf_packnet.training.fit_checks import FitRequest, check_examples

# Keys in `params`, a dict that all callbacks of one `fit` share, under which the callbacks find each other.
SCHEDULER, SNAPSHOT, RATE = "tf_packnet/scheduler", "tf_packnet/snapshot", "tf_packnet/rate"

_VALIDATION = "examples whose loss decides, with rounds='auto', when to prune and how much"


class PruneRoundScheduler(keras.callbacks.Callback):
    """Prunes the open task's candidates at the start of the epochs given by `schedule`: the `N` rounds of Algorithm 1.

    ```python
    packed.fit(data, epochs=72, callbacks=[
        tp.PruneRoundScheduler(tp.EqualShare(final_prune=0.95, num_tasks=5, rounds=8)), ...])
    ```

    After round `n` of a task that began with `c` candidates in a layer, exactly `round(c * (1-z)^n)` of them remain:
    those with the largest magnitudes. Of equal magnitudes, the one with the lower index is kept. The logs of each epoch
    get `sparsity`, the pruned fraction of the task's candidates.

    With `EqualShare(rounds="auto")` the validation loss decides in which epochs to prune and how much. The `fit` then
    needs `validation_data`.

    If not every round of the schedule can run, the `fit` is refused before its first step. Epochs of the schedule count
    from the `initial_epoch` of the `fit`. A `fit` that resumes with `tp.EpochBackup` or Keras's `BackupAndRestore`
    continues with the next round. With a `TimeBudget`, the remaining time decides when the rounds run.

    Args:
        schedule: `EqualShare`, or any TF-MOT `PruningSchedule`, whose steps are then the epochs of this `fit`, from 0.
        scope: How a round's number of weights is divided between layers: `layer`, `global` or `erk`.
        reset_optimizer: Whether to reset the optimizer when the `fit` begins, unless it resumes.
        criterion: How a round ranks the weights: `magnitude`; `activation`, magnitude times the norm of the inputs
            (Sun et al. 2023, Wanda); or `taylor`, the squared product of weight and gradient (Molchanov et al. 2019).
        data: For `activation` and `taylor`: a few hundred training examples, as arrays `(x, y)` or a `tf.data.Dataset`
            of batches.
        pattern: None; `N:M`, such as `2:4`; or blocks `HxW` or `HxW:max`, such as `4x4`; see `PruneStepScheduler`. The
            pattern holds for the weights that the task owns, not for those of earlier tasks.

    Attributes:
        rounds: The rounds that have run, each as a dict: `round` (1-based), `epoch` (0-based), `kept` (number of
            candidates by weight path), `sparsity`. With a `RetrainingRate` also `removed`: the norm of the pruned
            weights, divided by the norm of the candidates and by the square root of the pruned fraction. With `auto`
            rounds also `steps`: how many of the `EqualShare.rounds` steps have been done.
        validation_losses: With `auto` rounds: the validation loss after each epoch of the `fit`.
    """

    def __init__(
        self,
        schedule: PruningSchedule,
        scope: str = "layer",
        reset_optimizer: bool = True,
        criterion: str = MAGNITUDE,
        data: Any = None,
        pattern: Any = None,
    ):
        super().__init__()
        if not callable(schedule):
            raise ArgumentError("schedule", "tp.EqualShare or another TF-MOT PruningSchedule", schedule)
        check_choice("scope", scope, PRUNE_SCOPES)
        check_choice("criterion", criterion, CRITERIA)
        if criterion == MAGNITUDE and data is not None:
            raise ArgumentError("data", "no data with the criterion magnitude", type(data).__name__)
        if criterion != MAGNITUDE:
            data = importance.checked_data(data, criterion)
        self.schedule = schedule
        self.scope = scope
        self.criterion = criterion
        self.data = data
        self.pattern = pattern
        self.reset_optimizer = reset_optimizer
        self.rounds: list[dict[str, Any]] = []
        self.validation_losses: list[float] = []
        self._plan: RoundSchedule | None = None
        self._optimizer_before_reset: list[tuple[keras.Variable, np.ndarray]] = []
        self._importance: dict[str, np.ndarray] = {}

    @property
    def first_epoch(self) -> int:
        """First epoch of the `fit`, even if it resumes at a later one. Known from the first epoch on."""
        return lifecycle.records(self.model).rounds_from

    @property
    def round_epochs(self) -> list[int]:
        """The epochs that begin with a round, in order. Known from the first epoch of the `fit` on.

        With a `TimeBudget`, only those of the rounds that have run.
        """
        if self._plan is None or not self._plan.first_epochs:
            return [each["epoch"] for each in self.rounds]
        return list(self._plan.first_epochs)

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if not every round can run in a `fit`, or another callback would undo rounds."""
        if self.criterion != MAGNITUDE:
            importance.check_defined(model, self.criterion)
            check_examples(model, "data", self.data)
        budget = next((each for each in request.callbacks if isinstance(each, TimeBudget)), None)
        if budget is not None and request.callbacks.index(budget) > request.callbacks.index(self):
            raise ArgumentError("callbacks", "TimeBudget before PruneRoundScheduler", "TimeBudget after it")
        plan = self._plan_for(model, request.initial_epoch, request.epochs, budget is not None)
        check_completed(patterns_of(model, self.pattern), plan.kept_after(len(plan.kept)))
        if self.auto is not None:
            _check_validation(request)
        for other in request.callbacks:
            if isinstance(other, PruneRoundScheduler) and other is not self:
                raise _one_scheduler(other)
            if not isinstance(other, keras.callbacks.EarlyStopping) or not other.restore_best_weights:
                continue
            if budget is not None:
                expected = "EarlyStopping without restore_best_weights, because of TimeBudget"
                raise ArgumentError("callbacks", f"{expected}: weights from before a round are not pruned", "with it")
            if max(other.start_from_epoch, request.initial_epoch) < plan.last_epoch:
                raise ArgumentError(
                    "start_from_epoch",
                    f"at least {plan.last_epoch}, the epoch of the last prune round, in "
                    "EarlyStopping(restore_best_weights=True): weights from before are not pruned",
                    other.start_from_epoch,
                )

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # After BackupAndRestore has resumed a fit, Keras would start all later fits at the same epoch.
        resume_at(model, None)

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to prune: call begin_task before this fit")
        if self.params.get("epochs") is None:
            raise ArgumentError("callbacks", "CallbackList(..., epochs=...) with the epochs of the fit", "none")
        if self.params.setdefault(SCHEDULER, self) is not self:
            raise _one_scheduler(self)
        self.rounds, self.validation_losses = [], []
        self._plan = None
        if self.reset_optimizer and not self._resumes():
            self._reset_optimizer()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        plan = self._begin(epoch) if self._plan is None else self._plan
        records = lifecycle.records(self.model)
        if self.auto is not None:
            if plan.rounds_by(epoch) > records.rounds_planned - records.rounds_due:
                self._decide(plan, epoch)
            return
        while records.rounds_due and self._is_due(plan, epoch, records.rounds_planned - records.rounds_due):
            number = records.rounds_planned - records.rounds_due + 1
            with self._budget.timed_round() if self._budget else contextlib.nullcontext():
                self._prune(plan, epoch, plan.kept_after(number), {"round": number})
            records.round_was_run()

    def _decide(self, plan: RoundSchedule, epoch: int) -> None:
        """Prune as much as the validation loss decides, which may be nothing."""
        schedule = plan.schedule
        assert isinstance(schedule, EqualShare)
        records = lifecycle.records(self.model)
        done = self.rounds[-1]["steps"] if self.rounds else 0
        first_epoch, last_epoch = records.rounds_from, self.params["epochs"]
        steps = auto_rounds.steps_at(epoch - first_epoch, last_epoch - first_epoch, done, self.validation_losses)
        if steps > done:
            self._prune(plan, epoch, schedule.kept_fraction(steps), {"round": len(self.rounds) + 1, "steps": steps})
        for _ in range(records.rounds_due if steps == schedule.rounds else 1):
            records.round_was_run()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.auto is not None:
            loss = (logs or {}).get("val_loss")
            if loss is None:
                raise ArgumentError("validation_data", _VALIDATION, "logs without val_loss")
            self.validation_losses.append(float(loss))
        if logs is not None:
            logs["sparsity"] = self.rounds[-1]["sparsity"] if self.rounds else self._sparsity

    def on_train_end(self, logs: dict | None = None) -> None:
        self.settle()
        if lifecycle.records(self.model).rounds_due and SNAPSHOT not in self.params:
            advice = "or commit it as it is with packed.commit_task()"
            warnings.warn(f"{missing_rounds(self.model)} {advice}", stacklevel=2)

    def settle(self) -> None:
        """Update, at the end of a `fit` and before a task is committed, the count of rounds that still have to run.

        Raises:
            ArgumentError: If the `fit` had no epoch.
        """
        if self._plan is None and not self._resumes():
            self._undo_reset()
            expected = "more than `initial_epoch`: prune rounds need epochs to run in"
            raise ArgumentError("epochs", expected, self.params["epochs"])
        if lifecycle.has_open_task(self.model):
            weights = lifecycle.masked_weights(self.model).items()
            candidates = {path: _count_candidates(weight.owner_map()) for path, weight in weights}
            while self.rounds and any(candidates[path] > kept for path, kept in self.rounds[-1]["kept"].items()):
                del self.rounds[-1]  # undone, for instance by EarlyStopping, which has restored earlier weights
                lifecycle.records(self.model).round_was_undone()

    @property
    def auto(self) -> EqualShare | None:
        """The schedule, if the validation loss decides when to prune and how much."""
        return self.schedule if isinstance(self.schedule, EqualShare) and self.schedule.auto else None

    @property
    def _budget(self) -> TimeBudget | None:
        return self.params.get(TIME)

    def _is_due(self, plan: RoundSchedule, epoch: int, done: int) -> bool:
        """Return whether the round after the first `done` ones runs before `epoch`."""
        if self._budget is None:
            return done < plan.rounds_by(epoch)
        assert isinstance(self.schedule, EqualShare)
        assert isinstance(self.schedule.round_epochs, str)
        weights = timing.weights_of(self.schedule.round_epochs, self.schedule.rounds)
        return not done or self._budget.is_round_due(weights[done - 1 :], self.params["epochs"] - epoch)

    def _resumes(self) -> bool:
        """Whether this `fit` resumes: BackupAndRestore and EpochBackup set the model's `_initial_epoch`."""
        return resumed_epoch(self.model) is not None

    def _begin(self, epoch: int) -> RoundSchedule:
        """Schedule the rounds when the first epoch begins, as a resumed `fit` does not begin at `initial_epoch`."""
        records = lifecycle.records(self.model)
        resumes = self._resumes()
        first_epoch = records.rounds_from if resumes else epoch
        try:
            plan = self._plan_for(self.model, first_epoch, self.params["epochs"], self._budget is not None)
        except ArgumentError:
            self._undo_reset()
            raise
        if resumes:
            plan.check_resumed(epoch, records.rounds_planned, records.rounds_planned - records.rounds_due)
        else:
            records.plan_rounds(len(plan.kept), first_epoch)
        self._plan = plan
        self._optimizer_before_reset = []
        owners = [weight.owner_map() for weight in lifecycle.masked_weights(self.model).values()]
        self._sparsity = _pruned_share([_count_candidates(owner) for owner in owners], owners)
        return plan

    def _plan_for(self, model: keras.Model, first_epoch: int, epochs: int, timed: bool) -> RoundSchedule:
        schedule = self.schedule
        if isinstance(schedule, EqualShare):
            number, records = lifecycle.committed_tasks(model) + 1, lifecycle.records(model)
            names = [records.name_of(task) for task in range(1, number + 1)]
            schedule = schedule.for_task(number, names, lifecycle.free_fraction(model)["overall"])
        return RoundSchedule.of(schedule, first_epoch, epochs, timed)

    def _reset_optimizer(self) -> None:
        used = optimizers.all_of(self.model)
        self._optimizer_before_reset = [(variable, view(variable)) for each in used for variable in each.variables]
        with lifecycle.strategy_scope(self.model):
            for optimizer in used:
                optimizers.reset(optimizer)

    def _undo_reset(self) -> None:
        with lifecycle.strategy_scope(self.model):
            for variable, value in self._optimizer_before_reset:
                variable.assign(value)
        self._optimizer_before_reset = []

    def _prune(self, plan: RoundSchedule, epoch: int, kept_fraction: float, numbers: dict[str, int]) -> None:
        weights = lifecycle.masked_weights(self.model)
        owners = [w.owner_map() for w in weights.values()]
        sees_data = self.criterion != MAGNITUDE
        self._importance = (
            importance.scores(self.model, self.criterion, importance.batches_of(self.data)) if sees_data else {}
        )
        key: Key
        if not sees_data and type(self).score is PruneRoundScheduler.score:
            # Magnitudes are computed in chunks: those of the largest kernel would take most of a round's RAM.
            scores, key = (w.importance() for w in weights.values()), np.abs
        else:
            scores, key = (self.score(path, w.values()) for path, w in weights.items()), np.asarray
        erk_cap = _erk_cap(plan.schedule, lifecycle.committed_tasks(self.model))
        if self.pattern is not None:
            patterns = patterns_of(self.model, self.pattern)
            scored = dict(zip(weights, map(key, scores), strict=True))
            keep = keep_with_patterns(self.model, patterns, scored, kept_fraction, self.scope, erk_cap)
        else:
            keep = keep_masks(
                scores=scores,
                key=key,
                eligible=[ownership.candidates(owner) for owner in owners],
                # While a task is open, all free weights were its candidates when it began.
                num_candidates=[ownership.count_uncommitted(owner) for owner in owners],
                kept_fraction=kept_fraction,
                scope=self.scope,
                erk_cap=erk_cap,
            )
        removed = {"removed": _removed(weights.values(), keep)} if RATE in self.params else {}
        with lifecycle.strategy_scope(self.model):
            for weight, mask in zip(weights.values(), keep, strict=True):
                weight.prune(mask)
        kept = {path: int(np.count_nonzero(mask)) for path, mask in zip(weights, keep, strict=True)}
        sparsity = _pruned_share(list(kept.values()), owners)
        self._importance = {}
        self.rounds.append({**numbers, "epoch": epoch, "kept": kept, "sparsity": sparsity, **removed})

    def score(self, path: str, values: np.ndarray) -> np.ndarray:
        """Score the weights of a kernel by the criterion; override to rank them differently.

        A round keeps the weights with the highest scores.

        Args:
            path: Path of the kernel.
            values: Its weights.

        Returns:
            Scores, shaped like `values`.
        """
        return np.abs(values) if self.criterion == MAGNITUDE else self._importance[path]


def _check_validation(request: FitRequest) -> None:
    """Raise ArgumentError unless a `fit` computes the validation loss after every epoch, for `rounds="auto"`."""
    if request.validation_freq is None:
        raise ArgumentError("validation_data", _VALIDATION, None)
    if request.validation_freq != 1:
        raise ArgumentError("validation_freq", "1 with rounds='auto', which needs each epoch", request.validation_freq)
    for other in request.callbacks:
        if isinstance(other, keras.callbacks.BackupAndRestore):
            expected = "tp.EpochBackup with rounds='auto', to resume with the same validation losses"
            raise ArgumentError("callbacks", expected, type(other).__name__)


def missing_rounds(model: keras.Model) -> str:
    """Return the beginning of a warning that prune rounds of the open task did not run."""
    records, number = lifecycle.records(model), lifecycle.committed_tasks(model)
    name = records.names[number] if number < len(records.names) else f"task_{number + 1}"
    missing = f"{records.rounds_due} of its {records.rounds_planned} prune rounds did not run before the fit ended"
    return f"task {name!r} is not committed: {missing}. Fit again with PruneRoundScheduler to run them,"


def _erk_cap(schedule: Schedule, committed_tasks: int) -> float:
    """Return the largest fraction of a layer that the open task may keep, so that later tasks can keep as much."""
    return schedule.largest_share(committed_tasks) if isinstance(schedule, EqualShare) else 1.0


def _count_candidates(owner: np.ndarray) -> int:
    return int(np.count_nonzero(ownership.candidates(owner)))


def _pruned_share(kept: list[int], owners: list[np.ndarray]) -> float:
    """Return the fraction of the open task's candidates that is pruned.

    Args:
        kept: Candidates that remain in each kernel.
        owners: Owner map of each kernel.
    """
    return 1.0 - sum(kept) / sum(ownership.count_uncommitted(owner) for owner in owners)


def _removed(weights: Iterable[MaskedWeight], keep: Iterable[np.ndarray]) -> float:
    """Return the norm of the weights to prune over that of the candidates and over the root of the pruned fraction."""
    counts, squares = np.zeros(2), np.zeros(2)
    for weight, mask in zip(weights, keep, strict=True):
        candidates = ownership.candidates(weight.owner_map())
        for index, chosen in enumerate((candidates & ~mask, candidates)):
            counts[index] += np.count_nonzero(chosen)
            squares[index] += np.square(weight.importance()[chosen], dtype=np.float64).sum()
    return float(np.sqrt(squares[0] / squares[1] * counts[1] / counts[0])) if squares[1] and counts[0] else 0.0


def _one_scheduler(other: PruneRoundScheduler) -> ArgumentError:
    return ArgumentError("callbacks", "one PruneRoundScheduler per fit", f"another one, {type(other).__name__}")
