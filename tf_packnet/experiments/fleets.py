"""How many runs of an experiment train side by side in one process, see `tf_packnet.training.fleet`."""

import sys

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import gpus
from tf_packnet.experiments.definitions import Experiment
from tf_packnet.runs.config import Config

AUTO, OFF = "auto", "off"
MOST = 256
# `auto` on a GPU. Fewer small networks leave it idle; convolutional networks use more of it, and more memory.
_SMALL, _LARGE = 32, 8


def check(value: str) -> None:
    """Raise ArgumentError unless `value` is a number of runs in text, `auto` or `off`."""
    is_number = value.isdecimal() and value.isascii() and len(value) <= len(str(MOST)) and 1 <= int(value) <= MOST
    if value not in (AUTO, OFF) and not is_number:
        raise ArgumentError("fleet", f"auto, off, or a number of runs from 1 to {MOST}", value)


def size(value: str, experiment: Experiment, on_gpus: bool | None = None) -> int:
    """Return how many runs each worker process trains side by side.

    Args:
        value: The number of runs, `off` for 1, or `auto`: as many as suit the network on a GPU, 1 on a CPU.
        experiment: The experiment. If its runs cannot share a process, the number is 1.
        on_gpus: Whether the runs use GPUs; default: whether there are any.
    """
    check(value)
    if value == OFF or (value == AUTO and not (gpus.visible() if on_gpus is None else on_gpus)):
        return 1
    reason = next(filter(None, map(_why_single, experiment.configs)), "")
    if reason:
        refuse(value, reason)
        return 1
    if value == AUTO:
        return _SMALL if all(config.model == "mlp" for config in experiment.configs) else _LARGE
    return int(value)


def refuse(value: str, reason: str) -> None:
    """Print why runs train one at a time, if the user has asked for more."""
    if value not in (AUTO, OFF):
        print(f"--fleet={value}: the runs train one at a time, {reason}", file=sys.stderr)


def _why_single(config: Config) -> str:
    """Return why a run cannot share a process; empty if it can."""
    if config.data_residency == "stream":
        return "because of --data_residency=stream"
    if config.strategy == "mirrored":
        return "because of --strategy=mirrored"
    if config.precision == "mixed_float16":
        return "because of --precision=mixed_float16"
    return ""
