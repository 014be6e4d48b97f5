"""Checks arrays of examples and labels. Each check passes over the data once and needs little RAM."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.stored_images import Images, StoredImages

# Number of examples to compare at once.
_CHUNK = 1024
# The same for images that are read from disk.
_BATCH = 16


def check_finite(argument: str, x: Images) -> None:
    """Raise ArgumentError if `x`, `(examples, *shape)`, contains NaN or infinity; the message names the first example.

    Images on disk are not checked.
    """
    if x.dtype.kind not in "fc" or isinstance(x, StoredImages):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = x.sum(dtype=x.dtype if x.dtype.itemsize > 2 else np.float32)
    if np.isfinite(total):  # then all values are
        return
    for start in range(0, len(x), _CHUNK):
        chunk = x[start : start + _CHUNK]
        non_finite = np.flatnonzero(~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1))
        if len(non_finite):
            raise ArgumentError(argument, "finite numbers", f"NaN or infinity in example {start + non_finite[0]}")


def check_numbers(argument: str, x: Any) -> None:
    """Raise ArgumentError unless `x`, an array or another object with `dtype` and `shape`, contains real numbers."""
    if np.dtype(x.dtype).kind in "OSUMmc":
        raise ArgumentError(argument, "an array of numbers", f"{x.dtype} array of shape {tuple(x.shape)}")


def check_class_numbers(argument: str, labels: np.ndarray, classes: int, ignored: int | None = None) -> None:
    """Raise ArgumentError unless all `labels` are whole numbers from 0 to `classes - 1`, or `ignored`."""
    check_numbers(argument, labels)
    if labels.size == 0:
        return
    expected = f"whole numbers from 0 to {classes - 1}, of {classes} classes"
    if labels.dtype.kind == "f" and not (labels == np.floor(labels)).all():  # False for NaN too
        raise ArgumentError(argument, expected, f"{labels.dtype} labels such as {_first(labels, labels % 1 != 0)}")
    outside = (labels < 0) | (labels >= classes)
    if ignored is not None:
        outside &= labels != ignored
    if outside.any():
        raise ArgumentError(argument, expected, f"{_first(labels, outside)} in example {np.argwhere(outside)[0][0]}")


def check_varies(argument: str, x: Images, what: str) -> None:
    """Raise ArgumentError if all examples in `x` are equal; `what` names `x` in the message."""
    first, size = x[:1], _BATCH if isinstance(x, StoredImages) else _CHUNK
    if len(x) > 1 and all((x[start : start + size] == first).all() for start in range(0, len(x), size)):
        raise ArgumentError(argument, f"examples that differ in {what}", f"{len(x)} equal examples")


def fits(shape: Sequence[int | None], input_shape: Sequence[int | None]) -> bool:
    """Whether Keras accepts examples of `shape` for an input of `input_shape`, both without the batch axis.

    None (an unknown size) matches any size. As in Keras, a last axis of size 1 may be missing or added.
    """

    def same(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
        return len(one) == len(other) and all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))

    shape, input_shape = tuple(shape), tuple(input_shape)
    if same(shape, input_shape) or same((*shape, 1), input_shape):
        return True
    return shape[-1:] == (1,) and same(shape[:-1], input_shape)


def _first(labels: np.ndarray, mask: np.ndarray) -> Any:
    return labels[mask].ravel()[0].item()
