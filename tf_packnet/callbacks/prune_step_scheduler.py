"""Prunes at the gradient steps given by a TF-MOT pruning schedule."""

import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.callbacks.layer_choice import by_weight, check_completed, keep_with_patterns, patterns_of
from tf_packnet.callbacks.prune_round_scheduler import SCHEDULER, PruneRoundScheduler
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.pruning import ownership
from tf_packnet.pruning.patterns import Groups
from tf_packnet.pruning.ranking import PRUNE_SCOPES
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.training.fit_checks import FitRequest

Schedule = Callable[[Any], tuple[Any, Any]]


class PruneStepScheduler(keras.callbacks.Callback):
    """Prunes a sparsified model at the gradient steps given by a TF-MOT pruning schedule.

    ```python
    sparse = tp.sparsify(model)
    sparse.compile(...)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.5, 0.8, begin_step=0, end_step=844)
    sparse.fit(x, y, epochs=2, callbacks=[tp.PruneStepScheduler(schedule)])
    ```

    Step `n` is the `n`-th gradient step of the optimizer, counted from 1, as in TF-MOT. A round takes place just before
    its step. It keeps exactly `round(c * (1 - sparsity))` of the `c` weights of each kernel: those with the largest
    magnitudes; of equal magnitudes, the one with the lower index. With blocks, it keeps that fraction of the blocks.
    Pruned weights do not come back. The optimizer counts the steps, so that a `fit` continues where the previous one
    has ended, also after the model was saved and loaded. The logs of each epoch get `sparsity`.

    For a schedule in epochs, use `PruneRoundScheduler`. If one call runs several steps, as with `steps_per_execution`,
    a round takes place before the first call that begins after its step, or at the end of the epoch.

    In a training loop of your own, call `set_model(model)` and `on_train_begin()` at the start,
    `on_train_batch_begin(step)` before each step, and `on_epoch_end(epoch)` at the end of each epoch. The optimizer
    must be `model.optimizer`.

    Args:
        schedule: `ConstantSparsity`, `PolynomialDecay`, or any other callable that returns `(should_prune, sparsity)`
            for a step. A mapping by layer name gives each layer its own schedule; layers that are not in it are not
            pruned. None is allowed with an N:M pattern, which is then applied once, before the first step.
        pattern: None for single weights; `N:M` to keep at most `N` of each `M` weights in a row along the input axis,
            as soon as the sparsity is `1 - N/M`; `HxW` for blocks of `H` inputs by `W` outputs, ranked by their mean
            magnitude, or `HxW:max` by their largest one. A mapping by layer name gives each layer its own pattern;
            layers that are not in it have none.
        scope: How the weights to keep are divided between the layers that share a schedule: `layer`, `global` or `erk`.
    """

    def __init__(
        self, schedule: Schedule | Mapping[str, Schedule] | None = None, pattern: Any = None, scope: str = "layer"
    ):
        super().__init__()
        for each in schedule.values() if isinstance(schedule, Mapping) else [schedule]:
            if isinstance(each, EqualShare):
                expected = "a schedule in gradient steps; for EqualShare, which counts epochs, use PruneRoundScheduler"
                raise ArgumentError("schedule", expected, type(each).__name__)
            if not callable(each) and (each is not None or schedule is not None):
                raise ArgumentError("schedule", "a TF-MOT PruningSchedule, or a mapping of them by layer", each)
        if schedule is None and pattern is None:
            raise ArgumentError("schedule", "a TF-MOT PruningSchedule, unless there is a pattern N:M", schedule)
        check_choice("scope", scope, PRUNE_SCOPES)
        self.schedule = schedule
        self.pattern = pattern
        self.scope = scope
        self._request: FitRequest | None = None

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if the schedule or the pattern does not fit the model, or another callback prunes too."""
        for other in request.callbacks:
            if isinstance(other, PruneRoundScheduler | PruneStepScheduler) and other is not self:
                raise ArgumentError("callbacks", "one callback that prunes", f"also {type(other).__name__}")
        self._request = request
        self._check(model)

    def _check(self, model: keras.Model) -> None:
        schedules, patterns = self._schedules(model), patterns_of(model, self.pattern)
        if self.schedule is None and not all(isinstance(each, Groups) for each, _ in patterns.values()):
            raise ArgumentError("schedule", "a schedule for layers without a pattern N:M", None)
        for path, schedule in schedules.items():
            last = _last_step(schedule)
            if last is not None:
                check_completed({path: patterns[path]}, 1.0 - _sparsity_at(schedule, last))

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to prune: call begin_task before this fit")
        if getattr(self.model, "optimizer", None) is None:
            raise RuntimeError("the model has no optimizer, which counts the steps: compile it, or set model.optimizer")
        if self.params is not None and self.params.setdefault(SCHEDULER, self) is not self:
            raise ArgumentError("callbacks", "one callback that prunes", type(self.params[SCHEDULER]).__name__)
        self._check(self.model)
        schedules = self._schedules(self.model)
        self._groups = [
            (schedule, [path for path, each in schedules.items() if each is schedule])
            for schedule in {id(each): each for each in schedules.values()}.values()
        ]
        self._patterns = patterns_of(self.model, self.pattern)
        self._seen = self._steps_done()
        self._check_early_stopping()
        self._is_first = self.schedule is None

    def _check_early_stopping(self) -> None:
        """Raise ArgumentError if EarlyStopping could restore weights from before the last round."""
        if self._request is None:
            return
        steps = int((self.params or {}).get("steps") or 0)
        lasts = [_last_step(schedule) for schedule, _ in self._groups]
        known = [last for last in lasts if last is not None]
        last_epoch: int | None = None
        if len(known) == len(lasts) and (steps or not known):
            epochs = [(last - self._seen - 1) // steps for last in known]
            last_epoch = self._request.initial_epoch + max([0, *epochs])
        for other in self._request.callbacks:
            if not isinstance(other, keras.callbacks.EarlyStopping) or not other.restore_best_weights:
                continue
            if last_epoch is None:
                expected = "False, because the epoch of the last prune round is not known"
                raise ArgumentError("restore_best_weights", expected, True)
            if max(other.start_from_epoch, self._request.initial_epoch) < last_epoch:
                expected = f"at least {last_epoch}, the epoch of the last prune round, with restore_best_weights=True"
                raise ArgumentError("start_from_epoch", expected, other.start_from_epoch)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._prune_until(self._steps_done() + 1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._prune_until(self._steps_done())
        if logs is not None:
            logs["sparsity"] = sparsity(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.settle()
        done = self._steps_done()
        for schedule, _ in self._groups:
            last = _last_step(schedule)
            if last is not None and last > done:
                warnings.warn(
                    f"training ended after step {done}, but the last prune round is at step {last} (sparsity "
                    f"{_sparsity_at(schedule, last):.4g}): train further with this callback, or change the schedule",
                    stacklevel=2,
                )

    def settle(self) -> None:
        """Do nothing: the rounds of this callback do not belong to a single `fit`."""

    def _steps_done(self) -> int:
        return int(self.model.optimizer.iterations)

    def _schedules(self, model: keras.Model) -> dict[str, Schedule]:
        """Return the schedule of each weight that has one, by path."""
        return {path: each for path, each in by_weight(model, "schedule", self.schedule).items() if each is not None}

    def _prune_until(self, step: int) -> None:
        """Run the rounds of all steps since the last call as a single round with the highest of their sparsities."""
        if self._is_first:
            self._is_first = False
            self._apply_pattern()
        for schedule, paths in self._groups:
            asked = [_round_at(schedule, each) for each in range(self._seen + 1, step + 1)]
            due = [each for each in asked if each is not None]
            if due:
                self._prune(paths, 1.0 - max(due))
        self._seen = max(step, self._seen)

    def _prune(self, paths: list[str], kept_fraction: float) -> None:
        weights = lifecycle.masked_weights(self.model)
        scores = {path: np.abs(weights[path].importance()) for path in paths}
        masks = keep_with_patterns(self.model, self._patterns, scores, kept_fraction, self.scope)
        self._keep(dict(zip(paths, masks, strict=True)))

    def _apply_pattern(self) -> None:
        keep = {}
        for path, weight in lifecycle.masked_weights(self.model).items():
            pattern, axes = self._patterns[path]
            candidates = ownership.candidates(weight.owner_map())
            keep[path] = pattern.preferred(np.abs(weight.importance()), candidates, axes)
        self._keep(keep)

    def _keep(self, masks: Mapping[str, np.ndarray]) -> None:
        weights = lifecycle.masked_weights(self.model)
        with lifecycle.strategy_scope(self.model):
            for path, mask in masks.items():
                weights[path].prune(mask)


def sparsity(model: keras.Model) -> float:
    """Return the pruned fraction of the weights that no committed task owns."""
    owners = [weight.owner_map() for weight in lifecycle.masked_weights(model).values()]
    kept = sum(int(np.count_nonzero(ownership.candidates(owner))) for owner in owners)
    return 1.0 - kept / max(1, sum(map(ownership.count_uncommitted, owners)))


def _bounds(schedule: Schedule) -> tuple[int, int, int] | None:
    """Return `begin_step`, `end_step` and `frequency` of a schedule with these attributes; None for other schedules."""
    values = [getattr(schedule, name, None) for name in ("begin_step", "end_step", "frequency")]
    integers = [int(value) for value in values if isinstance(value, Integral)]
    return (integers[0], integers[1], integers[2]) if len(integers) == 3 and integers[2] > 0 else None


def _round_at(schedule: Schedule, step: int) -> float | None:
    """Return the sparsity of the round at `step`; None if there is none."""
    bounds = _bounds(schedule)
    if bounds is not None and (step < bounds[0] or (step - bounds[0]) % bounds[2] or 0 <= bounds[1] < step):
        return None  # without calling the schedule, which takes as long as a gradient step of a small model
    try:
        should_prune, value = schedule(np.int64(step))
        found = float(value) if bool(should_prune) else None
    except (TypeError, ValueError) as error:
        expected = f"a callable that returns two scalars (should_prune, sparsity), also for step {step}"
        raise ArgumentError("schedule", expected, type(schedule).__name__) from error
    if found is not None and not 0.0 <= found <= 1.0:
        raise ArgumentError("schedule", f"a sparsity between 0 and 1 at step {step}", found)
    return found


def _sparsity_at(schedule: Schedule, step: int) -> float:
    return float(schedule(np.int64(step))[1])


def _last_step(schedule: Schedule) -> int | None:
    """Return the step of the last round that raises the sparsity; None if it is unknown or there is no round.

    A schedule without an end has a constant sparsity.
    """
    bounds = _bounds(schedule)
    if bounds is None:
        return None
    begin, end, frequency = bounds
    first = begin or frequency  # the first step is 1
    if end < 0:
        return first
    last = begin + (end - begin) // frequency * frequency
    return last if last >= first else None
