"""The content of NumPy arrays as bytes."""

import numpy as np


def content(array: np.ndarray) -> memoryview:
    """Return the bytes of an array in C order, for hashing. They are a copy only if the array is not C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
