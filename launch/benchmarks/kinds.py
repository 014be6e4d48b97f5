"""Models of many kinds: gradient steps with each level of XLA compilation, and the level that `auto` chooses."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from launch.benchmarks import Row
from tf_packnet import packing
from tf_packnet.tasks import ResidentBatches
from tf_packnet.training import acceleration

# Name of each level in the table: the value of `--jit`, except for the level that only `auto` can choose.
LEVELS = {acceleration.STEP: "on", acceleration.OFF: "off", acceleration.UPDATE: "update"}
BATCH = 64
WORDS = 5000
ROUNDS = 5
SECONDS_PER_CALL = 0.1
# A level that is slower than another one by this factor is measured in a single call only.
HOPELESS = 4


def kinds() -> dict[str, Callable[[], Any]]:
    """Return functions that make a model of each kind, by name."""
    layers, relu = keras.layers, {"activation": "relu"}

    def dense(*between: Any, width: int = 256) -> Any:
        hidden = [layers.Dense(width, **relu), *between, layers.Dense(width, **relu)]
        return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(2)])

    def images(size: int, channels: int, *body: Any) -> Any:
        pooling = layers.GlobalAveragePooling2D()
        return keras.Sequential([keras.Input((size, size, channels)), *body, pooling, layers.Dense(2)])

    def series(*body: Any) -> Any:
        return keras.Sequential([keras.Input((32, 64)), *body, layers.Dense(2)])

    def embedding() -> Any:
        body = [layers.Embedding(WORDS, 64), layers.GlobalAveragePooling1D(), layers.Dense(64, **relu)]
        return keras.Sequential([keras.Input((40,), dtype="int32"), *body, layers.Dense(2)])

    def attention() -> Any:
        inputs = keras.Input((32, 64))
        x = layers.MultiHeadAttention(4, 16)(inputs, inputs)
        return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

    def transformer(dropout: float) -> Any:
        words = keras.Input((24,), dtype="int32")
        x = layers.Embedding(WORDS, 64)(words)
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16, dropout=dropout)(h, h)
        h = layers.Dense(256, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dropout(dropout)(layers.Dense(64)(h))
        return keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

    return {
        "dense": dense,
        "dense, dropout": lambda: dense(layers.Dropout(0.1)),
        "dense, noise": lambda: dense(layers.GaussianNoise(0.1)),
        "dense, BatchNorm": lambda: dense(layers.BatchNormalization()),
        "dense, 2048 units": lambda: dense(width=2048),
        "LSTM": lambda: series(layers.LSTM(64)),
        "GRU": lambda: series(layers.GRU(64)),
        "embedding, pooling": embedding,
        "attention": attention,
        "transformer block": lambda: transformer(0.0),
        "transformer block, dropout": lambda: transformer(0.1),
        "Conv1D": lambda: series(layers.Conv1D(64, 3, **relu), layers.GlobalAveragePooling1D()),
        "small convolutions": lambda: images(
            14, 1, layers.Conv2D(8, 3, **relu), layers.MaxPooling2D(), layers.Conv2D(16, 3, **relu)
        ),
        "large convolutions": lambda: images(16, 3, layers.Conv2D(64, 3, **relu), layers.Conv2D(64, 3, **relu)),
        "convolutions, BatchNorm, dropout": lambda: images(
            12, 3, layers.Conv2D(32, 3), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.25)
        ),
        "depthwise convolutions": lambda: images(12, 16, layers.DepthwiseConv2D(3, **relu), layers.Conv2D(32, 1)),
        "separable convolutions": lambda: images(12, 16, layers.SeparableConv2D(32, 3, **relu)),
        "transposed convolutions": lambda: images(8, 16, layers.Conv2DTranspose(32, 3, strides=2, **relu)),
    }


class Steps:
    """Gradient steps of a packed model with one level of XLA compilation.

    Attributes:
        packed: The model.
    """

    def __init__(self, model: Any, level: str):
        self.packed = packing.pack(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.packed.compile("adam", loss, jit_compile=level == acceleration.STEP)
        self.packed.xla = level
        self.milliseconds(2)  # traces and compiles

    def milliseconds(self, steps: int) -> float:
        """Return the milliseconds per step of `steps` steps in one call, without Keras's overhead per call."""
        rng = np.random.default_rng(0)
        (inputs,) = self.packed.inputs
        shape = (steps * BATCH, *inputs.shape[1:])
        x = rng.integers(0, WORDS, shape) if "int" in inputs.dtype else rng.random(shape)
        data = ResidentBatches(x.astype(inputs.dtype), np.arange(len(x), dtype=np.int32) % 2, 1.0, batch_size=BATCH)
        call = CallTime()
        self.packed.fit(data, epochs=1, verbose=0, callbacks=[call])
        return 1e3 * call.seconds / steps


class CallTime(keras.callbacks.Callback):
    """Measures the last call of the compiled step."""

    seconds = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self._began


def step_times(make: Callable[[], Any], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return the milliseconds per step with each level, measured in turns; a hopeless level is measured once."""
    steps = {level: Steps(make(), level) for level in LEVELS}
    times = {level: [each.milliseconds(2)] for level, each in steps.items()}
    fastest = min(times.values())[0]
    hopeful = {level: each for level, each in steps.items() if times[level][0] < HOPELESS * fastest}
    per_call = max(2, min(512, int(1e3 * SECONDS_PER_CALL / fastest)))
    for _ in range(rounds):
        for level, each in hopeful.items():
            times[level].append(each.milliseconds(per_call))
    return {level: each[1:] or each for level, each in times.items()}


def row(name: str, times: Mapping[str, list[float]], chosen: str) -> Row:
    """Compare the level that `auto` chooses with the best one, by the shortest times: other processes only add time."""
    shortest = {level: min(each) for level, each in times.items()}
    levels = ", ".join(f"{LEVELS[level]} {value:.3g}" for level, value in shortest.items())
    what = f"{name} ({levels}): auto is {LEVELS[chosen]}"
    return Row("kinds", what, shortest[chosen], "ms/step", min(shortest.values()), ("at most", 1.1))


def measure() -> list[Row]:
    """Measure all kinds. `auto` is one of the levels, so its time is the time of that level."""
    measured = []
    for name, make in kinds().items():
        measured.append(row(name, step_times(make), acceleration.fastest(packing.pack(make()))))
    return measured
