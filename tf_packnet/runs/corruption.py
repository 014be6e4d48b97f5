"""What to do about files that are not as they were written, and which these are."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tf_packnet.errors import CorruptionError
from tf_packnet.system import files

RECOMPUTE, FAIL = "recompute", "fail"
Damaged = Callable[[Path], None]


def handler(policy: str, say: Callable[[str], None] | None = None) -> Damaged:
    """What is called with every damaged file: says so, or raises CorruptionError.

    Args:
        policy: `recompute` or `fail`.
        say: Tells a person a line; default on standard error.
    """

    def damaged(path: Path) -> None:
        if policy == FAIL:
            raise CorruptionError(f"{path} is damaged; --on_corruption=recompute makes it again")
        (say or _print)(f"{path} is damaged: what is lost is made again")

    return damaged


def _print(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds: whose it is, and a checksum a file.

    Attributes:
        identity: What the folder was made for; also where the file that says so is damaged.
        files: Checksums by path below the folder. Empty while something is being written there.
    """

    identity: Mapping[str, Any]
    files: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, damaged: Damaged) -> "Manifest | None":
        """The manifest at `path`; None if there is none, or it is damaged."""
        value = read_json(path, damaged)
        if value is None:
            return None
        identity, found = value.get("identity"), value.get("files")
        if isinstance(identity, dict) and isinstance(found, dict) and all(map(_is_below, found)):
            return cls(identity, found)
        damaged(path)
        return None

    def write(self, path: Path) -> None:
        """Writes it, atomically."""
        files.write_json(path, {"identity": dict(self.identity), "files": dict(self.files)})

    def wrong(self, root: Path) -> list[Path]:
        """The files below `root` that are not as they were written, or are gone."""
        return [root / name for name, checksum in self.files.items() if _checksum(root / name) != checksum]


def checksums(root: Path, parts: Iterable[Path]) -> dict[str, str]:
    """Checksums of the files and of all that lies in the folders `parts`, by their path below `root`."""
    found: dict[str, str] = {}
    for part in parts:
        paths = sorted(part.rglob("*")) if part.is_dir() else [part]
        found.update({path.relative_to(root).as_posix(): files.sha256(path) for path in paths if path.is_file()})
    return found


def read_json(path: Path, damaged: Damaged) -> dict[str, Any] | None:
    """What `files.write_json` wrote; None if it is not there or, which `damaged` is told, not as it was written."""
    try:
        return files.read_json(path)
    except OSError:
        return None
    except files.DamagedError:
        damaged(path)
        return None


def _is_below(name: str) -> bool:
    """Whether a path of a manifest stays in its folder."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _checksum(path: Path) -> str | None:
    try:
        return files.sha256(path)
    except OSError:
        return None
