"""Defines tasks and their data: `Split`, `Task`, and `TaskStream`, the tasks of one data set in order."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.arrays import content
from tf_packnet.tasks.batches import (
    ResidentBatches,
    StreamedBatches,
    decode,
    evaluation_batches,
    reader,
    untuned,
)
from tf_packnet.tasks.data_checks import check_class_numbers, check_finite, check_varies
from tf_packnet.tasks.encodings import Encoding
from tf_packnet.tasks.stored_images import Images, StoredImages, chunks, select

if TYPE_CHECKING:  # tasks can be cut, and bad ones refused, before TensorFlow starts
    import tensorflow as tf


@dataclass(frozen=True)
class Split:
    """Labelled examples.

    Attributes:
        images: Array `(examples, *shape)`, in the dtype of the data; or `StoredImages`, which are read from disk.
        labels: Integer array `(examples,)`; or values, a `float32` array `(examples,)` or `(examples, outputs)`.
        scale: Factor that scales the images to [0, 1].
    """

    images: Images
    labels: np.ndarray
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def x(self) -> np.ndarray:
        """Inputs of the network, `(examples, *shape)`, `float32` in [0, 1]."""
        return np.asarray(self.images).astype(np.float32) * np.float32(self.scale)

    @property
    def y(self) -> np.ndarray:
        """Labels, `(examples,)`, `int32`; or values, `float32`."""
        return self.labels.astype(np.float32 if self.has_values else np.int32)

    @property
    def has_values(self) -> bool:
        """Whether the labels are values to predict, not classes."""
        return self.labels.dtype.kind == "f"

    def take(self, index: np.ndarray) -> "Split":
        """Return the examples at the integer array `index`."""
        return Split(select(self.images, index), self.labels[index], self.scale)

    @property
    def is_stored(self) -> bool:
        """Whether the images are on disk."""
        return isinstance(self.images, StoredImages)

    def in_memory(self) -> "Split":
        """Return the same examples with their images in memory."""
        return dataclasses.replace(self, images=np.asarray(self.images)) if self.is_stored else self


@dataclass(frozen=True)
class Task:
    """One task of a stream: a classification, or a task whose targets are values.

    Attributes:
        number: Position in the stream (1-based).
        name: Name, for example the class names: `0-1` or `airplane-automobile`.
        class_names: Names of the classes, by label; for values, names of the outputs.
        splits: `train`, `validation` (held out of train) and `test` (only for reporting).
        batch_size: Batch size of the task's data sets.
        seed: Seeds the order of `train`.
        room: Number of training examples of the largest task of the stream, for which to allocate device memory.
        epoch_steps: Gradient steps per epoch; None for all full batches.
        resize: How images were resized (`stretch`, `pad` or `crop`); None if they were not.
        encoding: How examples were encoded from tables; None for other data.
    """

    number: int
    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    batch_size: int = 128
    seed: int = 0
    room: int = 0
    epoch_steps: int | None = None
    resize: str | None = None
    encoding: Encoding | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; if the targets are values, number of outputs."""
        return len(self.class_names)

    @property
    def train(self) -> "tf.data.Dataset":
        """Training batches, shuffled again in each epoch, without the last batch if it is incomplete."""
        import tensorflow as tf

        split = self.splits["train"]
        images, labels = reader(split.images), tf.constant(split.y)
        order = tf.data.Dataset.range(len(split)).shuffle(len(split), seed=self.seed)
        batches = order.batch(self.batch_size, drop_remainder=True)

        @tf.autograph.experimental.do_not_convert  # see batches.py
        def gather(rows: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
            return decode(images(rows), split.scale), tf.gather(labels, rows)

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
        """Return batches for `PackedModel.fit`, in an order fixed by `seed`.

        Args:
            seed: Seeds the order, 0 to 2^31-1.
            resident: Whether to keep the examples in device memory (`ResidentBatches`) or to stream them
                (`StreamedBatches`).
            steps_per_call: Maximum number of gradient steps per call of the compiled step; the default suits small
                networks.
        """
        batches_class = ResidentBatches if resident else StreamedBatches
        split = self.splits["train"].in_memory() if resident else self.splits["train"]
        optional = {"steps_per_call": steps_per_call} if steps_per_call else {}
        return batches_class(
            split.images,
            split.y,
            split.scale,
            self.batch_size,
            seed,
            self.room,
            epoch_steps=self.epoch_steps,
            **optional,
        )

    def evaluation_batches(self, split: str) -> "tf.data.Dataset":
        """Return batches `(x, y)` of a split in order."""
        data = self.splits[split]
        size = max(1, _EVALUATION_BYTES // (4 * math.prod(data.images.shape[1:])))
        return evaluation_batches(data.images, data.y, data.scale, size)


# Size of the decoded images in one evaluation batch: 2,674 images of MNIST, or 682 of CIFAR-10.
_EVALUATION_BYTES = 2**23


class TaskStream(Sequence[Task]):
    """Tasks in the order in which they are learned, numbered from 1.

    Args:
        name: Name of the data set.
        tasks: The tasks. Their examples must all have the same shape.

    Attributes:
        name: Name of the data set.
        input_shape: Shape of one example.
        num_classes: Number of classes of the first task; from `split_into_tasks`, of every task.

    Raises:
        ArgumentError: If there are no tasks, two have the same name, examples differ in shape, or `check_task` rejects
            a task.
    """

    def __init__(self, name: str, tasks: Sequence[Task]):
        if not tasks:
            raise ArgumentError("tasks", "at least one", list(tasks))
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ArgumentError("tasks", "tasks with different names", names)
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
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...

    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        return self._tasks[index]

    def fingerprint(self) -> str:
        """Return a SHA-256 checksum, in hex, of the examples, names and batch sizes of all tasks, in order.

        The first call reads every image that is on disk.

        Raises:
            ArgumentError: If an image cannot be read.
        """
        if self._fingerprint is None:
            self._fingerprint = self._computed_fingerprint()
        return self._fingerprint

    def _computed_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for task in self:
            digest.update(repr([task.name, task.class_names, task.batch_size]).encode())
            for name, split in task.splits.items():
                digest.update(repr([name, split.images.shape, split.images.dtype.str, split.scale]).encode())
                for images in chunks(split.images):
                    digest.update(content(images))
                digest.update(content(split.y))
        return digest.hexdigest()


def check_task(task: Task, x: str = "tasks", y: str = "tasks") -> None:
    """Check the data of a task. This takes a few milliseconds for a task of MNIST.

    Args:
        task: The task.
        x: The argument to name in errors about examples.
        y: The argument to name in errors about labels.

    Raises:
        ArgumentError: If a split other than `validation` is empty, splits differ in shape or dtype, the numbers of
            examples and labels differ, a scale is 0 or not finite, labels are not class numbers, a class has no
            training example, all training examples are equal, or examples or values contain NaN or infinity.
    """
    train = task.splits["train"]
    for name, split in task.splits.items():
        title = f"{name} of task {task.name!r}"
        if len(split) == 0 and name != "validation":
            raise ArgumentError(x, f"at least one example in {title}", "none")
        _check_split(split, train, title, task.num_classes, x, y)
    if train.has_values:
        check_varies(x, train.images, f"train of task {task.name!r}")
        return
    missing = np.flatnonzero(np.bincount(train.labels.astype(np.int64), minlength=task.num_classes) == 0)
    if len(missing):
        expected = f"at least one training example of each class of task {task.name!r}"
        raise ArgumentError(y, expected, f"none of class {task.class_names[missing[0]]!r}")
    check_varies(x, train.images, f"train of task {task.name!r}")


def _check_split(split: Split, train: Split, title: str, classes: int, x: str, y: str) -> None:
    if len(split.images) != len(split.labels):
        raise ArgumentError(y, f"a label for each of the {len(split.images)} examples in {title}", len(split.labels))
    if split.images.shape[1:] != train.images.shape[1:] or split.images.dtype != train.images.dtype:
        expected = (
            f"{train.images.dtype} examples of shape {train.images.shape[1:]} in {title}, like the training examples"
        )
        raise ArgumentError(x, expected, f"{split.images.dtype} of shape {split.images.shape[1:]}")
    if not (math.isfinite(split.scale) and split.scale != 0):
        raise ArgumentError(x, f"a finite scale other than 0 in {title}", split.scale)
    check_finite(x, split.images)
    if train.has_values:
        if split.labels.dtype != train.labels.dtype or split.labels.shape[1:] != train.labels.shape[1:]:
            expected = f"{train.labels.dtype} values of shape {train.labels.shape[1:]} in {title}, like those in train"
            raise ArgumentError(y, expected, f"{split.labels.dtype} of shape {split.labels.shape[1:]}")
        check_finite(y, split.labels)
        return
    if split.labels.dtype.kind not in "iu":
        raise ArgumentError(y, f"integer labels in {title}", f"{split.labels.dtype} labels")
    check_class_numbers(y, split.labels, classes)
