"""Measures gradient steps of the MLP and the convolutional network, with all callbacks."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from launch.benchmarks import Row, floors, median_seconds
from tf_packnet.callbacks import EpochBackup
from tf_packnet.pruning.policies import STAGES
from tf_packnet.reporting.progress import RunProgress
from tf_packnet.runs import runner, setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import RunPaths
from tf_packnet.tasks import Split, Task, TaskStream, split_into_tasks
from tf_packnet.training import acceleration

COMPILED = {acceleration.STEP: "whole steps", acceleration.UPDATE: "masks and optimizer", acceleration.OFF: "nothing"}


class StageTimes(NamedTuple):
    """Times of stages of `fit`. The floors are measured before and after each stage, as the machine's speed varies.

    Attributes:
        steps: Milliseconds per gradient step of each stage except the first, which includes compilation.
        floors: Milliseconds per step of each floor by name, before each of these stages and after the last.
        compiling: Seconds of tracing and compilation: the time of the first call of the compiled step minus that of
            later ones.
        bytes_per_weight: Size of the owner maps.
    """

    steps: list[float]
    floors: list[dict[str, float]]
    compiling: float
    bytes_per_weight: float

    def step_and_floor(self, name: str) -> tuple[float, float]:
        """Return the milliseconds per step and the floor of the stage with the median ratio, the larger of two."""
        before_and_after = zip(self.floors, self.floors[1:], strict=False)
        pairs = [
            (step, (before[name] + after[name]) / 2)
            for step, (before, after) in zip(self.steps, before_and_after, strict=True)
        ]
        return sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]

    def floor(self, name: str) -> float:
        """Return the median of all measurements of a floor."""
        return statistics.median(floors[name] for floors in self.floors)


def mlp(epochs: int) -> list[Row]:
    """Compare the gradient step of the MNIST preset, in a stage with all callbacks, with its matrix products."""
    config = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=floors.BATCH)
    stream = noise_images((28, 28, 1), examples=12_000, tasks=4, batch_size=floors.BATCH)
    products = {"all": floors.dense_products(every_product=True)}
    others = {
        "needed": floors.dense_products(every_product=False),
        "arrays": keras_default(config, stream, from_tf_data=False),
        "tf.data": keras_default(config, stream, from_tf_data=True),
    }
    unvalidated = time_stages(config, stream, validation=False, products={**products, **others})
    validated = time_stages(config, TaskStream(stream.name, stream[:3]), validation=True, products=products)
    step, on_arrays = unvalidated.step_and_floor("arrays")
    step_for_tf_data, from_tf_data = unvalidated.step_and_floor("tf.data")
    return [
        Row("mlp", "matrix products, forward and both gradients of every layer", unvalidated.floor("all"), "ms/step"),
        Row("mlp", "matrix products that training needs", unvalidated.floor("needed"), "ms/step"),
        row_with_floor("mlp", "fit, all callbacks", unvalidated, "all", ("at most", 1.15)),
        row_with_floor("mlp", "fit, all callbacks, compared with the products it needs", unvalidated, "needed"),
        row_with_floor("mlp", "fit, all callbacks, validation after each epoch", validated, "all"),
        Row("mlp", "Keras's default fit of the same model, on arrays", on_arrays, "ms/step", step, ("at least", 3.5)),
        Row("mlp", "the same, fed by tf.data without autotuning", from_tf_data, "ms/step", step_for_tf_data),
        Row("mlp", "compilation, once per run", unvalidated.compiling, "s", bound=("at most", 2.0)),
        Row("mlp", "owner maps", unvalidated.bytes_per_weight, "bytes/weight", bound=("at most", 1.0)),
    ]


def conv(epochs: int) -> list[Row]:
    """Measure the gradient step of the CIFAR-10 preset in float32, and in bfloat16 if the CPU supports it.

    A stage takes about one second in addition to its steps. `epochs` should therefore be the number of epochs of the
    preset's retraining stages.
    """
    batch = floors.CONV_BATCH
    config = Config(model="conv", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=batch)
    stream = noise_images((32, 32, 3), examples=10_000, tasks=2, batch_size=batch)
    rows, steps = [], {}
    for precision, dtype in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        if not acceleration.computes_in(precision):
            return rows
        products = {"all": floors.convolution_products(dtype)}
        measured = time_stages(
            dataclasses.replace(config, precision=precision), stream, validation=False, products=products
        )
        bound = ("at most", 1.25) if dtype == "float32" else None
        steps[dtype] = statistics.median(measured.steps)
        rows += [
            Row("conv", f"convolutions and products, {dtype}", measured.floor("all"), "ms/step", note="oneDNN"),
            row_with_floor("conv", f"fit, all callbacks, {precision}", measured, "all", bound),
            Row("conv", f"tracing and compiling, {precision}", measured.compiling, "s"),
        ]
    speedup = Row(
        "conv", "float32 compared with bfloat16", steps["float32"], "ms/step", steps["bfloat16"], ("at least", 1.7)
    )
    return [*rows, speedup]


def xla_levels(epochs: int) -> list[Row]:
    """Measure steps of both networks with each level of XLA compilation, on the GPU if there is one."""
    mlp = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=floors.BATCH)
    conv = dataclasses.replace(mlp, model="conv", train_epochs=2, retrain_epochs=2, batch_size=floors.CONV_BATCH)
    rows = []
    for config, shape, examples in ((mlp, (28, 28, 1), 12_000), (conv, (32, 32, 3), 10_000)):
        stream = noise_images(shape, examples, tasks=2, batch_size=config.batch_size)
        for xla in COMPILED:
            if config.model == "conv" and xla == acceleration.STEP and setup.device(config) == "CPU":
                continue  # much slower: it would take an hour
            measured = time_stages(config, stream, validation=False, products={}, xla=xla)
            what = f"{config.model} on {setup.device(config)}, compiled by XLA: {COMPILED[xla]}"
            _, second_training, _ = measured.steps  # the only stage without compilation and prune rounds
            rows += [
                Row("xla", what, second_training, "ms/step"),
                Row("xla", f"{what}, tracing and compiling", measured.compiling, "s"),
            ]
    return rows


def row_with_floor(
    section: str, what: str, measured: StageTimes, name: str, bound: tuple[str, float] | None = None
) -> Row:
    """Return a row that compares a gradient step with one of its floors."""
    step, floor = measured.step_and_floor(name)
    return Row(section, what, step, "ms/step", floor, bound)


def noise_images(shape: tuple[int, ...], examples: int, tasks: int, batch_size: int) -> TaskStream:
    """Build tasks from random images. The time of a step does not depend on their content."""
    rng = np.random.default_rng(0)
    labels = np.arange(examples * tasks) % (2 * tasks)
    split = Split(rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels, scale=1 / 255)
    names = [str(label) for label in range(2 * tasks)]
    return split_into_tasks("noise", split, split.take(np.arange(64)), names, 2, tasks, 0.1, batch_size)


def time_stages(
    config: Config,
    stream: TaskStream,
    validation: bool,
    products: Mapping[str, Callable[[], float]],
    xla: str | None = None,
) -> StageTimes:
    """Learn the tasks of `stream` as the launcher does, and measure each stage.

    Args:
        config: Network and schedule.
        stream: Tasks to learn.
        validation: Whether to validate after each epoch.
        products: Functions that measure a floor in seconds per step, by name.
        xla: Level of XLA compilation. Default: the launcher's choice.
    """
    if not validation:
        stream = TaskStream(stream.name, [without_validation(task) for task in stream])
    stage_seconds, floor_times, calls = [], [], CallTimes()
    network = setup.build_model(config, stream)
    with tempfile.TemporaryDirectory() as folder, RunProgress(stream) as display:
        paths = RunPaths(Path(folder))
        build_observers = runner.observers(config, paths, display)
        approach = setup.build_approach(
            network,
            config,
            stream,
            xla or setup.choose_xla(config, network),
            True,
            paths.masks,
            lambda task, stage: [*build_observers(task, stage), calls],
        )
        for task in stream:
            for stage in STAGES:
                floor_times.append({name: 1e3 * measure() for name, measure in products.items()})
                calls.ended.append(time.perf_counter())
                approach.run_stage(task, stage, EpochBackup(paths.root / f"task_{task.number}-{stage}"))
                stage_seconds.append(time.perf_counter() - calls.ended[0])
                if len(stage_seconds) == 1:
                    first, *later = np.diff(calls.ended).tolist()
                calls.ended.clear()
    floor_times.append({name: 1e3 * measure() for name, measure in products.items()})
    steps = config.train_epochs * (len(stream[0].splits["train"]) // config.batch_size)
    owners = approach.packed.owner_maps().values()
    return StageTimes(
        steps=[1e3 * seconds / steps for seconds in stage_seconds[1:]],
        floors=floor_times[1:],
        compiling=first - statistics.median(later),
        bytes_per_weight=sum(owner.nbytes for owner in owners) / sum(owner.size for owner in owners),
    )


class CallTimes(keras.callbacks.Callback):
    """Records when each call of the compiled step ends. One call does many gradient steps."""

    def __init__(self):
        super().__init__()
        self.ended: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.ended.append(time.perf_counter())


def without_validation(task: Task) -> Task:
    """Return the task with an empty validation split."""
    empty = task.splits["validation"].take(np.arange(0))
    return dataclasses.replace(task, splits={**task.splits, "validation": empty})


def keras_default(config: Config, stream: TaskStream, from_tf_data: bool) -> Callable[[], float]:
    """Return a function that measures Keras's default `fit` with the same masked layers, in seconds per step.

    Args:
        config: Network and batch size.
        stream: Tasks. Only the first is learned.
        from_tf_data: Whether to pass the `tf.data` data set of the task instead of arrays.
    """
    packed = setup.build_model(config, stream)
    model = keras.Model(packed.input, packed.output)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    task, steps = stream[0], len(stream[0].train)
    split = task.splits["train"].take(np.arange(steps * config.batch_size))  # full batches only
    data = {"x": task.train, "shuffle": False} if from_tf_data else {"x": split.x, "y": split.y}
    batch_size = None if from_tf_data else config.batch_size
    return lambda: median_seconds(lambda: model.fit(**data, batch_size=batch_size, verbose=0), repeats=3) / steps
