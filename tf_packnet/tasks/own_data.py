"""Makes tasks from the user's own data: arrays, a `tf.data.Dataset`, or folders of images."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.extras import require_extra
from tf_packnet.system.images import IMAGES, OTHER_IMAGES, UnsupportedImageError, read_image
from tf_packnet.system.limits import IMAGE_RATIO, Bound, SizeError
from tf_packnet.tasks.data_checks import check_finite
from tf_packnet.tasks.splitting import hold_out
from tf_packnet.tasks.stream import Split, Task, TaskStream, check_task

if TYPE_CHECKING:
    import tensorflow as tf

# Standardized images have values up to about 10.
_LARGE = 20.0

# Copies of the images while they are stacked and split.
_COPIES = 3


def from_arrays(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    batch_size: int = 128,
    seed: int = 0,
    scale: float | None = None,
) -> Task:
    """Make a task from arrays.

    Args:
        name: Name of the task.
        x: Numeric examples, `(examples, *shape)`.
        y: Labels, `(examples,)`: class numbers, names, or other values that can be sorted.
        test: Test examples and labels; by default a fraction of each class of `x` is held out.
        class_names: Names of the labels in sorted order; by default the labels themselves.
        validation_fraction: Fraction of each class's training examples to hold out for validation, in [0, 1).
        test_fraction: Fraction of each class to hold out for testing if `test` is not given, in (0, 1).
        batch_size: Batch size of the task's data sets.
        seed: Seeds the choice of held-out examples and the order of the training batches.
        scale: Factor that the examples are multiplied by for the network; by default 1/255 for `uint8`, else 1.

    Returns:
        The task, with labels from 0 in the order of the sorted labels.

    Raises:
        ArgumentError: If the arrays do not fit together, contain NaN or infinity, or have too few examples.
    """
    x, y = _checked("x", "y", x, y)
    y = _as_text(y)
    labels = _classes_of(y)
    names = tuple(map(str, labels if class_names is None else _as_text(np.asarray(class_names)).tolist()))
    if len(names) != len(labels):
        raise ArgumentError("class_names", f"{len(labels)}, one for each label in y", list(names))
    if len(set(names)) < len(names):
        raise ArgumentError("class_names", "a different name for each class", list(names))
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    if not 0.0 < test_fraction < 1.0:
        raise ArgumentError("test_fraction", "a fraction between 0 and 1, both exclusive", test_fraction)
    if scale is None:
        _warn_of_range("x", x)
    rng = np.random.default_rng(seed)
    scale = (1 / 255 if x.dtype == np.uint8 else 1.0) if scale is None else scale
    examples = Split(x, np.searchsorted(labels, y).astype(np.int32), scale)
    classes = range(len(labels))
    if test is None:
        rest, held_out = hold_out(examples.labels, classes, test_fraction, rng)
        examples, test_split = examples.take(rest), examples.take(held_out)
    else:
        test_split = _test_split(test, x, labels, scale)
    train, validation = hold_out(examples.labels, classes, validation_fraction, rng)
    splits = {"train": examples.take(train), "validation": examples.take(validation), "test": test_split}
    if not 1 <= batch_size <= len(train):
        raise ArgumentError("batch_size", f"1 to the {len(train)} training examples of task {name!r}", batch_size)
    task = Task(1, name, names, splits, batch_size, seed, room=len(train))
    check_task(task, "x", "y")
    return task


def _checked(x_name: str, y_name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or x.ndim < 2:
        expected = "an array of numbers, (examples, *shape)"
        raise ArgumentError(x_name, expected, f"{x.dtype} array of shape {x.shape}")
    if y.shape != x.shape[:1]:
        raise ArgumentError(y_name, f"one label for each of the {len(x)} examples", f"an array of shape {y.shape}")
    if len(x) == 0:
        raise ArgumentError(x_name, "at least one example", f"an array of shape {x.shape}")
    check_finite(x_name, x)
    return x, y


def _warn_of_range(argument: str, x: np.ndarray) -> None:
    """Warn if images have a range that networks do not learn well from, and that nothing scales."""
    if x.ndim < 3 or x.dtype in (np.uint8, bool) or x.dtype.kind not in "iuf":
        return
    largest = float(max(abs(x.max()), abs(x.min())))
    if largest > _LARGE:
        warnings.warn(
            f"{argument} has {x.dtype} values up to {largest:,.6g}, which are not scaled: "
            f"scale={_factor(largest)} makes them 1 at most",
            stacklevel=3,
        )


def _factor(largest: float) -> str:
    """Return the factor for the smallest range of images that contains `largest`, as Python code."""
    ranges = (255, 4095, 65535)  # 8, 12 and 16 bits
    return f"1/{next((each for each in ranges if largest <= each), int(np.ceil(largest)))}"


def _as_text(labels: np.ndarray) -> np.ndarray:
    """Return labels that are bytes, as TensorFlow and NumPy have them, as text; others as they are."""
    if labels.dtype.kind == "S" or (labels.dtype.kind == "O" and any(isinstance(each, bytes) for each in labels)):
        try:
            return np.array([each.decode() if isinstance(each, bytes) else each for each in labels.tolist()])
        except UnicodeDecodeError as error:
            raise ArgumentError("y", "names in UTF-8", f"{error.object!r}") from error
    return labels


def _classes_of(y: np.ndarray) -> np.ndarray:
    """Return the distinct labels, sorted."""
    expected = "class numbers or names"
    if y.dtype.kind in "fc" and not (y == np.floor(y.real)).all():
        raise ArgumentError("y", expected, f"{y.dtype} labels that are not whole numbers")
    try:
        return np.unique(y)
    except TypeError as error:  # such as names and numbers
        raise ArgumentError("y", f"{expected}, of one type", f"labels that cannot be sorted ({error})") from error


def _test_split(test: Any, x: np.ndarray, labels: np.ndarray, scale: float) -> Split:
    if not isinstance(test, (tuple, list)) or len(test) != 2:
        raise ArgumentError("test", "a pair (x, y)", type(test).__name__)
    examples, test_labels = _checked("test", "test", *test)
    test_labels = _as_text(test_labels)
    if examples.shape[1:] != x.shape[1:] or examples.dtype != x.dtype:
        expected = f"{x.dtype} examples of shape {x.shape[1:]}, like the training examples"
        raise ArgumentError("test", expected, f"{examples.dtype} of shape {examples.shape[1:]}")
    unknown = np.setdiff1d(test_labels, labels)
    if len(unknown):
        raise ArgumentError("test", "only labels also in y", unknown.tolist()[:5])
    return Split(examples, np.searchsorted(labels, test_labels).astype(np.int32), scale)


def from_dataset(name: str, train: "tf.data.Dataset", test: "tf.data.Dataset | None" = None, **kwargs: Any) -> Task:
    """Make a task from data sets of `(x, y)`, batched or not, which are read into RAM.

    Larger data sets can be passed to `packed.fit`, as for any Keras model.

    Args:
        name: Name of the task.
        train: Training examples.
        test: Test examples; by default a fraction of each class of `train` is held out.
        **kwargs: As for `from_arrays`.

    Raises:
        ArgumentError: As for `from_arrays`, or if the elements are not pairs, or the data set is infinite.
    """
    return from_arrays(name, *_read("train", train), None if test is None else _read("test", test), **kwargs)


def _read(argument: str, dataset: "tf.data.Dataset") -> tuple[np.ndarray, np.ndarray]:
    spec = getattr(dataset, "element_spec", None)
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ArgumentError(argument, "a tf.data.Dataset of pairs (x, y)", spec if spec is not None else dataset)
    if int(dataset.cardinality()) == -1:
        raise ArgumentError(argument, "a finite data set (this one repeats forever)", dataset)
    batched = spec[1].shape.rank != 0
    pairs = list((dataset if batched else dataset.batch(1024)).as_numpy_iterator())
    if not pairs:
        raise ArgumentError(argument, "at least one example", "an empty data set")
    x, y = (np.concatenate([pair[part] for pair in pairs]) for part in (0, 1))
    return x, y


def from_folder(
    path: str | os.PathLike, image_size: tuple[int, int] | None = None, *, max_bytes: int | None = None, **kwargs: Any
) -> Task:
    """Make a task from a folder with one folder of images per class, such as `cats_dogs/cat/1.jpg`.

    If the folder contains `train/` and `test/`, each of them has one folder per class.

    Args:
        path: The folder. Its name becomes the name of the task.
        image_size: Height and width to resize all images to; by default they must all have the same size.
        max_bytes: Most memory in bytes that reading the images of a split may take. Default: 320 MB, or 64 times the
            size of their files if that is more.
        **kwargs: As for `from_arrays`.

    Raises:
        ArgumentError: If there is no such folder, a class has no images, an image cannot be read, images differ in
            size and `image_size` is not given, or they take too much memory.
    """
    require_extra("Reading images", "PIL")
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        raise ArgumentError("path", "a folder", os.fspath(path))
    has_test = (path / "train").is_dir() and (path / "test").is_dir()
    train_path = path / "train" if has_test else path
    classes = _class_folders(train_path)
    train = _read_images(train_path, classes, image_size, max_bytes)
    size = train[0].shape[1:3]
    test = _read_images(path / "test", classes, image_size or size, max_bytes) if has_test else None
    return from_arrays(path.name, *train, test, class_names=classes, **kwargs)


def _class_folders(folder: Path) -> list[str]:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise ArgumentError("path", "a folder with one folder per class", os.fspath(folder))
    return classes


def _images_in(folder: Path) -> list[Path]:
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in children if file.suffix.lower() in IMAGES]
    unread = [file for file in children if file.suffix.lower() in OTHER_IMAGES]
    if unread:
        raise ArgumentError("path", f"only images that can be read ({', '.join(IMAGES)})", os.fspath(unread[0]))
    if not files:
        raise ArgumentError("path", f"images ({', '.join(IMAGES)}) in {folder}", "none")
    return files


def _read_images(
    folder: Path, classes: list[str], size: tuple[int, int] | None, max_bytes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    files = [(file, label) for label, name in enumerate(classes) for file in _images_in(folder / name)]
    bound = Bound(max_bytes, sum(file.stat().st_size for file, _ in files), IMAGE_RATIO)
    height, width = size or (None, None)
    images, taken = [], 0
    for file, _ in files:
        try:
            images.append(read_image(file, None, height, width, bound))
            taken += _COPIES * images[-1].nbytes
            bound.check(taken, f"the images up to {file.name}")
        except SizeError as error:
            raise ArgumentError("path", f"smaller images ({error})", os.fspath(file)) from error
        except UnsupportedImageError as error:
            raise ArgumentError("path", f"single images of 8 or 16 bits ({error})", os.fspath(file)) from error
        except Exception as error:  # Pillow raises errors of many types for damaged files
            raise ArgumentError("path", "images that can be read", os.fspath(file)) from error
    labels = [label for _, label in files]
    gray = all(image.ndim == 2 for image in images)
    images = [image[..., np.newaxis] if gray else _to_rgb(image) for image in images]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        expected = f"a size, as the images have {len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
        raise ArgumentError("image_size", expected, size)
    return np.stack(images), np.array(labels)


def _to_rgb(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)


def from_folders(path: str | os.PathLike, image_size: tuple[int, int] | None = None, **kwargs: Any) -> TaskStream:
    """Make a stream from a folder with one folder per task, in the order of their names.

    Args:
        path: The folder. Its name becomes the name of the stream.
        image_size: As for `from_folder`.
        **kwargs: As for `from_arrays`.

    Raises:
        ArgumentError: As for `from_folder`, or if the folder contains no folders.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        raise ArgumentError("path", "a folder", os.fspath(path))
    folders = _class_folders(path)
    return TaskStream(path.name, [from_folder(path / name, image_size, **kwargs) for name in folders])
