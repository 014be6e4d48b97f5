"""Learns a stream of tasks: `python launch/main.py --flagfile=flags/presets/digits.flags`. `--help` lists the flags.

Parse, make a config, one library call. Exit codes: 0 done, 1 it cannot go on (the training diverged, runs of a sweep
failed, a full disk), 2 bad input, which leaves nothing behind, 130 interrupted, 143 terminated.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # has an inspect.py that is not Python's: the folder above instead
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if os.path.realpath(path) != HERE)]

import signal

os.environ["KERAS_BACKEND"] = "tensorflow"  # the trainer and the strategies are TensorFlow's
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_PACKNET_LAZY"] = "1"  # TensorFlow starts when the flags are known to be good

from flags.parsing import UsageError, parse_command
from tf_packnet.errors import ArgumentError, StoppedError, one_line
from tf_packnet.experiments import experiment, suite


def main(argv: list[str]) -> int:
    """Does what `argv` asks for; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        asked = parse_command(argv)
        if asked.dry_run:
            experiment.show_plan(asked.config)
        elif asked.plan:
            suite.main(asked.plan, asked.workers, asked.threads, asked.stages_dir)
        else:
            experiment.main(asked.config, asked.stages_dir)
    except UsageError as error:
        return _stop(str(error), code=2)
    except ArgumentError as error:
        return _stop(f"--{error.argument}={error.received}: expected {error.expected}", code=2)
    except StoppedError as error:
        return _stop(str(error), code=1)
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        return _stop(f"{reason}; the same command goes on when that is mended", code=1)
    except KeyboardInterrupt as stop:
        print("\nstopped; the same command goes on after the last epoch that was finished", file=sys.stderr)
        return 143 if stop.args else 130
    return 0


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def _stop(reason: str, code: int) -> int:
    print(f"{os.path.basename(sys.argv[0])}: {one_line(reason)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
