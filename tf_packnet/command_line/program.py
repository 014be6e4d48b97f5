"""Entry points of the `tf-packnet` command and of the scripts in `launch/`."""

import importlib
import os
import sys
from collections.abc import Sequence

from tf_packnet.command_line.exit_codes import BAD_INPUT, exit_code
from tf_packnet.command_line.help_page import HELP_FLAGS
from tf_packnet.errors import one_line
from tf_packnet.version import __version__

SUBCOMMANDS = {
    "run": "learn a stream of tasks: one run",
    "experiment": "compare runs: the figures and the table of the paper, and sweeps",
    "plan": "print how many weights each task of a run would get; train nothing",
    "inspect": "show the contents of a pack: tasks, owners, free capacity",
    "predict": "predict the classes of new examples with one task of a pack",
}
# The module of each program in this package. `launch` is launch/main.py: run, experiment or plan, depending on flags.
_MODULES = {**{name: name for name in SUBCOMMANDS}, "inspect": "inspect_pack", "launch": "launcher"}
_RESUMABLE = ("run", "experiment", "launch")

_HELP = """\
PackNet continual learning: many tasks in one network, without forgetting.

usage: tf-packnet SUBCOMMAND [--name=value ...]

{subcommands}

tf-packnet SUBCOMMAND --help lists the flags of a subcommand; tf-packnet --version prints the version."""


def main() -> int:
    """Run the `tf-packnet` command with the process's arguments.

    Returns:
        The exit code, see `exit_codes.exit_code`.
    """
    first, *rest = sys.argv[1:] or [""]
    if first in HELP_FLAGS:
        print(_HELP.format(subcommands="\n".join(f"  {name:<12}{text}" for name, text in SUBCOMMANDS.items())))
        return 0
    if first == "--version":
        print(f"tf_packnet {__version__}")
        return 0
    if first not in SUBCOMMANDS:
        received = f"{first!r}: " if first else ""
        expected = f"expected a subcommand, one of {', '.join(SUBCOMMANDS)} (see tf-packnet --help)"
        print(f"tf-packnet: {one_line(received)} {expected}".replace("  ", " "), file=sys.stderr)
        return BAD_INPUT
    return run_program(first, [f"tf-packnet {first}", *rest])


def run_program(name: str, argv: Sequence[str]) -> int:
    """Run a subcommand, or `launch` for `launch/main.py`.

    Args:
        name: One of `SUBCOMMANDS`, or `launch`.
        argv: The program's name, as its messages show it, and its arguments.

    Returns:
        The exit code, see `exit_codes.exit_code`.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def work() -> None:
        importlib.import_module(f"tf_packnet.command_line.{_MODULES[name]}").main(list(argv))

    return exit_code(work, os.path.basename(argv[0]), resumable=name in _RESUMABLE)
