"""Bounds the memory for opening a file: the sizes that the file declares are checked before memory is allocated."""

import errno
import io
import json
import os
import stat
from typing import IO, Any

# Default limit in bytes on the memory for opening a file. TensorFlow takes another 70 MB for the first network. The
# limit suffices for sparse packs of 8.8 million weights, such as the paper's convolutional network; denser packs have
# larger files and thus a larger limit.
DEFAULT = 320_000_000
# Limit for larger files, as a multiple of their size. Loading a pack takes about 36 bytes of memory per weight; its
# file has at least one byte per weight if tasks own a third of the weights. Photographs are compressed by a factor of
# 10 to 20, and three copies of a data set exist while it is split.
PACK_RATIO, ARRAY_RATIO, IMAGE_RATIO = 32, 4, 64


class SizeError(ValueError):
    """A file declares more memory than the limit. The message says what is too large and how to allow it."""


class Bound:
    """Limit on the memory for opening a file.

    Args:
        max_bytes: The limit in bytes; None for `DEFAULT`, or `ratio` times the size of the file if that is more.
        file_bytes: Size of the file in bytes.
        ratio: Maximum ratio of memory to file size for larger files.
    """

    def __init__(self, max_bytes: int | None = None, file_bytes: int = 0, ratio: int = ARRAY_RATIO):
        self.is_explicit = max_bytes is not None
        self.max_bytes = max(DEFAULT, ratio * file_bytes) if max_bytes is None else max_bytes

    @classmethod
    def of_file(cls, path: str | os.PathLike, max_bytes: int | None = None, ratio: int = ARRAY_RATIO) -> "Bound":
        """Return the bound for a file. Holes of a sparse file do not count as part of its size.

        Raises:
            OSError: If there is no such file.
        """
        status = os.stat(path)
        return cls(max_bytes, min(status.st_size, status.st_blocks * 512 or status.st_size), ratio)

    def check(self, needed: int, what: str) -> None:
        """Raise SizeError if `what` would take more memory than the bound.

        Args:
            needed: The memory in bytes.
            what: What needs the memory, such as `part 'shared'`.
        """
        if needed > self.max_bytes:
            raise SizeError(
                f"{what} would take {needed:,} bytes of memory, more than the bound of {self.max_bytes:,}; "
                f"max_bytes={needed} allows it"
            )

    def parsed(self, text: bytes, what: str) -> Any:
        """Parse JSON.

        Raises:
            SizeError: If the values would take too much memory.
            ValueError: If the text is not valid JSON.
        """
        lists, entries = text.count(b"[") + text.count(b"{"), text.count(b",")
        self.check(4 * len(text) + 72 * lists + 64 * entries + 128 * text.count(b":"), what)
        try:
            return json.loads(text.decode())
        except RecursionError as error:
            raise ValueError(f"{what} is nested too deeply") from error


def open_regular(path: str | os.PathLike, follow: bool = True) -> io.FileIO:
    """Open a regular file for reading, without blocking. Devices and pipes are refused, because they may be endless.

    Args:
        path: The file.
        follow: Whether `path` may be a link to a file.

    Raises:
        OSError: If there is no such file, it cannot be read, or it is not a regular file.
        ValueError: If the path has a null byte.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    file = io.FileIO(os.open(path, flags))
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "not a regular file", os.fspath(path))
    return file


def read_json(path: str | os.PathLike, max_bytes: int | None = None) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If the text is not valid JSON, or would take more than `max_bytes` of memory.
    """
    with open_regular(path) as file:
        return parsed_json(file, max_bytes)


def parsed_json(file: IO[bytes], max_bytes: int | None = None) -> Any:
    """Parse an open JSON file, see `read_json`."""
    size, bound, name = os.fstat(file.fileno()).st_size, Bound(max_bytes), str(file.name)
    bound.check(4 * size, name)
    return bound.parsed(file.read(size), name)
