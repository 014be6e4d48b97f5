"""Predicts with one task of a pack: `python launch/predict.py --pack=FILE --task=K --input=IMAGES`. `--help` says more.

Exit codes: 0 done, 1 the output could not be written, 2 bad input, of which nothing is written, 130 interrupted.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_PACKNET_LAZY"] = "1"  # TensorFlow starts when the flags and the files are known to be there

from flags.predicting import parse_command
from launch.ending import exit_code
from tf_packnet.prediction import predict

if __name__ == "__main__":
    sys.exit(exit_code(lambda: predict(parse_command(sys.argv))))
