"""Files that are either there, whole, or not there: written beside, synced, renamed into place.

What has a checksum in it is known as it was written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; what is written there takes the name `path` at the end.

    Works for files and folders. If the block raises, the temporary is removed and `path` stays as it was.
    """
    path = Path(path)
    with _workspace(path) as workspace:
        # The name ends as the target's does: writers choose the format by the suffix.
        temporary = workspace / path.name
        yield temporary
        _sync(temporary)
        if path.is_dir():  # a folder cannot be renamed onto a full one: move the old one out of the way first
            path.rename(workspace / "old")
        os.replace(temporary, path)
        _sync_one(path.parent)


@contextlib.contextmanager
def rewriting(path: str | os.PathLike, spare: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Gives a file to write from its beginning, which takes the name `path` at the end.

    It is written over `spare`, a file in the same folder that nobody needs any more, or a new one of that name. What is
    written again and again takes two thirds of the CPU's time that way: its blocks and pages are there already. If the
    block raises, `spare` is gone and `path` stays as it was.
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
    """What a process left beside `path` when it was killed while replacing or rewriting it."""
    path = Path(path)
    return sorted(path.parent.glob(f".{path.name}.*"))


def remove_unfinished(path: str | os.PathLike) -> None:
    """Removes what `unfinished` finds. Only while nobody else may be writing `path`."""
    for leftover in unfinished(path):
        _remove(leftover)


def remove_all_unfinished(folder: str | os.PathLike) -> None:
    """Removes what killed processes left in `folder`. Only while nobody else may be writing there."""
    for leftover in Path(folder).glob(f".*{UNFINISHED}"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Checksum of a file, in hex."""
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(2**20):
            found.update(chunk)
        return found.hexdigest()


class DamagedError(ValueError):
    """A file is not as it was written."""


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as indented JSON with its own checksum in it, atomically."""
    with replacing(path) as temporary:
        text = json.dumps({**value, CHECKSUM: _digest(value)}, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_json` wrote, or an earlier version of it, which wrote no checksum.

    Raises:
        OSError: If there is no such file.
        DamagedError: If it is not as it was written.
    """
    try:
        if os.stat(path).st_size > LARGEST_JSON:
            raise ValueError("too large")
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        checksum = value.pop(CHECKSUM, None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged") from error
    if checksum is not None and checksum != _digest(value):
        raise DamagedError(f"{path} is damaged: it has another checksum")
    return value


CHECKSUM = "checksum"
# The results of 254 tasks take 3 MB.
LARGEST_JSON = 2**26


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which goes with all that is left in it."""
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
