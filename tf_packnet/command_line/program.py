"""Entry points of the `tf-packnet` command and of the scripts in `launch/`.

Imports little until the signal handlers are installed, so that Ctrl-C during imports prints no traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from tf_packnet.system import interruption
from tf_packnet.version import __version__

SUBCOMMANDS = {
    "run": "learn a stream of tasks: one run",
    "experiment": "compare runs: the figures and the table of the paper, and sweeps",
    "plan": "print how many weights each task of a run would get; train nothing",
    "inspect": "show the contents of a pack: tasks, owners, free capacity",
    "predict": "predict the classes of new examples with one task of a pack",
    "serve": "serve all tasks of a pack over HTTP",
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
    if first in SUBCOMMANDS:
        return run_script(first, [f"tf-packnet {first}", *rest])
    interruption.end_at_once()
    from tf_packnet.command_line.exit_codes import exit_code

    return exit_code(lambda: _without_subcommand(first), "tf-packnet")


def run_script(name: str, argv: Sequence[str]) -> int:
    """Run a program (see `run_program`) as the only work of this process.

    Signals end the process without a traceback.
    """
    interruption.end_at_once()
    code = run_program(name, argv)
    if code > interruption.exit_code(0):  # ended by a signal: another one must not change the exit code
        interruption.ignore()
    return code


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
    from tf_packnet.command_line.exit_codes import exit_code
    from tf_packnet.command_line.help_page import HELP_FLAGS
    from tf_packnet.system import memory

    def work() -> None:
        if not {"--version", *HELP_FLAGS} & set(argv):
            memory.check()  # before NumPy, which can hang if there is too little memory
        importlib.import_module(f"tf_packnet.command_line.{_MODULES[name]}").main(list(argv))

    return exit_code(work, os.path.basename(argv[0]), resumable=name in _RESUMABLE)


def _without_subcommand(first: str) -> None:
    from tf_packnet.command_line.help_page import HELP_FLAGS
    from tf_packnet.command_line.parsing import UsageError

    if first in HELP_FLAGS:
        print(_HELP.format(subcommands="\n".join(f"  {name:<12}{text}" for name, text in SUBCOMMANDS.items())))
    elif first == "--version":
        print(f"tf_packnet {__version__}")
    else:
        received = f"{first!r}: " if first else ""
        raise UsageError(f"{received}expected a subcommand, one of {', '.join(SUBCOMMANDS)} (see tf-packnet --help)")
