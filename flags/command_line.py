"""What every launcher does with its command line: help, version, flags, or one line on what is wrong with them."""

import sys

from absl import flags

from flags.flagfiles import check_flagfiles
from flags.help import render_help
from tf_packnet.errors import ArgumentError
from tf_packnet.version import __version__


class UsageError(Exception):
    """What was wrong with the command line, in one line that names the flag."""


def read(
    argv: list[str], values: flags.FlagValues, themes: dict[str, list[str]], usage: str | None = None
) -> list[str]:
    """Sets `values` from a command line; `--help` and `--version` print and exit with 0.

    Args:
        argv: The command line; `argv[0]` is the program.
        values: The flags, declared and not parsed yet.
        themes: Their names by theme.
        usage: The beginning of the help page; default the one of `launch/main.py`.

    Returns:
        The arguments that are no flags.

    Raises:
        UsageError: If a flag is unknown or malformed, or its value out of range.
    """
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(render_help(values, themes, *([usage] if usage else [])))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"tf_packnet {__version__}")
        sys.exit(0)
    try:
        check_flagfiles(argv[1:])
        return values(argv)[1:]
    except ArgumentError as error:
        raise UsageError(f"--{error.argument}={error.received}: expected {error.expected}") from error
    except (flags.Error, OSError, ValueError) as error:  # absl lets some of each through
        raise UsageError(" ".join(str(error).removeprefix("flag ").split())) from error
