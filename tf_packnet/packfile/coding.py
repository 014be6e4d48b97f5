"""Encodes arrays so that zlib compresses them well: owner maps as gaps, numbers as byte planes. Uses NumPy only."""

import math
from collections.abc import Sequence

import numpy as np

# The dtypes that a pack file may contain, with their bytes per number.
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
    """Compute the size of an array in bytes, in Python integers, which cannot overflow."""
    return ITEM_BYTES[dtype] * math.prod(shape)


def to_planes(array: np.ndarray) -> bytes:
    """Encode an array as byte planes: the lowest byte of every number in C order, then the next byte, and so on.

    The high bytes of weights are similar and the low ones are not, so separate planes compress better.
    """
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize).T.tobytes()


def from_planes(data: memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Decode the bytes of `to_planes` into a new array."""
    planes = np.frombuffer(data, np.uint8).reshape(ITEM_BYTES[dtype], -1)
    if dtype == "bool":
        return (planes != 0).reshape(shape)
    return np.ascontiguousarray(planes.T).view(np.dtype(dtype)).reshape(shape)


def to_gaps(owner: np.ndarray, task: int) -> np.ndarray:
    """Encode the positions of a task's weights as gaps.

    A gap is the number of weights between two weights of the task, in C order. Weights of earlier tasks are not
    counted: the decoder knows their positions.

    Args:
        owner: A `uint8` owner map of any shape.
        task: Number of the task (1-based).

    Returns:
        Unsigned integers `(owned,)`, of the narrowest dtype that holds them.
    """
    candidates = owner.reshape(-1)
    candidates = candidates[(candidates == 0) | (candidates >= task)]
    positions = np.flatnonzero(candidates == task)
    gaps = np.diff(positions, prepend=-1) - 1
    return gaps.astype(np.min_scalar_type(int(gaps.max(initial=0))))


def take_gaps(owner: np.ndarray, gaps: np.ndarray, task: int) -> np.ndarray:
    """Decode the gaps of `task`, and write the task into an owner map.

    Args:
        owner: The flat owner map of all earlier tasks, `uint8`; changed in place.
        gaps: The return value of `to_gaps`.
        task: Number of the task (1-based).

    Returns:
        The flat mask of the task's weights, `bool`.

    Raises:
        ValueError: If a position lies outside the map.
    """
    free = owner == 0
    count = np.count_nonzero(free)
    # Checked before the cumulative sum, which could overflow.
    if len(gaps) > count or (len(gaps) and int(gaps.max()) >= count):
        raise ValueError("gaps lead to positions outside the owner map")
    index = gaps.astype(np.int64)  # changed in place: it is the largest array here
    index += 1
    np.cumsum(index, out=index)
    index -= 1
    if len(index) and index[-1] >= count:
        raise ValueError("gaps lead to positions outside the owner map")
    chosen = np.zeros(count, bool)
    chosen[index] = True
    taken = np.zeros_like(free)
    taken[free] = chosen
    owner[taken] = task
    return taken
