"""Splits a labelled data set into a stream of tasks, and holds out validation examples."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.task_names import MAX_BYTES
from tf_packnet.tasks.data_checks import check_class_numbers
from tf_packnet.tasks.orders import NATURAL, Order, arrange, choose
from tf_packnet.tasks.stream import Split, Task, TaskStream

# One task of all classes.
ALL = "all"
# The number of classes of each task: the same for all, one for each, or `ALL`.
TaskSizes = int | Sequence[int] | str


@checked
def split_into_tasks(
    name: str,
    train: Split,
    test: Split | None,
    class_names: Sequence[str],
    classes_per_task: TaskSizes = 2,
    num_tasks: int | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    test_fraction: float = 0.2,
    class_order: Order = NATURAL,
    task_order: Order = NATURAL,
) -> TaskStream:
    """Split a labelled data set into tasks of consecutive classes.

    Args:
        name: Name of the data set.
        train: Training examples. A fraction of each class is held out for validation.
        test: Test examples; None to hold out a fraction of each class of `train`.
        class_names: Name of each label.
        classes_per_task: Number of classes of each task; a sequence with one number per task, in order; or `all` for
            one task.
        num_tasks: Number of tasks. Default: as many as the classes allow.
        validation_fraction: Fraction of each class's training examples to hold out for validation, in [0, 1).
        batch_size: Batch size of the tasks' data sets.
        seed: Seeds the choice of held-out examples, the order of the training batches, and shuffled orders.
        test_fraction: Fraction of each class to hold out for testing if `test` is None, in (0, 1).
        class_order: The order in which classes are divided into tasks: `natural`, `shuffled`, or a list of names or
            numbers (from 0), as a sequence or as text separated by commas. Classes that are not in the list are in no
            task.
        task_order: The order in which these tasks are learned: `natural`, `shuffled`, or a list of names or numbers
            (from 1). The first `num_tasks` of them are learned.

    Returns:
        The tasks, each with labels from 0.

    Raises:
        ArgumentError: If a number is out of range, there are too few classes, a task has fewer training examples than
            one batch, or `check_task` rejects its data.
    """
    classes = arrange("class_order", class_names, class_order, seed, first=0)
    groups = grouped(classes, task_sizes(name, len(classes), classes_per_task))
    names = task_names(name, class_names, groups)
    chosen = choose(names, task_order, num_tasks, seed, describe(name, len(classes), classes_per_task))
    tasks = cut(name, train, test, class_names, groups, chosen, validation_fraction, batch_size, seed, test_fraction)
    return TaskStream(name, [tasks[index] for index in chosen])


def task_sizes(name: str, classes: int, classes_per_task: TaskSizes) -> list[int]:
    """Return the number of classes of each task of a data set.

    Args:
        name: Name of the data set, for errors.
        classes: Number of classes.
        classes_per_task: As for `split_into_tasks`.

    Raises:
        ArgumentError: If a number is out of range, or there are too few classes.
    """
    if isinstance(classes_per_task, str):
        if classes_per_task != ALL:
            raise ArgumentError("classes_per_task", f"a number, several numbers, or {ALL}", classes_per_task)
        sizes = [classes]
    elif isinstance(classes_per_task, int):
        if classes_per_task < 1:
            raise ArgumentError("classes_per_task", "at least 1", classes_per_task)
        sizes = [classes_per_task] * (classes // classes_per_task)
    else:
        sizes = list(classes_per_task)
        if not sizes or min(sizes) < 1:
            raise ArgumentError("classes_per_task", "at least 1 class in each task", sizes)
    if sum(sizes) > classes or not sizes:
        raise ArgumentError("classes_per_task", f"at most the {classes} classes of {name}", classes_per_task)
    return sizes


def describe(name: str, classes: int, classes_per_task: TaskSizes) -> str:
    """Return why a data set has no more tasks, for error messages."""
    each = f", {classes_per_task} per task" if isinstance(classes_per_task, int) else ""
    return f"{name} has {classes} classes{each}"


def grouped(classes: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Divide `classes` into tasks of consecutive classes, with the given number of classes each."""
    ends = np.cumsum(sizes).tolist()
    return [list(classes[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def task_names(name: str, class_names: Sequence[str], groups: Sequence[Sequence[int]]) -> list[str]:
    """Return the names of the tasks: the names of their classes, or numbered names if these are too long."""
    names = ["-".join(class_names[label] for label in group) for group in groups]
    short = [name] if len(groups) == 1 else [f"{name}_{number}" for number in range(1, len(groups) + 1)]
    return [each if len(each.encode()) <= MAX_BYTES else other for each, other in zip(names, short, strict=True)]


def cut(
    name: str,
    train: Split,
    test: Split | None,
    class_names: Sequence[str],
    groups: Sequence[Sequence[int]],
    wanted: Collection[int],
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    test_fraction: float = 0.2,
) -> dict[int, Task]:
    """Make tasks from a labelled data set. The examples of a task do not depend on which other tasks are wanted.

    Args:
        name: Name of the data set.
        train: As for `split_into_tasks`.
        test: As for `split_into_tasks`.
        class_names: Name of each label.
        groups: The classes of each task.
        wanted: Indices of the tasks to make.
        validation_fraction: As for `split_into_tasks`.
        batch_size: As for `split_into_tasks`.
        seed: As for `split_into_tasks`.
        test_fraction: As for `split_into_tasks`.

    Returns:
        The tasks by index.

    Raises:
        ArgumentError: If a number is out of range, a label is not a class number, or a task has fewer training examples
            than one batch.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    if batch_size < 1:
        raise ArgumentError("batch_size", "at least 1", batch_size)
    for split, data in (("train", train), *([("test", test)] if test is not None else [])):
        check_class_numbers(split, data.labels, len(class_names))
    if test is None:
        rng = np.random.default_rng([seed, 1])  # not the numbers that the validation examples are drawn with
        train, test = held_out_test(name, train, range(len(class_names)), test_fraction, rng)
    rng = np.random.default_rng(seed)
    names, tasks = task_names(name, class_names, groups), {}
    for index, labels in enumerate(groups[: max(wanted, default=-1) + 1]):
        train_index, validation_index = hold_out(train.labels, labels, validation_fraction, rng)
        if index not in wanted:
            continue
        if batch_size > len(train_index):
            expected = f"at most the {len(train_index)} training examples of task {index + 1} ({names[index]})"
            raise ArgumentError("batch_size", expected, batch_size)
        splits = {
            "train": _relabelled(train, train_index, labels),
            "validation": _relabelled(train, validation_index, labels),
            "test": _relabelled(test, np.flatnonzero(np.isin(test.labels, labels)), labels),
        }
        class_names_here = tuple(class_names[label] for label in labels)
        tasks[index] = Task(index + 1, names[index], class_names_here, splits, batch_size, seed)
    return tasks


def held_out_test(
    name: str, examples: Split, classes: Iterable[int], fraction: float, rng: np.random.Generator
) -> tuple[Split, Split]:
    """Hold out test examples of a data set that has none. Return the remaining and the test examples.

    The arguments are those of `held_out_rows`.
    """
    staying, held_out = held_out_rows(name, examples.labels, classes, fraction, rng)
    return examples.take(staying), examples.take(held_out)


def held_out_rows(
    name: str, labels: np.ndarray, classes: Iterable[int], fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the test examples of a data set that has none.

    Args:
        name: Name of the data set.
        labels: Labels of all examples, as for `hold_out`.
        classes: Labels of the examples to divide.
        fraction: Fraction of each class's examples to hold out.
        rng: Random generator for the choice.

    Returns:
        Indices of the remaining examples and of the test examples, both sorted.

    Raises:
        ArgumentError: If the fraction is out of range, or so small that no example is held out.
    """
    if not 0.0 < fraction < 1.0:
        raise ArgumentError("test_fraction", "a fraction between 0 and 1, both exclusive", fraction)
    staying, held_out = hold_out(labels, classes, fraction, rng)
    if not len(held_out):
        expected = f"a fraction that holds out at least one of the {len(labels)} examples of {name!r} for testing"
        raise ArgumentError("test_fraction", expected, fraction)
    return staying, held_out


def hold_out(
    labels: np.ndarray, classes: Iterable[int], fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a random fraction of the examples of each class.

    Args:
        labels: Integer array `(examples,)`; or values, a float array, whose examples are divided as one class.
        classes: Labels of the examples to divide.
        fraction: Fraction of each class's examples to hold out.
        rng: Random generator for the choice.

    Returns:
        Indices of the remaining examples and of those held out, both sorted.
    """
    if labels.dtype.kind == "f":
        labels, classes = np.zeros(len(labels), int), (0,)
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
