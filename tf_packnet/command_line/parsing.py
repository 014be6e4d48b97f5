"""Parsing shared by all subcommands: help, version, flag files, and errors of one line."""

import sys
from collections.abc import Mapping, Sequence

from absl import flags

from tf_packnet.command_line.flagfiles import expand_flagfiles
from tf_packnet.command_line.help_page import HELP_FLAGS, render_help
from tf_packnet.errors import ArgumentError
from tf_packnet.version import __version__


class UsageError(Exception):
    """A mistake in the command line. Its message is one line that names the flag."""


def parse_flags(
    argv: Sequence[str], values: flags.FlagValues, themes: Mapping[str, Sequence[str]], usage: str
) -> list[str]:
    """Set `values` from a command line. `--help` and `--version` print and exit with 0.

    Args:
        argv: The command line; `argv[0]` is the program's name.
        values: The declared flags.
        themes: The names of the flags to list in the help page, by theme.
        usage: The beginning of the help page.

    Returns:
        The positional arguments.

    Raises:
        UsageError: If a flag is unknown or malformed, or its value out of range.
    """
    if set(HELP_FLAGS) & set(argv[1:]):
        print(render_help(values, themes, usage))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"tf_packnet {__version__}")
        sys.exit(0)
    try:
        return values([argv[0], *expand_flagfiles(argv[1:])])[1:]
    except ArgumentError as error:
        raise UsageError(f"--{error.argument}={error.received}: expected {error.expected}") from error
    except (flags.Error, OSError, ValueError) as error:  # absl does not wrap all of them
        raise UsageError(" ".join(str(error).removeprefix("flag ").split())) from error


def check_no_positional(rest: Sequence[str]) -> None:
    """Raise UsageError if positional arguments were given."""
    if rest:
        raise UsageError(f"{rest[0]!r} is not a flag: expected only --name=value (--help lists the flags)")
