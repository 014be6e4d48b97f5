"""Makes tasks from the user's own data: arrays, or a `tf.data.Dataset`."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.data_checks import check_finite
from tf_packnet.tasks.splitting import held_out_test, hold_out
from tf_packnet.tasks.stream import Split, Task, check_task

if TYPE_CHECKING:
    import tensorflow as tf

# Standardized images have values up to about 10.
_LARGE = 20.0


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
    if scale is None:
        _warn_of_range("x", x)
    scale = (1 / 255 if x.dtype == np.uint8 else 1.0) if scale is None else scale
    examples = Split(x, np.searchsorted(labels, y).astype(np.int32), scale)
    test_split = None if test is None else _test_split(test, x, labels, scale)
    task = one_task(name, examples, test_split, names, validation_fraction, test_fraction, batch_size, seed)
    check_task(task, "x", "y")
    return task


def one_task(
    name: str,
    examples: Split,
    test: Split | None,
    class_names: Sequence[str],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    batch_size: int = 128,
    seed: int = 0,
    resize: str | None = None,
) -> Task:
    """Make one task of all classes, without checking the examples. The arguments are those of `from_arrays`."""
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    rng = np.random.default_rng(seed)
    classes = range(len(class_names))
    if test is None:
        examples, test = held_out_test(name, examples, classes, test_fraction, rng)
    train, validation = hold_out(examples.labels, classes, validation_fraction, rng)
    splits = {"train": examples.take(train), "validation": examples.take(validation), "test": test}
    if not 1 <= batch_size <= len(train):
        raise ArgumentError("batch_size", f"1 to the {len(train)} training examples of task {name!r}", batch_size)
    return Task(1, name, tuple(class_names), splits, batch_size, seed, room=len(train), resize=resize)


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
