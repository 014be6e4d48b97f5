"""Looks at the files that `--flagfile` names before they are read: absl would read a device without an end."""

import os
import stat
from collections.abc import Sequence

from tf_packnet.errors import ArgumentError

# A file of every flag with its longest value is smaller.
LARGEST = 2**20


def check_flagfiles(arguments: Sequence[str], inside: tuple[str, ...] = ()) -> None:
    """Checks every file of flags that `arguments` name, and those that these name.

    Args:
        arguments: The command line without its program, or the lines of a file.
        inside: The files that these lines are in, outermost first.

    Raises:
        ArgumentError: If one cannot be read, is no text, or is in itself.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, assigned, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            continue
        path = os.path.expanduser(value.strip() if assigned else following)
        if path and not (inside and not assigned):
            where = os.path.realpath(path) if "\0" not in path else path
            if where in inside:
                raise ArgumentError("flagfile", "a file of flags that is not in itself", path)
            check_flagfiles(_lines(path), (*inside, where))


def _lines(path: str) -> list[str]:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise ArgumentError("flagfile", f"a file of flags that can be read, of at most {LARGEST:,} bytes", path)
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ArgumentError("flagfile", f"a file of flags that can be read ({reason})", path) from error
    if "\0" in text:
        raise ArgumentError("flagfile", "a file of flags that can be read (it is no text)", path)
    return [line.strip() for line in text.splitlines()]
