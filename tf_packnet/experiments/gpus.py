"""The GPUs of this machine, and their assignment to workers.

GPUs are counted without TensorFlow, which would allocate memory on them.
"""

import ctypes
import math
import os
from collections.abc import Mapping, Sequence

from tf_packnet.errors import ArgumentError

VISIBLE = "CUDA_VISIBLE_DEVICES"
# The value of `CUDA_VISIBLE_DEVICES` that hides all GPUs.
NONE = "-1"


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names that CUDA has for the GPUs of this process, as in `CUDA_VISIBLE_DEVICES`: numbers or UUIDs."""
    found = count()
    if VISIBLE not in environment:
        return [str(number) for number in range(found)]
    # CUDA ignores a name that it does not know, and all names after it.
    return [name.strip() for name in environment[VISIBLE].split(",")][:found]


def count() -> int:
    """Return how many GPUs CUDA shows to this process: those of its container and of `CUDA_VISIBLE_DEVICES`."""
    number = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number))
    except (OSError, AttributeError):  # no driver
        return 0
    return 0 if failed else number.value


def divide(gpus: Sequence[str], per_run: float) -> list[str]:
    """Return the value of `CUDA_VISIBLE_DEVICES` for each of the workers that may run at the same time.

    Args:
        gpus: The names of all GPUs.
        per_run: GPUs of each run; a fraction if several runs share one.

    Raises:
        ArgumentError: If there are too few GPUs for one run.
    """
    if per_run < 1:
        slots = list(gpus) * runs_per_gpu(per_run)  # the first workers get different GPUs
    else:
        size = int(per_run)
        slots = [",".join(gpus[start : start + size]) for start in range(0, len(gpus) - size + 1, size)]
    if not slots:
        expected = f"at most the {len(gpus)} GPUs of this machine" if gpus else "a machine with GPUs (CUDA shows none)"
        raise ArgumentError("gpus_per_run", expected, per_run)
    return slots


def runs_per_gpu(per_run: float) -> int:
    """Return how many runs share a GPU if each takes the fraction `per_run` of it."""
    return math.floor(1 / per_run + 1e-9)


def check_per_run(per_run: float | None) -> None:
    """Raise ArgumentError unless this is a possible number of GPUs per run."""
    if per_run is None or per_run == 0 or 0.001 <= per_run <= 1 or per_run in range(1, 65):
        return
    expected = "a fraction from 0.001 to 1, a whole number of GPUs up to 64, or 0 for runs on the CPU"
    raise ArgumentError("gpus_per_run", expected, per_run)
