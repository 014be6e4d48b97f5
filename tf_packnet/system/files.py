"""Writes files atomically: to a temporary name, synced, then renamed. JSON files contain a checksum."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tf_packnet.system import limits

UNFINISHED = ".unfinished"
CHECKSUM = "checksum"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Replace a file or a folder atomically.

    If the block raises an exception, `path` stays unchanged.

    Args:
        path: The file or folder to replace or create.

    Yields:
        A temporary path in the same folder, to write to. It is renamed to `path` when the block ends.
    """
    path = Path(path)
    with _workspace(path) as workspace:
        # With the suffix of `path`, by which some writers choose the format.
        temporary = workspace / path.name
        yield temporary
        _sync(temporary)
        if path.is_dir():  # a folder cannot be renamed to one that is not empty, so move the old one first
            path.rename(workspace / "old")
        os.replace(temporary, path)
        _sync_one(path.parent)


@contextlib.contextmanager
def rewriting(path: str | os.PathLike, spare: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Replace a file atomically, reusing the disk blocks of another file.

    For files that are written again and again this takes two thirds of the CPU time of `replacing`, because blocks and
    pages are allocated already. If the block raises an exception, `spare` is removed and `path` stays unchanged.

    Args:
        path: The file to replace or create.
        spare: A file in the same folder to overwrite; created if it does not exist.

    Yields:
        The file to write to, from its beginning. It is renamed to `path` when the block ends.
    """
    path, spare = Path(path), Path(spare)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(spare, "r+b" if spare.exists() else "w+b") as file:
            yield file
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(spare, path)
        _sync_one(path.parent)
    except BaseException:
        spare.unlink(missing_ok=True)
        raise


def unfinished(path: str | os.PathLike) -> list[Path]:
    """Temporary files and folders left by a process that was killed while it replaced or rewrote `path`."""
    path = Path(path)
    return sorted(path.parent.glob(f".{path.name}.*"))


def remove_unfinished(path: str | os.PathLike) -> None:
    """Remove what `unfinished` returns. No other process may be writing `path`."""
    for leftover in unfinished(path):
        _remove(leftover)


def remove_all_unfinished(folder: str | os.PathLike) -> None:
    """Remove temporary files of killed processes in `folder`. No other process may be writing there."""
    for leftover in Path(folder).glob(f".*{UNFINISHED}"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 checksum of a file, in hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()


class DamagedError(ValueError):
    """The content of a file has changed since it was written."""


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON with a checksum, atomically."""
    with replacing(path) as temporary:
        text = json.dumps({**value, CHECKSUM: _digest(value)}, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file written by `write_json`, or by an earlier version that wrote no checksum.

    Raises:
        OSError: If the file does not exist.
        DamagedError: If it is damaged.
    """
    try:
        value = limits.read_json(path)
        checksum = value.pop(CHECKSUM, None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged") from error
    if checksum is not None and checksum != _digest(value):
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    return value


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """Make a temporary folder next to `path`, and remove it after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(UNFINISHED, f".{path.name}.", path.parent))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
