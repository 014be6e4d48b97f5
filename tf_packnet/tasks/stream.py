"""A data set cut into tasks: `classes_per_task` classes each, in order, relabelled from 0."""

import dataclasses
import hashlib
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
from tf_packnet.tasks.data_checks import check_class_numbers, check_finite, check_varies

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
        epoch_steps: Gradient steps an epoch, if not those that see every example once.
    """

    number: int
    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    batch_size: int = 128
    seed: int = 0
    room: int = 0
    epoch_steps: int | None = None

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

        @tf.autograph.experimental.do_not_convert  # see batches.py
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
        chosen = {"steps_per_call": steps_per_call} if steps_per_call else {}
        return kind(
            split.images,
            split.y,
            split.scale,
            self.batch_size,
            seed,
            self.room,
            epoch_steps=self.epoch_steps,
            **chosen,
        )

    def evaluation_batches(self, split: str, multiple_of: int = 1) -> "tf.data.Dataset":
        """Batches of a split in order, each a `multiple_of` examples."""
        data = self.splits[split]
        size = max(multiple_of, EVALUATION_BYTES // (4 * math.prod(data.images.shape[1:])))
        return evaluation_batches(data.images, data.y, data.scale, size, multiple_of)


# Decoded examples in one batch of an evaluation: 2,674 MNIST images, or 682 of CIFAR-10.
EVALUATION_BYTES = 2**23


class TaskStream(Sequence[Task]):
    """Tasks in the order they are learned, numbered from 1.

    Args:
        name: Name of the data set.
        tasks: The tasks, whose examples all have one shape.

    Attributes:
        name: Name of the data set.
        input_shape: Shape of one example.
        num_classes: Classes of the first task, and of each where the tasks were cut from one data set.

    Raises:
        ArgumentError: If there is no task, two have one name, their examples differ in shape, or those of one cannot be
            learned from (see `tasks.checks`).
    """

    def __init__(self, name: str, tasks: Sequence[Task]):
        if not tasks:
            raise ArgumentError("tasks", "at least one", list(tasks))
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ArgumentError("tasks", "tasks with names of their own", names)
        shapes = {task.splits["train"].images.shape[1:] for task in tasks}
        if len(shapes) > 1:
            raise ArgumentError("tasks", "examples of one shape in all tasks", sorted(shapes))
        for task in tasks:
            check_task(task)
        room = max(len(task.splits["train"]) for task in tasks)
        self.name = name
        self._tasks = tuple(
            dataclasses.replace(task, number=number, room=room) for number, task in enumerate(tasks, start=1)
        )
        self.input_shape: tuple[int, ...] = self._tasks[0].splits["train"].images.shape[1:]
        self.num_classes = self._tasks[0].num_classes

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        return self._tasks[index]

    def fingerprint(self) -> str:
        """The same for the same examples, cut and ordered in the same way, and for no others."""
        found = hashlib.sha256()
        for task in self:
            found.update(repr([task.name, task.class_names, task.batch_size]).encode())
            for name, split in task.splits.items():
                found.update(repr([name, split.images.shape, split.images.dtype.str, split.scale]).encode())
                found.update(np.ascontiguousarray(split.images))
                found.update(split.y)
        return found.hexdigest()


def check_task(task: Task, x: str = "tasks", y: str = "tasks") -> None:
    """Checks what can be told of a task without learning it: milliseconds for a task of MNIST.

    Args:
        task: The task.
        x: What an error of its examples names.
        y: What an error of its labels names.

    Raises:
        ArgumentError: If a split is empty or does not fit the others, labels are no class numbers, a class has no
            training example, all training examples are the same, or one is not of finite numbers.
    """
    train = task.splits["train"]
    for name, split in task.splits.items():
        where = f"{name} of task {task.name!r}"
        if len(split) == 0 and name != "validation":
            raise ArgumentError(x, f"at least one example in {where}", "none")
        _check_split(split, train, where, task.num_classes, x, y)
    missing = np.flatnonzero(np.bincount(train.labels.astype(np.int64), minlength=task.num_classes) == 0)
    if len(missing):
        expected = f"a training example of each class of task {task.name!r}"
        raise ArgumentError(y, expected, f"none of class {task.class_names[missing[0]]!r}")
    check_varies(x, train.images, f"train of task {task.name!r}")


def _check_split(split: Split, train: Split, where: str, classes: int, x: str, y: str) -> None:
    if len(split.images) != len(split.labels):
        raise ArgumentError(y, f"a label for each of the {len(split.images)} examples in {where}", len(split.labels))
    if split.images.shape[1:] != train.images.shape[1:] or split.images.dtype != train.images.dtype:
        expected = f"{train.images.dtype} examples of shape {train.images.shape[1:]} in {where}, as those for training"
        raise ArgumentError(x, expected, f"{split.images.dtype} of shape {split.images.shape[1:]}")
    if not (math.isfinite(split.scale) and split.scale != 0):
        raise ArgumentError(x, f"a scale that is a number and not 0 in {where}", split.scale)
    check_finite(x, split.images)
    if split.labels.dtype.kind not in "iu":
        raise ArgumentError(y, f"labels of whole numbers in {where}", f"{split.labels.dtype} labels")
    check_class_numbers(y, split.labels, classes)
