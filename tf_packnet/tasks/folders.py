"""Makes tasks from folders of images, and from tables."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.system.extras import require_extra
from tf_packnet.system.images import IMAGES, OTHER_IMAGES, Header, UnsupportedImageError, read_header, read_image
from tf_packnet.system.limits import IMAGE_RATIO, Bound, SizeError
from tf_packnet.system.table_files import TABLES
from tf_packnet.tasks.labelled import Labelled, Reading, loaded, unified
from tf_packnet.tasks.own_data import one_task
from tf_packnet.tasks.stored_images import StoredImages
from tf_packnet.tasks.stream import Split, Task, TaskStream, check_task
from tf_packnet.tasks.tables import Columns, is_table, read_tables, refuse

# Names of the folder of the training examples, and of the folder of the test examples, in order of preference.
_TRAIN, _TESTS = "train", ("test", "validation", "valid", "val")
_COLUMNS = Columns()


@checked
def from_folder(
    path: str | os.PathLike,
    image_size: int | Sequence[int] | None = None,
    *,
    resize: str = "stretch",
    max_bytes: int | None = None,
    on_disk: bool | None = None,
    columns: Columns = _COLUMNS,
    **kwargs: Any,
) -> Task:
    """Make a task from a folder with one folder of images per class, such as `cats_dogs/cat/1.jpg`, or from a table.

    If the folder contains `train/`, the folders of the classes are there, and in `test/` or `validation/` if one of
    these exists. Otherwise, a fraction of each class is held out for testing.

    A table is a CSV or Parquet file, or a folder with such files named `train` and, if it exists, `test`.

    Args:
        path: The folder, or the file. Its name becomes the name of the task.
        image_size: Height and width to resize all images to, or one number for both; by default they must all have the
            same size.
        resize: `stretch` changes the aspect ratio, `pad` adds black borders, `crop` keeps the centre.
        max_bytes: Limit in bytes on the memory for the images. Larger images stay on disk. Default: a quarter of the
            free memory; without `image_size`, also at most 320 MB, or 64 times the size of the files if that is more.
        on_disk: Whether the images stay on disk and are read for each batch. The results of training are the same.
            Default: only if they take too much memory.
        columns: Which columns of tables are read, and how.
        **kwargs: As for `from_arrays`.

    Raises:
        ArgumentError: If there is no such folder, a class has no images, an image or a table cannot be read, images
            differ in size and `image_size` is not given, or they take too much memory.
    """
    reading = Reading.of(image_size, resize, max_bytes, on_disk)
    if is_table(path):
        sets = _tables(path, reading, columns, kwargs)
        if len(sets) > 1:
            raise ArgumentError("path", "one table, or a folder with a table named train", os.fspath(path))
        task = task_of(sets[0], reading, **kwargs)
        check_task(task, "path", "path")
        return task
    refuse(columns)
    labelled = read_folder(path, reading)
    (task,) = loaded([task_of(labelled, reading, **kwargs)], reading, labelled.file_bytes)
    check_task(task, "x", "y")
    return task


@checked
def from_folders(
    path: str | os.PathLike,
    image_size: int | Sequence[int] | None = None,
    *,
    resize: str = "stretch",
    max_bytes: int | None = None,
    on_disk: bool | None = None,
    columns: Columns = _COLUMNS,
    **kwargs: Any,
) -> TaskStream:
    """Make a stream from a folder with one folder or table per task, sorted by name.

    Args:
        path: The folder. Its name becomes the name of the stream.
        image_size: As for `from_folder`.
        resize: As for `from_folder`.
        max_bytes: As for `from_folder`.
        on_disk: As for `from_folder`.
        columns: As for `from_folder`. The encoding is learned from the training examples of all tasks.
        **kwargs: As for `from_arrays`.

    Raises:
        ArgumentError: As for `from_folder`, or if the folder contains neither folders nor tables.
    """
    reading = Reading.of(image_size, resize, max_bytes, on_disk)
    if is_table(path):
        tables = _tables(path, reading, columns, kwargs)
        return TaskStream(_name_of(path), [task_of(each, reading, **kwargs) for each in tables])
    refuse(columns)
    sets = unified([read_folder(folder, reading) for folder in task_folders(path)])
    tasks = [task_of(each, reading, **kwargs) for each in sets]
    return TaskStream(_name_of(path), loaded(tasks, reading, sum(each.file_bytes for each in sets)))


def _tables(path: str | os.PathLike, reading: Reading, columns: Columns, kwargs: Mapping[str, Any]) -> list[Labelled]:
    chosen = {name: kwargs[name] for name in ("test_fraction", "seed") if name in kwargs}
    return read_tables([path], columns, max_bytes=reading.max_bytes, **chosen)


def task_folders(path: str | os.PathLike) -> list[Path]:
    """Return the folders of the tasks in a folder, sorted by name."""
    folder = _existing(path)
    return [folder / name for name in _folders_in(folder, "one folder per task")]


def has_classes(path: str | os.PathLike) -> bool:
    """Whether the folders in a folder are those of classes (one data set), not those of tasks."""
    folder = _existing(path)
    return _train_folder(folder) != folder or any(_has_images(child) for child in folder.iterdir() if child.is_dir())


def task_of(labelled: Labelled, reading: Reading, **kwargs: Any) -> Task:
    """Make one task from a data set, without checking its examples. `kwargs` are those of `from_arrays`."""
    scale = kwargs.pop("scale", None)
    if scale is not None:
        labelled = labelled.with_splits([dataclasses.replace(split, scale=scale) for split in labelled.splits()])
    names = labelled.class_names
    task = one_task(labelled.name, labelled.train, labelled.test, names, resize=reading.recorded_resize, **kwargs)
    return dataclasses.replace(task, encoding=labelled.encoding)


def read_folder(path: str | os.PathLike, reading: Reading) -> Labelled:
    """Find the images and classes in a folder of one data set; the pixels are not read yet.

    Raises:
        ArgumentError: If a class has no images, or images differ in size and `reading` has no size.
    """
    require_extra("Reading images", "PIL")
    folder = _existing(path)
    train_folder = _train_folder(folder)
    test_folder = _test_folder(folder) if train_folder != folder else None
    classes = _folders_in(train_folder, "one folder per class")
    files = _files_of(train_folder, classes)
    test_files = _files_of(test_folder, classes, exactly=True) if test_folder is not None else []
    paths = [file for file, _ in files + test_files]
    file_bytes = sum(file.stat().st_size for file in paths)
    bound = Bound(reading.max_bytes, file_bytes, IMAGE_RATIO)
    shape = _shape_of(paths, reading)

    def decode(position: int) -> np.ndarray:
        return _read(paths[position], reading, bound)

    images = StoredImages(decode, np.arange(len(paths)), shape)
    labels = np.array([label for _, label in files + test_files])
    examples = Split(images, labels, 1 / 255)
    rows = np.arange(len(paths))
    test = examples.take(rows[len(files) :]) if test_files else None
    name = _name_of(path)
    return Labelled(name, examples.take(rows[: len(files)]), test, classes, is_task=True, file_bytes=file_bytes)


def _name_of(path: str | os.PathLike) -> str:
    return Path(os.path.abspath(os.path.expanduser(path))).name


def _existing(path: str | os.PathLike) -> Path:
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise ArgumentError("path", f"a folder, or a table ({', '.join(TABLES)})", os.fspath(folder))
    return folder


def _train_folder(folder: Path) -> Path:
    """Return the folder `train` in `folder`; `folder` itself if there is none, or if `train` is a class."""
    train = folder / _TRAIN
    return train if train.is_dir() and not _has_images(train) else folder


def _test_folder(folder: Path) -> Path | None:
    return next((folder / name for name in _TESTS if (folder / name).is_dir()), None)


def _folders_in(folder: Path, expected: str) -> list[str]:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not names:
        raise ArgumentError("path", f"a folder with {expected}", os.fspath(folder))
    return names


def _has_images(folder: Path) -> bool:
    return any(_is_image(child) for child in folder.iterdir())


def _is_image(file: Path) -> bool:
    # Operating systems put files of their own next to images, such as `._1.jpg`.
    return file.suffix.lower() in (*IMAGES, *OTHER_IMAGES) and not file.name.startswith(".") and not file.is_dir()


def _files_of(folder: Path, classes: Sequence[str], exactly: bool = False) -> list[tuple[Path, int]]:
    """Return the image files of all classes and their labels.

    With `exactly`, a folder that is not one of `classes` raises ArgumentError.
    """
    if exactly:
        unknown = sorted(set(_folders_in(folder, "one folder per class")) - set(classes))
        if unknown:
            raise ArgumentError("path", f"only classes with training examples in {folder}", unknown[0])
    return [(file, label) for label, name in enumerate(classes) for file in _images_in(folder / name)]


def _images_in(folder: Path) -> list[Path]:
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in children if _is_image(file)]
    unread = [file for file in files if file.suffix.lower() in OTHER_IMAGES]
    if unread:
        raise ArgumentError("path", f"only images that can be read ({', '.join(IMAGES)})", os.fspath(unread[0]))
    deeper = [child for child in children if child.is_dir() and not child.name.startswith(".") and _has_images(child)]
    if deeper:
        raise ArgumentError("path", f"the images of each class in one folder, such as {folder}", os.fspath(deeper[0]))
    if not files:
        raise ArgumentError("path", f"images ({', '.join(IMAGES)}) in {folder}", "none")
    return files


def _shape_of(paths: Sequence[Path], reading: Reading) -> tuple[int, int, int]:
    """Return the common shape of all images of a data set: grey (one channel) if all are grey, otherwise RGB."""
    headers = [_header(path) for path in paths]
    channels = 1 if all(header.is_grey for header in headers) else 3
    if reading.image_size is not None:
        return (*reading.image_size, channels)
    sizes = sorted({(header.height, header.width) for header in headers})
    if len(sizes) > 1:
        expected = f"a size, as the images have {len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
        raise ArgumentError("image_size", expected, None)
    return (*sizes[0], channels)


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise ArgumentError("path", "images that can be read", os.fspath(path)) from error


def _read(path: Path, reading: Reading, bound: Bound) -> np.ndarray:
    height, width = reading.image_size or (None, None)
    try:
        return read_image(path, None, height, width, bound, reading.resize)
    except SizeError as error:
        raise ArgumentError("path", f"smaller images ({error})", os.fspath(path)) from error
    except UnsupportedImageError as error:
        raise ArgumentError("path", f"single images of 8 or 16 bits ({error})", os.fspath(path)) from error
    except Exception as error:
        raise ArgumentError("path", "images that can be read", os.fspath(path)) from error
