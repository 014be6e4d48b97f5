"""Arrays as bytes: owner maps as gaps, numbers as byte planes, both of which zlib packs well. Plain NumPy."""

import math
from collections.abc import Sequence

import numpy as np

# Bytes of a number of each dtype that a pack may hold.
ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that an array takes, in numbers that cannot overflow."""
    return ITEM_BYTES[dtype] * math.prod(shape)


def to_planes(array: np.ndarray) -> bytes:
    """The bytes of `array`, in C order and little endian: the first byte of every number, then the second of every one.

    The high bytes of weights are alike and the low ones are not: apart, the high ones shrink.
    """
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize).T.tobytes()


def from_planes(data: memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The inverse of `to_planes`; a new array."""
    planes = np.frombuffer(data, np.uint8).reshape(ITEM_BYTES[dtype], -1)
    if dtype == "bool":
        return (planes != 0).reshape(shape)
    return np.ascontiguousarray(planes.T).view(np.dtype(dtype)).reshape(shape)


def to_gaps(owner: np.ndarray, task: int) -> np.ndarray:
    """Where `task` owns something: how many weights that it might have had lie before each of its own.

    Only those count that no earlier task owns, in C order.

    Args:
        owner: A `uint8` owner map of any shape.
        task: Its number (1-based).

    Returns:
        Unsigned integers `(owned,)`, of the narrowest dtype that holds them.
    """
    left = owner.reshape(-1)
    left = left[(left == 0) | (left >= task)]
    places = np.flatnonzero(left == task)
    gaps = np.diff(places, prepend=-1) - 1
    return gaps.astype(np.min_scalar_type(int(gaps.max(initial=0))))


def take_gaps(owner: np.ndarray, gaps: np.ndarray, task: int) -> np.ndarray:
    """Gives `task` what `gaps` says on the flat `owner` map, which has the earlier tasks on it.

    Returns:
        The flat places it got, ascending.

    Raises:
        ValueError: If the gaps lead out of the map.
    """
    free = np.flatnonzero(owner == 0)
    # Checked before the sum: one gap too wide and it could wrap around.
    if len(gaps) > len(free) or (len(gaps) and int(gaps.max()) >= len(free)):
        raise ValueError("the owner map has no such places")
    index = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(index) and index[-1] >= len(free):
        raise ValueError("the owner map has no such places")
    places = free[index]
    owner[places] = task
    return places
