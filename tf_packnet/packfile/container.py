"""Container format of pack files: a header, a directory and the parts, all covered by checksums."""

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import numpy as np

from tf_packnet.errors import PackFileError
from tf_packnet.packfile.coding import ITEM_BYTES, from_planes, nbytes, to_planes
from tf_packnet.system.limits import Bound, SizeError

MAGIC = b"\x89PACKNET"
# Version 2 added per-task state and witnesses; files of version 1 can be read.
VERSION = 2
# Magic, version, compressed and plain length of the directory. The SHA-256 of these and of the compressed directory
# follows.
_HEADER = struct.Struct("<8sIII")
_HASH_BYTES = 32
HEADER_BYTES = _HEADER.size + _HASH_BYTES
# Largest size of a directory in bytes: enough for a thousand weights and 254 tasks.
MAX_DIRECTORY = 2**26
# The highest compression ratio of zlib.
_MAX_RATIO = 1032


class ArrayEntry(NamedTuple):
    """An array in a part.

    Attributes:
        kind: The kind of the array, one of `directory.KINDS`.
        name: The weight or variable that it belongs to.
        dtype: Name of its dtype.
        shape: Its shape.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]


class Part(NamedTuple):
    """One part of a pack file.

    Attributes:
        name: `model`, `shared`, `task 1`, ..., or `free`.
        stored: Size in the file, in bytes.
        plain: Size when decompressed, in bytes.
        sha256: SHA-256 of the stored bytes, in hexadecimal.
        arrays: Its arrays, in order.
    """

    name: str
    stored: int
    plain: int
    sha256: str
    arrays: tuple[ArrayEntry, ...]


def pack_part(name: str, arrays: Iterable[tuple[str, str, np.ndarray]]) -> tuple[Part, bytes]:
    """Compress arrays into a part.

    Args:
        name: Name of the part.
        arrays: Kind, name and value of each array.

    Returns:
        The description of the part, and its bytes.
    """
    entries, compressor, compressed, plain = [], zlib.compressobj(), io.BytesIO(), 0
    for kind, array_name, array in arrays:
        data = to_planes(array)
        plain += len(data)
        entries.append(ArrayEntry(kind, array_name, array.dtype.name, array.shape))
        compressed.write(compressor.compress(data))
    compressed.write(compressor.flush())
    data = compressed.getvalue()
    return Part(name, len(data), plain, hashlib.sha256(data).hexdigest(), tuple(entries)), data


def write(path: str | os.PathLike, directory: dict[str, Any], parts: list[tuple[Part, bytes]]) -> None:
    """Write a pack file: the directory, with the descriptions of the parts, and then the bytes of the parts."""
    plain = json.dumps({**directory, "parts": [_entry(part) for part, _ in parts]}, separators=(",", ":")).encode()
    stored = zlib.compress(plain)
    header = _HEADER.pack(MAGIC, VERSION, len(stored), len(plain))
    with open(path, "wb") as file:
        file.write(header + hashlib.sha256(header + stored).digest() + stored)
        file.writelines(data for _, data in parts)


def _entry(part: Part) -> dict[str, Any]:
    return {**part._asdict(), "arrays": [list(array) for array in part.arrays]}


class PackFile:
    """An open pack file. The directory is read and checked on construction, parts are read on request.

    Args:
        path: Path of the file, for error messages.
        file: The file, opened for reading in binary mode.
        bound: Limit on the memory for reading it.

    Attributes:
        bound: The argument.
        directory: The directory as parsed JSON.

    Raises:
        PackFileError: If the file is not a pack file, is damaged or truncated, or has a later version.
    """

    def __init__(self, path: str | os.PathLike, file: IO[bytes], bound: Bound):
        self.path = path
        self.bound = bound
        self._file = file
        self.directory, self._first = self._read_directory()

    def _read_directory(self) -> tuple[Any, int]:
        header = self._file.read(HEADER_BYTES)
        if header[: len(MAGIC)] != MAGIC:
            raise PackFileError(self.path, "header", "is not that of a pack file")
        if len(header) < HEADER_BYTES:
            raise PackFileError(self.path, "header", "is cut short")
        _, version, stored, plain = _HEADER.unpack(header[: _HEADER.size])
        if not 1 <= version <= VERSION:
            raise PackFileError(
                self.path,
                "header",
                f"has format version {version}, but this version of tf_packnet reads versions 1 to {VERSION}"
                + (": upgrade tf_packnet" if version > VERSION else ""),
            )
        if stored > MAX_DIRECTORY or plain > MAX_DIRECTORY:
            raise PackFileError(self.path, "directory", f"claims to be larger than {MAX_DIRECTORY} bytes")
        data = self._file.read(stored)
        if len(data) < stored:
            raise PackFileError(self.path, "directory", "is cut short")
        if hashlib.sha256(header[: _HEADER.size] + data).digest() != header[_HEADER.size :]:
            raise PackFileError(self.path, "directory", "is damaged: its checksum does not match")
        text = self._decompressed("directory", data, plain)
        try:
            return self.bound.parsed(text, "it"), HEADER_BYTES + stored
        except SizeError as error:
            raise PackFileError(self.path, "directory", f"is too large: {error}") from error
        except ValueError as error:
            raise PackFileError(self.path, "directory", "is not valid JSON") from error

    def check_length(self, parts: Iterable[Part]) -> None:
        """Raise PackFileError unless the file ends with its last part."""
        length, end = os.fstat(self._file.fileno()).st_size, self._first
        for part in parts:
            end += part.stored
            if length < end:
                raise PackFileError(self.path, f"part {part.name!r}", "is cut short")
        if length > end:
            raise PackFileError(self.path, "end", f"is followed by {length - end} extra bytes")

    def arrays(self, part: Part, before: int) -> dict[tuple[str, str], np.ndarray]:
        """Read the arrays of a part, by kind and name.

        Args:
            part: The part.
            before: Total stored size of the parts before it, in bytes.

        Raises:
            PackFileError: If the part is damaged.
        """
        name = f"part {part.name!r}"
        self._file.seek(self._first + before)
        data = self._file.read(part.stored)
        if len(data) < part.stored:
            raise PackFileError(self.path, name, "is cut short")
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise PackFileError(self.path, name, "is damaged: its checksum does not match")
        plain, start, arrays = memoryview(self._decompressed(name, data, part.plain)), 0, {}
        for entry in part.arrays:
            end = start + nbytes(entry.dtype, entry.shape)
            try:
                arrays[entry.kind, entry.name] = from_planes(plain[start:end], entry.dtype, entry.shape)
            except ValueError as error:  # an empty array with an axis too long for NumPy
                raise PackFileError(self.path, name, f"has an array of shape {entry.shape}") from error
            start = end
        return arrays

    def _decompressed(self, name: str, data: bytes, plain: int) -> bytes:
        if plain > _MAX_RATIO * len(data):
            raise PackFileError(self.path, name, f"claims {plain} bytes, more than its stored bytes can hold")
        decompressor = zlib.decompressobj()
        try:
            content = decompressor.decompress(data, plain + 1)
        except zlib.error as error:
            raise PackFileError(self.path, name, "cannot be decompressed") from error
        if len(content) != plain or not decompressor.eof or decompressor.unused_data:
            raise PackFileError(self.path, name, f"does not decompress to the {plain} bytes that it claims")
        return content


def problem_with_arrays(arrays: Iterable[ArrayEntry], plain: int) -> str | None:
    """Describe what is wrong with the arrays of a part of `plain` bytes; None if they are valid."""
    total = 0
    for entry in arrays:
        if entry.dtype not in ITEM_BYTES:
            return f"has an array of unknown dtype {entry.dtype!r}"
        total += nbytes(entry.dtype, entry.shape)
    return None if total == plain else f"claims {plain} bytes, but its arrays take {total}"
