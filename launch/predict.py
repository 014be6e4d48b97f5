"""Predict with a pack: `python launch/predict.py --pack=FILE --task=K --input=IMAGES`. As `tf-packnet predict`."""

import os
import sys

os.environ["TF_PACKNET_LAZY"] = "1"  # import TensorFlow only after the flags and the files are checked

from tf_packnet.command_line.program import run_script

if __name__ == "__main__":
    sys.exit(run_script("predict", sys.argv))
