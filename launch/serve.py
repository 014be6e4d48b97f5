"""Serve a pack over HTTP: `python launch/serve.py --pack=FILE_OR_FOLDER`. As `tf-packnet serve`."""

import os
import sys

os.environ["TF_PACKNET_LAZY"] = "1"  # import TensorFlow only after the flags and the pack are checked

from tf_packnet.command_line.program import run_script

if __name__ == "__main__":
    sys.exit(run_script("serve", sys.argv))
