"""Writes files atomically: to a temporary name, synced, then renamed. JSON files contain a checksum.

Where a file is expected, only a regular file is accepted. Links are not followed, pipes and devices are not opened, and
a folder that is not empty is never deleted to make room for a file.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tf_packnet.system import limits

UNFINISHED = ".unfinished"
CHECKSUM = "checksum"

# Results of `kind`.
FILE, FOLDER, LINK, MISSING = "a file", "a folder", "a link", "missing"
_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFLNK: LINK,
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def kind(path: str | os.PathLike) -> str:
    """Return the kind of the file at `path`, such as `FILE` or `MISSING`, without opening it or following links.

    Raises:
        OSError: If the folder of `path` cannot be searched.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def open_file(path: str | os.PathLike) -> IO[bytes]:
    """Open a regular file for reading. Links are not followed.

    Raises:
        OSError: If the file is missing, cannot be read, or is not a regular file.
    """
    found = kind(path)
    if found not in (FILE, MISSING):
        raise OSError(errno.EINVAL, f"{found}, not a file", os.fspath(path))
    return io.BufferedReader(limits.open_regular(path, follow=False))


def problem(path: str | os.PathLike) -> str:
    """Return in a few words why the file at `path` cannot be read; an empty string if it can."""
    try:
        with open_file(path):
            return ""
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return error.strerror or type(error).__name__


def is_occupied(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that is not empty.

    Raises:
        OSError: If the folder cannot be read.
    """
    return kind(path) == FOLDER and bool(os.listdir(path))


def check_place(path: str | os.PathLike, for_folder: bool = False) -> None:
    """Check that a file, or a folder, can be moved to `path` without deleting anything else.

    Raises:
        OSError: If there is a folder that is not empty where a file belongs, or a file where a folder belongs.
    """
    if for_folder and kind(path) == FILE:
        raise NotADirectoryError(errno.ENOTDIR, "move this file away, a folder belongs there", os.fspath(path))
    if not for_folder and is_occupied(path):
        raise IsADirectoryError(errno.EISDIR, "move this folder away, a file belongs there", os.fspath(path))


def make_place(path: str | os.PathLike, for_folder: bool = False) -> None:
    """Remove a link, pipe, device or empty folder at `path` that would be in the way of a file, or of a folder.

    Raises:
        OSError: As for `check_place`.
    """
    check_place(path, for_folder)
    found = kind(path)
    if found == FOLDER and not for_folder:
        os.rmdir(path)
    elif found not in (MISSING, FOLDER, FILE):
        os.unlink(path)


def remove(path: str | os.PathLike) -> None:
    """Remove a file, or a link, pipe, device or empty folder in its place.

    Raises:
        OSError: If there is a folder that is not empty.
    """
    make_place(path)
    Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, once: bool = False, within: Path | None = None) -> Iterator[Path]:
    """Context manager that replaces a file or a folder atomically.

    If the block raises an exception, `path` stays unchanged.

    Args:
        path: The file or folder to replace or create.
        once: Whether to raise FileExistsError, and leave `path` unchanged, if it already is a file.
        within: The folder for the temporary path, in the same file system. Default: that of `path`.

    Yields:
        A temporary path to write to. It is renamed to `path` when the block ends.

    Raises:
        OSError: As for `check_place`: `path` stays unchanged if it is of the other kind.
        FileExistsError: If `once`, and `path` is a file.
    """
    path = Path(path)
    with workspace(path, within) as folder:
        # With the suffix of `path`, by which some writers choose the format.
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        make_place(path, for_folder=temporary.is_dir())
        if once and _link(temporary, path):
            _sync_one(path.parent)
            return
        if path.is_dir():  # a folder cannot be renamed to one that is not empty, so move the old one first
            path.rename(folder / "old")
        os.replace(temporary, path)
        _sync_one(path.parent)


def move_folder(source: Path, path: Path) -> None:
    """Move a folder to `path` in the same file system, atomically.

    A folder that is at `path` already is moved to a temporary folder next to `source`.

    Raises:
        OSError: As for `check_place`. FileExistsError or FileNotFoundError if another process has changed `path` in the
            meantime.
    """
    _sync(source)
    make_place(path, for_folder=True)
    if path.is_dir():  # a folder cannot be renamed to one that is not empty, so move the old one first
        path.rename(tempfile.mkdtemp(dir=source.parent))
    try:
        os.replace(source, path)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from error
    _sync_one(path.parent)


def _link(source: Path, path: Path) -> bool:
    """Create a hard link to a file. Return False if the file system has no hard links.

    Raises:
        FileExistsError: If `path` exists.
    """
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if kind(path) == FILE:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from error
        return False
    return True


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


@contextlib.contextmanager
def rewriting(path: str | os.PathLike, spare: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Context manager that replaces a file atomically, reusing the disk blocks of another file.

    For files that are rewritten often, this takes two thirds of the CPU time of `replacing`, because blocks and pages
    are already allocated. If the block raises an exception, `spare` is removed and `path` stays unchanged.

    Args:
        path: The file to replace or create.
        spare: A file in the same folder to overwrite. It is created if it does not exist.

    Yields:
        The file `spare`, to be written from its beginning. It is renamed to `path` when the block ends.
    """
    path, spare = Path(path), Path(spare)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_place(spare)
    try:
        with open(spare, "r+b" if spare.exists() else "w+b") as file:
            yield file
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        make_place(path)
        os.replace(spare, path)
        _sync_one(path.parent)
    except BaseException:
        spare.unlink(missing_ok=True)
        raise


def unfinished(path: str | os.PathLike) -> list[Path]:
    """Return temporary files and folders left by a process that was killed while it replaced or rewrote `path`."""
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


def is_unfinished(path: Path) -> bool:
    """Whether `path` has the name of a temporary file."""
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


def _remove(path: Path) -> None:
    if kind(path) == FOLDER:
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 checksum of a file, in hex.

    Raises:
        OSError: As for `open_file`.
    """
    with open_file(path) as file:
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
        OSError: As for `open_file`.
        DamagedError: If the file is not JSON, or its checksum is wrong.
    """
    try:
        with open_file(path) as file:
            value = limits.parsed_json(file)
        checksum = value.pop(CHECKSUM, None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged") from error
    if checksum != _digest(value) if checksum is not None else _has_renamed_checksum(value):
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    return value


def _has_renamed_checksum(value: dict[str, Any]) -> bool:
    """Whether a field with another name contains the checksum: then the name of the field is damaged."""
    texts = {name: text for name, text in value.items() if isinstance(text, str) and len(text) == 64}
    return any(
        text == _digest({other: content for other, content in value.items() if other != name})
        for name, text in texts.items()
    )


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def workspace(path: Path, within: Path | None = None) -> Iterator[Path]:
    """Context manager that makes a temporary folder next to `path`, or in `within`, and removes it after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(UNFINISHED, f".{path.name}.", within or path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
