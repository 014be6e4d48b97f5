"""Compares PackNet with LoRA, full fine-tuning and training of the head alone, on one pretrained vision transformer.

A small ViT of KerasHub learns six classes of CIFAR-10. From these weights each method then learns two tasks of two
other classes, for the same number of epochs. Prints a table in Markdown. Needs tf_packnet[hub,experiments]
and CIFAR-10 prepared for TFDS. With the options below it takes about 8 minutes on two cores.

    python docs/comparison/lora.py --pretraining_epochs=6 --epochs=4
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import tf_packnet as tp

PRETRAINING_CLASSES = (0, 1, 2, 3, 4, 5)
TASKS = {"frog or horse": (6, 7), "ship or truck": (8, 9)}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclass(frozen=True)
class Data:
    """Images and labels of some classes: `x` `(n, 32, 32, 3)` float32 in [0, 1], `y` `(n,)` integers from 0."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Result:
    """What one method needs and reaches.

    Attributes:
        accuracy: Test accuracy of each task after the last one.
        weights: Weights that the first task stores.
        bytes: Size of what the first task stores, in a file.
        milliseconds: Median time of a prediction for one image.
        changed: Largest change of an output of the first task while the second was learned.
    """

    accuracy: list[float]
    weights: int
    bytes: int
    milliseconds: float
    changed: float


def data(classes: tuple[int, ...]) -> Data:
    """Load some classes of CIFAR-10; their labels become 0, 1, ..."""
    parts: list[np.ndarray] = []
    for split in ("train", "test"):
        x, y = tfds.as_numpy(tfds.load("cifar10", split=split, batch_size=-1, as_supervised=True))
        wanted = np.isin(y, classes)
        parts += [x[wanted].astype("float32") / 255, np.searchsorted(classes, y[wanted])]
    return Data(*parts)


def network(classes: int) -> keras.Model:
    """Return a vision transformer of 0.15 million weights."""
    backbone = keras_hub.models.ViTBackbone(
        (32, 32, 3), patch_size=4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128
    )
    return keras_hub.models.ViTImageClassifier(backbone, num_classes=classes, preprocessor=None)


def compiled(model: keras.Model) -> keras.Model:
    model.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4), loss=LOSS, metrics=["accuracy"])
    return model


def pretrained(backbone_weights: Path) -> keras.Model:
    model = network(2)
    model.backbone.load_weights(backbone_weights)
    return model


def packnet(tasks: list[Data], weights: Path, options: argparse.Namespace) -> Result:
    """Each task keeps 5% of the weights; everything else has its pretrained value."""
    packed = tp.pack(pretrained(weights), pretrained="task 0", prune_pretrained=False, bias_policy="per_task")
    schedule = tp.EqualShare(final_prune=0.9, num_tasks=len(tasks), rounds=options.epochs // 2)
    outputs: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, task in enumerate(tasks):
            packed.begin_task(list(TASKS)[number])
            compiled(packed).fit(task.x, task.y, epochs=options.epochs // 2, batch_size=128, verbose=0)
            prune = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot()]
            packed.fit(task.x, task.y, epochs=options.epochs // 2, batch_size=128, verbose=0, callbacks=prune)
            outputs.append(packed.predict(tasks[0].x_test, verbose=0))
            tp.save_pack(packed, Path(folder) / f"{number}.packnet")
        first, second = (Path(folder, f"{number}.packnet").stat().st_size for number in range(2))
    packed.select_task(1)
    changed = float(np.abs(packed.predict(tasks[0].x_test, verbose=0) - outputs[0]).max())
    accuracies = []
    for number, task in enumerate(tasks, start=1):
        packed.select_task(number)
        accuracies.append(accuracy(packed, task))
    kept = sum(int((owners == 1).sum()) for owners in packed.owner_maps().values())
    own = sum(
        int(np.size(weight.variable)) for layer in tp.lifecycle.task_layers(packed) for weight in layer.task_weights
    )
    return Result(accuracies, kept + own, second - first, latency(tp.dense_model(packed, 1), tasks[0]), changed)


def copies(
    prepare: Callable[[keras.Model], None], tasks: list[Data], weights: Path, options: argparse.Namespace
) -> Result:
    """Train a copy of the pretrained model for each task, of which `prepare` decides what is trained."""
    models = []
    for task in tasks:
        model = pretrained(weights)
        prepare(model)
        compiled(model).fit(task.x, task.y, epochs=options.epochs, batch_size=128, verbose=0)
        models.append(model)
    stored = [np.asarray(variable) for variable in models[0].trainable_variables]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file.name, *stored)
        size = Path(file.name).stat().st_size
    accuracies = [accuracy(model, task) for model, task in zip(models, tasks, strict=True)]
    return Result(accuracies, sum(each.size for each in stored), size, latency(models[0], tasks[0]), 0.0)


def head_only(model: keras.Model) -> None:
    model.backbone.trainable = False


def accuracy(model: keras.Model, task: Data) -> float:
    predicted = model.predict(task.x_test, batch_size=500, verbose=0).argmax(axis=-1)
    return float((predicted == task.y_test).mean())


def latency(model: keras.Model, task: Data) -> float:
    """Return the median time in milliseconds of a prediction for one image."""
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    image = tf.constant(task.x_test[:1])

    def seconds() -> Iterator[float]:
        for _ in range(300):
            began = time.perf_counter()
            function(image).numpy()
            yield time.perf_counter() - began

    return 1000 * statistics.median(list(seconds())[20:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pretraining_epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=8, help="epochs for each task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    tasks = [data(classes) for classes in TASKS.values()]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "backbone.weights.h5"
        model, six = network(len(PRETRAINING_CLASSES)), data(PRETRAINING_CLASSES)
        compiled(model).fit(six.x, six.y, epochs=options.pretraining_epochs, batch_size=128, verbose=2)
        print(f"pretraining: test accuracy {accuracy(model, six):.3f}, {model.count_params():,} weights")
        model.backbone.save_weights(weights)
        print("| method | weights per task | bytes per task | accuracy | ms per image | change of task 1 |")
        print("|---|---|---|---|---|---|")
        methods = {
            "PackNet, 5% per task": lambda: packnet(tasks, weights, options),
            "LoRA, rank 4": lambda: copies(lambda m: m.backbone.enable_lora(4), tasks, weights, options),
            "LoRA, rank 16": lambda: copies(lambda m: m.backbone.enable_lora(16), tasks, weights, options),
            "all weights": lambda: copies(lambda m: None, tasks, weights, options),
            "head alone": lambda: copies(head_only, tasks, weights, options),
        }
        for name, method in methods.items():
            keras.utils.set_random_seed(options.seed)
            result = method()
            accuracies = ", ".join(f"{each:.3f}" for each in result.accuracy)
            print(
                f"| {name} | {result.weights:,} | {result.bytes:,} | {accuracies} | {result.milliseconds:.2f} | "
                f"{result.changed:g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
