"""How a launcher ends: an exit code, and one line on standard error where something is wrong."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from flags.command_line import UsageError
from tf_packnet.errors import ArgumentError, PackFileError, StoppedError, one_line
from tf_packnet.system.interruption import interruptible


def exit_code(work: Callable[[], None], goes_on: str = "") -> int:
    """Does `work`; returns 0, 1 if it cannot go on, 2 for bad input, 130 if it was interrupted, 141 if its output
    is no longer read, 143 if terminated.

    Args:
        work: What the launcher does.
        goes_on: What is said after an interruption and a full disk, if the same command goes on then.
    """
    signals: list[int] = []
    try:
        with interruptible() if goes_on else contextlib.nullcontext(signals) as signals:
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
        return 143 if signal.SIGTERM in signals else 130
    return 0


def _stop(reason: str, code: int) -> int:
    print(f"{os.path.basename(sys.argv[0])}: {one_line(reason)}", file=sys.stderr)
    return code
