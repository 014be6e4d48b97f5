"""A task's examples, looked at before anything is learned from them."""

import math
from typing import TYPE_CHECKING

import numpy as np

from tf_packnet.data_checks import check_class_numbers, check_finite, check_varies
from tf_packnet.errors import ArgumentError

if TYPE_CHECKING:
    from tf_packnet.tasks.stream import Split, Task


def check_task(task: "Task", x: str = "tasks", y: str = "tasks") -> None:
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


def _check_split(split: "Split", train: "Split", where: str, classes: int, x: str, y: str) -> None:
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
