"""`tf-packnet experiment`: many runs and their comparison."""

from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.run_command import Command, parse_command
from tf_packnet.command_line.run_flags import EXECUTION_FLAGS
from tf_packnet.experiments import suite

USAGE = """\
Does many runs and compares them: a figure or the table of the paper, or a sweep over any flag.

usage: tf-packnet experiment --experiment=NAME [--flagfile=FILE] [--name=value ...]
       tf-packnet experiment --sweep=NAME=VALUE,VALUE [--flagfile=FILE] [--name=value ...]

  --experiment=figure2 --flagfile=mnist            the paper's figure 2, in its MNIST setting
  --experiment=figure2 --flagfile=smoke            the same in miniature, within half a minute
  --sweep=final_prune=0.5,0.75 --flagfile=digits   one run per value, in the setting of the demo

--flagfile takes the name of a preset, or the path of a file with one --name=value per line. Later
flags override earlier ones."""

ELSEWHERE = {"dry_run": "plan"}


def main(argv: list[str]) -> None:
    """Run `tf-packnet experiment` with a command line (`argv[0]` is the program's name)."""
    command = parse_command(argv, USAGE, ELSEWHERE)
    if command.experiment is None:
        raise UsageError("--experiment: expected an experiment, a --sweep or --seeds (--help lists the flags)")
    execute(command)


def execute(command: Command) -> None:
    """Do the experiment of a parsed command line."""
    assert command.experiment is not None
    options = {name: getattr(command, name) for name in ("stages_dir", *EXECUTION_FLAGS)}
    suite.main(command.experiment, **options)
