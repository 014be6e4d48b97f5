"""Output directories: checks that one is free or belongs to the same run, and locks it while the run writes."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tf_packnet.errors import ArgumentError
from tf_packnet.runs import corruption, stage_folder
from tf_packnet.runs.config import Config, completed
from tf_packnet.runs.corruption import Manifest
from tf_packnet.runs.paths import RunPaths, StorePlace, expand
from tf_packnet.runs.results import read_results
from tf_packnet.runs.stage_folder import StageFolder
from tf_packnet.system import files, locks, objects


def check(config: Config, stages_dir: Path | None = None) -> dict[str, Any] | None:
    """Check the output directory of `config` without changing it.

    Args:
        config: The run.
        stages_dir: The store of stages, if it is not in the output directory.

    Returns:
        The results in the directory if this run is complete there and no file is damaged; else None.

    Raises:
        ArgumentError: If the directory cannot be written, or contains another run or other files.
        CorruptionError: If a file is damaged, and `on_corruption` is `fail` or a non-empty folder is in its place.
    """
    results, damaged = _examine(config, stages_dir)
    on_damaged = corruption.handler(config.on_corruption, log=lambda line: None)  # `prepared` shows it
    report(expand(config.directory()), damaged, on_damaged)
    return None if damaged else results


def report(root: Path, damaged: Sequence[Path], on_damaged: corruption.OnDamaged) -> None:
    """Report damaged files of an output directory.

    Raises:
        ArgumentError: If another process is writing there: its unfinished files look like damage.
        CorruptionError: If `on_damaged` raises it.
    """
    if damaged:
        _check_unlocked(root)
    for path in dict.fromkeys(damaged):
        on_damaged(path)


def _examine(config: Config, stages_dir: Path | None) -> tuple[dict[str, Any] | None, list[Path]]:
    """Return the results of a complete run, else None, and all damaged files."""
    paths = RunPaths(expand(config.directory()))
    if is_new(paths.root):
        return None, []
    ours = config.identity()
    pair = read_pair(
        paths.manifest,
        paths.results,
        read_results(paths.results, "output_dir", corruption.ignore),
        lambda results: different_flags(ours, results["config"]),
        lambda identity: different_flags(ours, identity),
    )
    manifest, results = pair.manifest, pair.content
    if results is not None:
        theirs = results["config"]
    elif manifest is not None:
        theirs = manifest.identity
    else:
        raise ArgumentError("output_dir", "a new or empty folder, or that of the same run", str(paths.root))
    check_same(paths.root, "run", ours, theirs)
    damaged = [*pair.damaged, *_damaged_lock(paths.root)]
    if manifest is not None and manifest.files:
        damaged += manifest.damaged_files(paths.root, deletable=paths.stages)
        if stages_dir is not None:
            damaged += [path for key in manifest.stages for path in StageFolder(stages_dir / key).damaged_files()]
    else:
        damaged += stage_folder.damaged_files(paths.stages)
    is_marked = bool(manifest.files) if manifest else not pair.damaged  # earlier versions wrote no manifest
    return results if results and results["complete"] and is_marked else None, list(dict.fromkeys(damaged))


class Pair(NamedTuple):
    """The two files that identify the run or experiment in an output directory.

    Attributes:
        manifest: The manifest; None if it is missing or damaged.
        content: The content of the other file; None if it is missing or damaged.
        damaged: The files of the two that are damaged, as the other one shows.
    """

    manifest: Manifest | None
    content: dict[str, Any] | None
    damaged: list[Path]


def read_pair(
    manifest_path: Path,
    path: Path,
    content: dict[str, Any] | None,
    differs: Callable[[dict[str, Any]], Sequence[str]],
    identity_differs: Callable[[Mapping[str, Any]], Sequence[str]],
) -> Pair:
    """Read the manifest of an output directory, and compare it with the other file that identifies its content.

    Each of the two files shows whether the other one is missing, damaged, or from another folder. If neither is valid,
    the folder is not recognized.

    Args:
        manifest_path: Path of the manifest.
        path: Path of the other file: `results.json` or `experiment.json`.
        content: Its content; None if it is missing or damaged.
        differs: Returns the flags in which `content` differs from the requested run or experiment.
        identity_differs: The same for the identity in the manifest.
    """
    manifest = Manifest.read(manifest_path, corruption.ignore)
    if content is not None and manifest is not None:
        foreign = bool(differs(content)), bool(identity_differs(manifest.identity))
        if foreign == (True, False):
            content = None
        elif foreign == (False, True):
            manifest = None
    damaged = []
    if content is None and manifest is not None and (manifest.files or not _has_only(manifest_path)):
        damaged.append(path)
    if manifest is None and content is not None and content.get("schema_version", 1) > 1:
        damaged.append(manifest_path)
    return Pair(manifest, content, damaged)


def _has_only(path: Path) -> bool:
    """Whether `path` is alone in its folder, as the manifest is when a run begins."""
    return all(other == path or _is_ignored(other) for other in path.parent.iterdir())


def _is_ignored(path: Path) -> bool:
    """Whether a file can exist before a run writes anything: the lock and temporary files."""
    return path.name == LOCK or files.is_unfinished(path)


def _damaged_lock(root: Path) -> list[Path]:
    return [] if files.kind(root / LOCK) in (files.FILE, files.MISSING) else [root / LOCK]


@contextlib.contextmanager
def locked(root: Path) -> Iterator[bool]:
    """Create the output directory and lock it for this process. The lock ends when the process dies.

    Yields:
        Whether the directory is locked; False if its file system has no locks.

    Raises:
        ArgumentError: If another process has locked it, or it cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locks.locked(root / LOCK, wait=False))
        except BlockingIOError as error:
            raise in_use(root) from error
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise ArgumentError("output_dir", f"a folder that can be written ({reason})", str(root)) from error
        yield is_locked


