"""Runs prune rounds on a schedule."""

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
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

# Batch size of the examples for a criterion that sees data.
_BATCH = 64


class PruneRoundScheduler(keras.callbacks.Callback):
    """Prunes the open task's candidates at the start of the epochs given by `schedule` (the `N` rounds of Algorithm 1).

    ```python
    packed.fit(data, epochs=72, callbacks=[
        tp.PruneRoundScheduler(tp.EqualShare(final_prune=0.95, num_tasks=5, rounds=8)), ...])
    ```

    After round `n` of a task that began with `c` candidates in a layer, exactly `round(c * (1-z)^n)` of them remain:
    those with the largest magnitude. Of equal magnitudes, the one with the lower index is kept. The logs of each epoch
    get `sparsity`, the pruned fraction of the task's candidates.

    If not every round of the schedule can run, the `fit` is refused before its first step. Epochs of the schedule count
    from the `initial_epoch` of the `fit`. A `fit` that resumes with `tp.EpochBackup` or Keras's `BackupAndRestore`
    continues with the next round.

    Args:
        schedule: `EqualShare`, or any TF-MOT `PruningSchedule`; its step counts the epochs of this `fit`, from 0.
        scope: How a round's number of weights is divided between layers: `layer`, `global` or `erk`.
        reset_optimizer: Whether to reset the optimizer when the `fit` begins, unless it resumes.
        criterion: What a round ranks the weights by: `magnitude`; `activation`, magnitude times the norm of the inputs
            (Sun et al. 2023, Wanda); or `taylor`, the squared product of weight and gradient (Molchanov et al. 2019).
        data: For the last two: a few hundred training examples, as arrays `(x, y)` or a `tf.data.Dataset` of batches.

    Attributes:
        rounds: The rounds done, each as a dict: `round` (1-based), `epoch` (0-based), `kept` (number of candidates by
            weight path), `sparsity`. With a `RetrainingRate` also `removed`: the norm of the pruned weights, divided by
            the norm of the candidates and by the square root of the pruned fraction.
    """

    def __init__(
        self,
        schedule: PruningSchedule,
        scope: str = "layer",
        reset_optimizer: bool = True,
        criterion: str = MAGNITUDE,
        data: Any = None,
    ):
        super().__init__()
        if not callable(schedule):
            raise ArgumentError("schedule", "tp.EqualShare or another TF-MOT PruningSchedule", schedule)
        check_choice("scope", scope, PRUNE_SCOPES)
        check_choice("criterion", criterion, CRITERIA)
        if criterion == MAGNITUDE and data is not None:
            raise ArgumentError("data", "no data with the criterion magnitude", type(data).__name__)
        if criterion != MAGNITUDE:
            data = _checked(data, criterion)
        self.schedule = schedule
        self.scope = scope
        self.criterion = criterion
        self.data = data
        self.reset_optimizer = reset_optimizer
        self.rounds: list[dict[str, Any]] = []
        self._plan: RoundSchedule | None = None
        self._optimizer_before_reset: list[tuple[keras.Variable, np.ndarray]] = []
        self._importance: dict[str, np.ndarray] = {}

    @property
    def first_epoch(self) -> int:
        """First epoch of the `fit`, also if it resumes at a later one. Known from its first epoch on."""
        return lifecycle.records(self.model).rounds_from

    @property
    def round_epochs(self) -> list[int]:
        """The epochs that begin with a round, in order. Known from the first epoch of the `fit` on."""
        return [] if self._plan is None else list(self._plan.kept)

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if not every round can run in a `fit`, or another callback would undo rounds."""
        if self.criterion != MAGNITUDE:
            importance.check_defined(model, self.criterion)
            check_examples(model, "data", self.data)
        last_round = self._plan_for(model, request.initial_epoch, request.epochs).last_epoch
        for other in request.callbacks:
            if isinstance(other, PruneRoundScheduler) and other is not self:
                raise _one_scheduler(other)
            if not isinstance(other, keras.callbacks.EarlyStopping) or not other.restore_best_weights:
                continue
            if max(other.start_from_epoch, request.initial_epoch) < last_round:
                raise ArgumentError(
                    "start_from_epoch",
                    f"at least {last_round}, the epoch of the last prune round, in "
                    "EarlyStopping(restore_best_weights=True): weights from before are not pruned",
                    other.start_from_epoch,
                )

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # After BackupAndRestore has resumed a fit, Keras would begin all later ones at the same epoch.
        resume_at(model, None)

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
        plan = self._begin(epoch) if self._plan is None else self._plan
        records = lifecycle.records(self.model)
        number = plan.rounds_by(epoch)
        if number > records.rounds_planned - records.rounds_due:
            self._prune(plan, epoch, number)
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
        """Count, at the end of a `fit` and before a task is committed, the rounds that still have to run.

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
                del self.rounds[-1]  # undone, for instance by EarlyStopping, which has loaded earlier weights
                lifecycle.records(self.model).round_was_undone()

    def _resumes(self) -> bool:
        """Whether this `fit` resumes: BackupAndRestore and EpochBackup set the model's `_initial_epoch`."""
        return resumed_epoch(self.model) is not None

    def _begin(self, epoch: int) -> RoundSchedule:
        """Schedule the rounds when the first epoch begins, as a resumed `fit` does not begin at `initial_epoch`."""
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
        self._optimizer_before_reset = []
        owners = [weight.owner_map() for weight in lifecycle.masked_weights(self.model).values()]
        self._sparsity = _pruned_share([_count_candidates(owner) for owner in owners], owners)
        return plan

    def _plan_for(self, model: keras.Model, first_epoch: int, epochs: int) -> RoundSchedule:
        schedule = self.schedule
        if isinstance(schedule, EqualShare):
            number, records = lifecycle.committed_tasks(model) + 1, lifecycle.records(model)
            names = [records.name_of(task) for task in range(1, number + 1)]
            schedule = schedule.for_task(number, names, lifecycle.free_fraction(model)["overall"])
        return RoundSchedule.of(schedule, first_epoch, epochs)

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

    def _prune(self, plan: RoundSchedule, epoch: int, number: int) -> None:
        weights = lifecycle.masked_weights(self.model)
        owners = [w.owner_map() for w in weights.values()]
        sees_data = self.criterion != MAGNITUDE
        self._importance = importance.scores(self.model, self.criterion, _batches(self.data)) if sees_data else {}
        key: Key
        if not sees_data and type(self).score is PruneRoundScheduler.score:
            # Magnitudes are computed in chunks: those of the largest kernel would be most of the RAM of a round.
            scores, key = (w.importance() for w in weights.values()), np.abs
        else:
            scores, key = (self.score(path, w.values()) for path, w in weights.items()), np.asarray
        keep = keep_masks(
            scores=scores,
            key=key,
            eligible=[ownership.candidates(owner) for owner in owners],
            # While a task is open, all free weights were its candidates when it began.
            num_candidates=[ownership.count_uncommitted(owner) for owner in owners],
            kept_fraction=plan.kept_after(number),
            scope=self.scope,
            erk_cap=_erk_cap(plan.schedule, lifecycle.committed_tasks(self.model)),
        )
        removed = {"removed": _removed(weights.values(), keep)} if RATE in self.params else {}
        with lifecycle.strategy_scope(self.model):
            for weight, mask in zip(weights.values(), keep, strict=True):
                weight.prune(mask)
        kept = {path: int(np.count_nonzero(mask)) for path, mask in zip(weights, keep, strict=True)}
        sparsity = _pruned_share(list(kept.values()), owners)
        self._importance = {}
        self.rounds.append({"round": number, "epoch": epoch, "kept": kept, "sparsity": sparsity, **removed})

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


