"""The bytes of a pack file: a header, a directory, the parts one after another. Every byte is under a checksum."""

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tf_packnet.errors import PackFileError
from tf_packnet.packfile.coding import ITEM_BYTES, from_planes, nbytes, to_planes

MAGIC = b"\x89PACKNET"
# 2 since tasks have state and a witness; files of version 1 are read.
VERSION = 2
# magic, version, stored and plain length of the directory; the SHA-256 of all this and of the stored directory follows.
_HEADER = struct.Struct("<8sIII")
_HASH_BYTES = 32
HEADER_BYTES = _HEADER.size + _HASH_BYTES
# What a directory may take: a thousand weights and 254 tasks fit.
MAX_DIRECTORY = 2**26
# zlib makes nothing smaller than this.
_MAX_RATIO = 1032


class ArrayEntry(NamedTuple):
    """An array in a part: `kind` says what it is, `name` whose."""

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]


class Part(NamedTuple):
    """One part of a pack file.

    Attributes:
        name: `model`, `shared`, `task 1`, ..., or `free`.
        stored: Bytes in the file.
        plain: Bytes when unpacked.
        sha256: Of the stored bytes, as hexadecimal digits.
        arrays: What is in it, in order.
    """

    name: str
    stored: int
    plain: int
    sha256: str
    arrays: tuple[ArrayEntry, ...]


def pack_part(name: str, arrays: Iterable[tuple[str, str, np.ndarray]]) -> tuple[Part, bytes]:
    """A part of `(kind, name, array)`, and its bytes."""
    entries, packer, stored, plain = [], zlib.compressobj(), io.BytesIO(), 0
    for kind, whose, array in arrays:
        data = to_planes(array)
        plain += len(data)
        entries.append(ArrayEntry(kind, whose, array.dtype.name, array.shape))
        stored.write(packer.compress(data))
    stored.write(packer.flush())
    data = stored.getvalue()
    return Part(name, len(data), plain, hashlib.sha256(data).hexdigest(), tuple(entries)), data


def write(path: str | os.PathLike, directory: dict[str, Any], parts: list[tuple[Part, bytes]]) -> None:
    """Writes a pack file: `directory` with what `parts` are, then their bytes."""
    plain = json.dumps({**directory, "parts": [_entry(part) for part, _ in parts]}, separators=(",", ":")).encode()
    stored = zlib.compress(plain)
    header = _HEADER.pack(MAGIC, VERSION, len(stored), len(plain))
    with open(path, "wb") as file:
        file.write(header + hashlib.sha256(header + stored).digest() + stored)
        file.writelines(data for _, data in parts)


def _entry(part: Part) -> dict[str, Any]:
    return {**part._asdict(), "arrays": [list(array) for array in part.arrays]}


class PackFile:
    """An open pack file: its directory has been read and checked, its parts are read when asked for.

    Raises:
        PackFileError: If it is no pack file, of a later version, damaged or cut short.
    """

    def __init__(self, path: str | os.PathLike, file: BinaryIO):
        self.path = path
        self._file = file
        self.directory, self._first = self._read_directory()

    def _read_directory(self) -> tuple[Any, int]:
        header = self._file.read(HEADER_BYTES)
        if header[: len(MAGIC)] != MAGIC:
            raise PackFileError(self.path, "header", "is that of no pack file")
        if len(header) < HEADER_BYTES:
            raise PackFileError(self.path, "header", "is cut short")
        _, version, stored, plain = _HEADER.unpack(header[: _HEADER.size])
        if not 1 <= version <= VERSION:
            raise PackFileError(
                self.path,
                "header",
                f"says format {version}, and this version of tf_packnet reads formats 1 to {VERSION}"
                + (": a later one is needed" if version > VERSION else ""),
            )
        if stored > MAX_DIRECTORY or plain > MAX_DIRECTORY:
            raise PackFileError(self.path, "directory", f"claims more than {MAX_DIRECTORY} bytes")
        data = self._file.read(stored)
        if len(data) < stored:
            raise PackFileError(self.path, "directory", "is cut short")
        if hashlib.sha256(header[: _HEADER.size] + data).digest() != header[_HEADER.size :]:
            raise PackFileError(self.path, "directory", "is damaged: its checksum does not fit")
        text = self._unpacked("directory", data, plain)
        try:
            return json.loads(text), HEADER_BYTES + stored
        except (ValueError, RecursionError) as error:
            raise PackFileError(self.path, "directory", "is no JSON") from error

    def check_length(self, parts: Iterable[Part]) -> None:
        """Raises PackFileError unless the file ends where its last part does."""
        length, end = os.fstat(self._file.fileno()).st_size, self._first
        for part in parts:
            end += part.stored
            if length < end:
                raise PackFileError(self.path, f"part {part.name!r}", "is cut short")
        if length > end:
            raise PackFileError(self.path, "end", f"is followed by {length - end} bytes that belong to no part")

    def arrays(self, part: Part, before: int) -> dict[tuple[str, str], np.ndarray]:
        """The arrays of a part by kind and name.

        Args:
            part: The part.
            before: Stored bytes of the parts before it.
        """
        name = f"part {part.name!r}"
        self._file.seek(self._first + before)
        data = self._file.read(part.stored)
        if len(data) < part.stored:
            raise PackFileError(self.path, name, "is cut short")
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise PackFileError(self.path, name, "is damaged: its checksum does not fit")
        plain, start, found = memoryview(self._unpacked(name, data, part.plain)), 0, {}
        for entry in part.arrays:
            end = start + nbytes(entry.dtype, entry.shape)
            found[entry.kind, entry.name] = from_planes(plain[start:end], entry.dtype, entry.shape)
            start = end
        return found

    def _unpacked(self, name: str, data: bytes, plain: int) -> bytes:
        if plain > _MAX_RATIO * len(data):
            raise PackFileError(self.path, name, f"claims {plain} bytes, more than can be in it")
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(data, plain + 1)
        except zlib.error as error:
            raise PackFileError(self.path, name, "cannot be unpacked") from error
        if len(found) != plain or not unpacker.eof or unpacker.unused_data:
            raise PackFileError(self.path, name, f"does not unpack to the {plain} bytes that it claims")
        return found


def check_arrays(arrays: Iterable[ArrayEntry], plain: int) -> str | None:
    """What is wrong with the arrays of a part of `plain` bytes, None if nothing is."""
    total = 0
    for entry in arrays:
        if entry.dtype not in ITEM_BYTES:
            return f"has an array of the unknown dtype {entry.dtype!r}"
        total += nbytes(entry.dtype, entry.shape)
    return None if total == plain else f"claims {plain} bytes, and its arrays take {total}"
