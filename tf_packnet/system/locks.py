"""Locks between processes, which are released when their holder dies. They also handle file systems without locks.

Some file systems have no locks, or keep the locks of a host that has crashed. No process waits for such a lock:
`locked` yields False, and the caller works in a folder of its own.
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

# The holder of a lock touches its file every BEAT_SECONDS. After SILENT_SECONDS without a touch, a waiting process
# considers the holder dead. This is longer than NFS caches the attributes of a file.
BEAT_SECONDS, SILENT_SECONDS = 15.0, 180
_HELD_BY_OTHERS = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Context manager that locks a file for this process. The lock is released when the process dies.

    The file is created if it does not exist, and never deleted.

    Args:
        path: The file.
        wait: Whether to wait while another process holds the lock. If not, the file is not touched either, so that
            other processes should not wait for this one.

    Yields:
        Whether this process holds the lock. If not, locks do not work here, or the holder has not touched the file for
        `SILENT_SECONDS`.

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
    """Acquire the lock. Return whether this process holds it; False if locks do not work or the holder seems dead.

    Raises:
        BlockingIOError: If another process holds the lock and `wait` is False.
    """
    attempt = _Attempt(handle)
    if not wait and not attempt.has_ended():
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds this lock", str(path))
    turns.wait_until(attempt.has_ended)  # another thread that takes turns with this one may hold the lock
    return attempt.is_locked


class _Attempt:
    """An attempt to lock an open file. It is repeated until it succeeds, or the holder seems dead."""

    def __init__(self, handle: int):
        self.is_locked = False
        self._handle = handle
        self._silent, self._last_beat, self._next_check = 0, -1, time.monotonic()

    def has_ended(self) -> bool:
        """Try to lock the file.

        Return whether to stop trying: it is locked, locks do not work, or the holder seems dead.
        """
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
    """Context manager that touches a locked file regularly, so that waiting processes see that this one is alive."""
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
