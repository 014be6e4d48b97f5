"""Gradient steps: the MLP with all callbacks on, and the convolutional network."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from launch.benchmarks import Row, floors, typical
from tf_packnet.callbacks import EpochBackup
from tf_packnet.pruning.policies import STAGES
from tf_packnet.reporting.progress import RunProgress
from tf_packnet.runs import runner, setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import RunPaths
from tf_packnet.tasks import Split, Task, TaskStream, split_into_tasks
from tf_packnet.training import acceleration

COMPILED = {acceleration.STEP: "whole steps", acceleration.UPDATE: "masks and optimizer", acceleration.OFF: "nothing"}


class Stages(NamedTuple):
    """What stages of `fit` took, each between two measurements of its floors: a machine is slower at times.

    Attributes:
        steps: Milliseconds a gradient step, of each stage but the first, which compiles.
        floors: Milliseconds of what they are held against, by name: before each of them, and after the last.
        compiling: Seconds that the first call of the compiled step took longer, from the beginning of its stage.
        bytes_a_weight: Of the owner maps.
    """

    steps: list[float]
    floors: list[dict[str, float]]
    compiling: float
    bytes_a_weight: float

    def against(self, name: str) -> tuple[float, float]:
        """Step and floor of the stage with the median ratio; of two such, the one with the larger."""
        around = zip(self.floors, self.floors[1:], strict=False)
        pairs = [(step, (a[name] + b[name]) / 2) for step, (a, b) in zip(self.steps, around, strict=True)]
        return sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]

    def floor(self, name: str) -> float:
        """The median of the measurements of a floor."""
        return statistics.median(floors[name] for floors in self.floors)


def mlp(epochs: int) -> list[Row]:
    """The MNIST preset's step: a whole stage of `fit` with every callback, against its matrix products."""
    config = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=floors.BATCH)
    stream = made_up_images((28, 28, 1), examples=12_000, tasks=4, batch_size=floors.BATCH)
    products = {"all": floors.dense_products(every_product=True)}
    others = {
        "needed": floors.dense_products(every_product=False),
        "arrays": keras_default(config, stream, from_tf_data=False),
        "tf.data": keras_default(config, stream, from_tf_data=True),
    }
    alone = stages(config, stream, validation=False, products={**products, **others})
    observed = stages(config, TaskStream(stream.name, stream[:3]), validation=True, products=products)
    step, on_arrays = alone.against("arrays")
    step_again, from_tf_data = alone.against("tf.data")
    return [
        Row("mlp", "matrix products, forward and both gradients of every layer", alone.floor("all"), "ms/step"),
        Row("mlp", "matrix products that training needs", alone.floor("needed"), "ms/step"),
        paired("mlp", "fit, all callbacks", alone, "all", ("at most", 1.15)),
        paired("mlp", "fit, all callbacks, against the products it needs", alone, "needed"),
        paired("mlp", "fit, all callbacks, validation after each epoch", observed, "all"),
        Row("mlp", "Keras's default fit of the same model, on arrays", on_arrays, "ms/step", step, ("at least", 3.5)),
        Row("mlp", "the same, fed by tf.data without autotuning", from_tf_data, "ms/step", step_again),
        Row("mlp", "compiling, once a run", alone.compiling, "s", bound=("at most", 2.0)),
        Row("mlp", "masks at rest", alone.bytes_a_weight, "bytes/weight", bound=("at most", 1.0)),
    ]


def conv(epochs: int) -> list[Row]:
    """The CIFAR-10 preset's step in float32, and in bfloat16 where the CPU has that, in epochs of its length.

    A stage takes a second besides its steps: `epochs` are to be as many as the preset's nights have.
    """
    batch = floors.CONV_BATCH
    config = Config(model="conv", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=batch)
    stream = made_up_images((32, 32, 3), examples=10_000, tasks=2, batch_size=batch)
    rows, steps = [], {}
    for precision, dtype in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        if not acceleration.computes_in(precision):
            return rows
        products = {"all": floors.convolution_products(dtype)}
        measured = stages(dataclasses.replace(config, precision=precision), stream, validation=False, products=products)
        bound = ("at most", 1.25) if dtype == "float32" else None
        steps[dtype] = statistics.median(measured.steps)
        rows += [
            Row("conv", f"convolutions and products, {dtype}", measured.floor("all"), "ms/step", note="oneDNN"),
            paired("conv", f"fit, all callbacks, {precision}", measured, "all", bound),
            Row("conv", f"tracing and compiling, {precision}", measured.compiling, "s"),
        ]
    speedup = Row("conv", "float32 against bfloat16", steps["float32"], "ms/step", steps["bfloat16"], ("at least", 1.7))
    return [*rows, speedup]


