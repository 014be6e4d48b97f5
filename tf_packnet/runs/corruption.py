"""Damaged files: how they are detected and reported."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tf_packnet.errors import CorruptionError
from tf_packnet.system import files

RECOMPUTE, FAIL = "recompute", "fail"
OnDamaged = Callable[[Path | str], None]  # a file, or the URL of an object


def handler(policy: str, log: Callable[[str], None] | None = None) -> OnDamaged:
    """Return the function to call with every damaged file or object: it logs a line, or raises CorruptionError.

    Args:
        policy: `recompute` or `fail`. A non-empty folder in the place of a file is always an error: it is never
            deleted.
        log: Shows a line; default: prints it on standard error.
    """

    def on_damaged(path: Path | str) -> None:
        reason = files.problem(path) if isinstance(path, Path) else ""
        damaged = f"{path} is damaged ({reason})" if reason else f"{path} is damaged"
        if policy == FAIL:
            raise CorruptionError(f"{damaged}; --on_corruption=recompute recomputes it")
        if isinstance(path, Path) and files.is_occupied(path):
            raise CorruptionError(f"{damaged}; move this folder away, then the file is recomputed")
        (log or print_line)(f"{damaged} and will be recomputed")

    return on_damaged


def ignore(path: Path | str) -> None:
    """Do nothing: the `on_damaged` for damaged files that are reported elsewhere."""


def print_line(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Manifest:
    """The content of `checksums.json` in an output directory.

    Attributes:
        identity: The run or experiment that the directory belongs to. The manifest repeats it in case `results.json` or
            `experiment.json` is damaged.
        files: Checksums by path relative to the directory. Empty while the directory is being written: a manifest with
            checksums is written last, when all other files are complete.
        stages: Keys of the stages of a run, to find them in a store that several runs share.
    """

    identity: Mapping[str, Any]
    files: Mapping[str, str]
    stages: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path, on_damaged: OnDamaged) -> "Manifest | None":
        """Read the manifest at `path`; None if it is missing or damaged."""
        content = read_json(path, on_damaged)
        if content is None:
            return None
        identity, sums, stages = content.get("identity"), content.get("files"), content.get("stages", [])
        if isinstance(identity, dict) and isinstance(sums, dict) and isinstance(stages, list):  # noqa: SIM102
            if all(_is_inside(name) for names in (sums, stages) for name in names):
                return cls(identity, sums, tuple(stages))
        on_damaged(path)
        return None

    def write(self, path: Path) -> None:
        """Write the manifest, atomically."""
        content = {"identity": dict(self.identity), "files": dict(self.files), "stages": list(self.stages)}
        files.write_json(path, content)

    def damaged_files(self, root: Path, deletable: Path | None = None) -> list[Path]:
        """Return the files below `root` that are missing or differ from their checksums.

        Args:
            root: The output directory.
            deletable: A folder in `root` that users may delete. If it is gone, its files do not count as missing.
        """
        deleted = deletable is not None and files.kind(deletable) == files.MISSING
        paths = {root / name: checksum for name, checksum in self.files.items()}
        return [
            path
            for path, checksum in paths.items()
            if not (deleted and deletable in path.parents) and _checksum(path) != checksum
        ]


def checksums(root: Path, paths: Iterable[Path], include: Callable[[Path], bool] = lambda path: True) -> dict[str, str]:
    """Compute checksums of files, and of all files in folders, by path relative to `root`.

    Args:
        root: The output directory.
        paths: Files and folders in it. Those that do not exist are left out.
        include: Whether a file is part of the output. Default: all are.
    """
    sums: dict[str, str] = {}
    for path in paths:
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        chosen = [file for file in members if files.kind(file) == files.FILE and include(file)]
        sums.update({file.relative_to(root).as_posix(): files.sha256(file) for file in chosen})
    return sums


def read_json(path: Path, on_damaged: OnDamaged) -> dict[str, Any] | None:
    """Read a file that `files.write_json` wrote; None if it is missing or damaged.

    Damage is reported to `on_damaged`.
    """
    try:
        return files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, files.DamagedError):
        on_damaged(path)
        return None


def _is_inside(name: Any) -> bool:
    """Whether a path of a manifest stays inside the directory."""
    if not isinstance(name, str):
        return False
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _checksum(path: Path) -> str | None:
    try:
        return files.sha256(path)
    except OSError:
        return None
