"""Stores a kernel with many zeros as its other values and the distances between their positions."""

from typing import NamedTuple

import numpy as np

# Size of the functions in a SavedModel that expand a sparse kernel (measured: 3 to 4 kB).
OVERHEAD = 4096


class SparseEntries(NamedTuple):
    """A kernel without its zeros.

    Attributes:
        values: The values in C order, `(entries,)`. Gaps too wide for their dtype are split by entries of value 0.
        gaps: Unsigned integers `(entries,)`: each position in the flat kernel minus the position before it.
    """

    values: np.ndarray
    gaps: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size of both arrays in bytes."""
        return self.values.nbytes + self.gaps.nbytes


def to_sparse(kernel: np.ndarray) -> SparseEntries:
    """Return the entries of a kernel, with gaps of the dtype that takes the fewest bytes in total."""
    positions = np.flatnonzero(kernel)
    values, gaps = kernel.ravel()[positions], np.diff(positions, prepend=0)
    candidates = [_with_gap_dtype(values, gaps, dtype) for dtype in ("uint8", "uint16", "uint32")]
    return min(candidates, key=lambda entries: entries.nbytes)


def to_dense(entries: SparseEntries, shape: tuple[int, ...]) -> np.ndarray:
    """Return the dense kernel, the inverse of `to_sparse`."""
    flat = np.zeros(int(np.prod(shape)), entries.values.dtype)
    np.add.at(flat, np.cumsum(entries.gaps.astype(np.int64)), entries.values)
    return flat.reshape(shape)


def sparse_if_smaller(kernel: np.ndarray) -> SparseEntries | None:
    """Return the kernel without its zeros, or None if that is not smaller."""
    count = np.count_nonzero(kernel)
    if count * (kernel.itemsize + 1) + OVERHEAD >= kernel.nbytes:
        return None
    entries = to_sparse(kernel)
    return entries if entries.nbytes + OVERHEAD < kernel.nbytes else None


def _with_gap_dtype(values: np.ndarray, gaps: np.ndarray, dtype: str) -> SparseEntries:
    """Split gaps that are wider than `dtype` holds, by extra entries of value 0 at zeros of the kernel."""
    widest = int(np.iinfo(dtype).max)
    extra = np.maximum(gaps - 1, 0) // widest
    last = np.cumsum(extra + 1) - 1  # index of each value's own entry, which follows its extra entries
    all_gaps = np.full(int(np.sum(extra + 1)), widest, dtype)
    all_values = np.zeros(all_gaps.shape, values.dtype)
    all_gaps[last], all_values[last] = gaps - extra * widest, values
    return SparseEntries(all_values, all_gaps)
