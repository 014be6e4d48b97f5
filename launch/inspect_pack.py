"""Show a pack: `python launch/inspect_pack.py --pack=out/digits/pack.keras`. As `tf-packnet inspect`."""

import os
import sys

os.environ["TF_PACKNET_LAZY"] = "1"  # import TensorFlow only after the flags are checked

from tf_packnet.command_line.program import run_script

if __name__ == "__main__":
    sys.exit(run_script("inspect", sys.argv))
