"""Whose is this output directory? Answered before any work, and without touching it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tf_packnet.errors import ArgumentError
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import Manifest
from tf_packnet.runs.paths import RunPaths, folder
from tf_packnet.runs.results import read_results
from tf_packnet.system import files


def check(config: Config) -> dict[str, Any] | None:
    """Checks that `config` may write where it wants to, and that what is there is as it was written.

    Returns:
        The results that are there already, if this very run was completed and nothing of it is damaged; else None.

    Raises:
        ArgumentError: If the directory cannot be written, or holds another run or anything else.
        CorruptionError: If something is damaged, and `on_corruption` is `fail`.
    """
    paths = RunPaths(folder(config.where()))
    if is_new(paths.root):
        return None
    damaged = corruption.handler(config.on_corruption)
    manifest = Manifest.read(paths.manifest, damaged)
    earlier = read_results(paths.results, "output_dir", damaged)
    if earlier is None and manifest is None:
        raise ArgumentError("output_dir", "a new or empty folder, or that of the same run", str(paths.root))
    check_same(paths.root, "run", config.identity(), earlier["config"] if earlier else manifest.identity)
    if earlier is None or not earlier["complete"]:
        return None
    if manifest is None:  # earlier versions wrote none
        return earlier if earlier.get("schema_version", 1) == 1 else None
    wrong = [path for path in manifest.wrong(paths.root) if paths.stages.exists() or paths.stages not in path.parents]
    return None if report_damage(wrong, damaged) else earlier


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Keeps the output directory for this process; another one is refused until this one ends, in whatever way.

    Raises:
        ArgumentError: If another process has it, or it cannot be made.
    """
    lock = FileLock(root / LOCK, blocking=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        expected = "a folder that no other process is writing to (wait for it to end, or give another folder)"
        raise ArgumentError("output_dir", expected, str(root)) from error
    except OSError as error:
        raise ArgumentError("output_dir", f"a folder that can be written ({error.strerror})", str(root)) from error
    try:
        for folder in (root, root / "runs"):
            files.remove_all_unfinished(folder)
        yield
    finally:
        lock.release()


# Stays in the folder: taken away, two processes could hold one of the same name.
LOCK = ".lock"


def check_stages_dir(stages_dir: str | None) -> Path | None:
    """The store that was asked for, if any.

    Raises:
        ArgumentError: If nothing can be written there.
    """
    if stages_dir is None:
        return None
    root = folder(stages_dir)
    is_new(root, "stages_dir")
    return root


def is_new(root: Path, argument: str = "output_dir") -> bool:
    """Whether nothing is in `root` yet; raises ArgumentError if nothing can be written there."""
    existing = _nearest_existing(root, argument)
    if not existing.is_dir():
        raise ArgumentError(argument, f"a folder ({existing} is a file)", str(root))
    if not _is_writable(existing):
        raise ArgumentError(argument, f"a folder that can be written ({existing} cannot)", str(root))
    return existing != root or all(path.name == LOCK for path in root.iterdir())


def check_same(root: Path, kind: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises ArgumentError if the folder `root` holds another run or experiment: the flags that differ are named."""
    different = [f"--{name}={theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]
    if different:
        expected = f"a new folder (this one holds another {kind}, with {' '.join(different)})"
        raise ArgumentError("output_dir", expected, str(root))


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[RunPaths]:
    """The directory of a run, kept for it; what an unfinished attempt left is removed, but for its stages.

    Raises:
        ArgumentError: If the directory cannot be made, or another process has it.
    """
    paths = RunPaths(folder(config.where()))
    with held(paths.root):
        try:
            earlier = Manifest.read(paths.manifest, damaged=lambda path: None)  # `check` has told
            for path in earlier.wrong(paths.root) if earlier else ():
                path.unlink(missing_ok=True)
            Manifest(config.to_json(), {}).write(paths.manifest)
            for path in paths.made_of_stages():
                _remove(path)
        except OSError as error:
            expected = f"a folder that can be written ({error.strerror})"
            raise ArgumentError("output_dir", expected, str(paths.root)) from error
        yield paths


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _nearest_existing(root: Path, argument: str) -> Path:
    try:
        return next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    except OSError as error:
        raise ArgumentError(argument, f"a folder that can be written ({error.strerror})", str(root)) from error


def _is_writable(folder: Path) -> bool:
    """Whether files can be made there, and are meant to be: root may write where the mode lets nobody."""
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.stat().st_mode & 0o222:
        return False
    try:
        # Nameless and gone at once where the system can do that; nothing is ever seen in the folder.
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY) if hasattr(os, "O_TMPFILE") else None
    except OSError as error:
        return error.errno in _NO_NAMELESS_FILES
    if handle is not None:
        os.close(handle)
    return True


_NO_NAMELESS_FILES = {21, 95}  # EISDIR, EOPNOTSUPP: an old kernel or file system, not a refusal


def report_damage(wrong: list[Path], damaged: corruption.Damaged) -> bool:
    """Calls `damaged` for each damaged file; returns whether there is any."""
    for path in wrong:
        damaged(path)
    return bool(wrong)
