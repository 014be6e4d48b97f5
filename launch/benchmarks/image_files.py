"""Compares gradient steps on JPEG files with steps on examples in device memory."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

import tf_packnet as tp
from launch.benchmarks import Row

SIZE, BATCH = 224, 32
# Width and height of the files: those of a usual photo in ImageNet.
_FILE = (500, 375)


class _EpochTimes(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def write_photos(folder: Path, number: int, size: tuple[int, int] = _FILE) -> None:
    """Write JPEG files of two classes, smooth like photos: noise would take longer to decode."""
    rng = np.random.default_rng(0)
    for index in range(number):
        path = folder / f"class_{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def files(steps: int = 8, rounds: int = 3, size: int = SIZE, batch_size: int = BATCH, **network: float) -> list[Row]:
    """Measure steps of MobileNetV2 on images in files and on resident ones, in turns.

    Args:
        steps: Gradient steps per epoch.
        rounds: Measured epochs of each kind; another one before each of them fills the pipeline.
        size: Height and width of the examples.
        batch_size: Examples per step.
        **network: Further arguments of MobileNetV2.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), steps * batch_size * 5 // 4)  # a fifth is held out for testing
        tasks = {
            on_disk: tp.tasks.from_folder(folder, size, on_disk=on_disk, validation_fraction=0.0, batch_size=batch_size)
            for on_disk in (True, False)
        }
        fits = {on_disk: _fit(task, on_disk, size, network) for on_disk, task in tasks.items()}
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for on_disk, (packed, batches) in fits.items():
                seconds = _EpochTimes()
                packed.fit(batches, epochs=2, callbacks=[seconds], verbose=0)
                times[on_disk].append(1000 * seconds.seconds[-1] / batches.steps)
    medians = {on_disk: statistics.median(each) for on_disk, each in times.items()}
    what = f"MobileNetV2, {size}x{size}, from JPEG files of {_FILE[0]}x{_FILE[1]}"
    note = "compared with resident examples"
    return [Row("files", what, medians[True], "ms/step", medians[False], ("at most", 1.15), note)]


def _fit(task: tp.tasks.Task, on_disk: bool, size: int, network: dict) -> tuple[tp.PackedModel, Any]:
    """Return a pack whose step is compiled, and its batches."""
    keras.utils.set_random_seed(0)
    body = keras.applications.MobileNetV2((size, size, 3), include_top=False, weights=None, pooling="avg", **network)
    packed = tp.pack(keras.Model(body.inputs, keras.layers.Dense(2)(body.outputs[0])))
    packed.begin_task(task.name, num_classes=2)
    packed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = task.training_batches(0, not on_disk, 4)
    packed.fit(batches, epochs=1, verbose=0)  # compiles the step
    return packed, batches
