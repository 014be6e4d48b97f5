"""Finds the versions of a served pack in the file system, without opening them."""

import os
from pathlib import Path
from typing import NamedTuple

from tf_packnet.errors import ArgumentError
from tf_packnet.packfile.opening import kind_of

SAVED_MODEL = "saved_model.pb"
_SUFFIXES = (".packnet", ".keras")


class Source(NamedTuple):
    """A version of a pack in the file system.

    Attributes:
        version: Its number; 1 if the pack is not a folder of versions.
        path: The pack file, or the SavedModel folder.
        stamp: Name, inode, size and modification time of each of its files. It changes when the version is written.
    """

    version: int
    path: Path
    stamp: tuple[tuple[str, int, int, int], ...]


def find(pack: Path) -> list[Source]:
    """List the versions of a pack, the newest first.

    Args:
        pack: A pack file, a SavedModel folder, or a folder of versions: folders named by numbers, each a SavedModel or
            with one pack file in it.
    """
    if not pack.exists():
        return []
    if not pack.is_dir() or (pack / SAVED_MODEL).exists():
        return [Source(1, pack, _stamp(pack))]
    numbers = {int(child.name): child for child in _children(pack) if child.name.isascii() and child.name.isdecimal()}
    return [Source(number, _within(path), _stamp(path)) for number, path in sorted(numbers.items(), reverse=True)]


def check(pack: Path) -> None:
    """Raise ArgumentError unless `pack` is a pack file, a SavedModel folder, or a folder with a version."""
    if not pack.is_dir():
        kind_of(pack)
    elif not find(pack):
        expected = "a pack file, a SavedModel folder, or a folder of versions with the names 1, 2, ..."
        raise ArgumentError("pack", expected, str(pack))


def _within(folder: Path) -> Path:
    """Return the only pack file in the folder of a version, or the folder itself, a SavedModel."""
    if (folder / SAVED_MODEL).exists():
        return folder
    packs = [child for child in _children(folder) if child.suffix in _SUFFIXES and not child.name.startswith(".")]
    return packs[0] if len(packs) == 1 else folder


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it was removed
        return []


def _stamp(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    names = [os.path.join(parent, name) for parent, _, each in os.walk(path) for name in each] or [str(path)]
    stamps = []
    for name in sorted(names):
        try:
            status = os.stat(name)
        except OSError:  # it was removed
            continue
        stamps.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps)
