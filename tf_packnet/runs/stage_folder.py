"""The folder of one stored stage: its record and the state after it, each in two copies. One repairs the other.

A folder is written atomically, so a single missing file means damage, not an interruption. Nothing here needs a lock to
be safe: unfinished files are in a folder of their process, and the first stored result of a stage is kept.
"""

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from tf_packnet.system import files, locks
from tf_packnet.system.archives import BROKEN

RECORDS = ("stage.json", "stage.copy.json")
STATES = ("state.npz", "state.copy.npz")
# The other folders in a store: backups of unfinished stages, and locks.
PROGRESS, LOCKS = "progress", "locks"
# A marker file that exists while the two copies of a state are being deleted or added.
DROPPING = ".dropping"
_KEY, _CHECKSUM = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")


class StageFolder:
    """The folder of a stored stage.

    Args:
        path: The folder, named after the key of the stage.
    """

    def __init__(self, path: Path):
        self.path = path
        self.state_path = path / STATES[0]
        self._records = [path / name for name in RECORDS]
        self._dropping = path / DROPPING

    def lock(self, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock the stage for this process, see `locks.locked`."""
        return locks.locked(self.path.parent / LOCKS / f"{self.path.name}.lock", wait)

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes, unless a process is writing this stage, or locks do not work."""
        if files.unfinished(self.path):
            with contextlib.suppress(BlockingIOError), self.lock(wait=False) as is_locked:
                if is_locked:
                    files.remove_unfinished(self.path)

    def entry(self) -> dict[str, Any] | None:
        """Read the content of `stage.json`, from the copy that is undamaged; None if there is none."""
        return next((entry for entry in map(self._read, self._records) if entry), None)

    def damaged_records(self) -> list[Path]:
        """Return the copies of the record that are missing or damaged; none if the folder does not exist."""
        if files.kind(self.path) == files.MISSING:
            return []
        entry = self.entry()
        return [path for path in self._records if entry is None or self._read(path) != entry]

    def damaged_states(self) -> list[Path]:
        """Return the copies of the state that are missing or damaged; none if the state was deleted."""
        damaged = self._damaged_states()
        # Looks twice: another process may have been deleting or writing them.
        return [path for path in self._damaged_states() if path in damaged] if damaged else []

    def _damaged_states(self) -> list[Path]:
        entry = self.entry()
        if entry is None or files.kind(self._dropping) != files.MISSING:
            return []
        copies = self._states(entry)
        if all(files.kind(path) == files.MISSING for path in copies):
            return []
        return [path for path in copies if not _has_checksum(path, entry["sha256"])]

    def damaged_files(self) -> list[Path]:
        """Return the damaged files; changes nothing."""
        return self.damaged_records() + self.damaged_states()

    def damaged_backups(self) -> list[Path]:
        """Return the damaged backups of the stage, which exist while it is unfinished."""
        backups = sorted((self.path.parent / PROGRESS).glob(f"{self.path.name}.*.npz"))
        return [path for path in backups if not _is_whole_archive(path)]

    def repair(self, damaged: list[Path]) -> None:
        """Write each damaged file again from its other copy, and delete states of which no intact copy is left.

        Raises:
            OSError: If something else is in the place of a file, such as a non-empty folder.
        """
        for path in damaged:
            names = RECORDS if path.name in RECORDS else STATES
            copies = [self.path / name for name in names if self.path / name not in damaged]
            source = next((copy for copy in copies if files.kind(copy) == files.FILE), None)
            if source is not None:
                with own_folder(self.path.parent) as own, files.replacing(path, within=own) as temporary:
                    shutil.copyfile(source, temporary)
            elif names is STATES:
                files.remove(path)

    def has_state(self) -> bool:
        """Whether the state is stored; its checksum is not verified."""
        missing = (files.kind(self.state_path), files.kind(self._dropping))
        return missing == (files.FILE, files.MISSING)

    def write(
        self,
        record: dict[str, Any],
        state: dict[str, np.ndarray],
        own: Path | None = None,
        publish: "Callable[[StageFolder], bool]" = lambda new: True,
    ) -> bool:
        """Write record and state, atomically, unless another result of the stage is stored.

        Args:
            record: The record.
            state: The state.
            own: The folder of this process for unfinished files; None if the process has locked the stage.
            publish: Called with the complete new folder before it is moved into place; returns whether it may be.

        Returns:
            Whether this result is stored now; False if another one is, or `publish` returned False.

        Raises:
            OSError: If the folder contains other files.
        """
        if own is None:
            files.remove_unfinished(self.path)
        self.check_place()
        with files.workspace(self.path, own) as folder:
            new = StageFolder(folder / self.path.name)
            new.path.mkdir()
            np.savez(new.state_path, **state)  # type: ignore[arg-type]  # no array is named like a parameter
            shutil.copyfile(new.state_path, new.path / STATES[1])
            checksum = files.sha256(new.state_path)
            entry = {"key": self.path.name, "sha256": checksum, "state_copies": len(STATES), "record": record}
            for name in RECORDS:
                files.write_json(new.path / name, entry)
            return publish(new) and self.place(new)

    def place(self, new: "StageFolder") -> bool:
        """Move a complete folder into the place of this one, unless this one already has another result.

        Args:
            new: The folder, in the same file system. It may have no state.

        Returns:
            Whether the result of `new` is stored now.
        """
        ours = new.entry()
        assert ours is not None
        for _ in range(3):
            theirs = self.entry()
            if theirs is not None and theirs["sha256"] == ours["sha256"]:
                if new.has_state() and not self.has_state():
                    self.add_state(new.state_path, new.path.parent)
                return True
            if theirs is not None and self.has_state() and not self.damaged_states():
                return False
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another process was faster
                files.move_folder(new.path, self.path)
                return True
        raise OSError(errno.EBUSY, "other processes change it all the time", str(self.path))

    def add_state(self, source: Path, own: Path) -> None:
        """Store a deleted state again. The record is still there.

        Args:
            source: A file with the state.
            own: The folder of this process for unfinished files.
        """
        self._dropping.touch()  # otherwise a kill between the two could not be told from damage
        for name in STATES:
            with files.replacing(self.path / name, within=own) as temporary:
                shutil.copyfile(source, temporary)
        self._dropping.unlink(missing_ok=True)

    def check_place(self) -> None:
        """Raise OSError if the folder contains files that `write` would delete but did not write."""
        for child in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if child.name not in (*RECORDS, *STATES, DROPPING) and not files.is_unfinished(child):
                raise FileExistsError(errno.EEXIST, "move this away, its folder is written again", str(child))
            files.check_place(child)

    def drop_state(self) -> None:
        """Delete the state; the record stays."""
        copies = [path for name in STATES if files.kind(path := self.path / name) != files.MISSING]
        if copies:
            self._dropping.touch()  # otherwise a kill between the two could not be told from damage
            for path in copies:
                files.remove(path)
        self._dropping.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            entry = files.read_json(path)
        except (OSError, files.DamagedError):
            return None
        is_valid = (
            entry.get("key") == self.path.name
            and isinstance(entry.get("record"), dict)
            and _CHECKSUM.fullmatch(str(entry.get("sha256"))) is not None
        )
        return entry if is_valid else None

    def _states(self, entry: dict[str, Any]) -> list[Path]:
        """Return the copies of the state; earlier versions wrote one."""
        return [self.path / name for name in STATES[: 2 if entry.get("state_copies") == 2 else 1]]


def own_folder(root: Path) -> AbstractContextManager[Path]:
    """Make a folder in the store for unfinished files of this process alone, and remove it after the block."""
    return files.workspace(root / f"{_host()}.{os.getpid()}")


def take_backups(root: Path, key: str, own: Path) -> None:
    """Move the backups of a stage from the folders of killed processes of this host to that of this process."""
    for folder in _abandoned(root):
        for path in folder.glob(f"{key}.*.npz"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.rename(own / path.name)


def _abandoned(root: Path) -> list[Path]:
    """Return the folders of killed processes of this host."""
    found = []
    for folder in root.glob(f".{glob.escape(_host())}.*{files.UNFINISHED}"):
        pid = folder.name.removeprefix(f".{_host()}.").partition(".")[0]
        if not Path("/proc", pid).exists():
            found.append(folder)
    return found


@functools.cache
def _host() -> str:
    """Return a name of this host. Containers that do not see each other's processes have different names."""
    namespace = ""
    with contextlib.suppress(OSError):  # some sandboxes have none
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return f"{socket.gethostname()}-{namespace}"


def folders(root: Path) -> Iterator[StageFolder]:
    """List the stages in a store."""
    names = sorted(root.iterdir()) if root.is_dir() else []
    return (StageFolder(path) for path in names if _KEY.fullmatch(path.name) and path.is_dir())


def damaged_files(root: Path) -> list[Path]:
    """Return the damaged files of a store, and the damaged backups of unfinished stages in it; changes nothing."""
    keys = sorted({path.name.partition(".")[0] for path in (root / PROGRESS).glob("*.npz")})
    backups = [path for key in keys for path in StageFolder(root / key).damaged_backups()]
    return [path for folder in folders(root) for path in folder.damaged_files()] + backups


def repair(stages: Iterable[StageFolder]) -> None:
    """Repair every file that has an intact copy."""
    for folder in stages:
        folder.remove_leftovers()
        folder.repair(folder.damaged_files())


def make_place(root: Path) -> None:
    """Make the paths of the folders of a store usable: remove broken links and folders of killed processes.

    Raises:
        OSError: If a file is at one of these paths.
    """
    for folder in (root, root / LOCKS, root / PROGRESS):
        if not folder.is_dir():  # it may be a link to a folder on another disk
            files.make_place(folder, for_folder=True)
    for folder in _abandoned(root):
        if not any(folder.glob("*.npz")):
            shutil.rmtree(folder, ignore_errors=True)


def _has_checksum(path: Path, checksum: str) -> bool:
    try:
        return files.sha256(path) == checksum
    except OSError:
        return False


def _is_whole_archive(path: Path) -> bool:
    try:
        with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except BROKEN:
        return False
