"""Reads `.npz` files from untrusted sources: no code is run, and no more memory is allocated than the data take."""

import math
import os
import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

from tf_packnet.errors import ArgumentError

# What zipfile, zlib and NumPy raise when they read a damaged archive.
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, IndexError, SyntaxError),
    *(NotImplementedError, RuntimeError, RecursionError, MemoryError, OverflowError, OSError, tokenize.TokenError),
)
# Largest compression ratio of zlib.
_MAX_RATIO = 1032
# Largest header of an array, in bytes; NumPy writes 128.
_MAX_HEADER = 4096


def read_arrays(path: str | os.PathLike, argument: str, dtype: str, max_bytes: int) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file.

    Args:
        path: The file.
        argument: The argument to name in errors.
        dtype: The dtype that all arrays must have.
        max_bytes: Maximum size of all arrays together, in bytes.

    Returns:
        The arrays, by name.

    Raises:
        ArgumentError: If the file is damaged, contains anything but such arrays, or is larger than `max_bytes`.
        OSError: If the file does not exist or cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return _read(file, np.dtype(dtype), max_bytes)
        except _InvalidArchiveError as error:
            reason = str(error)
        except BROKEN as error:
            reason = f"it is damaged or in another format: {type(error).__name__}"
    raise ArgumentError(argument, f"an .npz file of {dtype} arrays ({reason})", os.fspath(path))


class _InvalidArchiveError(Exception):
    """An archive with unexpected contents; the message says which."""


def _read(file: IO[bytes], dtype: np.dtype, max_bytes: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # zipfile reads no more of a member than the size in the directory.
        total = sum(member.file_size for member in members)
        if total > max_bytes:
            raise _InvalidArchiveError(f"this one has {total:,} bytes, more than the maximum of {max_bytes:,}")
        for member in members:
            if member.file_size > _MAX_RATIO * member.compress_size + _MAX_HEADER:
                raise _InvalidArchiveError(f"{member.filename[:100]!r} declares more bytes than it can contain")
        if len({member.filename for member in members}) < len(members):
            raise _InvalidArchiveError("this one has two arrays with the same name")
        return {member.filename.removesuffix(".npy"): _array(archive, member, dtype) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran_order, actual_dtype = reader(file, max_header_size=_MAX_HEADER)
        if actual_dtype != dtype:
            raise _InvalidArchiveError(f"{member.filename[:100]!r} has the dtype {actual_dtype}")
        # Check the declared size before anything is allocated.
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise _InvalidArchiveError(f"{member.filename[:100]!r} declares a size other than its own")
        values = np.frombuffer(file.read(), dtype)
        return values.reshape(shape, order="F" if is_fortran_order else "C").copy()
