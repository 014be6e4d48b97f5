"""Learn a stream of tasks: `python launch/main.py --flagfile=digits`. `--help` lists the flags.

The same code as `tf-packnet run`, `tf-packnet experiment` and `tf-packnet plan` (with `--dry_run`). Exit codes: 0 done,
1 failed (training diverged, runs of an experiment failed, full disk), 2 bad input, 129 hung up, 130 interrupted,
141 output closed, 143 terminated.
"""

import os
import sys

os.environ["TF_PACKNET_LAZY"] = "1"  # import TensorFlow only after the flags are checked

from tf_packnet.command_line.program import run_script

if __name__ == "__main__":
    sys.exit(run_script("launch", sys.argv))
