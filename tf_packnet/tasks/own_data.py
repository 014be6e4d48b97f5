"""Makes tasks from the user's own data: arrays, or a `tf.data.Dataset`."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.tasks.data_checks import check_finite
from tf_packnet.tasks.splitting import held_out_test, hold_out
from tf_packnet.tasks.stream import Split, Task, check_task

if TYPE_CHECKING:
    import tensorflow as tf

CLASSES, VALUES = TARGETS = ("classes", "values")

# Standardized images have values up to about 10.
_LARGE = 20.0


@checked
def from_arrays(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    batch_size: int = 128,
    seed: int = 0,
    scale: float | None = None,
    targets: str | None = None,
) -> Task:
    """Make a task from arrays: classification, regression, or multi-label classification.

    Args:
        name: Name of the task.
        x: Numeric examples, `(examples, *shape)`.
        y: Labels, `(examples,)`: class numbers, names, or other values that can be sorted. Or target values,
            `(examples,)` or `(examples, outputs)`: those of a regression, or multi-label targets of 0 and 1.
        test: Test examples and labels. Default: a fraction of each class of `x` is held out.
        class_names: Names of the labels in sorted order. Default: the labels themselves. For values: names of the
            outputs.
        validation_fraction: Fraction of each class's training examples to hold out for validation, in [0, 1).
        test_fraction: Fraction of each class to hold out for testing if `test` is not given, in (0, 1).
        batch_size: Batch size of the task's data sets.
        seed: Seeds the choice of held-out examples and the order of the training batches.
        scale: Factor by which the examples are multiplied before they enter the network. Default: 1/255 for `uint8`,
            otherwise 1.
        targets: What `y` contains: `classes` or `values`. Default: `values` if `y` has several columns or contains
            numbers that are not whole, otherwise `classes`.

    Returns:
        The task. Its labels are the positions (from 0) of the sorted labels, `int32`. If the targets are values, the
        labels are the values, `float32`, in the shape of `y`; `num_classes` is the number of outputs; and examples are
        held out at random, not by class.

    Raises:
        ArgumentError: If the arrays do not fit together, contain NaN or infinity, or have too few examples.
    """
    x, y = _checked("x", "y", x, y)
    check_choice("targets", targets or CLASSES, TARGETS)
    if (targets or _kind_of(y)) == VALUES:
        labels = None
        y, names = _values("y", y), _output_names(y, class_names)
    else:
        y = _as_labels("y", y)
        labels = _classes_of(y)
        names = tuple(map(str, labels if class_names is None else _as_text(np.asarray(class_names)).tolist()))
        if len(names) != len(labels):
            raise ArgumentError("class_names", f"{len(labels)}, one for each label in y", list(names))
    if len(set(names)) < len(names):
        raise ArgumentError("class_names", "a different name for each class", list(names))
    if scale is None:
        _warn_of_range("x", x)
    scale = (1 / 255 if x.dtype == np.uint8 else 1.0) if scale is None else scale
    examples = Split(x, y if labels is None else np.searchsorted(labels, y).astype(np.int32), scale)
    test_split = None if test is None else _test_split(test, examples, labels)
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
    """Make one task of all classes, without checking the examples. Most arguments are those of `from_arrays`.

    Args:
        name: Name of the task.
        examples: Training examples, with labels from 0 or values.
        test: Test examples; None to hold out some of `examples`.
        class_names: Name of each label, or of each output.
        validation_fraction: As for `from_arrays`.
        test_fraction: As for `from_arrays`.
        batch_size: As for `from_arrays`.
        seed: As for `from_arrays`.
        resize: `Task.resize`.

    Raises:
        ArgumentError: If a fraction or the batch size is out of range.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ArgumentError("validation_fraction", "a fraction from 0 up to, but not including, 1", validation_fraction)
    rng = np.random.default_rng(seed)
    if test is None:
        examples, test = held_out_test(name, examples, range(len(class_names)), test_fraction, rng)
    train, validation = hold_out(examples.labels, range(len(class_names)), validation_fraction, rng)
    splits = {"train": examples.take(train), "validation": examples.take(validation), "test": test}
    if not 1 <= batch_size <= len(train):
        raise ArgumentError("batch_size", f"1 to the {len(train)} training examples of task {name!r}", batch_size)
    return Task(1, name, tuple(class_names), splits, batch_size, seed, room=len(train), resize=resize)


