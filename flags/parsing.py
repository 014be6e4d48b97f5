"""From the command line to a `Config`."""

import sys

from absl import flags

from flags.definitions import define_flags
from flags.help import render_help
from tf_packnet import __version__
from tf_packnet.experiments.config import Config


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


def parse_config(argv: list[str]) -> Config:
    """Parses a command line (`argv[0]` is the program) and checks it.

    `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown or malformed, or its value out of range.
        ArgumentError: If two flags do not fit together.
    """
    values, themes = define_flags()
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(render_help(values, themes))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"tf_packnet {__version__}")
        sys.exit(0)
    try:
        rest = values(argv)
    except flags.CantOpenFlagFileError as error:
        reason = str(error).rpartition("flagfile: ")[2]
        raise UsageError(f"--flagfile: expected a file of flags that can be read ({reason})") from error
    except (flags.Error, OSError, ValueError) as error:  # absl lets some of each through
        raise UsageError(" ".join(str(error).removeprefix("flag ").split())) from error
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r} is no flag: expected only --name=value (--help lists the flags)")
    return Config(**{name: values[name].value for names in themes.values() for name in names})
