"""Learns a stream of tasks: `python launch/main.py --flagfile=flags/presets/digits.flags`. `--help` lists the flags.

Parse, make a config, one library call. Exit code 0 is success, 2 is bad input, which leaves nothing behind.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["KERAS_BACKEND"] = "tensorflow"  # the trainer and the strategies are TensorFlow's
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from flags.parsing import UsageError, parse_config
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import experiment


def main(argv: list[str]) -> int:
    """Does what `argv` asks for; returns the exit code."""
    try:
        experiment.main(parse_config(argv))
    except UsageError as error:
        return _refuse(str(error))
    except ArgumentError as error:
        return _refuse(f"--{error.argument}={error.received}: expected {error.expected}")
    except KeyboardInterrupt:
        print("\nstopped; the same command begins this run again", file=sys.stderr)
        return 130
    return 0


def _refuse(reason: str) -> int:
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
