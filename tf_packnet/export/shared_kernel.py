"""A kernel of all tasks at rest: each used weight once, and in as few bytes as may be who owns it."""

import functools
import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_packnet.pruning import ownership

BITS = 63  # of an int64 that is no negative number
PLACE_BITS = 8 * (4 + 1)  # an int32 place, a uint8 owner


class SharedKernel(tf.Module):
    """The kernels of all tasks in one.

    At rest: the used weights in the order of their places, and their owners in the smaller of two forms. Either where
    each used weight lies, and its owner; or the owner of every entry, used or not, as a digit to the base of one more
    than there are tasks, with five tasks 24 of them in an `int64`. When the file is loaded, both become a dense kernel
    and its owner map, of which a task's kernel is computed at every call; or a dense kernel for each task.

    Args:
        owner: `uint8` owner map: 0 is free, `k` is owned by task `k`.
        values: What the owned entries hold, same shape.
        base: What is seen at entries that nobody owns yet, same shape; None for 0.
        per_task: Whether there is a dense kernel for each task.
    """

    def __init__(self, owner: np.ndarray, values: np.ndarray, base: np.ndarray | None = None, per_task: bool = False):
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
        content = (owner, values[used], np.zeros(0) if base is None else base)
        self._name = hashlib.sha256(repr(self._shape).encode() + b"".join(map(bytes, content))).hexdigest()
        self._parts = {"owner": self._unpacked_owner, "kernel": self._unpacked_kernel}
        self._per_task = per_task
        self._at_hand: list[AtHand] = []
        if not per_task:
            self._parts = {part: self._kept(part, compute) for part, compute in self._parts.items()}

    def of_task(self, task: int) -> Callable[[], tf.Tensor]:
        """What gives the kernel that `task` (1-based) computes with."""
        compute = functools.partial(self._seen, task)
        return self._kept(str(task), compute) if self._per_task else compute

    def _kept(self, part: str, compute: Callable[[], tf.Tensor]) -> Callable[[], tf.Tensor]:
        dtype = tf.uint8 if part == "owner" else self._used.dtype
        self._at_hand.append(AtHand(compute, dtype, self._shape, f"{self._name}_{part}"))
        return self._at_hand[-1].read

    def _seen(self, task: int) -> tf.Tensor:
        owner, kernel = self._parts["owner"](), self._parts["kernel"]()
        hidden = tf.zeros((), kernel.dtype) if self._base is None else self._base
        return tf.where(ownership.visible(owner, task), kernel, hidden)

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
        self._handle = self.resource_handle  # made now: functions that are traced later capture it

    def read(self) -> tf.Tensor:
        """The tensor."""
        tensor = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        tensor.set_shape(self._shape)
        return tensor

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
