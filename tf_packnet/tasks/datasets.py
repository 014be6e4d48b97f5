"""Loads one or several data sets by name as one stream of tasks."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.task_names import MAX_BYTES
from tf_packnet.tasks.folders import has_classes, read_folder, task_folders, task_of
from tf_packnet.tasks.labelled import Labelled, Reading, as_read, loaded, unified
from tf_packnet.tasks.sources import SOURCES, check_name, is_folder, load_tfds, names_in
from tf_packnet.tasks.splitting import ALL, TaskSizes, cut, task_sizes
from tf_packnet.tasks.stream import Task, TaskStream


def default_classes(dataset: str) -> int | str:
    """Return the default for `classes_per_task`: 2 for one data set; for several, each is one task."""
    return 2 if len(names_in(dataset)) == 1 else ALL


def load(
    name: str,
    classes_per_task: TaskSizes | None = None,
    num_tasks: int | None = None,
    data_dir: str | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    max_bytes: int | None = None,
    *,
    image_size: int | Sequence[int] | None = None,
    resize: str = "stretch",
    test_fraction: float = 0.2,
    on_disk: bool | None = None,
) -> TaskStream:
    """Load data sets as a stream of tasks, images scaled to [0, 1].

    Args:
        name: A data set, or several, separated by commas: `digits` (included in scikit-learn, needs no network), the
            name of a TFDS image classification data set such as `mnist`, or the path of a folder: with one folder of
            images per class, or with one such folder per task.
        classes_per_task: Number of classes of each task; or a sequence with the number of each task, in order, where
            the next data set begins with the first number that exceeds the classes left; or `all` for one task per
            data set. Default: 2 for one data set, `all` for several. Folders of tasks keep theirs.
        num_tasks: Number of tasks; the default is as many as there are classes for.
        data_dir: TFDS's data directory; the default is TFDS's own default.
        validation_fraction: Fraction of the training examples to hold out for validation, in [0, 1).
        batch_size: Batch size of the tasks' data sets.
        seed: Seeds the choice of held-out examples and the order of the training batches.
        max_bytes: Most memory that images of folders, or with `image_size`, may take, see `from_folder`.
        image_size: Height and width to resize all images to, or one number for both; needed if they differ in size.
        resize: How they are resized: `stretch`, `pad` or `crop`, see `from_folder`.
        test_fraction: Fraction of each class to hold out for testing where a data set has no test examples, in (0, 1).
            The split `validation` is used for testing if there is no `test`.
        on_disk: Whether images stay on disk; the default is whether they take too much memory, see `from_folder`.

    Returns:
        The tasks, in order. With several data sets, names of tasks begin with the name of their data set.

    Raises:
        ArgumentError: If a data set is unknown or unavailable, or cannot be split into such tasks.
    """
    reading = Reading.of(image_size, resize, max_bytes, on_disk)
    check_name(name, data_dir)
    names = names_in(name)
    try:
        sets = unified([each for one in names for each in _read(one, data_dir, reading)])
        sizes = default_classes(name) if classes_per_task is None else classes_per_task
        settings = {
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
            "batch_size": batch_size,
            "seed": seed,
        }
        tasks = _tasks(name, sets, sizes, num_tasks, reading, settings)
        stream_name = _readable(name) if len(names) == 1 else name
        stream = TaskStream(stream_name, loaded(tasks, reading, sum(each.file_bytes for each in sets)))
        if any(split.is_stored for task in stream for split in task.splits.values()):
            stream.fingerprint()  # reads all images once, so that bad ones are found now
        return stream
    except ArgumentError as error:
        if error.argument not in ("path", "tasks", "train", "test", "x", "y"):
            raise
        raise ArgumentError("dataset", f"{error.expected}. Received there: {error.received}", name) from error


def _read(name: str, data_dir: str | None, reading: Reading) -> list[Labelled]:
    """Find the examples of a data set; those of a folder of tasks as one set per task."""
    if is_folder(name):
        if has_classes(name):
            return [read_folder(name, reading)._replace(origin=_readable(name), is_task=False)]
        return [read_folder(folder, reading)._replace(origin=_readable(name)) for folder in task_folders(name)]
    if name not in SOURCES:
        return [load_tfds(name, data_dir, reading)._replace(origin=_readable(name))]
    train, test, class_names = SOURCES[name]()
    return [as_read(Labelled(name, train, test, class_names, origin=name), reading)]


def _readable(name: str) -> str:
    """Return the name of a data set without the path of a folder or the version of TFDS."""
    if is_folder(name):
        return os.path.basename(os.path.abspath(os.path.expanduser(name)))
    return name.split(":")[0].replace("/", "-")


def _tasks(
    dataset: str,
    sets: Sequence[Labelled],
    classes_per_task: TaskSizes,
    num_tasks: int | None,
    reading: Reading,
    settings: dict[str, Any],
) -> list[Task]:
    if len(sets) == 1 and not sets[0].is_task:
        sizes = [task_sizes(sets[0].name, len(sets[0].class_names), classes_per_task, num_tasks)]
    else:
        sizes = _sizes_of_several(sets, classes_per_task)
    tasks: list[Task] = []
    for each, own in zip(sets, sizes, strict=True):
        if each.is_task:
            made = [task_of(each, reading, **settings)]
        else:
            made = cut(each.name, each.train, each.test, each.class_names, own, **settings)
        made = [dataclasses.replace(task, resize=reading.recorded_resize) for task in made]
        tasks += [_renamed(task, each, len(made)) for task in made] if len(names_in(dataset)) > 1 else made
    if num_tasks is not None and not 1 <= num_tasks <= len(tasks):
        raise ArgumentError("num_tasks", f"1 to the {len(tasks)} tasks in {dataset}", num_tasks)
    return _unique(tasks[:num_tasks])


def _sizes_of_several(sets: Sequence[Labelled], classes_per_task: TaskSizes) -> list[list[int]]:
    """Return the number of classes of each task, for each data set."""
    if isinstance(classes_per_task, (int, str)):
        return [
            [len(each.class_names)] if each.is_task else task_sizes(each.name, len(each.class_names), classes_per_task)
            for each in sets
        ]
    of_tasks = next((each.origin for each in sets if each.is_task), None)
    if of_tasks is not None:
        expected = f"one number or {ALL}, as the folders in {of_tasks} are the tasks"
        raise ArgumentError("classes_per_task", expected, list(classes_per_task))
    waiting, sizes = list(classes_per_task), []
    for each in sets:
        own: list[int] = []
        while waiting and sum(own) + waiting[0] <= len(each.class_names):
            own.append(waiting.pop(0))
        if not own:
            expected = f"the number of classes of a task of {each.name}, which has {len(each.class_names)} classes"
            raise ArgumentError("classes_per_task", expected, waiting[0] if waiting else list(classes_per_task))
        sizes.append(task_sizes(each.name, len(each.class_names), own))
    if waiting:
        expected = f"at most the {len(sets[-1].class_names)} classes of {sets[-1].name}"
        raise ArgumentError("classes_per_task", expected, list(classes_per_task))
    return sizes


def _renamed(task: Task, labelled: Labelled, count: int) -> Task:
    """Return a task with the name of its data set, and its own if the data set has several tasks."""
    if count == 1 and not labelled.is_task:
        return dataclasses.replace(task, name=labelled.origin)
    name = f"{labelled.origin}-{task.name}"
    if len(name.encode()) > MAX_BYTES:
        name = f"{labelled.origin}_{task.number}"
    return dataclasses.replace(task, name=name)


def _unique(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks with a number after names that were there before, such as those of two folders `birds`."""
    unique: dict[str, Task] = {}
    for task in tasks:
        numbered = itertools.chain([task.name], (f"{task.name}_{number}" for number in itertools.count(2)))
        name = next(name for name in numbered if name not in unique)
        unique[name] = dataclasses.replace(task, name=name)
    return list(unique.values())
