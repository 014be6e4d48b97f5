"""SIGINT and SIGTERM end a run, even where Python loses what their handlers raise.

It does in finalizers and where C++ calls Python: what is raised there is printed and forgotten. It was seen in a run
whose epochs took milliseconds.
"""

import contextlib
import signal
from collections.abc import Iterator

_received: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """In the block SIGINT and SIGTERM end in KeyboardInterrupt, whatever is made of it on the way.

    Yields:
        The signals that came so far.
    """

    def interrupt(number: int, _: object) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _received
    except BaseException as error:
        if _received:  # TensorFlow's C++ makes a TypeError of it, if it comes while that asks Python something
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raises KeyboardInterrupt if a signal came in an `interruptible` block, and was lost."""
    if _received:
        raise KeyboardInterrupt
