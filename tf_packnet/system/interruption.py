"""Makes SIGINT, SIGTERM and SIGHUP end a command, even if Python loses the KeyboardInterrupt.

If a signal handler raises an exception in a finalizer, or while C++ calls Python, Python prints the exception and
continues. This does happen in runs whose epochs take milliseconds.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []
_nothing_to_save = False


def exit_code(number: int) -> int:
    """Return the exit code that shells report for a process ended by signal `number`."""
    return 128 + number


def end_at_once() -> None:
    """From now on, end the process immediately when a signal arrives. For processes that have nothing to save yet."""
    _handle(lambda number, _: os._exit(exit_code(number)))


def ignore() -> None:
    """From now on, ignore all signals. For processes that are about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def interruptible(last_words: str = "") -> Iterator[list[int]]:
    """Context manager in which a signal raises KeyboardInterrupt, even if other code turns it into another exception.

    A second signal ends the process immediately, as `kill -9` does.

    Args:
        last_words: Text to write to standard error if a second signal arrives.

    Yields:
        The numbers of the signals received so far.
    """

    def interrupt(number: int, _: Any) -> None:
        _received.append(number)
        if len(_received) > 1:
            with contextlib.suppress(OSError):
                os.write(2, last_words.encode())
        if len(_received) > 1 or _nothing_to_save:
            os._exit(exit_code(_received[0]))
        raise KeyboardInterrupt

    _received.clear()
    unraisable, sys.unraisablehook = sys.unraisablehook, _ignore_interrupt(sys.unraisablehook)
    before = _handle(interrupt)
    try:
        yield _received
    except BaseException as error:
        if _received:  # TensorFlow's C++ turns it into a TypeError if it comes while it calls Python
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = unraisable


@contextlib.contextmanager
def nothing_to_save() -> Iterator[None]:
    """Context manager in which the first signal ends an interruptible process immediately.

    For imports: C extensions print a traceback if a KeyboardInterrupt is raised while they are loaded.
    """
    global _nothing_to_save
    before, _nothing_to_save = _nothing_to_save, True
    try:
        yield
    finally:
        _nothing_to_save = before


def check() -> None:
    """Raise KeyboardInterrupt if a signal was received in an `interruptible` block and then lost."""
    if _received:
        raise KeyboardInterrupt


def _handle(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set the handler of all signals that are not ignored, for example by `nohup`. Return the previous handlers."""
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def _ignore_interrupt(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a `sys.unraisablehook` that does not print a lost KeyboardInterrupt: `check` raises it again."""
    return lambda lost: None if _received and issubclass(lost.exc_type, KeyboardInterrupt) else hook(lost)
