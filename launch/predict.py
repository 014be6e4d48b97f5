"""Predicts with one task of a pack: `python launch/predict.py --pack=FILE --task=K --input=IMAGES`. `--help` says more.

Exit codes: 0 done, 1 the output could not be written, 2 bad input, of which nothing is written, 130 interrupted.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # has an inspect.py that is not Python's: the folder above instead
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if os.path.realpath(path) != HERE)]
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_PACKNET_LAZY"] = "1"  # TensorFlow starts when the flags and the files are known to be there

from flags.parsing import UsageError
from flags.predicting import parse_command
from tf_packnet.errors import ArgumentError, PackFileError
from tf_packnet.prediction import predict


def main(argv: list[str]) -> int:
    """Does what `argv` asks for; returns the exit code."""
    try:
        predict(parse_command(argv))
    except (UsageError, PackFileError) as error:
        return _stop(str(error), code=2)
    except ArgumentError as error:
        received = "" if error.received is None else f"={error.received}"
        return _stop(f"--{error.argument}{received}: expected {error.expected}", code=2)
    except OSError as error:
        return _stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", code=1)
    except KeyboardInterrupt:
        return 130
    return 0


def _stop(reason: str, code: int) -> int:
    print(f"predict.py: {' '.join(reason.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
