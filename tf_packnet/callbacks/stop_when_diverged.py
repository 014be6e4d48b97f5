"""Training that has left the numbers is of no use to anybody."""

import math

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import DivergedError


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a `fit` with DivergedError at the first epoch after which the loss or a weight is not a number, or infinite.

    The loss alone does not tell: where a ReLU is the larger of a number and 0, as on some CPUs, it makes 0 of what is
    no number, and a network with broken weights goes on with a loss that looks sound.

    Place it before `EpochBackup`, so that the backup is that of the last epoch that was good.

    Args:
        title: What is being trained, for the message: `task 1, train`.
    """

    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        broken = [path for path, values in lifecycle.trained_values(self.model) if not np.isfinite(values).all()]
        if math.isfinite(loss) and not broken:
            return
        what = f"the loss is {_kind(loss)}" if not math.isfinite(loss) else "weights are broken"
        raise DivergedError(
            f"{self.title}: {what} in epoch {epoch + 1}, the training has diverged ({_where(broken)}). "
            "Try a smaller learning rate, or clipped gradients; nothing of this epoch is kept"
        )


def _kind(loss: float) -> str:
    return "not a number" if math.isnan(loss) else "infinite"


def _where(broken: list[str]) -> str:
    if not broken:
        return "its weights are finite, its outputs too large"
    return f"not finite: {', '.join(broken[:3])}{' and others' * (len(broken) > 3)}"
