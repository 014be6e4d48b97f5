"""The lock of an output directory that several commands write at the same time: the shards of an experiment.

The commands hold a shared lock on the file that `output.locked` locks exclusively. The first command prepares the
directory while it holds an exclusive lock.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tf_packnet.errors import ArgumentError
from tf_packnet.runs.output import LOCK, in_use
from tf_packnet.system import files

# How long to wait for another command that prepares the directory, in seconds.
PREPARE_SECONDS = 120.0
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class SharedLock:
    """A lock that several commands can hold at the same time.

    Attributes:
        alone: Whether this command holds the lock exclusively, so that it may prepare or clean the directory.
    """

    def __init__(self, root: Path, handle: int):
        self._root, self._handle = root, handle
        self.alone = False

    def try_alone(self) -> bool:
        """Try to acquire the lock exclusively, until `share` is called. Return whether this succeeded."""
        self.alone = self._lock(fcntl.LOCK_EX)
        return self.alone

    def share(self) -> None:
        """Acquire or downgrade to a shared lock.

        Raises:
            ArgumentError: If another command holds the lock exclusively for longer than `PREPARE_SECONDS`.
        """
        deadline = time.monotonic() + PREPARE_SECONDS
        while not self._lock(fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise in_use(self._root)
            time.sleep(0.1)
        self.alone = False

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return kind == fcntl.LOCK_SH  # without locks, no command can know whether it is alone
        return True


@contextlib.contextmanager
def shared(root: Path) -> Iterator[SharedLock]:
    """Context manager that creates the output directory, and locks it for all commands that share it.

    Yields:
        The lock. It is exclusive if no other command holds it.

    Raises:
        ArgumentError: If a command that does not share the directory has locked it, or it cannot be created.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        files.make_place(root / LOCK)
        handle = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise ArgumentError("output_dir", f"a folder that can be written ({reason})", str(root)) from error
    try:
        lock = SharedLock(root, handle)
        if not lock.try_alone():
            lock.share()
        yield lock
    finally:
        os.close(handle)  # this releases the lock
