"""Exit codes of the command line, and one line on standard error for each failure."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable

from tf_packnet.command_line.parsing import UsageError
from tf_packnet.errors import ArgumentError, PackFileError, StoppedError, first_line, one_line
from tf_packnet.system import interruption, streams
from tf_packnet.system.storage import is_storage_fault

FAILED, BAD_INPUT, OUTPUT_CLOSED = 1, 2, 141

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.EMFILE)
_TENSORFLOW_FILE_ERROR = re.compile(rf"(?P<path>/[^;]*); (?P<reason>{'|'.join(map(os.strerror, _ERRORS))})")
_TENSORFLOW_OUT_OF_MEMORY = re.compile("OOM when [^\\n]*")
_STOPPED = "\nstopped; the same command continues after the last finished epoch\n"


def exit_code(work: Callable[[], None], program: str, resumable: bool = False) -> int:
    """Call `work` and turn its exceptions into an exit code and a message on standard error.

    Args:
        work: The program.
        program: The program's name, with which messages begin.
        resumable: Whether the same command, given again, continues after an interruption.

    Returns:
        0 if done, 1 if the program failed, 2 for bad input, 75 if another worker of the run has ended, 129 if its
        terminal was closed (SIGHUP), 130 if interrupted (SIGINT), 141 if the reader of its output has closed the pipe,
        143 if terminated (SIGTERM).
    """
    with streams.any_output():
        code, reason = _outcome(work, resumable)
        message = _STOPPED if reason is _STOPPED else f"{program}: {one_line(reason)}\n" if reason else ""
        with contextlib.suppress(OSError):
            sys.stderr.write(message)
            sys.stderr.flush()
    return code


def _outcome(work: Callable[[], None], resumable: bool) -> tuple[int, str]:
    """Return the exit code, and why the program ended."""
    signals: list[int] = []
    last_words = _STOPPED if resumable else ""
    try:
        with interruption.interruptible(last_words) as signals:
            _work_and_flush(work)
    except (UsageError, PackFileError) as error:
        return BAD_INPUT, str(error)
    except ArgumentError as error:
        return BAD_INPUT, error.as_flag()
    except StoppedError as error:
        return error.exit_code, str(error)
    except MemoryError as error:
        return FAILED, f"out of memory{f': {error}' if str(error) else ''}"
    except BrokenPipeError:
        return OUTPUT_CLOSED, ""
    except Exception as error:
        if out_of_memory := _TENSORFLOW_OUT_OF_MEMORY.search(str(error)):
            return FAILED, f"out of memory: {out_of_memory[0]}"
        reason = _file_error(error)
        if reason is None:
            raise
        return FAILED, reason + ("; fix this and run the same command again to continue" if resumable else "")
    except KeyboardInterrupt:
        return interruption.exit_code(*signals[:1] or [signal.SIGINT]), last_words
    return 0, ""


def _file_error(error: Exception) -> str | None:
    """Return the reason and the path of a failed file operation; None for other errors."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    if type(error).__module__ == "tensorflow.python.framework.errors_impl":  # raised by TensorFlow's file functions
        found = _TENSORFLOW_FILE_ERROR.search(str(error).rpartition("}} ")[2])
        if found:
            return f"{found['reason']}: {found['path']}"
    return first_line(error) if is_storage_fault(error) else None


def _work_and_flush(work: Callable[[], None]) -> None:
    try:
        work()
    except SystemExit as leaving:  # after --help and --version
        interruption.check()
        if leaving.code:
            raise
    sys.stdout.flush()  # a failed write is reported here, not at interpreter exit
