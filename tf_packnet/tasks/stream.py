"""A data set cut into tasks: `classes_per_task` classes each, in order, relabelled from 0."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.batches import (
    ResidentBatches,
    StreamedBatches,
    decode,
    evaluation_batches,
    untuned,
)

if TYPE_CHECKING:  # tasks can be cut, and bad ones refused, before TensorFlow starts
    import tensorflow as tf


@dataclass(frozen=True)
class Split:
    """Examples at rest.

    Attributes:
        images: Array `(examples, *shape)`, in the data's own dtype.
        labels: Integer array `(examples,)`.
        scale: Multiplies the images to bring them into [0, 1].
    """

    images: np.ndarray
    labels: np.ndarray
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def x(self) -> np.ndarray:
        """Inputs, `float32` in [0, 1]."""
        return self.images.astype(np.float32) * np.float32(self.scale)

    @property
    def y(self) -> np.ndarray:
        """Labels, `int32`."""
        return self.labels.astype(np.int32)

    def take(self, index: np.ndarray) -> "Split":
        """The examples at `index`."""
        return Split(self.images[index], self.labels[index], self.scale)


@dataclass(frozen=True)
class Task:
    """One classification problem of a stream.

    Attributes:
        number: Place in the stream, 1-based.
        name: How it is called, from its classes: `0-1`, or `airplane-automobile`.
        class_names: Names of its classes; label `i` is the `i`-th.
        splits: `train`, `validation` (held out of train, for choices) and `test` (for reporting only).
        batch_size: Batch size of the ready-made data sets.
        seed: Seeds the order of `train`.
        room: Training examples of the largest task of the stream: what to reserve where all tasks share memory.
    """

    number: int
    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    batch_size: int = 128
    seed: int = 0
    room: int = 0

    @property
    def num_classes(self) -> int:
        """How many classes the task tells apart."""
        return len(self.class_names)

    @property
    def train(self) -> "tf.data.Dataset":
        """Training batches, shuffled anew each epoch; a last incomplete batch is left out of the epoch."""
        import tensorflow as tf

        split = self.splits["train"]
        images, labels = tf.constant(split.images), tf.constant(split.y)
        order = tf.data.Dataset.range(len(split)).shuffle(len(split), seed=self.seed)
        batches = order.batch(self.batch_size, drop_remainder=True)

        def gather(rows):
            return decode(tf.gather(images, rows), split.scale), tf.gather(labels, rows)

        return untuned(batches.map(gather).prefetch(2))

    @property
    def validation(self) -> "tf.data.Dataset":
        """Validation batches, in order."""
        return self.evaluation_batches("validation")

    @property
    def test(self) -> "tf.data.Dataset":
        """Test batches, in order."""
        return self.evaluation_batches("test")

    def training_batches(self, seed: int, resident: bool = False, steps_per_call: int | None = None) -> StreamedBatches:
        """Batches for `PackedModel.fit`, in an order fixed by `seed`.

        Args:
            seed: Seeds the order.
            resident: Whether the examples lie on the device (`ResidentBatches`) or stream (`StreamedBatches`).
            steps_per_call: Gradient steps between two looks of Keras, at most; default what suits small networks.
        """
        kind = ResidentBatches if resident else StreamedBatches
        split = self.splits["train"]
        batches = kind(split.images, split.y, split.scale, self.batch_size, seed, self.room)
        return dataclasses.replace(batches, steps_per_call=steps_per_call) if steps_per_call else batches

    def evaluation_batches(self, split: str, multiple_of: int = 1) -> "tf.data.Dataset":
        """Batches of a split in order, each a `multiple_of` examples."""
        data = self.splits[split]
        size = max(multiple_of, EVALUATION_BYTES // (4 * math.prod(data.images.shape[1:])))
        return evaluation_batches(data.images, data.y, data.scale, size, multiple_of)


# Decoded examples in one batch of an evaluation: 2,674 MNIST images, or 682 of CIFAR-10.
EVALUATION_BYTES = 2**23


class TaskStream(Sequence[Task]):
    """The tasks of one data set, in the order they are learned.

    Attributes:
        name: Name of the data set.
        input_shape: Shape of one example.
        num_classes: Classes of each task.
    """

    def __init__(self, name: str, tasks: Sequence[Task]):
        self.name = name
        self._tasks = tuple(tasks)
        self.input_shape: tuple[int, ...] = self._tasks[0].splits["train"].images.shape[1:]
        self.num_classes = self._tasks[0].num_classes

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        return self._tasks[index]


def split_into_tasks(
    name: str,
    train: Split,
    test: Split,
    class_names: Sequence[str],
    classes_per_task: int = 2,
    num_tasks: int | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
) -> TaskStream:
    """Cuts a labelled data set into tasks of `classes_per_task` classes: 0..c-1, c..2c-1, and so on.

    Args:
        name: Name of the data set.
        train: Training examples; the validation split is held out of them, per class, by `seed`.
        test: Test examples.
        class_names: Name of each label.
        classes_per_task: `c`.
        num_tasks: How many tasks; default as many as the classes give.
        validation_fraction: Share of each class's training examples to hold out, in [0, 1).
        batch_size: Batch size of the tasks' ready-made data sets.
        seed: Seeds the held-out choice and the order of the training batches.

    Raises:
        ArgumentError: If a number is out of range, the classes do not suffice, or a task has no full batch.
    """
    if classes_per_task < 1:
        raise ArgumentError("classes_per_task", "at least 1", classes_per_task)
    if num_tasks is not None and num_tasks < 1:
        raise ArgumentError("num_tasks", "at least 1", num_tasks)
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    if batch_size < 1:
        raise ArgumentError("batch_size", "at least 1", batch_size)
    possible = len(class_names) // classes_per_task
    if possible == 0:
        raise ArgumentError("classes_per_task", f"at most the {len(class_names)} classes of {name}", classes_per_task)
    num_tasks = possible if num_tasks is None else num_tasks
    if num_tasks > possible:
        raise ArgumentError(
            "num_tasks",
            f"at most {possible} ({name} has {len(class_names)} classes, {classes_per_task} a task)",
            num_tasks,
        )
    rng = np.random.default_rng(seed)
    tasks = []
    for number in range(1, num_tasks + 1):
        labels = range((number - 1) * classes_per_task, number * classes_per_task)
        train_index, validation_index = _hold_out(train.labels, labels, validation_fraction, rng)
        splits = {
            "train": _relabelled(train, train_index, labels[0]),
            "validation": _relabelled(train, validation_index, labels[0]),
            "test": _relabelled(test, np.flatnonzero(np.isin(test.labels, labels)), labels[0]),
        }
        names = tuple(class_names[label] for label in labels)
        if batch_size > len(splits["train"]):
            raise ArgumentError(
                "batch_size",
                f"at most the {len(splits['train'])} training examples of task {number} ({'-'.join(names)})",
                batch_size,
            )
        tasks.append(Task(number, "-".join(names), names, splits, batch_size, seed))
    room = max(len(task.splits["train"]) for task in tasks)
    return TaskStream(name, [dataclasses.replace(task, room=room) for task in tasks])


def _hold_out(labels, wanted, fraction, rng):
    train, validation = [], []
    for label in wanted:
        index = rng.permutation(np.flatnonzero(labels == label))
        held_out = round(len(index) * fraction)
        validation.append(index[:held_out])
        train.append(index[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _relabelled(split: Split, index: np.ndarray, first_label: int) -> Split:
    part = split.take(index)
    return Split(part.images, part.labels - first_label, part.scale)
