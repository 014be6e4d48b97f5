"""Files that are either there, whole, or not there: written beside, synced, renamed into place."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; what is written there takes the name `path` at the end.

    Works for files and folders. If the block raises, the temporary is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        # The name ends as the target's does: writers choose the format by the suffix.
        temporary = workspace / path.name
        yield temporary
        _sync(temporary)
        if path.is_dir():  # a folder cannot be renamed onto a full one: move the old one out of the way first
            path.rename(workspace / "old")
        os.replace(temporary, path)
        _sync_one(path.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def unfinished(path: str | os.PathLike) -> list[Path]:
    """Temporary folders that a process left beside `path` when it was killed while replacing it."""
    path = Path(path)
    return sorted(path.parent.glob(f".{path.name}.*"))


def remove_unfinished(path: str | os.PathLike) -> None:
    """Removes what `unfinished` finds. Only while nobody else may be writing `path`."""
    for leftover in unfinished(path):
        shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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
