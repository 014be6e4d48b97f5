"""A kernel of all tasks at rest: each used weight once, and in as few bytes as may be who owns it."""

import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

BITS = 63  # of an int64 that is no negative number
PLACE_BITS = 8 * (4 + 1)  # an int32 place, a uint8 owner


class SharedKernel(tf.Module):
    """The kernels of all tasks in one.

    At rest: the used weights in the order of their places, and their owners in the smaller of two forms. Either where
    each used weight lies, and its owner; or the owner of every entry, used or not, as a digit to the base of one more
    than there are tasks, with five tasks 24 of them in an `int64`. Both become a dense kernel and its owner map when
    the file is loaded, of which a task's kernel is computed at every call.

    Args:
        owner: `uint8` owner map: 0 is free, `k` is owned by task `k`.
        values: What the owned entries hold, same shape.
        base: What is seen at entries that nobody owns yet, same shape; None for 0.
    """

    def __init__(self, owner: np.ndarray, values: np.ndarray, base: np.ndarray | None = None):
        super().__init__()
        self._shape, self._size = owner.shape, owner.size
        owner, values = owner.reshape(-1), values.reshape(-1)
        (used,) = np.nonzero(owner)
        self._numeral_base = int(owner.max(initial=1)) + 1
        self._digits = digits_in_a_number(self._numeral_base)
        self._in_digits = PLACE_BITS * used.size > 64 / self._digits * owner.size
        if self._in_digits:
            self._numbers = _at_rest(numbers(owner, self._numeral_base), "owners")
        else:
            self._places, self._owners = _at_rest(used.astype(np.int32), "places"), _at_rest(owner[used], "owners")
        self._used = _at_rest(values[used], "values")
        self._base = None if base is None else _at_rest(base, "base")
        name = hashlib.sha256(repr(self._shape).encode() + owner.tobytes() + values[used].tobytes()).hexdigest()
        self._owner = AtHand(self._unpacked_owner, tf.uint8, self._shape, f"{name}_owner")
        self._kernel = AtHand(self._unpacked_kernel, self._used.dtype, self._shape, f"{name}_kernel")

    def of_task(self, task: int) -> tf.Tensor:
        """The kernel that `task` (1-based) computes with."""
        owner, kernel = self._owner.read(), self._kernel.read()
        if self._base is None:  # the free ones are 0 already
            return tf.where(owner <= task, kernel, tf.zeros((), kernel.dtype))
        # FREE is 0, so `owner - 1` wraps to 255.
        return tf.where(owner - 1 < task, kernel, self._base)

    def _unpacked_owner(self) -> tf.Tensor:
        if not self._in_digits:
            return self._scattered(self._owners)
        powers = [self._numeral_base**digit for digit in range(self._digits)]
        owner = self._numbers[:, None] // tf.constant(powers, tf.int64) % self._numeral_base
        return tf.reshape(tf.reshape(tf.cast(owner, tf.uint8), [-1])[: self._size], self._shape)

    def _unpacked_kernel(self) -> tf.Tensor:
        return self._scattered(self._used)

    def _scattered(self, used: tf.Variable) -> tf.Tensor:
        """The used entries in their places, 0 elsewhere."""
        if self._in_digits:
            places = tf.where(tf.reshape(self._unpacked_owner(), [-1]) > 0)
        else:
            places = tf.cast(self._places, tf.int64)[:, None]
        return tf.reshape(tf.scatter_nd(places, used, [self._size]), self._shape)


class AtHand(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed once, when the file is loaded, and stays in memory.

    Args:
        compute: Computes it, from variables that are saved.
        dtype: Its type.
        shape: Its shape.
        name: One for this content: whoever loads the same again shares it.
    """

    def __init__(self, compute: Callable[[], tf.Tensor], dtype: tf.DType, shape: tuple[int, ...], name: str):
        super().__init__()
        self._compute, self._dtype, self._shape, self._name = compute, dtype, shape, name

    def read(self) -> tf.Tensor:
        """The tensor."""
        return tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=self._shape, shared_name=self._name)

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._compute())


def digits_in_a_number(base: int) -> int:
    """How many digits to this base, at least 2, the numbers of `BITS` bits have at least room for."""
    digits = 1
    while base ** (digits + 1) <= 2**BITS:
        digits += 1
    return digits


def numbers(digits: np.ndarray, base: int) -> np.ndarray:
    """Digits `(n,)` to `base` as `int64` numbers, as many digits in each as have room, the lowest first."""
    room = digits_in_a_number(base)
    digits = np.pad(digits, (0, -len(digits) % room)).reshape(-1, room)
    return digits @ np.array([base**place for place in range(room)], np.int64)


def _at_rest(values: np.ndarray, name: str) -> tf.Variable:
    return tf.Variable(values, name=name, trainable=False)
