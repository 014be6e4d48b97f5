"""Bounds the memory that opening a file may take: what a file claims is checked before anything is allocated."""

import errno
import io
import json
import os
import stat
from typing import IO, Any

# Memory in bytes that opening a file may take. TensorFlow itself takes 70 MB more for the first network. Enough for
# sparse packs of 8.8 million weights, such as the paper's convolutional network; the bound of denser packs is larger.
DEFAULT = 320_000_000
# Larger files may take this multiple of their own size. A pack takes about 36 bytes of memory for a weight while it is
# loaded; its file has at least one byte for each weight if a third of the weights is owned by tasks. Photographs are
# compressed 10 to 20 times, and three copies of a data set exist while it is split.
PACK_RATIO, ARRAY_RATIO, IMAGE_RATIO = 32, 4, 64


class SizeError(ValueError):
    """A file claims more memory than it may take. The message names what is too large and how to allow it."""


class Bound:
    """The memory that opening a file may take.

    Args:
        max_bytes: The bound in bytes; None for the default, which depends on the size of the file.
        file_bytes: Size of the file.
        ratio: Largest ratio of memory to file size.
    """

    def __init__(self, max_bytes: int | None = None, file_bytes: int = 0, ratio: int = ARRAY_RATIO):
        self.is_explicit = max_bytes is not None
        self.max_bytes = max(DEFAULT, ratio * file_bytes) if max_bytes is None else max_bytes

    @classmethod
    def of_file(cls, path: str | os.PathLike, max_bytes: int | None = None, ratio: int = ARRAY_RATIO) -> "Bound":
        """Return the bound for a file. Holes in it do not count.

        Raises:
            OSError: If there is no such file.
        """
        status = os.stat(path)
        return cls(max_bytes, min(status.st_size, status.st_blocks * 512 or status.st_size), ratio)

    def check(self, needed: int, what: str) -> None:
        """Raise SizeError if `what` would take more memory than the bound.

        Args:
            needed: The memory in bytes.
            what: What claims it, such as `part 'shared'`.
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
    """Open a file for reading, but no device, pipe or folder, which could have no end. Never blocks.

    Args:
        path: The file.
        follow: Whether it may be a link to a file.

    Raises:
        OSError: If there is no such file, or it cannot be read.
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
