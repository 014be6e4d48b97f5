"""Loads tasks: a data set split into a stream of classification problems, or your own data."""

import dataclasses
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.tasks.orders import NATURAL, Order, arrange, entries
from tf_packnet.tasks.own_data import from_arrays, from_dataset, from_folder, from_folders
from tf_packnet.tasks.scenarios import SCENARIOS, SPLIT, vary
from tf_packnet.tasks.sources import SOURCES, is_folder, load_tfds
from tf_packnet.tasks.splitting import split_into_tasks
from tf_packnet.tasks.stream import Split, Task, TaskStream

__all__ = [
    "ResidentBatches",
    "Split",
    "StreamedBatches",
    "Task",
    "TaskStream",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_folders",
    "load",
    "split_into_tasks",
    "vary",
]


def load(
    name: str,
    classes_per_task: int = 2,
    num_tasks: int | None = None,
    data_dir: str | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    max_bytes: int | None = None,
    scenario: str = SPLIT,
    class_order: Order = NATURAL,
    task_order: Order = NATURAL,
) -> TaskStream:
    """Load a data set as a stream of tasks, images scaled to [0, 1].

    Args:
        name: `digits` (included in scikit-learn, needs no network), the name of a TFDS image classification data set
            such as `mnist`, or the path of a folder with one folder of images per task, see `from_folders`.
        classes_per_task: Number of classes of each task.
        num_tasks: Number of tasks; the default is as many as there are classes for.
        data_dir: TFDS's data directory; the default is TFDS's own default.
        validation_fraction: Fraction of the training examples to hold out for validation, in [0, 1).
        batch_size: Batch size of the tasks' data sets.
        seed: Seeds the choice of validation examples, the order of the training batches, shuffled orders, and
            permutations and angles.
        max_bytes: Most memory that reading a folder of images may take, see `from_folder`.
        scenario: `split`: each task has classes of its own. `permuted` or `rotated`: each task has all classes, and
            images that are permuted or rotated in its own way, see `vary`.
        class_order: See `split_into_tasks`. The classes of a folder of tasks have their natural order.
        task_order: See `split_into_tasks`.

    Returns:
        The tasks, in order.

    Raises:
        ArgumentError: If the data set is unknown or unavailable, or cannot be split into such tasks.
    """
    if scenario not in SCENARIOS:
        raise ArgumentError("scenario", f"one of {', '.join(SCENARIOS)}", scenario)
    common: dict[str, Any] = {"validation_fraction": validation_fraction, "batch_size": batch_size, "seed": seed}
    try:
        if is_folder(name):
            stream = from_folders(name, max_bytes=max_bytes, **common)
            return _from_folders(stream, name, num_tasks, scenario, class_order, task_order, seed)
        train, test, class_names = SOURCES[name]() if name in SOURCES else load_tfds(name, data_dir)
        if scenario == SPLIT:
            orders: dict[str, Any] = {"class_order": class_order, "task_order": task_order}
            return split_into_tasks(name, train, test, class_names, classes_per_task, num_tasks, **common, **orders)
        classes = len(arrange("class_order", class_names, class_order, seed, first=0))
        stream = split_into_tasks(name, train, test, class_names, classes, class_order=class_order, **common)
        return vary(dataclasses.replace(stream[0], name=name), scenario, num_tasks, seed, task_order)
    except ArgumentError as error:
        if error.argument not in ("path", "image_size", "tasks", "train", "test", "x", "y"):
            raise
        expected = "images of one size" if error.argument == "image_size" else error.expected
        raise ArgumentError("dataset", f"{expected}. Received there: {error.received}", name) from error


def _from_folders(
    stream: TaskStream,
    path: str,
    num_tasks: int | None,
    scenario: str,
    class_order: Order,
    task_order: Order,
    seed: int,
) -> TaskStream:
    if entries(class_order) != [NATURAL]:
        raise ArgumentError("class_order", f"{NATURAL}: each folder in {path} is a task with its classes", class_order)
    if scenario != SPLIT:
        if len(stream) > 1:
            raise ArgumentError("scenario", f"{SPLIT} for the {len(stream)} tasks in {path}", scenario)
        return vary(dataclasses.replace(stream[0], name=stream.name), scenario, num_tasks, seed, task_order)
    order = arrange("task_order", [task.name for task in stream], task_order, seed, first=1)
    if num_tasks is not None and num_tasks > len(order):
        raise ArgumentError("num_tasks", f"at most the {len(order)} folders in {path}", num_tasks)
    return TaskStream(stream.name, [stream[index] for index in order[:num_tasks]])
