"""Splits a labelled data set into a stream of tasks, and holds out validation examples."""

from collections.abc import Iterable, Sequence

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.data_checks import check_class_numbers
from tf_packnet.tasks.orders import NATURAL, Order, arrange
from tf_packnet.tasks.stream import Split, Task, TaskStream


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
    class_order: Order = NATURAL,
    task_order: Order = NATURAL,
) -> TaskStream:
    """Split a labelled data set into tasks of `c = classes_per_task` classes: 0 to c-1, c to 2c-1, and so on.

    Args:
        name: Name of the data set.
        train: Training examples. A fraction of each class is held out of them for validation.
        test: Test examples.
        class_names: Name of each label.
        classes_per_task: Number of classes of each task.
        num_tasks: Number of tasks; the default is as many as there are classes for.
        validation_fraction: Fraction of each class's training examples to hold out for validation, in [0, 1).
        batch_size: Batch size of the tasks' data sets.
        seed: Seeds the choice of validation examples, the order of the training batches, and shuffled orders.
        class_order: The order in which classes are divided into tasks: `natural`, `shuffled`, or a list of names or
            numbers (from 0), as a sequence or a text with commas. Classes that the list leaves out are in no task.
        task_order: The order in which these tasks are learned: `natural`, `shuffled`, or a list of names or numbers
            (from 1). The first `num_tasks` of them are learned.

    Returns:
        The tasks, each with labels from 0.

    Raises:
        ArgumentError: If a number is out of range, there are too few classes, a task has fewer training examples than
            one batch, or `check_task` rejects its data.
    """
    if classes_per_task < 1:
        raise ArgumentError("classes_per_task", "at least 1", classes_per_task)
    if num_tasks is not None and num_tasks < 1:
        raise ArgumentError("num_tasks", "at least 1", num_tasks)
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    if batch_size < 1:
        raise ArgumentError("batch_size", "at least 1", batch_size)
    classes = arrange("class_order", class_names, class_order, seed, first=0)
    max_tasks = len(classes) // classes_per_task
    if max_tasks == 0:
        raise ArgumentError("classes_per_task", f"at most the {len(classes)} classes of {name}", classes_per_task)
    groups = [classes[i * classes_per_task : (i + 1) * classes_per_task] for i in range(max_tasks)]
    names = ["-".join(class_names[label] for label in group) for group in groups]
    order = arrange("task_order", names, task_order, seed, first=1)
    if num_tasks is not None and num_tasks > len(order):
        reason = f"{name} has {len(classes)} classes, {classes_per_task} per task"
        raise ArgumentError("num_tasks", f"at most {len(order)} ({reason})", num_tasks)
    for split, data in (("train", train), ("test", test)):
        check_class_numbers(split, data.labels, len(class_names))
    rng = np.random.default_rng(seed)
    tasks = []
    for number, index in enumerate(order[:num_tasks], start=1):
        labels = groups[index]
        train_index, validation_index = hold_out(train.labels, labels, validation_fraction, rng)
        splits = {
            "train": _relabelled(train, train_index, labels),
            "validation": _relabelled(train, validation_index, labels),
            "test": _relabelled(test, np.flatnonzero(np.isin(test.labels, labels)), labels),
        }
        if batch_size > len(splits["train"]):
            raise ArgumentError(
                "batch_size",
                f"at most the {len(splits['train'])} training examples of task {number} ({names[index]})",
                batch_size,
            )
        class_names_here = tuple(class_names[label] for label in labels)
        tasks.append(Task(number, names[index], class_names_here, splits, batch_size, seed))
    return TaskStream(name, tasks)


def hold_out(
    labels: np.ndarray, classes: Iterable[int], fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the examples of some classes at random.

    Args:
        labels: Integer array `(examples,)`.
        classes: Labels of the examples to divide.
        fraction: Fraction of each class's examples to hold out.
        rng: Draws them.

    Returns:
        Indices of the examples that stay and of those held out, both sorted.
    """
    staying, held_out = [], []
    for label in classes:
        index = rng.permutation(np.flatnonzero(labels == label))
        count = round(len(index) * fraction)
        held_out.append(index[:count])
        staying.append(index[count:])
    return np.sort(np.concatenate(staying)), np.sort(np.concatenate(held_out))


def _relabelled(split: Split, index: np.ndarray, labels: Sequence[int]) -> Split:
    """Return the examples at `index`, with the position of their label in `labels` as their label."""
    part = split.take(index)
    order = np.argsort(labels)
    return Split(part.images, order[np.searchsorted(labels, part.labels, sorter=order)].astype(np.int32), part.scale)
