"""Whose is this output directory? Answered before any work, and without touching it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tf_packnet import files
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.paths import RunPaths


def check(config: Config) -> dict[str, Any] | None:
    """Checks that `config` may write where it wants to.

    Returns:
        The results that are there already, if this very run was completed; else None.

    Raises:
        ArgumentError: If the directory cannot be written, or holds another run or anything else.
    """
    root = Path(config.where()).expanduser()
    existing = _nearest_existing(root)
    if not existing.is_dir():
        raise ArgumentError("output_dir", f"a folder ({existing} is a file)", str(root))
    if not _is_writable(existing):
        raise ArgumentError("output_dir", f"a folder that can be written ({existing} cannot)", str(root))
    if existing != root or not any(root.iterdir()):
        return None
    earlier = _read_results(RunPaths(root).results)
    if earlier is None:
        raise ArgumentError("output_dir", "a new or empty folder, or that of the same run", str(root))
    theirs = earlier["config"]
    ours = config.identity()
    different = [f"--{name}={theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise ArgumentError(
            "output_dir", f"a new folder (this one holds another run, with {' '.join(different)})", str(root)
        )
    return earlier if earlier["complete"] else None


def prepare(config: Config) -> RunPaths:
    """Makes the directory ready; what an unfinished attempt at the same run left is removed, but for its stages.

    Raises:
        ArgumentError: If the directory cannot be made.
    """
    paths = RunPaths(Path(config.where()).expanduser())
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        for path in paths.made_of_stages():
            _remove(path)
            files.remove_unfinished(path)  # of an attempt that was killed while it wrote
    except OSError as error:
        raise ArgumentError(
            "output_dir", f"a folder that can be written ({error.strerror})", str(paths.root)
        ) from error
    return paths


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _nearest_existing(root: Path) -> Path:
    try:
        return next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    except OSError as error:
        raise ArgumentError("output_dir", f"a folder that can be written ({error.strerror})", str(root)) from error


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


def _read_results(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if {"config", "complete"} <= set(values) else None
    except (OSError, ValueError, TypeError):
        return None
