"""How a launcher ends: an exit code, and one line on standard error where something is wrong."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from flags.command_line import UsageError
from tf_packnet.errors import ArgumentError, PackFileError, StoppedError, one_line


def exit_code(work: Callable[[], None], goes_on: str = "") -> int:
    """Does `work`; returns 0, 1 if it cannot go on, 2 for bad input, 130 if it was interrupted, 141 if its output
    is no longer read, 143 if terminated.

    Args:
        work: What the launcher does.
        goes_on: What is said after an interruption and a full disk, if the same command goes on then.
    """
    received: list[int] = []
    try:
        with _interruptible(received) if goes_on else contextlib.nullcontext():
            work()
    except (UsageError, PackFileError) as error:
        return _stop(str(error), code=2)
    except ArgumentError as error:
        received = "" if error.received is None else f"={error.received}"
        return _stop(f"--{error.argument}{received}: expected {error.expected}", code=2)
    except StoppedError as error:
        return _stop(str(error), code=1)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        return _stop(reason + ("; the same command goes on when that is mended" if goes_on else ""), code=1)
    except KeyboardInterrupt:
        if goes_on:
            print(f"\nstopped; {goes_on}", file=sys.stderr)
        return 143 if signal.SIGTERM in received else 130
    return 0


@contextlib.contextmanager
def _interruptible(received: list[int]) -> Iterator[None]:
    """In the block SIGINT and SIGTERM, put down in `received`, end in KeyboardInterrupt, whatever is made of it."""

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException as error:
        if received:  # TensorFlow's C++ makes a TypeError of it, if it comes while that asks Python something
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(reason: str, code: int) -> int:
    print(f"{os.path.basename(sys.argv[0])}: {one_line(reason)}", file=sys.stderr)
    return code
