"""`launch/main.py`: a run, an experiment or a plan, depending on the flags."""

from tf_packnet.command_line import experiment, plan, run
from tf_packnet.command_line.run_command import parse_command

USAGE = """\
Learns a stream of tasks in one network without forgetting: PackNet with iterative pruning.

usage: python launch/main.py [--flagfile=FILE] [--name=value ...]

  --flagfile=digits                      the demo: half a minute, no network needed
  --flagfile=mnist                       the paper's MNIST setting
  --flagfile=cifar10                     the paper's CIFAR-10 setting
  --experiment=figure2 --flagfile=...    one of the paper's figures, in that setting

--flagfile takes the name of a preset, or the path of a file with one --name=value per line. Later
flags override earlier ones."""


def main(argv: list[str]) -> None:
    """Run `launch/main.py` with a command line (`argv[0]` is the program's name)."""
    command = parse_command(argv, USAGE)
    if command.dry_run:
        plan.execute(command)
    elif command.experiment:
        experiment.execute(command)
    else:
        run.execute(command)
