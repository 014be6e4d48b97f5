"""A kernel that all tasks of an exported pack share: it stores each owned weight once, with a compressed owner map."""

import functools
import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_packnet.export.loaded_tensor import LoadedTensor

_BITS = 63  # of a non-negative int64
_POSITION_BITS = 8 * (4 + 1)  # an int32 position, a uint8 owner


class SharedKernel(tf.Module):
    """The kernels of all tasks, stored together.

    The file stores the owned weights in the order of their positions, and their owners in the smaller of two forms: the
    position and owner of each owned weight, or the owner of every entry as a digit. The base of the digits is the
    number of tasks plus 1: an `int64` holds 24 digits for five tasks. When the file is loaded, either form is expanded:
    to one dense kernel and its owner map, from which each call computes the kernel of its task; or to one dense kernel
    per task.

    Args:
        owner: `uint8` owner map: 0 is free, `k` is owned by task `k`.
        values: Values of the owned entries, in an array of the same shape.
        base: Values of the entries that a task does not see, in the same shape; None for 0.
        per_task: Whether loading expands the weights to one dense kernel per task.
    """

    def __init__(self, owner: np.ndarray, values: np.ndarray, base: np.ndarray | None = None, per_task: bool = False):
        super().__init__()
        self._shape, self._size = owner.shape, owner.size
        owner, values = owner.reshape(-1), values.reshape(-1)
        (owned,) = np.nonzero(owner)
        self._base_of_digits = int(owner.max(initial=1)) + 1
        self._digits = digits_per_number(self._base_of_digits)
        self._in_digits = _POSITION_BITS * owned.size > 64 / self._digits * owner.size
        if self._in_digits:
            self._numbers = _stored(numbers_from_digits(owner, self._base_of_digits), "owners")
        else:
            self._positions = _stored(owned.astype(np.int32), "places")
            self._owners = _stored(owner[owned], "owners")
        self._values = _stored(values[owned], "values")
        self._base = None if base is None else _stored(base, "base")
        content = (owner, values[owned], np.zeros(0) if base is None else base)
        self._name = hashlib.sha256(repr(self._shape).encode() + b"".join(map(bytes, content))).hexdigest()
        self._parts = {"owner": self._expanded_owner, "kernel": self._expanded_kernel}
        self._per_task = per_task
        self._tensors: list[LoadedTensor] = []
        if not per_task:
            self._parts = {part: self._loaded(part, compute) for part, compute in self._parts.items()}

    def of_task(self, task: int) -> Callable[[], tf.Tensor]:
        """Return a function that returns the kernel of `task` (1-based)."""
        compute = functools.partial(self._visible, task)
        return self._loaded(str(task), compute) if self._per_task else compute

    def _loaded(self, part: str, compute: Callable[[], tf.Tensor]) -> Callable[[], tf.Tensor]:
        dtype = tf.uint8 if part == "owner" else self._values.dtype
        self._tensors.append(LoadedTensor(compute, dtype, self._shape, f"{self._name}_{part}"))
        return self._tensors[-1].read

    def _visible(self, task: int) -> tf.Tensor:
        owner, kernel = self._parts["owner"](), self._parts["kernel"]()
        if self._base is None:  # free entries are 0 already
            return tf.where(owner <= task, kernel, tf.zeros((), kernel.dtype))
        # FREE is 0, so `owner - 1` wraps to 255.
        return tf.where(owner - 1 < task, kernel, self._base)

    def _expanded_owner(self) -> tf.Tensor:
        if not self._in_digits:
            return self._scattered(self._owners)
        powers = [self._base_of_digits**digit for digit in range(self._digits)]
        owner = self._numbers[:, None] // tf.constant(powers, tf.int64) % self._base_of_digits
        return tf.reshape(tf.reshape(tf.cast(owner, tf.uint8), [-1])[: self._size], self._shape)

    def _expanded_kernel(self) -> tf.Tensor:
        return self._scattered(self._values)

    def _scattered(self, owned: tf.Variable) -> tf.Tensor:
        """Put the values of owned entries at their positions, and 0 elsewhere."""
        if self._in_digits:
            positions = tf.where(tf.reshape(self._expanded_owner(), [-1]) > 0)
        else:
            positions = tf.cast(self._positions, tf.int64)[:, None]
        return tf.reshape(tf.scatter_nd(positions, owned, [self._size]), self._shape)


def digits_per_number(base: int) -> int:
    """Return how many digits in `base` (at least 2) any non-negative `int64` can hold."""
    digits = 1
    while base ** (digits + 1) <= 2**_BITS:
        digits += 1
    return digits


def numbers_from_digits(digits: np.ndarray, base: int) -> np.ndarray:
    """Pack digits `(n,)` in `base` into `int64` numbers, as many per number as fit, the lowest digit first."""
    count = digits_per_number(base)
    digits = np.pad(digits, (0, -len(digits) % count)).reshape(-1, count)
    return digits @ np.array([base**position for position in range(count)], np.int64)


def _stored(values: np.ndarray, name: str) -> tf.Variable:
    return tf.Variable(values, name=name, trainable=False)
