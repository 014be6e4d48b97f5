"""Ends this process when it cannot end by itself, because a library waits in C++ code that Python cannot interrupt."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator

_last_words_said = threading.Event()


def standard_error() -> int:
    """Return a duplicate of the descriptor of standard error, which stays valid while descriptor 2 is redirected."""
    try:
        return os.dup(2)
    except OSError:  # closed, as in a daemon
        return 2


def end_after(seconds: float, last_words: str, code: int, stderr: int) -> None:
    """End the process after `seconds`, unless it ends before. Files that it is writing then stay unfinished.

    Args:
        seconds: Seconds until the process is ended.
        last_words: Line to write to standard error, unless `no_last_words` was called.
        code: The exit code.
        stderr: Result of `standard_error()` at the start of the process.
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
    """Suppress the message of `end_after`, because the process has already reported why it ends."""
    _last_words_said.set()


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Context manager that ends the process with code 1, without a message, if the block takes longer than `seconds`.

    This works even if the block holds Python's global interpreter lock.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
