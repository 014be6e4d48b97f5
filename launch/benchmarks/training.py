"""Gradient steps: the MLP with all callbacks on, and the convolutional network."""

import dataclasses
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from launch.benchmarks import Row, floors
from tf_packnet.callbacks import EpochBackup
from tf_packnet.experiments import runner, setup
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.paths import RunPaths
from tf_packnet.policies import STAGES
from tf_packnet.reporting.progress import RunProgress
from tf_packnet.tasks import Split, Task, TaskStream, split_into_tasks


def mlp(epochs: int) -> list[Row]:
    """The MNIST preset's step: a whole stage of `fit` with every callback, against its matrix products."""
    config = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=floors.BATCH)
    stream = made_up_images((28, 28, 1), examples=12_000, tasks=3, batch_size=floors.BATCH)
    strict, literal = (floors.dense_products(every_product=every) for every in (False, True))
    per_step, compiling, kernels = stages(config, stream, validation=False)
    observed, _, _ = stages(config, stream, validation=True)
    plain = keras_default(config, stream)
    again = floors.dense_products(every_product=False)
    best = {name: min(strict[name], again[name]) for name in strict}
    floor, all_products = 1e3 * min(best.values()), 1e3 * min(literal.values())
    quicker = min(best, key=best.get)
    return [
        Row("mlp", "matrix products, forward and both gradients of every layer", all_products, "ms/step"),
        Row("mlp", "matrix products that training needs", floor, "ms/step", note=f"{quicker} was the faster"),
        Row("mlp", "fit, all callbacks", per_step, "ms/step", all_products, ("at most", 1.15)),
        Row("mlp", "fit, all callbacks, against the products it needs", per_step, "ms/step", floor),
        Row("mlp", "fit, all callbacks, validation after each epoch", observed, "ms/step", all_products),
        Row("mlp", "Keras's default fit of the same model", plain, "ms/step", per_step, ("at least", 3.5)),
        Row("mlp", "compiling, once a run", compiling, "s", bound=("at most", 2.0)),
        Row("mlp", "masks at rest", kernels, "bytes/weight", bound=("at most", 1.0), note="the owner map"),
    ]


def conv(epochs: int) -> list[Row]:
    """The CIFAR-10 preset's step, in float32 and in bfloat16, in epochs as long as the preset's."""
    rows, steps = [], {}
    for precision, dtype in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        config = Config(
            model="conv", precision=precision, train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=32
        )
        stream = made_up_images((32, 32, 3), examples=10_000, tasks=2, batch_size=floors.CONV_BATCH)
        before = floors.convolution_products(dtype)
        steps[dtype], compiling, _ = stages(config, stream, validation=False)
        floor = 1e3 * min(before, floors.convolution_products(dtype))
        bound = ("at most", 1.25) if dtype == "float32" else None
        rows += [
            Row("conv", f"convolutions and products, {dtype}", floor, "ms/step", note="oneDNN"),
            Row("conv", f"fit, all callbacks, {precision}", steps[dtype], "ms/step", floor, bound),
            Row("conv", f"tracing and compiling, {precision}", compiling, "s"),
        ]
    speedup = Row("conv", "float32 against bfloat16", steps["float32"], "ms/step", steps["bfloat16"], ("at least", 1.7))
    return [*rows, speedup]


def made_up_images(shape: tuple[int, ...], examples: int, tasks: int, batch_size: int) -> TaskStream:
    """Noise in the shape of a data set: the cost of a step does not depend on what it sees."""
    rng = np.random.default_rng(0)
    labels = np.arange(examples * tasks) % (2 * tasks)
    split = Split(rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels, scale=1 / 255)
    names = [str(label) for label in range(2 * tasks)]
    return split_into_tasks("noise", split, split.take(np.arange(64)), names, 2, tasks, 0.1, batch_size)


def stages(config: Config, stream: TaskStream, validation: bool) -> tuple[float, float, float]:
    """Learns the tasks of `stream` as the launcher does.

    Returns:
        Milliseconds a gradient step, the median of the stages after the first task; seconds that the first stage took
        longer, which is what compiling takes; bytes of owner map a weight.
    """
    xla = setup.choose_xla(config, setup.choose_strategy(config))
    if not validation:
        stream = TaskStream(stream.name, [without_validation(task) for task in stream])
    with tempfile.TemporaryDirectory() as folder, RunProgress(stream) as display:
        paths = RunPaths(Path(folder))
        watched = runner.observers(config, paths, display)
        approach = setup.build_approach(config, stream, xla, True, paths.masks, watched)
        taken = []
        for task in stream:
            for stage in STAGES:
                began = time.perf_counter()
                approach.run_stage(task, stage, EpochBackup(paths.root / f"task_{task.number}-{stage}"))
                taken.append(time.perf_counter() - began)
    per_stage = float(np.median(taken[len(STAGES) :]))
    steps = config.train_epochs * (len(stream[0].splits["train"]) // config.batch_size)
    owners = approach.packed.owner_maps().values()
    bytes_a_weight = sum(owner.nbytes for owner in owners) / sum(owner.size for owner in owners)
    return 1e3 * per_stage / steps, taken[0] - per_stage, bytes_a_weight


def without_validation(task: Task) -> Task:
    """The task with an empty validation split."""
    nothing = task.splits["validation"].take(np.arange(0))
    return dataclasses.replace(task, splits={**task.splits, "validation": nothing})


def keras_default(config: Config, stream: TaskStream) -> float:
    """Milliseconds a step of a plain `keras.Model` with the same masked layers, compiled and fed as Keras would."""
    packed = setup.build_model(config, stream)
    model = keras.Model(packed.input, packed.output)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    data = stream[0].train
    model.fit(data, epochs=1, shuffle=False, verbose=0)
    began = time.perf_counter()
    model.fit(data, epochs=4, shuffle=False, verbose=0)
    return 1e3 * (time.perf_counter() - began) / (4 * len(data))
