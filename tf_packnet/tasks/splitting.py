"""Cuts a labelled data set into a stream of tasks, and holds out the examples for validation."""

from collections.abc import Iterable, Sequence

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.data_checks import check_class_numbers
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
        ArgumentError: If a number is out of range, the classes do not suffice, a task has no full batch, or its
            examples cannot be learned from (see `tasks.checks`).
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
    for split, data in (("train", train), ("test", test)):
        check_class_numbers(split, data.labels, len(class_names))
    rng = np.random.default_rng(seed)
    tasks = []
    for number in range(1, num_tasks + 1):
        labels = range((number - 1) * classes_per_task, number * classes_per_task)
        train_index, validation_index = hold_out(train.labels, labels, validation_fraction, rng)
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
    return TaskStream(name, tasks)


def hold_out(
    labels: np.ndarray, wanted: Iterable[int], fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples with the `wanted` labels stay, and which are held out: a `fraction` of each label's, by `rng`."""
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
