"""How a kernel with many zeros is stored: its other values and how far apart they stand."""

from typing import NamedTuple

import numpy as np

# What a sparse kernel costs besides its entries: the functions in a SavedModel that unpack it (measured: 3 to 4 kB).
OVERHEAD = 4096


class Packed(NamedTuple):
    """A kernel without its zeros.

    Attributes:
        values: The values in C order, `(entries,)`. Gaps too wide for their type are bridged by entries of value 0.
        gaps: Each value's position in the flat kernel less the one before it, unsigned integers `(entries,)`.
    """

    values: np.ndarray
    gaps: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.gaps.nbytes


def pack(kernel: np.ndarray) -> Packed:
    """The kernel with gaps of the integer type that takes the fewest bytes in all."""
    positions = np.flatnonzero(kernel)
    values, gaps = kernel.ravel()[positions], np.diff(positions, prepend=0)
    return min((_bridged(values, gaps, dtype) for dtype in ("uint8", "uint16", "uint32")), key=lambda it: it.nbytes)


def unpack(packed: Packed, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`."""
    flat = np.zeros(int(np.prod(shape)), packed.values.dtype)
    np.add.at(flat, np.cumsum(packed.gaps.astype(np.int64)), packed.values)
    return flat.reshape(shape)


def packed_if_smaller(kernel: np.ndarray) -> Packed | None:
    """The kernel without its zeros, or None if it is better stored with them: the one rule, for every layer."""
    entries = np.count_nonzero(kernel)
    if entries * (kernel.itemsize + 1) + OVERHEAD >= kernel.nbytes:
        return None
    packed = pack(kernel)
    return packed if packed.nbytes + OVERHEAD < kernel.nbytes else None


def _bridged(values: np.ndarray, gaps: np.ndarray, dtype: str) -> Packed:
    """Splits gaps wider than `dtype` holds: over bridges of value 0, which lie on zeros of the kernel."""
    widest = int(np.iinfo(dtype).max)
    bridges = np.maximum(gaps - 1, 0) // widest
    last = np.cumsum(bridges + 1) - 1  # where each value's own entry stands, after its bridges
    all_gaps = np.full(int(np.sum(bridges + 1)), widest, dtype)
    all_values = np.zeros(all_gaps.shape, values.dtype)
    all_gaps[last], all_values[last] = gaps - bridges * widest, values
    return Packed(all_values, all_gaps)
