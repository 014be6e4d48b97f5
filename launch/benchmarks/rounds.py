"""Measures a prune round on the large dense layers of the paper's convolutional network: 75 million weights."""

import threading
import time

import keras

import tf_packnet as tp
from launch.benchmarks import Row, resident_bytes
from tf_packnet import lifecycle
from tf_packnet.pruning.ranking import PRUNE_SCOPES


class PeakMemory(threading.Thread):
    """Context manager that measures the time and the additional resident memory of a block.

    Attributes:
        extra: Peak of the resident memory minus the resident memory before the block, in bytes.
        seconds: Duration of the block.
    """

    def __enter__(self) -> "PeakMemory":
        self.extra, self.seconds, self._stopped = 0, 0.0, threading.Event()
        self._before, self._began = resident_bytes(), time.perf_counter()
        self.start()
        return self

    def run(self) -> None:
        while not self._stopped.wait(0.002):
            self.extra = max(self.extra, resident_bytes() - self._before)

    def __exit__(self, *exception) -> None:
        self.seconds = time.perf_counter() - self._began
        self._stopped.set()
        self.join()


def prune() -> list[Row]:
    """Measure the callbacks of two prune rounds in every scope and take the larger values.

    The first round also allocates memory that the process did not have before.
    """
    inputs = keras.Input((8192,))
    x = keras.layers.Dense(8192, activation="relu")(inputs)
    x = keras.layers.Dense(1024, activation="relu")(x)
    rows = []
    for scope in PRUNE_SCOPES:
        packed = tp.pack(keras.Model(inputs, keras.layers.Dense(2)(x)))
        packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        packed.begin_task("first")
        packed.optimizer.build(packed.trainable_variables)
        weights = sum(weight.owner_map().size for weight in lifecycle.masked_weights(packed).values())
        callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.8, 5, 2, 2), scope=scope), tp.GradientMask()]
        for callback in callbacks:
            callback.set_model(packed)
            callback.set_params({"epochs": 2})
            callback.on_train_begin()
        peaks = []
        for epoch in (0, 1):
            with PeakMemory() as peak:
                for callback in callbacks:
                    callback.on_epoch_begin(epoch)
                    callback.on_train_batch_begin(0)
            peaks.append(peak)
        seconds, extra = max(p.seconds for p in peaks), max(p.extra for p in peaks)
        rows += [
            Row("prune", f"round on {weights:,} weights, scope {scope}", seconds, "s", bound=("at most", 2.0)),
            Row("prune", f"additional memory, scope {scope}", extra / 1e6, "MB", weights * 4e-6, ("at most", 2.0)),
        ]
    return rows
