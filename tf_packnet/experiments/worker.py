"""One run of a sweep, in a process of its own: `python -m tf_packnet.experiments.worker CONFIG`, a config as JSON."""

import json
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_PACKNET_LAZY"] = "1"

from tf_packnet.errors import ArgumentError, DivergedError
from tf_packnet.experiments import experiment
from tf_packnet.experiments.config import Config


def main(argument: str) -> int:
    """Runs the config; returns the launcher's exit codes."""
    try:
        experiment.main(Config.from_json(json.loads(argument)))
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    except DivergedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
