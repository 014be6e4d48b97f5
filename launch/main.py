"""Learns a stream of tasks: `python launch/main.py --flagfile=flags/presets/digits.flags`. `--help` lists the flags.

Parse, make a config, one library call. Exit codes: 0 done, 1 it cannot go on (the training diverged, runs of a sweep
failed, a full disk), 2 bad input, which leaves nothing behind, 130 interrupted, 143 terminated.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"  # the trainer and the strategies are TensorFlow's
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_PACKNET_LAZY"] = "1"  # TensorFlow starts when the flags are known to be good

from flags.parsing import parse_command
from launch.ending import exit_code
from tf_packnet.experiments import suite
from tf_packnet.runs import single_run


def main() -> None:
    """Does what the command line asks for."""
    asked = parse_command(sys.argv)
    if asked.dry_run:
        single_run.show_plan(asked.config)
    elif asked.experiment:
        suite.main(asked.experiment, asked.workers, asked.threads, asked.stages_dir)
    else:
        single_run.main(asked.config, asked.stages_dir)


if __name__ == "__main__":
    sys.exit(exit_code(main, goes_on="the same command goes on after the last epoch that was finished"))
