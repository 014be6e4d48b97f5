"""The folder of one stored stage: its record and the state after it, each in two copies that repair each other.

A folder is written as a whole, so a single missing file is damage, not the trace of an interruption.
"""

import contextlib
import errno
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tf_packnet.system import files, turns
from tf_packnet.system.archives import BROKEN

RECORDS = ("stage.json", "stage.copy.json")
STATES = ("state.npz", "state.copy.npz")
# The folders in a store besides those of stages: of the backups of unfinished stages, and of locks.
PROGRESS, LOCKS = "progress", "locks"
# Exists while the two copies of a state are deleted.
DROPPING = ".dropping"


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

    @contextlib.contextmanager
    def lock(self, timeout: float = -1) -> Iterator[None]:
        """Lock the stage for this process. The lock ends when its holder dies.

        Args:
            timeout: How long to wait for another holder, in seconds; negative: without limit.

        Raises:
            Timeout: If another process still holds it then.
        """
        path = self.path.parent / LOCKS / f"{self.path.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.make_place(path)
        lock = FileLock(path, thread_local=False)  # a fleet acquires locks for its members
        turns.acquire(lock, timeout)
        try:
            yield
        finally:
            lock.release()

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes, unless a process is writing this stage."""
        if files.unfinished(self.path):
            with contextlib.suppress(Timeout), self.lock(timeout=0):
                files.remove_unfinished(self.path)

    def entry(self) -> dict[str, Any] | None:
        """Read the content of `stage.json`, from the copy that is undamaged; None if there is none."""
        return next((entry for entry in map(self._read, self._records) if entry), None)

    def damaged_records(self) -> list[Path]:
        """Return the copies of the record that are missing or damaged; both only if the folder exists."""
        if files.kind(self.path) == files.MISSING:
            return []
        entry = self.entry()
        return [path for path in self._records if entry is None or self._read(path) != entry]

    def damaged_states(self) -> list[Path]:
        """Return the copies of the state that are missing or damaged; none if the state was deleted."""
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
        """Write each damaged file again from its other copy, and delete states of which no copy is left.

        Raises:
            OSError: If something else is in the place of a file, such as a folder that contains something.
        """
        for path in damaged:
            names = RECORDS if path.name in RECORDS else STATES
            copies = [self.path / name for name in names if self.path / name not in damaged]
            source = next((copy for copy in copies if files.kind(copy) == files.FILE), None)
            if source is not None:
                files.remove_unfinished(path)
                with files.replacing(path) as temporary:
                    shutil.copyfile(source, temporary)
            elif names is STATES:
                files.remove(path)

    def has_state(self) -> bool:
        """Whether the state is stored; its checksum is not verified."""
        missing = (files.kind(self.state_path), files.kind(self._dropping))
        return missing == (files.FILE, files.MISSING)

    def write(self, record: dict[str, Any], state: dict[str, np.ndarray]) -> None:
        """Write record and state, atomically.

        Raises:
            OSError: If the folder contains other files.
        """
        files.remove_unfinished(self.path)
        self.check_place()
        with files.replacing(self.path) as temporary:
            temporary.mkdir()
            copies = [temporary / name for name in STATES]
            np.savez(copies[0], **state)  # type: ignore[arg-type]  # no array is named like a parameter
            shutil.copyfile(*copies)
            entry = {
                "key": self.path.name,
                "sha256": files.sha256(copies[0]),
                "state_copies": len(copies),
                "record": record,
            }
            for name in RECORDS:
                files.write_json(temporary / name, entry)

    def check_place(self) -> None:
        """Raise OSError if the folder contains files that `write` would delete, although it never wrote them."""
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
        valid = entry.get("key") == self.path.name and isinstance(entry.get("record"), dict) and "sha256" in entry
        return entry if valid else None

    def _states(self, entry: dict[str, Any]) -> list[Path]:
        """Return the copies of the state; earlier versions wrote one."""
        return [self.path / name for name in STATES[: 2 if entry.get("state_copies") == 2 else 1]]


def folders(root: Path) -> Iterator[StageFolder]:
    """List the stages in a store."""
    names = sorted(root.iterdir()) if root.is_dir() else []
    return (StageFolder(path) for path in names if len(path.name) == KEY_LENGTH and path.is_dir())


# Characters of the key of a stage.
KEY_LENGTH = 32


def damaged_files(root: Path) -> list[Path]:
    """Return the damaged files of a store, and the damaged backups of unfinished stages in it; changes nothing."""
    keys = sorted({path.name.partition(".")[0] for path in (root / PROGRESS).glob("*.npz")})
    backups = [path for key in keys for path in StageFolder(root / key).damaged_backups()]
    return [path for folder in folders(root) for path in folder.damaged_files()] + backups


def repair(stages: Iterable[StageFolder]) -> None:
    """Repair every file that has an intact copy."""
    for folder in stages:
        folder.remove_leftovers()
        files.remove_all_unfinished(folder.path)
        folder.repair(folder.damaged_files())


def make_place(root: Path) -> None:
    """Remove anything else at the paths of the folders of a store, such as a broken link.

    Raises:
        OSError: If a file is.
    """
    for folder in (root, root / LOCKS, root / PROGRESS):
        if not folder.is_dir():  # it may be a link to a folder on another disk
            files.make_place(folder, for_folder=True)


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
