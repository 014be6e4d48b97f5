"""`tf-packnet plan`: how many weights each task of a run would get."""

from tf_packnet.command_line.run_command import Command, parse_command
from tf_packnet.command_line.run_flags import EXPERIMENT_FLAGS
from tf_packnet.runs import single_run

USAGE = """\
Prints how many weights of each layer each task of a run would get, and the size in memory and on
disk. Trains and writes nothing.

usage: tf-packnet plan [--flagfile=FILE] [--name=value ...]

  --flagfile=digits                       the plan of the demo
  --flagfile=mnist --final_prune=0.995    that of the paper's MNIST setting, with another p"""

# Flags of other subcommands.
ELSEWHERE = {**dict.fromkeys(EXPERIMENT_FLAGS, "experiment"), "stages_dir": "run"}


def main(argv: list[str]) -> None:
    """Run `tf-packnet plan` with a command line (`argv[0]` is the program's name)."""
    execute(parse_command(argv, USAGE, ELSEWHERE))


def execute(command: Command) -> None:
    """Print the plan of a parsed command line."""
    single_run.show_plan(command.config)
