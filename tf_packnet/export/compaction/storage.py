"""Stores an array with many zeros as its nonzero values and the gaps between them, compressed. Uses NumPy only."""

import json
import math
import zlib
from dataclasses import dataclass

import numpy as np

# Bytes that a file needs besides the data to expand one array (measured for SavedModels).
OVERHEAD = 1024
GAP_BYTES = 4
# The dtypes that can be stored without zeros.
_DTYPES = ("int8", "uint8", "float16", "bfloat16", "int32", "float32", "int64", "float64")


@dataclass(frozen=True)
class SparseArray:
    """An array without its zeros. Negative zeros are dropped too, and become 0.

    Attributes:
        data: Compressed with zlib: the gaps (`uint32`), then the values, both in C order. All lowest bytes come first,
            then all second bytes, and so on, because the high bytes of weights are similar. A gap is the number of
            zeros before a value.
        count: Number of values.
        shape: Shape of the array.
        dtype: Its dtype.
    """

    data: bytes
    count: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries of the dense array."""
        return math.prod(self.shape)

    @property
    def saved_bytes(self) -> int:
        """Size of the dense array minus that of the stored one, in bytes."""
        return self.size * np.dtype(self.dtype).itemsize - len(self.data)

    def to_bytes(self) -> np.ndarray:
        """Return all attributes as `uint8` bytes."""
        header = json.dumps([self.count, self.shape, self.dtype]).encode()
        return np.frombuffer(header + b"\n" + self.data, np.uint8)

    @classmethod
    def from_bytes(cls, stored: np.ndarray) -> "SparseArray":
        """Return what `to_bytes` has stored."""
        header, data = np.asarray(stored, np.uint8).tobytes().split(b"\n", 1)
        count, shape, dtype = json.loads(header)
        return cls(data, count, tuple(shape), dtype)


def to_sparse(array: np.ndarray) -> SparseArray:
    """Return an array of a supported dtype without its zeros."""
    positions = np.flatnonzero(array)
    gaps = (np.diff(positions, prepend=-1) - 1).astype(np.uint32)
    data = zlib.compress(_planes(gaps) + _planes(array.reshape(-1)[positions]))
    return SparseArray(data, len(positions), array.shape, array.dtype.name)


def to_dense(stored: SparseArray) -> np.ndarray:
    """Return the dense array, the inverse of `to_sparse`."""
    raw = np.frombuffer(zlib.decompress(stored.data), np.uint8)
    middle = stored.count * GAP_BYTES
    gaps = _from_planes(raw[:middle], "uint32")
    dense = np.zeros(stored.size, stored.dtype)
    dense[np.cumsum(gaps.astype(np.int64) + 1) - 1] = _from_planes(raw[middle:], stored.dtype)
    return dense.reshape(stored.shape)


def sparse_if_smaller(array: np.ndarray) -> SparseArray | None:
    """Return the array without its zeros, or None if that is not smaller or not supported."""
    if array.dtype.name not in _DTYPES:
        return None
    if np.count_nonzero(array) * array.itemsize + OVERHEAD >= array.nbytes:
        return None
    stored = to_sparse(array)
    return stored if stored.saved_bytes > OVERHEAD else None


def _planes(numbers: np.ndarray) -> bytes:
    return numbers.view(np.uint8).reshape(numbers.size, numbers.itemsize).T.tobytes()


def _from_planes(planes: np.ndarray, dtype: str) -> np.ndarray:
    """Return the numbers from their bytes, the inverse of `_planes`."""
    return np.ascontiguousarray(planes.reshape(np.dtype(dtype).itemsize, -1).T).view(dtype).reshape(-1)
