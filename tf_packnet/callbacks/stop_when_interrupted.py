"""A run that is told to stop does so, even if that came while nothing could be raised."""

import keras

from tf_packnet import interruption


class StopWhenInterrupted(keras.callbacks.Callback):
    """Ends a `fit` with KeyboardInterrupt after the call of the compiled step in which a signal was lost."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        interruption.check()
