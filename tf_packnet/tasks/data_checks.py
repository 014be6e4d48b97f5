"""What makes arrays of examples and labels fit to learn from; each check takes one look, and little memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError

# Examples that are compared at once.
_CHUNK = 1024


def check_finite(argument: str, x: np.ndarray) -> None:
    """Raises ArgumentError if there is a NaN or an infinity in `x`, `(examples, *shape)`; the message says where."""
    if x.dtype.kind not in "fc":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = x.sum(dtype=x.dtype if x.dtype.itemsize > 2 else np.float32)
    if np.isfinite(total):  # and so is every one of them
        return
    for start in range(0, len(x), _CHUNK):
        chunk = x[start : start + _CHUNK]
        broken = np.flatnonzero(~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1))
        if len(broken):
            raise ArgumentError(argument, "finite numbers", f"NaN or infinity in example {start + broken[0]}")


def check_numbers(argument: str, x: Any) -> None:
    """Raises ArgumentError unless an array, or what describes one, holds numbers."""
    if np.dtype(x.dtype).kind in "OSUMmc":
        raise ArgumentError(argument, "an array of numbers", f"{x.dtype} array of shape {tuple(x.shape)}")


def check_class_numbers(argument: str, labels: np.ndarray, classes: int, ignored: int | None = None) -> None:
    """Raises ArgumentError unless `labels` are whole numbers from 0 to `classes - 1`, or `ignored`."""
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


def check_varies(argument: str, x: np.ndarray, what: str) -> None:
    """Raises ArgumentError if all examples of `x` are the same: nothing can be told from them."""
    first = x[:1]
    if len(x) > 1 and all((x[start : start + _CHUNK] == first).all() for start in range(0, len(x), _CHUNK)):
        raise ArgumentError(argument, f"examples that differ in {what}", f"{len(x)} times the same one")


def fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Whether examples of `shape` can be given to an input of the shape `wanted`, as Keras sees it.

    Unknown sizes fit any; a last axis of one may be missing, or be one too many.
    """

    def same(ours: Sequence[int | None], theirs: Sequence[int | None]) -> bool:
        return len(ours) == len(theirs) and all(
            a is None or b is None or a == b for a, b in zip(ours, theirs, strict=True)
        )

    shape, wanted = tuple(shape), tuple(wanted)
    return same(shape, wanted) or same((*shape, 1), wanted) or (shape[-1:] == (1,) and same(shape[:-1], wanted))


def _first(labels: np.ndarray, where: np.ndarray) -> Any:
    return labels[where].ravel()[0].item()
