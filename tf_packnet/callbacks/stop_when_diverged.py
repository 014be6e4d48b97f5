"""Stops training when the loss or a weight is NaN or infinite."""

import math

import keras

from tf_packnet.errors import DivergedError
from tf_packnet.system import interruption
from tf_packnet.training.fit_guard import broken_weights, diverged


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a `fit` with DivergedError at the first epoch after which the loss or a weight is NaN or infinite.

    For a plain `keras.Model` with masked layers. A `PackedModel` does this by itself, step by step; there the callback
    only gives the message its `title`.

    The loss alone does not tell: where a ReLU is the larger of a number and 0, as on some CPUs, it makes 0 of NaN, and
    a network with broken weights goes on with a finite loss.

    Place it before `EpochBackup`, so that the backup is that of the last epoch with finite weights.

    Args:
        title: What is being trained, for the message: `task 1, train`.
    """

    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        record = getattr(self.model, "step_record", None)
        if record is not None and record.guarded:  # the fit has checked this by itself
            return
        loss = float((logs or {}).get("loss", 0.0))
        broken = broken_weights(self.model)
        if broken or not math.isfinite(loss):
            raise DivergedError(diverged(self.title, epoch, loss, broken))


class StopWhenInterrupted(keras.callbacks.Callback):
    """Ends a `fit` with KeyboardInterrupt after the call of the compiled step in which a signal was lost."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        interruption.check()
