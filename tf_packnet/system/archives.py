"""Reads `.npz` and `.npy` files from untrusted sources: no code is run, and sizes are checked before allocation."""

import io
import math
import os
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.limits import Bound, SizeError, open_regular

# Exceptions that zipfile, zlib and NumPy raise when they read a damaged archive.
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, IndexError, SyntaxError),
    *(NotImplementedError, RuntimeError, RecursionError, MemoryError, OverflowError, OSError, tokenize.TokenError),
)
# Largest compression ratio of zlib.
_MAX_RATIO = 1032
# Maximum size in bytes of the header of an array; NumPy writes 128.
_MAX_HEADER = 4096
# Maximum sizes in bytes of single reads by zipfile: the directory of 20,000 members, and the end with its comment.
_MAX_READ, _END = 2**21, 2**17
_CHUNK = 2**20
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Maximum number of names in an error message.
_MAX_NAMES = 5


class InvalidFileError(ValueError):
    """A file has unexpected contents. The message describes them."""


class _SmallReads(io.BufferedReader):
    """A file that limits the size of single reads, so that zipfile cannot read a directory of any length."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_READ:
            raise InvalidFileError("its directory is too large")
        return super().read(_END if size is None or size < 0 else size)


@contextmanager
def opened_zip(path: str | os.PathLike, bound: Bound) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP archive whose members together fit into `bound`.

    Raises:
        InvalidFileError: If its directory is inconsistent.
        SizeError: If its members are too large.
        OSError: If the file cannot be opened.
        Exception: Any of `BROKEN`.
    """
    with _SmallReads(open_regular(path)) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # zipfile reads no more of a member than the size in the directory.
        largest = max(members, key=lambda member: member.file_size, default=None)
        if largest is not None:
            others = f" and {len(members) - 1:,} smaller members" if len(members) > 1 else ""
            what = f"member {largest.filename[:100]!r}{others}"
            bound.check(sum(member.file_size for member in members), what)
        for member in members:
            name = member.filename[:100]
            if member.compress_type not in _COMPRESSIONS:
                raise InvalidFileError(f"{name!r} has another compression than deflate")
            if member.file_size > _MAX_RATIO * member.compress_size + _MAX_HEADER:
                raise InvalidFileError(f"{name!r} declares more bytes than it can contain")
        if len({member.filename for member in members}) < len(members):
            raise InvalidFileError("it has two members with the same name")
        yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> io.BytesIO:
    """Read a member of an archive that `opened_zip` has opened.

    Raises:
        Exception: Any of `BROKEN`, if the member is damaged.
    """
    content = io.BytesIO()
    with archive.open(name) as stream:
        shutil.copyfileobj(stream, content, _CHUNK)
    return content


def read_arrays(path: str | os.PathLike, argument: str, dtype: str, max_bytes: int | None) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file.

    Args:
        path: The file.
        argument: The argument to name in errors.
        dtype: The dtype that all arrays must have.
        max_bytes: Maximum size of all arrays together, in bytes; None for `limits.DEFAULT`, or `ARRAY_RATIO` times the
            size of a larger file.

    Returns:
        The arrays, by name.

    Raises:
        ArgumentError: If the file is damaged, contains anything but arrays of `dtype`, or its arrays are larger than
            `max_bytes`.
        OSError: If the file does not exist or cannot be opened.
    """
    bound = Bound.of_file(path, max_bytes)
    open_regular(path).close()
    try:
        return _read_all(path, bound, np.dtype(dtype))
    except (InvalidFileError, SizeError) as error:
        reason = str(error)
    except BROKEN as error:
        reason = f"it is damaged or in another format: {type(error).__name__}"
    raise ArgumentError(argument, f"an .npz file of {dtype} arrays ({reason})", os.fspath(path))


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a file written by `numpy.savez`.

    Raises:
        InvalidFileError: If the file has unexpected contents.
        SizeError: If the arrays are too large.
        Exception: Any of `BROKEN`, if the file is damaged or has another format.
    """
    return _read_all(path, Bound.of_file(path))


def read_array(path: str | os.PathLike, name: str, bound: Bound) -> np.ndarray:
    """Read an array from an `.npy` file, or from an `.npz` file the array `name` or the only array.

    Raises:
        InvalidFileError: If there is no such array, or it has unexpected contents.
        SizeError: If the array is too large.
        Exception: Any of `BROKEN`, if the file is damaged.
    """
    with open_regular(path) as file:
        if file.read(2) != b"PK":
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            bound.check(size, "its array")
            return _array(io.BufferedReader(file), size, os.path.basename(path))
    with opened_zip(path, bound) as archive:
        names = [each.removesuffix(".npy") for each in archive.namelist()]
        if name not in names and len(names) != 1:
            listed = ", ".join(each[:100] for each in names[:_MAX_NAMES]) or "none"
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            raise InvalidFileError(f"it has {listed}{more}")
        return _member_array(archive, archive.infolist()[names.index(name) if name in names else 0])


def _read_all(path: str | os.PathLike, bound: Bound, dtype: np.dtype | None = None) -> dict[str, np.ndarray]:
    with opened_zip(path, bound) as archive:
        return {
            member.filename.removesuffix(".npy"): _member_array(archive, member, dtype) for member in archive.infolist()
        }


def _member_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype | None = None) -> np.ndarray:
    with archive.open(member) as stream:
        return _array(stream, member.file_size, member.filename, dtype)


def _array(stream: IO[bytes], size: int, name: str, dtype: np.dtype | None = None) -> np.ndarray:
    """Read an array in NumPy's format from a stream of `size` bytes, including the header."""
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, is_fortran_order, actual_dtype = reader(stream, max_header_size=_MAX_HEADER)
    if actual_dtype.hasobject or not actual_dtype.itemsize or dtype not in (None, actual_dtype):
        raise InvalidFileError(f"{name[:100]!r} has the dtype {str(actual_dtype)[:100]}")
    # Check the declared size before anything is allocated.
    if math.prod(shape) * actual_dtype.itemsize != size - stream.tell():
        raise InvalidFileError(f"{name[:100]!r} declares a size other than its own")
    values = np.frombuffer(_content(stream, size - stream.tell()), actual_dtype)
    return values.reshape(shape, order="F" if is_fortran_order else "C")


def _content(stream: IO[bytes], size: int) -> bytearray:
    """Read `size` bytes in chunks, and check that the stream ends after them."""
    content, start = bytearray(size), 0
    while start < size:
        chunk = stream.read(min(_CHUNK, size - start))
        if not chunk:
            raise EOFError("the data are cut short")
        content[start : start + len(chunk)] = chunk
        start += len(chunk)
    if stream.read(1):  # also verifies the checksum of a member
        raise InvalidFileError("it has more data than it declares")
    return content
