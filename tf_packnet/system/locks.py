"""Locks between processes, which end with their holder; and what to do where locks do not work.

Some file systems have no locks, or keep those of a host that has died. Nobody waits for such a lock: `locked` says that
there is none, and the caller works in a folder of its own.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tf_packnet.system import files, turns

# The holder of a lock touches its file this often. A waiting process takes it for dead after that many seconds without:
# longer than NFS caches the attributes of a file.
BEAT_SECONDS, SILENT_SECONDS = 15.0, 180
_HELD_BY_OTHERS = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file for this process; create it, and never delete it. The lock ends when the process dies.

    Args:
        path: The file.
        wait: Whether to wait while another process holds the lock. If not, others should not wait for this one either.

    Yields:
        Whether this process holds the lock. If not, locks do not work here, or their holder shows no sign of life.

    Raises:
        BlockingIOError: If another process holds the lock and `wait` is False.
        OSError: If the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files.make_place(path)
    handle = _open(path)
    try:
        is_locked = _acquire(handle, path, wait)
        with _beating(handle) if is_locked and wait else contextlib.nullcontext():
            yield is_locked
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)
    except PermissionError:  # the file of another user
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _acquire(handle: int, path: Path, wait: bool) -> bool:
    """Return whether the lock is held now; False if locks do not work."""
    attempt = _Attempt(handle)
    if not wait and not attempt.has_ended():
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds this lock", str(path))
    turns.wait_until(attempt.has_ended)  # another thread that takes turns with this one may hold the lock
    return attempt.is_locked


class _Attempt:
    """An attempt to lock an open file, which is repeated until the lock is held or nobody seems to hold it."""

    def __init__(self, handle: int):
        self.is_locked = False
        self._handle = handle
        self._silent, self._last_beat, self._next_check = 0, -1, time.monotonic()

    def has_ended(self) -> bool:
        """Try to lock the file. Return whether it is locked, or locks do not work."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_locked = True
            return True
        except OSError as error:
            if error.errno not in _HELD_BY_OTHERS:  # ENOSYS, ENOLCK, EOPNOTSUPP, ...: there are no locks
                return True
        if time.monotonic() >= self._next_check:  # counted, not timed: both processes may have been suspended
            beat = os.fstat(self._handle).st_mtime_ns
            self._silent, self._last_beat = (self._silent + 1 if beat == self._last_beat else 0), beat
            self._next_check = time.monotonic() + 1
        return self._silent >= SILENT_SECONDS


@contextlib.contextmanager
def _beating(handle: int) -> Iterator[None]:
    """Touch a locked file again and again within the block."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):  # the file of another user
                os.utime(handle)
            if ended.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
