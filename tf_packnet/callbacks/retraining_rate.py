"""Sets the learning rate of each epoch while a task is pruned and retrained."""

import math

import keras
import numpy as np

from tf_packnet.callbacks.prune_round_scheduler import RATE, SCHEDULER, PruneRoundScheduler
from tf_packnet.callbacks.time_budget import TimeBudget
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.weights import view
from tf_packnet.pruning.policies import ADAPTIVE, CONSTANT, RESTARTING, RETRAIN_RATES
from tf_packnet.system.keras_internals import learning_rate_of
from tf_packnet.training import optimizers
from tf_packnet.training.fit_checks import FitRequest


class RetrainingRate(keras.callbacks.Callback):
    """Decays the learning rate during the `fit` that prunes and retrains.

    The rate of an epoch is the optimizer's rate when the `fit` begins, times a factor. With `t` from 0 to 1 in the
    `fit`, or since the last prune round, the factor is `1 - t` (linear) or `(1 + cos(pi t)) / 2` (cosine). `adaptive`
    is the adaptive linear schedule of Zimmer et al. 2023 (How I Learned to Stop Worrying and Love Retraining): linear
    in each round, times `d = max(d1, d2)`. `d1` is the norm of the weights that the round pruned, divided by the norm
    of the candidates before it and by the square root of the fraction that was pruned. `d2` is the length of the round
    divided by `train_epochs`, at most 1.

    The logs of each epoch get `learning_rate`. After the `fit`, the optimizer gets its own rate back. A `fit` that
    resumes with `tp.EpochBackup` continues with the same rates.

    ```python
    packed.fit(data, epochs=72, callbacks=[
        tp.PruneRoundScheduler(tp.EqualShare(0.95, num_tasks=5, rounds=8)), tp.RetrainingRate("linear_restarts"), ...])
    ```

    Args:
        schedule: `constant`; `linear` or `cosine` over the whole `fit`; `linear_restarts` or `cosine_restarts` over
            each prune round; or `adaptive`.
        train_epochs: For `adaptive`: `E`, the number of epochs for which the task was trained.
    """

    def __init__(self, schedule: str, train_epochs: int | None = None):
        super().__init__()
        check_choice("schedule", schedule, RETRAIN_RATES)
        if train_epochs is None and schedule == ADAPTIVE:
            raise ArgumentError("train_epochs", "the number of epochs for which the task was trained", train_epochs)
        if train_epochs is not None and train_epochs < 1:
            raise ArgumentError("train_epochs", "at least 1", train_epochs)
        self.schedule = schedule
        self.train_epochs = train_epochs

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if the rate of the optimizer cannot be set, or a resumed `fit` would have other rates."""
        rate = learning_rate_of(optimizers.holder_of_rate(model.optimizer))
        if not isinstance(rate, keras.Variable):
            expected = "an optimizer with a number as its learning rate, with RetrainingRate"
            raise ArgumentError("optimizer", expected, type(rate).__name__)
        before = request.callbacks[: request.callbacks.index(self)]
        if not any(isinstance(other, PruneRoundScheduler) for other in before):
            received = [type(other).__name__ for other in request.callbacks]
            raise ArgumentError("callbacks", "a PruneRoundScheduler before RetrainingRate", received)
        for other in request.callbacks:
            if isinstance(other, TimeBudget) and self.schedule != CONSTANT:
                expected = "constant with TimeBudget: the other rates depend on the number of epochs"
                raise ArgumentError("schedule", expected, self.schedule)
            if isinstance(other, PruneRoundScheduler) and other.auto is not None and self.schedule in RESTARTING:
                expected = "constant, linear or cosine with rounds='auto', whose rounds are not known in advance"
                raise ArgumentError("schedule", expected, self.schedule)
            if isinstance(other, keras.callbacks.BackupAndRestore):
                expected = "tp.EpochBackup with RetrainingRate, to resume with the same learning rates"
                raise ArgumentError("callbacks", expected, type(other).__name__)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.params[RATE] = self
        self._rate = learning_rate_of(optimizers.holder_of_rate(self.model.optimizer))
        self._own_rate = float(view(self._rate))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._rate.assign(np.float32(self._own_rate * self._factor(epoch)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = float(view(self._rate))

    def on_train_end(self, logs: dict | None = None) -> None:
        self._rate.assign(np.float32(self._own_rate))

    def _factor(self, epoch: int) -> float:
        scheduler, end = self.params[SCHEDULER], self.params["epochs"]
        begun = [each for each in scheduler.round_epochs if each <= epoch]
        restarts = self.schedule in RESTARTING
        if self.schedule == CONSTANT or (restarts and not begun):
            return 1.0
        first = begun[-1] if restarts else scheduler.first_epoch
        last = min((each for each in scheduler.round_epochs if each > epoch), default=end) if restarts else end
        t = (epoch - first) / (last - first)
        if self.schedule.startswith("cosine"):
            return (1.0 + math.cos(math.pi * t)) / 2.0
        if self.schedule == ADAPTIVE:
            return (1.0 - t) * max(scheduler.rounds[-1]["removed"], min(1.0, (last - first) / self.train_epochs))
        return 1.0 - t
