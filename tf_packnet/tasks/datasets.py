"""Loads one or several data sets by name as one stream of tasks."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, listed
from tf_packnet.system.table_files import TABLES
from tf_packnet.task_names import MAX_BYTES
from tf_packnet.tasks.folders import has_classes, read_folder, task_folders, task_of
from tf_packnet.tasks.labelled import Labelled, Reading, as_read, loaded, unified
from tf_packnet.tasks.orders import NATURAL, SHUFFLED, Order, arrange, choose, entries
from tf_packnet.tasks.scenarios import SCENARIOS, SPLIT, check_sizes, vary
from tf_packnet.tasks.sources import SOURCES, check_name, is_folder, load_tfds, names_in
from tf_packnet.tasks.splitting import ALL, TaskSizes, cut, describe, grouped, task_names, task_sizes
from tf_packnet.tasks.stream import Task, TaskStream
from tf_packnet.tasks.tables import Columns, is_table, read_tables, refuse

_COLUMNS = Columns()


def default_classes(dataset: str, scenario: str = SPLIT) -> int | str:
    """Return the default of `classes_per_task`: 2 for one data set in the scenario `split`, otherwise `all`."""
    return 2 if len(names_in(dataset)) == 1 and scenario == SPLIT else ALL


@checked
def load(
    name: str,
    classes_per_task: TaskSizes | None = None,
    num_tasks: int | None = None,
    data_dir: str | os.PathLike | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    max_bytes: int | None = None,
    *,
    image_size: int | Sequence[int] | None = None,
    resize: str = "stretch",
    test_fraction: float = 0.2,
    on_disk: bool | None = None,
    scenario: str = SPLIT,
    class_order: Order = NATURAL,
    task_order: Order = NATURAL,
    columns: Columns = _COLUMNS,
) -> TaskStream:
    """Load data sets as a stream of tasks, images scaled to [0, 1].

    Args:
        name: A data set, or several, separated by commas. Each is `digits` (included in scikit-learn, needs no
            network); the name of a TFDS image classification data set such as `mnist`; the path of a folder with one
            folder of images per class, or with one such folder per task; or the path of a table or of a folder of
            tables.
        classes_per_task: Number of classes of each task; or a sequence with one number per task, in order; or `all` for
            one task per data set. With several data sets, a number that exceeds the classes left in a data set belongs
            to the next one. Default: 2 for one data set in the scenario `split`, otherwise `all`. In a folder of tasks,
            each task has the classes of its folder.
        num_tasks: Number of tasks. Default: as many as the classes allow, or 10 if `scenario` is `permuted` or
            `rotated`.
        data_dir: TFDS's data directory; the default is TFDS's own default.
        validation_fraction: Fraction of the training examples to hold out for validation, in [0, 1).
        batch_size: Batch size of the tasks' data sets.
        seed: Seeds the choice of held-out examples, the order of the training batches, shuffled orders, and
            permutations and angles.
        max_bytes: Limit in bytes on the memory for images that are read from folders, or resized to `image_size`; see
            `from_folder`.
        image_size: Height and width to resize all images to, or one number for both. Required if images differ in size.
        resize: How images are resized: `stretch`, `pad` or `crop`, see `from_folder`.
        test_fraction: Fraction of each class to hold out for testing if a data set has no test examples, in (0, 1). If
            there is a split `validation` but no `test`, it is used for testing.
        on_disk: Whether images stay on disk. Default: only if they take too much memory, see `from_folder`.
        scenario: `split`: each task has classes of its own. `permuted` or `rotated`: each task has all classes of a
            data set, and its own permutation or rotation of the images, see `vary`.
        class_order: See `split_into_tasks`. With several data sets, only `natural` and `shuffled` are possible; each
            data set is shuffled separately. Folders of tasks keep their order.
        task_order: See `split_into_tasks`. It applies to the tasks of all data sets together.
        columns: Which columns of tables are read, and how. All tables have one encoding, learned from the training
            examples of all of them.

    Returns:
        The tasks, in order. With several data sets, names of tasks begin with the name of their data set.

    Raises:
        ArgumentError: If a data set is unknown or unavailable, or cannot be split into such tasks.
    """
    if scenario not in SCENARIOS:
        raise ArgumentError("scenario", f"one of {', '.join(SCENARIOS)}", scenario)
    sizes = default_classes(name, scenario) if classes_per_task is None else classes_per_task
    check_sizes(scenario, sizes)
    reading = Reading.of(image_size, resize, max_bytes, on_disk)
    data_dir = None if data_dir is None else os.fspath(data_dir)
    check_name(name, data_dir)
    names = names_in(name)
    orders = _Orders(class_order, NATURAL if scenario != SPLIT else task_order, seed)
    settings = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "batch_size": batch_size,
        "seed": seed,
    }
    try:
        if any(is_folder(one) and is_table(one) for one in names):
            _check_all_tables(names, reading)
            sets = read_tables(names, columns, test_fraction, seed, max_bytes)
        else:
            refuse(columns)
            sets = unified([each for one in names for each in _read(one, data_dir, reading)])
        tasks = _tasks(name, sets, sizes, num_tasks if scenario == SPLIT else None, reading, orders, settings)
        tasks = loaded(tasks, reading, sum(each.file_bytes for each in sets))
        stream_name = _readable(name) if len(names) == 1 else name
        if scenario == SPLIT:
            stream = TaskStream(stream_name, tasks)
        else:
            originals = tasks if len(tasks) > 1 else [dataclasses.replace(tasks[0], name=stream_name)]
            stream = vary(originals, scenario, num_tasks, seed, task_order)
            stream.name = stream_name
        if any(split.is_stored for task in stream for split in task.splits.values()):
            stream.fingerprint()  # reads all images once, so that bad ones are found now
        return stream
    except ArgumentError as error:
        if error.argument not in ("path", "tasks", "train", "test", "x", "y"):
            raise
        raise ArgumentError("dataset", f"{error.expected}. Received there: {error.received}", name) from error


def _check_all_tables(names: Sequence[str], reading: Reading) -> None:
    other = next((each for each in names if not (is_folder(each) and is_table(each))), None)
    if other is not None:
        raise ArgumentError("path", "tables only, or images only", other)
    if reading.image_size is not None:
        raise ArgumentError("image_size", "no value for tables", reading.image_size)


def _read(name: str, data_dir: str | None, reading: Reading) -> list[Labelled]:
    """Find the examples of a data set. The result is one data set, or for a folder of tasks one data set per task."""
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
        base = os.path.basename(os.path.abspath(os.path.expanduser(name)))
        stem, suffix = os.path.splitext(base)
        return stem if suffix.lower() in TABLES else base
    return name.split(":")[0].replace("/", "-")


class _Orders(NamedTuple):
    classes: Order
    tasks: Order
    seed: int


def _tasks(
    dataset: str,
    sets: Sequence[Labelled],
    classes_per_task: TaskSizes,
    num_tasks: int | None,
    reading: Reading,
    orders: _Orders,
    settings: dict[str, Any],
) -> list[Task]:
    groups = _groups(dataset, sets, classes_per_task, orders)
    names = _names(dataset, sets, groups)
    reason = f"all tasks in {dataset}"
    if len(sets) == 1 and not sets[0].is_task:
        reason = describe(sets[0].name, len(_classes(sets[0], orders)), classes_per_task)
    chosen = choose(names, orders.tasks, num_tasks, orders.seed, reason)
    if num_tasks is None and isinstance(classes_per_task, int):
        for each, own in zip(sets, groups, strict=True):
            _warn_of_rest(each, _classes(each, orders), own, classes_per_task)
    tasks: dict[int, Task] = {}
    first = 0  # index of the first task of a data set
    for each, own in zip(sets, groups, strict=True):
        wanted = [index - first for index in chosen if first <= index < first + len(own)]
        if each.is_task:
            made = {index: task_of(each, reading, **settings) for index in wanted}
        else:
            made = cut(each.name, each.train, each.test, each.class_names, own, wanted, **settings)
        encoded = {index: dataclasses.replace(task, encoding=each.encoding) for index, task in made.items()}
        tasks |= {first + index: task for index, task in encoded.items()}
        first += len(own)
    return [dataclasses.replace(tasks[index], name=names[index], resize=reading.recorded_resize) for index in chosen]


def _warn_of_rest(data: Labelled, classes: Sequence[int], groups: Sequence[Sequence[int]], each: int) -> None:
    """Warn about classes that are in no task, because they are too few for another task."""
    rest = [data.class_names[label] for label in classes[sum(map(len, groups)) :]]
    if rest and not data.is_task:
        is_are = "1 class is" if len(rest) == 1 else f"{len(rest)} classes are"
        warnings.warn(
            f"{is_are} in no task: {listed(rest)}. {data.name} has {len(classes)}, and classes_per_task={each}",
            stacklevel=2,
        )


def _groups(
    dataset: str, sets: Sequence[Labelled], classes_per_task: TaskSizes, orders: _Orders
) -> list[list[list[int]]]:
    """Return the classes of each task, for each data set."""
    of_tasks = _folder_of_tasks(sets)
    if of_tasks is not None and entries(orders.classes) != [NATURAL]:
        expected = f"{NATURAL}, as the folders in {of_tasks} are the tasks"
        raise ArgumentError("class_order", expected, orders.classes)
    if len(sets) > 1 and entries(orders.classes) not in ([NATURAL], [SHUFFLED]):
        raise ArgumentError("class_order", f"{NATURAL} or {SHUFFLED} for several data sets", orders.classes)
    classes = [_classes(each, orders) for each in sets]
    sizes = _sizes(sets, [len(each) for each in classes], classes_per_task)
    return [grouped(each, own) for each, own in zip(classes, sizes, strict=True)]


def _folder_of_tasks(sets: Sequence[Labelled]) -> str | None:
    return next((each.origin for each in sets if each.is_task), None)


def _classes(labelled: Labelled, orders: _Orders) -> list[int]:
    return arrange("class_order", labelled.class_names, orders.classes, orders.seed, first=0)


def _sizes(sets: Sequence[Labelled], counts: Sequence[int], classes_per_task: TaskSizes) -> list[list[int]]:
    """Return the number of classes of each task, for each data set."""
    if isinstance(classes_per_task, (int, str)):
        return [
            [count] if each.is_task else task_sizes(each.name, count, classes_per_task)
            for each, count in zip(sets, counts, strict=True)
        ]
    of_tasks = _folder_of_tasks(sets)
    if of_tasks is not None:
        expected = f"one number or {ALL}, as the folders in {of_tasks} are the tasks"
        raise ArgumentError("classes_per_task", expected, list(classes_per_task))
    if len(sets) == 1:
        return [task_sizes(sets[0].name, counts[0], classes_per_task)]
    waiting, sizes = list(classes_per_task), []
    for each, count in zip(sets, counts, strict=True):
        own: list[int] = []
        while waiting and sum(own) + waiting[0] <= count:
            own.append(waiting.pop(0))
        if not own:
            expected = f"the number of classes of a task of {each.name}, which has {count} classes"
            raise ArgumentError("classes_per_task", expected, waiting[0] if waiting else list(classes_per_task))
        sizes.append(task_sizes(each.name, count, own))
    if waiting:
        expected = f"at most the {counts[-1]} classes of {sets[-1].name}"
        raise ArgumentError("classes_per_task", expected, list(classes_per_task))
    return sizes


def _names(dataset: str, sets: Sequence[Labelled], groups: Sequence[Sequence[Sequence[int]]]) -> list[str]:
    """Return the names of all tasks. With several data sets, they begin with the name of their data set."""
    names: list[str] = []
    for each, own in zip(sets, groups, strict=True):
        found = [each.name] if each.is_task else task_names(each.name, each.class_names, own)
        if len(names_in(dataset)) > 1:
            is_whole = len(own) == 1 and not each.is_task
            found = [each.origin] if is_whole else _prefixed(each.origin, found)
        names += found
    return _unique(names)


def _prefixed(origin: str, names: Sequence[str]) -> list[str]:
    long = [f"{origin}-{name}" for name in names]
    return [
        name if len(name.encode()) <= MAX_BYTES else f"{origin}_{number}" for number, name in enumerate(long, start=1)
    ]


def _unique(names: Sequence[str]) -> list[str]:
    """Make names unique by appending a number to repeated ones, such as the names of two folders `birds`."""
    unique: list[str] = []
    for name in names:
        numbered = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        unique.append(next(each for each in numbered if each not in unique))
    return unique
