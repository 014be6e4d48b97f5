"""Images that stay on disk: they have the shape of an array, and are read and decoded whenever rows of them are needed.

`Split.images` is either an array or `StoredImages`. Both give the same pixels for the same rows, because an array is
made of stored images by reading all of them.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.memory import room

# Parts of the free memory that the images of all tasks may take: copies of them are made for the device.
_PARTS = 4
# Images that one thread decodes at a time.
_MOST_PER_THREAD = 32
# Bytes of images that are read at once where no batch says how many.
_BYTES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images that are read from disk when rows of them are needed.

    Attributes:
        decode: Returns the pixels at a position, `(height, width)` or `(height, width, channels)`.
        positions: Integer array `(examples,)`.
        image_shape: Shape of one image, with channels. Grey pixels are repeated where it has three.
        dtype: Dtype of the pixels.
    """

    decode: Callable[[int], np.ndarray]
    positions: np.ndarray
    image_shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of all images."""
        return (len(self), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """Size of the array of all images."""
        return len(self) * self.image_bytes

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return int(np.prod(self.image_shape)) * self.dtype.itemsize

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read the images at some rows: a slice, or an integer array of any shape."""
        positions = self.positions[rows]
        images = np.empty((positions.size, *self.image_shape), self.dtype)
        size = min(_MOST_PER_THREAD, -(-positions.size // _threads()) or 1)
        parts = [range(start, min(start + size, positions.size)) for start in range(0, positions.size, size)]
        flat = positions.reshape(-1).tolist()

        def read(part: range) -> None:
            for row in part:
                images[row] = self.pixels(flat[row])

        for _ in _pool().map(read, parts):  # raises the first error
            pass
        return images.reshape(*positions.shape, *self.image_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def pixels(self, position: int) -> np.ndarray:
        """Return the image at a position, `(height, width, channels)`, before grey pixels are repeated."""
        pixels = self.decode(position)
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        if pixels.shape[:2] != self.image_shape[:2]:
            expected = f"a size, as the images differ: {self.image_shape[:2]} and {pixels.shape[:2]}"
            raise ArgumentError("image_size", expected, None)
        return pixels

    def select(self, rows: np.ndarray) -> "StoredImages":
        """Return the images at some rows, without reading them."""
        return replace(self, positions=self.positions[rows])

    def with_channels(self, channels: int) -> "StoredImages":
        """Return the same images with so many channels: 1 or 3."""
        return replace(self, image_shape=(*self.image_shape[:2], channels))

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "StoredImages":
        """Return the images that `function` makes of single ones, of the same shape, when they are read."""
        return replace(self, decode=lambda position: function(self.pixels(position)))


Images = np.ndarray | StoredImages


def select(images: Images, rows: np.ndarray) -> Images:
    """Return the images at some rows; an array of them only if `images` is one."""
    return images.select(rows) if isinstance(images, StoredImages) else images[rows]


def concatenate(parts: Sequence[Images]) -> Images:
    """Join images of one shape; images that are on disk remain there if any part is."""
    if not any(isinstance(part, StoredImages) for part in parts):
        return np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])

    def decode(position: int) -> np.ndarray:
        number = int(np.searchsorted(ends, position, side="right"))
        part, row = parts[number], position - (int(ends[number - 1]) if number else 0)
        return part.pixels(int(part.positions[row])) if isinstance(part, StoredImages) else part[row]

    return StoredImages(decode, np.arange(ends[-1]), parts[0].shape[1:], parts[0].dtype)


def chunks(images: Images) -> Iterator[np.ndarray]:
    """Yield all images in order, some at a time; an array as a whole."""
    if not isinstance(images, StoredImages):
        yield images
        return
    rows = max(1, _BYTES_AT_ONCE // max(1, images.image_bytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def are_too_large(nbytes: int) -> bool:
    """Whether images of so many bytes should stay on disk, by the memory that this process may still use."""
    return nbytes > room() // _PARTS


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="images")


# A child process has no threads of its parent.
os.register_at_fork(after_in_child=_pool.cache_clear)
