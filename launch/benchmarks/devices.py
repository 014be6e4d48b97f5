"""Measures training and evaluation on two logical CPU devices, compared with one device on the same cores."""

import contextlib
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

import tf_packnet as tp
from launch.benchmarks import Row, floors
from launch.benchmarks.training import noise_images
from tf_packnet.runs import setup
from tf_packnet.runs.config import Config

# Both replicas share the cores of the single device: CPU time can only increase, and wall-clock time hardly decrease.
_CPU_BOUNDS = {"mlp": 2.0, "conv": 1.5}
_WALL_BOUNDS = {"mlp": 2.5, "conv": 1.5}
_TURNS = 5


def devices(epochs: int) -> list[Row]:
    """Compare a `MirroredStrategy` of two logical devices with one device, for both presets, in alternation."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return [
        *compared("mlp", (28, 28, 1), 12_000, floors.BATCH, epochs),
        *compared("conv", (32, 32, 3), 640, floors.CONV_BATCH, 2),
    ]


def compared(name: str, shape: tuple[int, ...], examples: int, batch_size: int, epochs: int) -> list[Row]:
    """Measure the network of one preset. Each turn trains for `epochs` epochs."""
    config = Config(model=name, train_epochs=1, retrain_epochs=1, prune_rounds=1, batch_size=batch_size)
    task = noise_images(shape, examples, tasks=1, batch_size=batch_size)[0]
    one, two = trained(config, task, None), trained(config, task, tf.distribute.MirroredStrategy())
    batches, test = task.training_batches(0, True), task.evaluation_batches("train")
    steps = in_turns([lambda model=model: model.fit(batches, epochs=epochs, verbose=0) for model in (one, two)])
    evaluations = in_turns([lambda model=model: model.evaluate(test, verbose=0) for model in (one, two)])
    count, what = batches.steps * epochs, f"step of the {name} preset's network"
    tested = f"evaluation of {len(task.splits['train']):,} examples with it"
    return [
        row(f"{what}, CPU time", steps, 1, count, _CPU_BOUNDS[name]),
        row(f"{what}, wall-clock time", steps, 0, count, _WALL_BOUNDS[name]),
        row(f"{tested}, wall-clock time", evaluations, 0, 1, 2.0),
    ]


def row(what: str, times: list[list[tuple[float, float]]], clock: int, steps: int, limit: float) -> Row:
    """Return the row for the turn with the median ratio of the times on two devices and on one.

    Args:
        what: What was measured.
        times: For each model, the wall-clock and CPU seconds of each turn.
        clock: 0 for wall-clock time, 1 for CPU time.
        steps: Number of steps in a turn.
        limit: Largest ratio that meets the target.
    """
    pairs = [(two[clock], one[clock]) for one, two in zip(*times, strict=True)]
    two, one = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    note = "two devices, compared with one"
    return Row("devices", what, 1e3 * two / steps, "ms", 1e3 * one / steps, ("at most", limit), note)


def trained(config: Config, task: tp.tasks.Task, strategy: tf.distribute.Strategy | None) -> tp.PackedModel:
    """Return the packed network of `config`, compiled as the launcher does."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        network = setup.build_model(config, tp.tasks.TaskStream("noise", [task]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return network


def in_turns(functions: Sequence[Callable[[], object]]) -> list[list[tuple[float, float]]]:
    """Call the functions in turn. Return the wall-clock and CPU seconds of each call, without the first of each."""
    times: list[list[tuple[float, float]]] = [[] for _ in functions]
    for turn in range(_TURNS + 1):
        for number, function in enumerate(functions):
            began, worked = time.perf_counter(), time.process_time()
            function()
            if turn:
                times[number].append((time.perf_counter() - began, time.process_time() - worked))
    return times
