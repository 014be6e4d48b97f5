"""Ends this process when it cannot end by itself: a library waits in C++, where Python can do nothing."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator

_last_words_said = threading.Event()


def standard_error() -> int:
    """Return a descriptor that still is standard error while the usual one is redirected."""
    try:
        return os.dup(2)
    except OSError:  # closed, as in a daemon
        return 2


def end_after(seconds: float, last_words: str, code: int, stderr: int) -> None:
    """End the process after `seconds`, unless it has ended by then. Files that it is writing stay unfinished.

    Args:
        seconds: The time.
        last_words: A line for standard error, unless `no_last_words` was called.
        code: The exit code.
        stderr: `standard_error()`, from when the process began.
    """

    def end() -> None:
        if not _last_words_said.is_set():
            with contextlib.suppress(OSError):
                os.write(stderr, f"{os.path.basename(sys.argv[0])}: {last_words}\n".encode())
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def no_last_words() -> None:
    """Say that the process has said why it ends."""
    _last_words_said.set()


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End the process with code 1, without a message, if the block takes longer: also if it holds Python's lock."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
