"""Output directories: checks that one is free or belongs to the same run, and locks it while the run writes."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tf_packnet.errors import ArgumentError
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config, completed
from tf_packnet.runs.corruption import Manifest
from tf_packnet.runs.paths import RunPaths, expand
from tf_packnet.runs.results import read_results
from tf_packnet.system import files


def check(config: Config) -> dict[str, Any] | None:
    """Check the output directory of `config` without changing it.

    Returns:
        The results in it, if this same run is complete and no file of it is damaged; else None.

    Raises:
        ArgumentError: If the directory cannot be written, or has another run or other files in it.
        CorruptionError: If a file is damaged, and `on_corruption` is `fail`.
    """
    paths = RunPaths(expand(config.directory()))
    if is_new(paths.root):
        return None
    on_damaged = corruption.handler(config.on_corruption)
    manifest = Manifest.read(paths.manifest, on_damaged)
    earlier = read_results(paths.results, "output_dir", on_damaged)
    if earlier is not None:
        identity = earlier["config"]
    elif manifest is not None:
        identity = manifest.identity
    else:
        raise ArgumentError("output_dir", "a new or empty folder, or that of the same run", str(paths.root))
    check_same(paths.root, "run", config.identity(), identity)
    if earlier is None or not earlier["complete"]:
        return None
    if manifest is None:  # earlier versions wrote none
        return earlier if earlier.get("schema_version", 1) == 1 else None
    damaged_files = manifest.damaged_files(paths.root)
    if not paths.stages.exists():  # a user may delete the store of a complete run
        damaged_files = [path for path in damaged_files if paths.stages not in path.parents]
    return None if report_damage(damaged_files, on_damaged) else earlier


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Create the output directory and locks it for this process. The lock ends when the process dies.

    Raises:
        ArgumentError: If another process has locked it, or it cannot be created.
    """
    lock = FileLock(root / LOCK, blocking=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        expected = "a folder that no other process is writing to (wait for it to end, or use another folder)"
        raise ArgumentError("output_dir", expected, str(root)) from error
    except OSError as error:
        raise ArgumentError("output_dir", f"a folder that can be written ({error.strerror})", str(root)) from error
    try:
        for directory in (root, root / "runs"):
            files.remove_all_unfinished(directory)
        yield
    finally:
        lock.release()


# Never deleted: else two processes could each lock a file of this name.
LOCK = ".lock"


def check_stages_dir(stages_dir: str | None) -> Path | None:
    """Return the path of the shared store, if one is given.

    Raises:
        ArgumentError: If it cannot be written.
    """
    if stages_dir is None:
        return None
    root = expand(stages_dir)
    is_new(root, "stages_dir")
    return root


def is_new(root: Path, argument: str = "output_dir") -> bool:
    """Whether `root` is missing or empty; raises ArgumentError if it cannot be written."""
    existing = _nearest_existing(root, argument)
    if not existing.is_dir():
        raise ArgumentError(argument, f"a folder ({existing} is a file)", str(root))
    if not _is_writable(existing):
        raise ArgumentError(argument, f"a folder that can be written ({existing} cannot)", str(root))
    return existing != root or all(path.name == LOCK for path in root.iterdir())


def check_same(root: Path, kind: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ArgumentError if `root` has another run or experiment; the message names the flags that differ.

    Args:
        root: The directory.
        kind: `run` or `experiment`.
        ours: Identity of the run or experiment that would write there.
        theirs: Identity of the one that has, possibly written by an earlier version.
    """
    theirs = completed(theirs)
    different = [f"--{name}={theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]
    if different:
        expected = f"a new folder (this one has another {kind}, with {' '.join(different)})"
        raise ArgumentError("output_dir", expected, str(root))


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[RunPaths]:
    """Lock the output directory of a run. Deletes damaged files and the rest of an earlier attempt, except its stages.

    Raises:
        ArgumentError: If the directory cannot be created, or another process has locked it.
    """
    paths = RunPaths(expand(config.directory()))
    with locked(paths.root):
        try:
            earlier = Manifest.read(paths.manifest, corruption.ignore)  # `check` has reported it
            for path in earlier.damaged_files(paths.root) if earlier else ():
                path.unlink(missing_ok=True)
            Manifest(config.to_json(), {}).write(paths.manifest)
            for path in paths.rebuildable():
                _remove(path)
        except OSError as error:
            expected = f"a folder that can be written ({error.strerror})"
            raise ArgumentError("output_dir", expected, str(paths.root)) from error
        yield paths


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _nearest_existing(root: Path, argument: str) -> Path:
    try:
        return next(path for path in (root, *root.absolute().parents) if path.exists())
    except OSError as error:
        raise ArgumentError(argument, f"a folder that can be written ({error.strerror})", str(root)) from error


def _is_writable(folder: Path) -> bool:
    """Whether files can be created in `folder`. Its mode counts for the superuser too."""
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.stat().st_mode & 0o222:
        return False
    try:
        # Tries it with a file that has no name and disappears when closed, so that the folder does not change.
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY) if hasattr(os, "O_TMPFILE") else None
    except OSError as error:
        return error.errno in _NO_NAMELESS_FILES
    if handle is not None:
        os.close(handle)
    return True


_NO_NAMELESS_FILES = {errno.EISDIR, errno.EOPNOTSUPP}  # not supported by kernel or file system: no answer


def report_damage(damaged_files: list[Path], on_damaged: corruption.OnDamaged) -> bool:
    """Call `on_damaged` for each damaged file; returns whether there is any."""
    for path in damaged_files:
        on_damaged(path)
    return bool(damaged_files)
