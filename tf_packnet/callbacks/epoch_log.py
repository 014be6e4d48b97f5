"""Writes the curves of one task for TensorBoard, with training and retraining on one axis."""

import os

import keras
import tensorflow as tf

from tf_packnet.system.extras import require_extra

_TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/validation",
    "accuracy": "accuracy/train",
    "val_accuracy": "accuracy/validation",
    "sparsity": "sparsity",
}


class EpochLog(keras.callbacks.Callback):
    """Writes loss, accuracy and sparsity for TensorBoard, one point per epoch.

    Args:
        directory: The directory of the task's TensorBoard run.
        first_epoch: Number of epochs of the task before this `fit`, so that retraining continues the axis of training.
    """

    def __init__(self, directory: str | os.PathLike, first_epoch: int = 0):
        super().__init__()
        self.directory = os.fspath(directory)
        self.first_epoch = first_epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        require_extra("EpochLog", "tensorboard")
        self._writer = tf.summary.create_file_writer(self.directory)

    def write(self, history: dict[str, list[float]]) -> None:
        """Write the curves of a finished `fit`.

        Args:
            history: Its logs by name, one value per epoch.
        """
        self.on_train_begin()
        self.resumed(history)
        self.on_train_end()

    def resumed(self, history: dict[str, list[float]]) -> None:
        """Write the points of the epochs before the `fit` resumed.

        `EpochBackup` calls this with the `history` of these epochs.
        """
        for epoch, values in enumerate(zip(*history.values(), strict=True)):
            self.on_epoch_end(epoch, dict(zip(history, values, strict=True)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        values = {"sparsity": 0.0, **(logs or {})}
        point = Summary()  # one record for all curves takes a fifth of the time of one record each
        for key, tag in _TAGS.items():
            if key in values:
                point.MergeFrom(scalar_pb(tag, values[key]))
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(point.SerializeToString(), self.first_epoch + epoch + 1)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._writer.close()
