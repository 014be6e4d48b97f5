"""Exit codes of the command line, and one line on standard error for each failure."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from tf_packnet.command_line.parsing import UsageError
from tf_packnet.errors import ArgumentError, PackFileError, StoppedError, first_line, one_line
from tf_packnet.system.interruption import interruptible
from tf_packnet.system.storage import is_storage_fault

_ADVICE = "; fix this and run the same command again to continue"
FAILED, BAD_INPUT, INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 1, 2, 130, 141, 143


def exit_code(work: Callable[[], None], program: str, resumable: bool = False) -> int:
    """Call `work` and turns its exceptions into an exit code and a message on standard error.

    Args:
        work: The program.
        program: The program's name, with which messages begin.
        resumable: Whether the same command, given again, continues after an interruption.

    Returns:
        0 if done, 1 if the program failed, 2 for bad input, 130 if interrupted (SIGINT), 141 if nobody reads its
        output any more, 143 if terminated (SIGTERM).
    """
    signals: list[int] = []
    try:
        with interruptible() if resumable else contextlib.nullcontext(signals) as signals:
            work()
    except (UsageError, PackFileError) as error:
        return _report(program, str(error), BAD_INPUT)
    except ArgumentError as error:
        received = "" if error.received is None else f"={error.received}"
        return _report(program, f"--{error.argument}{received}: expected {error.expected}", BAD_INPUT)
    except StoppedError as error:
        return _report(program, str(error), FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        return _report(program, reason + (_ADVICE if resumable else ""), FAILED)
    except KeyboardInterrupt:
        if resumable:
            print("\nstopped; the same command continues after the last finished epoch", file=sys.stderr)
        return TERMINATED if signal.SIGTERM in signals else INTERRUPTED
    except Exception as error:
        if not is_storage_fault(error):
            raise
        return _report(program, first_line(error) + (_ADVICE if resumable else ""), FAILED)
    return 0


def _report(program: str, reason: str, code: int) -> int:
    print(f"{program}: {one_line(reason)}", file=sys.stderr)
    return code
