"""Reads `.npz` files that anyone may have made: no code is run, and nothing is allocated for what is not there."""

import math
import os
import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

from tf_packnet.errors import ArgumentError

# What zipfile, zlib and NumPy raise on bytes that are no archive of arrays.
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, IndexError, SyntaxError),
    *(NotImplementedError, RuntimeError, RecursionError, MemoryError, OverflowError, OSError, tokenize.TokenError),
)
# What zlib makes of a byte, at most.
_EXPANDS = 1032
# The longest description of an array that is read: NumPy writes 128 bytes.
_LONGEST_HEADER = 4096


def read_arrays(path: str | os.PathLike, argument: str, dtype: str, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name.

    Args:
        path: The file.
        argument: What the error names.
        dtype: The one dtype that all of them have.
        max_bytes: How much memory they may take in all.

    Raises:
        ArgumentError: If the file is no archive of such arrays, is damaged, or holds more than `max_bytes`.
        OSError: If there is no such file, or it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return _read(file, np.dtype(dtype), max_bytes)
        except _Unfit as error:
            reason = str(error)
        except BROKEN as error:
            reason = f"it is damaged, or something else: {type(error).__name__}"
    raise ArgumentError(argument, f"an .npz file of {dtype} arrays ({reason})", os.fspath(path))


class _Unfit(Exception):  # noqa: N818  it only carries the reason
    """Why an archive is refused."""


def _read(file: IO[bytes], dtype: np.dtype, max_bytes: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # As the directory has it: zipfile reads no more than that of a member, however much it expands to.
        total = sum(member.file_size for member in members)
        if total > max_bytes:
            raise _Unfit(f"this one holds {total:,} bytes, at most {max_bytes:,} are read")
        for member in members:
            if member.file_size > _EXPANDS * member.compress_size + _LONGEST_HEADER:
                raise _Unfit(f"{member.filename[:100]!r} claims more than can be in it")
        if len({member.filename for member in members}) < len(members):
            raise _Unfit("this one has two of one name")
        return {member.filename.removesuffix(".npy"): _array(archive, member, dtype) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, in_columns, found = reader(file, max_header_size=_LONGEST_HEADER)
        if found != dtype:
            raise _Unfit(f"{member.filename[:100]!r} is of {found}")
        # Before anything is allocated: what the header claims is what is there.
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise _Unfit(f"{member.filename[:100]!r} claims another size than it has")
        values = np.frombuffer(file.read(), dtype)
        return values.reshape(shape, order="F" if in_columns else "C").copy()
