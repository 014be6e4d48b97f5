"""Makes SIGINT and SIGTERM end a run, even if Python loses the KeyboardInterrupt.

If a signal handler raises an exception in a finalizer, or while C++ calls Python, Python prints it and continues. This
has happened in a run whose epochs took milliseconds.
"""

import contextlib
import signal
from collections.abc import Iterator

_received: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Within the block, SIGINT and SIGTERM raise KeyboardInterrupt, even if other code turns it into another exception.

    Yields:
        The numbers of the signals received so far.
    """

    def interrupt(number: int, _: object) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _received
    except BaseException as error:
        if _received:  # TensorFlow's C++ turns it into a TypeError if it comes while it calls Python
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if a signal was received in an `interruptible` block and then lost."""
    if _received:
        raise KeyboardInterrupt