def _check_unlocked(root: Path) -> None:
    """Raise ArgumentError if a process is writing to `root`, whose unfinished files look like damage."""
    if files.kind(root / LOCK) == files.FILE:
        try:
            with locks.locked(root / LOCK, wait=False):
                pass
        except BlockingIOError as error:
            raise in_use(root) from error
        except OSError:  # the lock file of another user
            pass


def in_use(root: Path) -> ArgumentError:
    """Return the error of a command that finds `root` locked."""
    expected = "a folder that no other process is writing to (wait for it to end, or use another folder)"
    return ArgumentError("output_dir", expected, str(root))


def remove_leftovers(root: Path) -> None:
    """Remove the temporary files of killed processes from a locked output directory."""
    for folder in (root, root / "runs", root / "masks", root / "export"):
        files.remove_all_unfinished(folder)


WITHOUT_LOCKS = "the file system has no locks: no other command may write to this output directory"
# Never deleted: otherwise two processes could each lock a different file of this name.
LOCK = ".lock"


def check_stages_dir(stages_dir: str | None, default: Path) -> StorePlace:
    """Return where stages are stored. Opens no connection and changes no file.

    Args:
        stages_dir: The folder or the URL that the user gave, or None.
        default: The folder in the output directory.

    Raises:
        ArgumentError: If the folder cannot be written, or the URL cannot be that of a store.
        MissingExtraError: If the library for the URL is not installed.
    """
    if stages_dir is None:
        return StorePlace(default)
    if objects.is_url(stages_dir):
        url = objects.open_url("stages_dir", stages_dir).url
        return StorePlace(default, url, url)
    root = expand(stages_dir)
    is_new(root, "stages_dir")
    return StorePlace(root, None, str(root.absolute()))


def check_shared(place: StorePlace) -> None:
    """Check that objects can be written to and read from the URL of a store, if it has one.

    Raises:
        ArgumentError: If they cannot.
        OSError: If the URL cannot be reached now.
    """
    if place.stages is not None:
        objects.check("stages_dir", objects.open_url("stages_dir", place.stages))


def is_new(root: Path, argument: str = "output_dir") -> bool:
    """Whether `root` is missing or empty; raises ArgumentError if it cannot be written."""
    existing = _nearest_existing(root, argument)
    if not existing.is_dir():
        raise ArgumentError(argument, f"a folder ({existing} is a file)", str(root))
    if not _is_writable(existing):
        raise ArgumentError(argument, f"a folder that can be written ({existing} cannot)", str(root))
    return existing != root or all(map(_is_ignored, root.iterdir()))


