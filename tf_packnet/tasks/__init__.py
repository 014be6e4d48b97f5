"""Loads tasks: a data set split into a stream of classification problems, or your own data."""

from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.tasks.own_data import from_arrays, from_dataset, from_folder, from_folders
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
        seed: Seeds the choice of validation examples and the order of the training batches.
        max_bytes: Most memory that reading a folder of images may take, see `from_folder`.

    Returns:
        The tasks, in order.

    Raises:
        ArgumentError: If the data set is unknown or unavailable, or cannot be split into such tasks.
    """
    try:
        return _load(name, classes_per_task, num_tasks, data_dir, validation_fraction, batch_size, seed, max_bytes)
    except ArgumentError as error:
        if error.argument not in ("path", "image_size", "tasks", "train", "test", "x", "y"):
            raise
        expected = "images of one size" if error.argument == "image_size" else error.expected
        raise ArgumentError("dataset", f"{expected}. Received there: {error.received}", name) from error


def _load(
    name: str,
    classes_per_task: int,
    num_tasks: int | None,
    data_dir: str | None,
    validation_fraction: float,
    batch_size: int,
    seed: int,
    max_bytes: int | None,
) -> TaskStream:
    if is_folder(name):
        settings: dict[str, Any] = {"validation_fraction": validation_fraction, "batch_size": batch_size, "seed": seed}
        stream = from_folders(name, max_bytes=max_bytes, **settings)
        if num_tasks is not None and num_tasks > len(stream):
            raise ArgumentError("num_tasks", f"at most the {len(stream)} folders in {name}", num_tasks)
        return stream if num_tasks is None else TaskStream(stream.name, stream[:num_tasks])
    train, test, class_names = SOURCES[name]() if name in SOURCES else load_tfds(name, data_dir)
    return split_into_tasks(
        name, train, test, class_names, classes_per_task, num_tasks, validation_fraction, batch_size, seed
    )
