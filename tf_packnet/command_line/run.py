"""`tf-packnet run`: learns one stream of tasks."""

from tf_packnet.command_line.run_command import Command, parse_command
from tf_packnet.command_line.run_flags import EXPERIMENT_FLAGS
from tf_packnet.runs import single_run

USAGE = """\
Learns a stream of tasks in one network without forgetting: PackNet with iterative pruning.

usage: tf-packnet run [--flagfile=FILE] [--name=value ...]

  --flagfile=digits     the demo: half a minute, no network needed
  --flagfile=mnist      the paper's MNIST setting
  --flagfile=cifar10    the paper's CIFAR-10 setting

--flagfile takes the name of a preset, or the path of a file with one --name=value per line. Later
flags override earlier ones."""

# Flags of other subcommands.
ELSEWHERE = {**dict.fromkeys(EXPERIMENT_FLAGS, "experiment"), "dry_run": "plan"}


def main(argv: list[str]) -> None:
    """Run `tf-packnet run` with a command line (`argv[0]` is the program's name)."""
    execute(parse_command(argv, USAGE, ELSEWHERE))


def execute(command: Command) -> None:
    """Do the run of a parsed command line."""
    single_run.main(command.config, command.stages_dir)