def check_same(root: Path, kind: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ArgumentError if `root` has another run or experiment; the message names the flags that differ.

    Args:
        root: The directory.
        kind: `run` or `experiment`.
        ours: Identity of the run or experiment that would write there.
        theirs: Identity of the one that is there, possibly written by an earlier version.
    """
    different = different_flags(ours, theirs)
    if different:
        expected = f"a new folder (this one has another {kind}, with {' '.join(different)})"
        raise ArgumentError("output_dir", expected, str(root))


def different_flags(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the flags of another run or experiment, possibly of an earlier version, that differ from ours."""
    theirs = completed(theirs)
    return [f"--{name}={theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]


@contextlib.contextmanager
def prepared(
    config: Config, stages_dir: Path, stages: Sequence[str], log: Callable[[str], None]
) -> Iterator[corruption.OnDamaged]:
    """Lock the output directory of a run, report damage, repair the stored stages, and mark the run as incomplete.

    Args:
        config: The run.
        stages_dir: The store of stages.
        stages: The keys of the stages of the run.
        log: Shows a line.

    Yields:
        The function to call with files that are found to be damaged later. It skips files that are already reported.

    Raises:
        ArgumentError: If the directory cannot be created, or another process has locked it.
        CorruptionError: As in `check`.
        OSError: If its files cannot be written, or something that the run did not write is in their place.
    """
    paths = RunPaths(expand(config.directory()))
    on_damaged = corruption.handler(config.on_corruption, log)
    with locked(paths.root) as is_locked:
        used = [StageFolder(stages_dir / key) for key in stages]
        # Backups are not checked: another run may be writing them in a shared store.
        found = [*_examine(config, stages_dir)[1], *(path for stage in used for path in stage.damaged_files())]
        known = dict.fromkeys(found)
        for path in known:
            on_damaged(path)
        if is_locked:
            remove_leftovers(paths.root)
        else:
            log(WITHOUT_LOCKS)
        stage_folder.make_place(stages_dir)
        outputs = [path for top in paths.rebuildable() for path in _walk(top)]
        for path in outputs:
            if paths.is_output(path):
                files.check_place(path)
            elif paths.is_output_folder(path):
                files.check_place(path, for_folder=True)
            elif paths.is_in_export(path):
                raise FileExistsError(errno.EEXIST, "move this away, its folder is written again", str(path))
        stage_folder.repair([*stage_folder.folders(paths.stages), *used])
        Manifest(config.to_json(), {}).write(paths.manifest)
        for path in outputs:
            if paths.is_output_folder(path):
                files.make_place(path, for_folder=True)
            elif paths.tensorboard in path.parents and paths.is_output(path):
                files.remove(path)  # TensorBoard would show the curves twice
        yield lambda path: None if path in known else on_damaged(path)


def _walk(top: Path) -> Iterator[Path]:
    """Yield `top`, and all files and folders in it. Links are not followed."""
    yield top
    for folder, folders, names in os.walk(top):
        yield from (Path(folder) / name for name in sorted([*folders, *names]))


def _nearest_existing(root: Path, argument: str) -> Path:
    try:
        return next(path for path in (root, *root.absolute().parents) if path.exists())
    except OSError as error:
        raise ArgumentError(argument, f"a folder that can be written ({error.strerror})", str(root)) from error


def _is_writable(folder: Path) -> bool:
    """Whether files can be created in `folder`. A read-only mode counts for root too."""
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.stat().st_mode & 0o222:
        return False
    try:
        # O_TMPFILE creates a file without a name, which disappears when closed: the folder does not change.
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY) if hasattr(os, "O_TMPFILE") else None
    except OSError as error:
        return error.errno in _NO_NAMELESS_FILES
    if handle is not None:
        os.close(handle)
    return True


_NO_NAMELESS_FILES = {errno.EISDIR, errno.EOPNOTSUPP}  # O_TMPFILE is not supported by the kernel or file system