def _checked(x_name: str, y_name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or x.ndim < 2:
        expected = "an array of numbers, (examples, *shape)"
        raise ArgumentError(x_name, expected, f"{x.dtype} array of shape {x.shape}")
    if y.shape[:1] != x.shape[:1] or y.ndim > 2:
        expected = f"labels of shape ({len(x)},), or values of shape ({len(x)}, outputs), for the {len(x)} examples"
        raise ArgumentError(y_name, expected, f"an array of shape {y.shape}")
    if len(x) == 0:
        raise ArgumentError(x_name, "at least one example", f"an array of shape {x.shape}")
    check_finite(x_name, x)
    return x, y


def _warn_of_range(argument: str, x: np.ndarray) -> None:
    """Warn if images have large values that are not scaled: networks train poorly on them."""
    if x.ndim < 3 or x.dtype in (np.uint8, bool) or x.dtype.kind not in "iuf":
        return
    largest = max(float(x.max()), -float(x.min()))
    if largest > _LARGE:
        warnings.warn(
            f"{argument} has {x.dtype} values up to {largest:,.6g}, which are not scaled: "
            f"scale={_factor(largest)} makes them 1 at most",
            stacklevel=3,
        )


def _factor(largest: float) -> str:
    """Return a scale for images with values up to `largest`, as Python code such as `1/255`.

    It is that of the smallest common range (8, 12 or 16 bits) that contains `largest`.
    """
    ranges = (255, 4095, 65535)  # 8, 12 and 16 bits
    return f"1/{next((each for each in ranges if largest <= each), int(np.ceil(largest)))}"


def _as_text(labels: np.ndarray) -> np.ndarray:
    """Decode labels that are bytes, such as those of TensorFlow; return other labels unchanged."""
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
        raise ArgumentError("y", f"{expected}, or targets='values'", f"{y.dtype} labels that are not whole numbers")
    try:
        return np.unique(y)
    except TypeError as error:  # such as names and numbers
        raise ArgumentError("y", f"{expected}, of one type", f"labels that cannot be sorted ({error})") from error


def _kind_of(y: np.ndarray) -> str:
    """Return what `y` probably contains: `classes` or `values`."""
    if y.ndim == 2 and y.shape[1] != 1:
        return VALUES
    return VALUES if y.dtype.kind == "f" and not (y == np.floor(y)).all() else CLASSES


def _as_labels(argument: str, y: np.ndarray) -> np.ndarray:
    """Return labels of shape `(examples,)` or `(examples, 1)` as an array `(examples,)`."""
    if y.ndim == 2 and y.shape[1] != 1:
        raise ArgumentError(argument, "one label for each example", f"an array of shape {y.shape}")
    return _as_text(y.reshape(len(y)))


def _values(argument: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "biuf":
        raise ArgumentError(argument, "numbers, because the targets are values", f"{y.dtype} array of shape {y.shape}")
    check_finite(argument, y)
    return y.astype(np.float32)


def _output_names(y: np.ndarray, names: Sequence[str] | None) -> tuple[str, ...]:
    outputs = y.shape[1] if y.ndim == 2 else 1
    if names is None:
        return tuple(f"output_{number}" for number in range(1, outputs + 1)) if outputs > 1 else ("output",)
    if len(names) != outputs:
        raise ArgumentError("class_names", f"{outputs}, one for each output in y", list(names))
    return tuple(map(str, _as_text(np.asarray(names)).tolist()))


def _test_split(test: Any, train: Split, labels: np.ndarray | None) -> Split:
    """Return the checked test examples, with labels numbered as in training, or with values if `labels` is None."""
    if not isinstance(test, (tuple, list)) or len(test) != 2:
        raise ArgumentError("test", "a pair (x, y)", type(test).__name__)
    examples, test_labels = _checked("test", "test", *test)
    x = train.images
    if examples.shape[1:] != x.shape[1:] or examples.dtype != x.dtype:
        expected = f"{x.dtype} examples of shape {x.shape[1:]}, like the training examples"
        raise ArgumentError("test", expected, f"{examples.dtype} of shape {examples.shape[1:]}")
    if labels is None:
        values = _values("test", test_labels)
        if values.shape[1:] != train.labels.shape[1:]:
            shape = train.labels.shape[1:]
            raise ArgumentError("test", f"values of shape {shape} for each example, like y", f"{values.shape[1:]}")
        return Split(examples, values, train.scale)
    test_labels = _as_labels("test", test_labels)
    unknown = np.setdiff1d(test_labels, labels)
    if len(unknown):
        raise ArgumentError("test", "only labels also in y", unknown.tolist()[:5])
    return Split(examples, np.searchsorted(labels, test_labels).astype(np.int32), train.scale)


@checked
def from_dataset(name: str, train: "tf.data.Dataset", test: "tf.data.Dataset | None" = None, **kwargs: Any) -> Task:
    """Make a task from data sets of `(x, y)`, batched or not, which are read into RAM.

    Pass data sets that do not fit into RAM to `packed.fit` directly, as for any Keras model.

    Args:
        name: Name of the task.
        train: Training examples.
        test: Test examples. Default: a fraction of each class of `train` is held out.
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
    batched = _is_batched(*spec)
    pairs = list((dataset if batched else dataset.batch(1024)).as_numpy_iterator())
    if not pairs:
        raise ArgumentError(argument, "at least one example", "an empty data set")
    x, y = (np.concatenate([pair[part] for pair in pairs]) for part in (0, 1))
    return x, y


def _is_batched(x: Any, y: Any) -> bool:
    """Whether the elements of a data set are batches, in which examples and labels have the same first axis."""
    if x.shape.rank in (None, 0) or y.shape.rank in (None, 0):
        return y.shape.rank != 0
    return None in (x.shape[0], y.shape[0]) or x.shape[0] == y.shape[0]