def choices_of_xla(epochs: int) -> list[Row]:
    """Steps of both networks, with as much of them compiled as there is to choose from, on the device there is."""
    mlp = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=floors.BATCH)
    conv = dataclasses.replace(mlp, model="conv", train_epochs=2, retrain_epochs=2, batch_size=floors.CONV_BATCH)
    rows = []
    for config, shape, examples in ((mlp, (28, 28, 1), 12_000), (conv, (32, 32, 3), 10_000)):
        stream = made_up_images(shape, examples, tasks=2, batch_size=config.batch_size)
        for xla in COMPILED:
            if config.model == "conv" and xla == acceleration.STEP and setup.device(config) == "CPU":
                continue  # many times as slow: it would take an hour
            measured = stages(config, stream, validation=False, products={}, xla=xla)
            what = f"{config.model} on {setup.device(config)}, compiled by XLA: {COMPILED[xla]}"
            _, second_day, _ = measured.steps  # the only one with neither compilation nor prune round in it
            rows += [
                Row("xla", what, second_day, "ms/step"),
                Row("xla", f"{what}, tracing and compiling", measured.compiling, "s"),
            ]
    return rows


def paired(section: str, what: str, measured: Stages, name: str, bound: tuple[str, float] | None = None) -> Row:
    """A row for a gradient step and one of its floors."""
    step, floor = measured.against(name)
    return Row(section, what, step, "ms/step", floor, bound)


def made_up_images(shape: tuple[int, ...], examples: int, tasks: int, batch_size: int) -> TaskStream:
    """Noise in the shape of a data set: the cost of a step does not depend on what it sees."""
    rng = np.random.default_rng(0)
    labels = np.arange(examples * tasks) % (2 * tasks)
    split = Split(rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels, scale=1 / 255)
    names = [str(label) for label in range(2 * tasks)]
    return split_into_tasks("noise", split, split.take(np.arange(64)), names, 2, tasks, 0.1, batch_size)


def stages(
    config: Config,
    stream: TaskStream,
    validation: bool,
    products: Mapping[str, Callable[[], float]],
    xla: str | None = None,
) -> Stages:
    """Learns the tasks of `stream` as the launcher does.

    Args:
        config: The network and its schedule.
        stream: The tasks.
        validation: Whether each epoch ends with one.
        products: What measures the floors, by name: in seconds a step.
        xla: How much XLA compiles; default what pays.
    """
    xla = xla or setup.choose_xla(config, setup.choose_strategy(config))
    if not validation:
        stream = TaskStream(stream.name, [without_validation(task) for task in stream])
    taken, around, calls = [], [], CallTimes()
    with tempfile.TemporaryDirectory() as folder, RunProgress(stream) as display:
        paths = RunPaths(Path(folder))
        watched = runner.observers(config, paths, display)
        approach = setup.build_approach(
            setup.build_model(config, stream),
            config,
            stream,
            xla,
            True,
            paths.masks,
            lambda task, stage: [*watched(task, stage), calls],
        )
        for task in stream:
            for stage in STAGES:
                around.append({name: 1e3 * measure() for name, measure in products.items()})
                calls.ended.append(time.perf_counter())
                approach.run_stage(task, stage, EpochBackup(paths.root / f"task_{task.number}-{stage}"))
                taken.append(time.perf_counter() - calls.ended[0])
                if len(taken) == 1:
                    first, *later = np.diff(calls.ended).tolist()
                calls.ended.clear()
    around.append({name: 1e3 * measure() for name, measure in products.items()})
    steps = config.train_epochs * (len(stream[0].splits["train"]) // config.batch_size)
    owners = approach.packed.owner_maps().values()
    return Stages(
        steps=[1e3 * seconds / steps for seconds in taken[1:]],
        floors=around[1:],
        compiling=first - statistics.median(later),
        bytes_a_weight=sum(owner.nbytes for owner in owners) / sum(owner.size for owner in owners),
    )


class CallTimes(keras.callbacks.Callback):
    """When the calls of the compiled step ended, each many gradient steps."""

    def __init__(self):
        super().__init__()
        self.ended: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.ended.append(time.perf_counter())


def without_validation(task: Task) -> Task:
    """The task with an empty validation split."""
    nothing = task.splits["validation"].take(np.arange(0))
    return dataclasses.replace(task, splits={**task.splits, "validation": nothing})


def keras_default(config: Config, stream: TaskStream, from_tf_data: bool) -> Callable[[], float]:
    """What measures the seconds a step of a plain `keras.Model` with the same masked layers, compiled as Keras would.

    Args:
        config: The network and the batch size.
        stream: Tasks, of which it learns the first.
        from_tf_data: Whether the examples come from our data set, not from arrays and Keras's own adapter.
    """
    packed = setup.build_model(config, stream)
    model = keras.Model(packed.input, packed.output)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    task, steps = stream[0], len(stream[0].train)
    split = task.splits["train"].take(np.arange(steps * config.batch_size))  # full batches alone
    data = {"x": task.train, "shuffle": False} if from_tf_data else {"x": split.x, "y": split.y}
    batch_size = None if from_tf_data else config.batch_size
    return lambda: typical(lambda: model.fit(**data, batch_size=batch_size, verbose=0), repeats=3) / steps