def _checked(data: Any, criterion: str) -> Any:
    """Return the examples for a criterion: arrays, or a finite data set."""
    expected = f"examples (x, y) or a finite tf.data.Dataset of batches, because of criterion={criterion!r}"
    if isinstance(data, tf.data.Dataset):
        size = int(data.cardinality())
        if size in (tf.data.INFINITE_CARDINALITY, 0):
            raise ArgumentError("data", expected, "a data set that repeats forever" if size else "an empty data set")
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ArgumentError("data", expected, type(data).__name__)
    x, y = (each if isinstance(each, np.ndarray) else np.asarray(each) for each in data)
    if not x.ndim or not y.ndim or len(x) != len(y) or len(x) == 0:
        raise ArgumentError("data", expected, f"arrays of shape {x.shape} and {y.shape}")
    return x, y


def _batches(data: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(data, tuple):
        x, y = data
        return ((x[i : i + _BATCH], y[i : i + _BATCH]) for i in range(0, len(x), _BATCH))
    return (keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in data)


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
    """Return the norm of the weights to prune, relative to the candidates and to the square root of their fraction."""
    counts, squares = np.zeros(2), np.zeros(2)
    for weight, mask in zip(weights, keep, strict=True):
        candidates = ownership.candidates(weight.owner_map())
        for index, chosen in enumerate((candidates & ~mask, candidates)):
            counts[index] += np.count_nonzero(chosen)
            squares[index] += np.square(weight.importance()[chosen], dtype=np.float64).sum()
    return float(np.sqrt(squares[0] / squares[1] * counts[1] / counts[0])) if squares[1] and counts[0] else 0.0


def _one_scheduler(other: PruneRoundScheduler) -> ArgumentError:
    return ArgumentError("callbacks", "one PruneRoundScheduler per fit", f"another one, {type(other).__name__}")
