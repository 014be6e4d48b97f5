"""Damaged files: how they are detected and reported."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tf_packnet.errors import CorruptionError
from tf_packnet.system import files

RECOMPUTE, FAIL = "recompute", "fail"
OnDamaged = Callable[[Path], None]


def handler(policy: str, log: Callable[[str], None] | None = None) -> OnDamaged:
    """Return the function to call with every damaged file: it logs a line, or raises CorruptionError.

    Args:
        policy: `recompute` or `fail`.
        log: Shows a line; default: prints it on standard error.
    """

    def on_damaged(path: Path) -> None:
        if policy == FAIL:
            raise CorruptionError(f"{path} is damaged; --on_corruption=recompute recomputes it")
        (log or _print)(f"{path} is damaged and will be recomputed")

    return on_damaged


def ignore(path: Path) -> None:
    """Do nothing: an `on_damaged` for damaged files that are reported elsewhere."""


def _print(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Manifest:
    """The content of `checksums.json` in an output directory.

    Attributes:
        identity: The run or experiment that the directory belongs to. Still known when its own file is damaged.
        files: Checksums by path relative to the directory. Empty while the directory is being written.
    """

    identity: Mapping[str, Any]
    files: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, on_damaged: OnDamaged) -> "Manifest | None":
        """Read the manifest at `path`; None if it is missing or damaged."""
        content = read_json(path, on_damaged)
        if content is None:
            return None
        identity, sums = content.get("identity"), content.get("files")
        if isinstance(identity, dict) and isinstance(sums, dict) and all(map(_is_inside, sums)):
            return cls(identity, sums)
        on_damaged(path)
        return None

    def write(self, path: Path) -> None:
        """Write the manifest, atomically."""
        files.write_json(path, {"identity": dict(self.identity), "files": dict(self.files)})

    def damaged_files(self, root: Path) -> list[Path]:
        """Return the files below `root` that are missing or differ from their checksums."""
        return [root / name for name, checksum in self.files.items() if _checksum(root / name) != checksum]


def checksums(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Compute checksums of files, and of all files in folders, by path relative to `root`."""
    sums: dict[str, str] = {}
    for path in paths:
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        sums.update({file.relative_to(root).as_posix(): files.sha256(file) for file in members if file.is_file()})
    return sums


def read_json(path: Path, on_damaged: OnDamaged) -> dict[str, Any] | None:
    """Read a file of `files.write_json`; None if it is missing, or damaged, which is reported to `on_damaged`."""
    try:
        return files.read_json(path)
    except OSError:
        return None
    except files.DamagedError:
        on_damaged(path)
        return None


def _is_inside(name: str) -> bool:
    """Whether a path of a manifest stays inside the directory."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _checksum(path: Path) -> str | None:
    try:
        return files.sha256(path)
    except OSError:
        return None
