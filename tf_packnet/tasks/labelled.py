"""Labelled data sets before the split into tasks: makes sizes and channels of images equal, and reads them into RAM."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.images import MAX_SIDE, RESIZES, resized
from tf_packnet.system.limits import IMAGE_RATIO, Bound, SizeError
from tf_packnet.tasks.encodings import Encoding
from tf_packnet.tasks.stored_images import StoredImages, are_too_large
from tf_packnet.tasks.stream import Split, Task

# Copies of images in memory while they are split and trained on.
_COPIES = 3


class Labelled(NamedTuple):
    """A labelled data set.

    Attributes:
        name: Name of the data set.
        train: Training examples.
        test: Test examples; None if there are none, so that some of `train` must be held out.
        class_names: Name of each label.
        is_task: Whether the data set is one task, which is not split.
        file_bytes: Size of its files.
        origin: Prefix of the names of its tasks if there are several data sets.
        encoding: How examples were encoded from tables; None for other data.
    """

    name: str
    train: Split
    test: Split | None
    class_names: Sequence[str]
    is_task: bool = False
    file_bytes: int = 0
    origin: str = ""
    encoding: Encoding | None = None

    def splits(self) -> list[Split]:
        """Return the training examples, and the test examples if there are any."""
        return [self.train] if self.test is None else [self.train, self.test]

    def with_splits(self, splits: Sequence[Split]) -> "Labelled":
        """Return the data set with other examples, in the order of `splits()`."""
        return self._replace(train=splits[0], test=splits[1] if len(splits) > 1 else None)


class Reading(NamedTuple):
    """How images are read.

    Attributes:
        image_size: Height and width to resize images to; None to keep their size.
        resize: One of `RESIZES`.
        max_bytes: Limit in bytes on the memory for the images; None for the default.
        on_disk: Whether the images stay on disk; None to decide by their size.
    """

    image_size: tuple[int, int] | None = None
    resize: str = "stretch"
    max_bytes: int | None = None
    on_disk: bool | None = None

    @classmethod
    def of(
        cls,
        image_size: int | Sequence[int] | None = None,
        resize: str = "stretch",
        max_bytes: int | None = None,
        on_disk: bool | None = None,
    ) -> "Reading":
        """Check and normalize the arguments, which are those of `from_folder`.

        Raises:
            ArgumentError: If `image_size` or `resize` is invalid.
        """
        if resize not in RESIZES:
            raise ArgumentError("resize", f"one of {', '.join(RESIZES)}", resize)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if size is None:
            return cls(None, resize, max_bytes, on_disk)
        is_pair = isinstance(size, Sequence) and len(size) == 2
        if not is_pair or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in size):
            raise ArgumentError("image_size", f"height and width from 1 to {MAX_SIDE:,}, or None", image_size)
        return cls((int(size[0]), int(size[1])), resize, max_bytes, on_disk)

    @property
    def recorded_resize(self) -> str | None:
        """Value of `Task.resize`: None if the images are not resized."""
        return None if self.image_size is None else self.resize


def as_read(labelled: Labelled, reading: Reading) -> Labelled:
    """Resize the images of a data set in memory, in the same way as images that are read from files."""
    if reading.image_size is None:
        return labelled
    splits = [_as_pixels(split, split.images.shape[-1]) for split in labelled.splits()]
    return labelled.with_splits([_resized(split, reading) for split in splits])


def _resized(split: Split, reading: Reading) -> Split:
    height, width = reading.image_size or split.images.shape[1:3]
    images = [
        resized(np.squeeze(image, -1) if image.shape[-1] == 1 else image, height, width, reading.resize)
        for image in np.asarray(split.images)
    ]
    stacked = np.stack(images).reshape(len(images), height, width, split.images.shape[-1])
    return dataclasses.replace(split, images=stacked)


def unified(sets: Sequence[Labelled]) -> list[Labelled]:
    """Convert the images of all data sets to the same channels and scale: RGB if any are RGB, `uint8` from 0 to 255.

    Raises:
        ArgumentError: If images differ in size.
    """
    if len({(split.images.shape[1:], split.images.dtype, split.scale) for each in sets for split in each.splits()}) < 2:
        return list(sets)
    sizes = {each.train.images.shape[1:-1]: each.name for each in sets}
    if len(sizes) > 1:
        found = ", ".join(f"{size} of {name}" for size, name in sizes.items())
        raise ArgumentError("image_size", f"a size such as 64, as the images differ: {found}", None)
    channels = max(each.train.images.shape[-1] for each in sets)
    return [each.with_splits([_as_pixels(split, channels) for split in each.splits()]) for each in sets]


def _as_pixels(split: Split, channels: int) -> Split:
    images = split.images
    if isinstance(images, StoredImages):
        return dataclasses.replace(split, images=images.with_channels(channels))
    if images.dtype != np.uint8 or split.scale != 1 / 255:
        images = np.round(images * (255 * split.scale)).astype(np.uint8)
    if images.shape[-1] != channels:
        images = np.repeat(images, channels, axis=-1)
    return Split(images, split.labels, 1 / 255)


def loaded(tasks: Sequence[Task], reading: Reading, file_bytes: int = 0) -> list[Task]:
    """Read the images of tasks into memory, unless they are too large or `reading` keeps them on disk.

    Args:
        tasks: The tasks.
        reading: How images are read.
        file_bytes: Size of the files. The default limit on the memory increases with it.

    Raises:
        ArgumentError: If the images take too much memory and may not stay on disk, a batch of images on disk takes too
            much memory, or an image cannot be read.
    """
    stored = [split for task in tasks for split in task.splits.values() if split.is_stored]
    if not stored:
        return list(tasks)
    needed = sum(split.images.nbytes for split in stored)
    error = _excess(reading, file_bytes, _COPIES * needed, f"{sum(map(len, stored)):,} images")
    if error is not None and reading.on_disk is False:
        raise ArgumentError("path", f"smaller images ({error})", tasks[0].name) from error
    is_large = error is not None or (reading.max_bytes is None and are_too_large(needed))
    if reading.on_disk or (is_large and reading.on_disk is None):
        _check_batches(tasks, reading, file_bytes)
        return list(tasks)
    return [
        dataclasses.replace(task, splits={name: split.in_memory() for name, split in task.splits.items()})
        for task in tasks
    ]


def _excess(reading: Reading, file_bytes: int, needed: int, what: str) -> SizeError | None:
    """Return the error if `what` takes too much memory. With an `image_size`, there is no default limit."""
    if reading.max_bytes is None and reading.image_size is not None:
        return None
    try:
        Bound(reading.max_bytes, file_bytes, IMAGE_RATIO).check(needed, what)
    except SizeError as error:
        return error
    return None


def _check_batches(tasks: Sequence[Task], reading: Reading, file_bytes: int) -> None:
    """Raise ArgumentError if a batch of images that stay on disk takes too much memory."""
    for task in tasks:
        images = task.splits["train"].images
        needed = _COPIES * task.batch_size * (images.nbytes // len(images))
        error = _excess(reading, file_bytes, needed, f"a batch of {task.batch_size} images")
        if error is not None:
            raise ArgumentError("path", f"smaller images ({error})", task.name) from error
