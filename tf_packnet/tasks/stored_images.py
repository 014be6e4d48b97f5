"""Images that stay on disk. They are indexed like an array; each access reads and decodes the requested rows.

`Split.images` is either an array or `StoredImages`. Both give the same pixels for the same rows: the array is read from
the stored images.
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

# The images of all tasks may take `1 / _PARTS` of the free memory, because they are copied for the device.
_PARTS = 4
# Maximum number of images that a thread decodes at a time.
_MOST_PER_THREAD = 32
# Size in bytes of the images to read at once, for reads that are not divided into batches.
_BYTES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images that are read from disk when rows of them are needed.

    Attributes:
        decode: Function that returns the pixels at a position: `(height, width)` or `(height, width, channels)`.
        positions: Argument of `decode` for each example, integer array `(examples,)`.
        image_shape: Shape of one image, `(height, width, channels)`. With three channels, grey pixels are repeated.
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
        """Size in bytes of the array of all images."""
        return len(self) * self.image_bytes

    @property
    def image_bytes(self) -> int:
        """Size in bytes of one image."""
        return int(np.prod(self.image_shape)) * self.dtype.itemsize

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read the images at `rows`: a slice, or an integer array of any shape.

        Raises:
            ArgumentError: If an image has another height or width than `image_shape`.
        """
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
        """Read the image at a position, `(height, width, channels)`, with its own number of channels."""
        pixels = self.decode(position)
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        if pixels.shape[:2] != self.image_shape[:2]:
            expected = f"a size, as the images differ: {self.image_shape[:2]} and {pixels.shape[:2]}"
            raise ArgumentError("image_size", expected, None)
        return pixels

    def select(self, rows: np.ndarray) -> "StoredImages":
        """Return the images at `rows`, an integer array, without reading them."""
        return replace(self, positions=self.positions[rows])

    def with_channels(self, channels: int) -> "StoredImages":
        """Return the same images with `channels` channels: 1 or 3."""
        return replace(self, image_shape=(*self.image_shape[:2], channels))

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "StoredImages":
        """Apply `function`, which maps an image to one of the same shape, to each image when it is read."""
        return replace(self, decode=lambda position: function(self.pixels(position)))


Images = np.ndarray | StoredImages


def select(images: Images, rows: np.ndarray) -> Images:
    """Return the images at `rows`, an integer array, without reading `StoredImages`."""
    return images.select(rows) if isinstance(images, StoredImages) else images[rows]


def concatenate(parts: Sequence[Images]) -> Images:
    """Join images of the same shape. The result is `StoredImages` if any part is, otherwise an array."""
    if not any(isinstance(part, StoredImages) for part in parts):
        return np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])

    def decode(position: int) -> np.ndarray:
        number = int(np.searchsorted(ends, position, side="right"))
        part, row = parts[number], position - (int(ends[number - 1]) if number else 0)
        return part.pixels(int(part.positions[row])) if isinstance(part, StoredImages) else part[row]

    return StoredImages(decode, np.arange(ends[-1]), parts[0].shape[1:], parts[0].dtype)


def chunks(images: Images) -> Iterator[np.ndarray]:
    """Yield all images in order: an array as a whole, `StoredImages` in parts of limited size."""
    if not isinstance(images, StoredImages):
        yield images
        return
    rows = max(1, _BYTES_AT_ONCE // max(1, images.image_bytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def are_too_large(nbytes: int) -> bool:
    """Whether images of `nbytes` bytes should stay on disk, given the memory that this process may still use."""
    return nbytes > room() // _PARTS


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="images")


# A forked child process does not inherit the threads of its parent.
os.register_at_fork(after_in_child=_pool.cache_clear)
