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

from tf_packnet.system import files

# The holder of a lock touches its file this often. A waiting process takes it for dead after that many seconds without:
# longer than NFS caches the attributes of a file.
BEAT_SECONDS, SILENT_SECONDS = 15.0, 180
_POLL_SECONDS = 0.05
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
    silent, last_beat, next_check = 0, None, time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _HELD_BY_OTHERS:  # ENOSYS, ENOLCK, EOPNOTSUPP, ...: there are no locks
                return False
        if not wait:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process holds this lock", str(path))
        if time.monotonic() >= next_check:  # checks are counted, not timed: both processes may have been suspended
            beat = os.fstat(handle).st_mtime_ns
            silent, last_beat = (silent + 1 if beat == last_beat else 0), beat
            next_check = time.monotonic() + 1
            if silent >= SILENT_SECONDS:
                return False
        time.sleep(_POLL_SECONDS)


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
