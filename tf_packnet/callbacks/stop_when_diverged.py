"""Training that has left the numbers is of no use to anybody."""

import math

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import DivergedError


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a `fit` with DivergedError at the first epoch whose loss is not a number, or infinite.

    Place it before `EpochBackup`, so that the backup is that of the last epoch that was good.

    Args:
        title: What is being trained, for the message: `task 1, train`.
    """

    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss):
            return
        value = "not a number" if math.isnan(loss) else "infinite"
        raise DivergedError(
            f"{self.title}: the loss is {value} in epoch {epoch + 1}, the training has diverged ({self._where()}). "
            "Try a smaller learning rate, or clipped gradients; nothing of this epoch is kept"
        )

    def _where(self) -> str:
        broken = [path for path, values in lifecycle.trained_values(self.model) if not np.isfinite(values).all()]
        if not broken:
            return "its weights are finite, its outputs too large"
        return f"weights that are no numbers any more: {', '.join(broken[:3])}{' and others' * (len(broken) > 3)}"
