"""Stops training when the loss or a weight is NaN or infinite."""

import math

import keras

from tf_packnet.arguments import checked
from tf_packnet.errors import DivergedError
from tf_packnet.system import interruption
from tf_packnet.training.fit_guard import diverged_message, non_finite_weights


class StopWhenDiverged(keras.callbacks.Callback):
    """Stops training with DivergedError after an epoch in which the loss or a weight became NaN or infinite.

    Use it for a plain `keras.Model` with masked layers. A `PackedModel` checks every step itself; there the callback
    only sets the title for the message.

    The loss alone is not enough: on some CPUs a ReLU turns NaN into 0, so the loss stays finite with NaN weights.

    Place it before `EpochBackup`, so that a backup never contains non-finite weights.

    Args:
        title: What is being trained, for the message, such as `task 1, train`.
    """

    @checked
    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        record = getattr(self.model, "step_record", None)
        if record is not None and record.guarded:  # `FitGuard` checks this `fit`
            return
        loss = float((logs or {}).get("loss", 0.0))
        non_finite = non_finite_weights(self.model)
        if non_finite or not math.isfinite(loss):
            raise DivergedError(diverged_message(self.title, epoch, loss, non_finite))


class StopWhenInterrupted(keras.callbacks.Callback):
    """Raises KeyboardInterrupt after a batch during which Python lost a signal, see `system.interruption`."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        interruption.check()
