"""Classifies the errors of a worker by their cause: the run, the machine, or the folder that is written to.

- The run: invalid input, divergence, and Python's errors for wrong code. The run has failed; the worker goes on.
- The machine: memory, devices, the installation, the death of the process. The run may not be the cause, see
  `run_queue`.
- The folder: full, read-only or gone, see `system/storage.py`. No run can go on.
"""

import re
import signal

from tf_packnet.errors import ArgumentError, StoppedError, one_line
from tf_packnet.system.storage import is_storage_fault

_RUN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError),
    *(NotImplementedError, RecursionError, TypeError, ValueError),
)
# TensorFlow's codes INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED.
_RUN_CODES = {3, 5, 6, 9, 11, 12}
# What libraries write into errors of any type if they run out of memory or threads, or find no device.
_MACHINE_TEXT = re.compile(
    "out of memory|OOM when|cannot allocate memory|failed to allocate|bad_alloc|can't start new thread"
    r"|too many open files|CUDA|cuDNN|cuBLAS|cuSOLVER|NCCL|\bROCm|\bDNN library|device ordinal"
    "|assign a device|device specification|no such device|No GPU|unknown device|cannot open shared object|libdevice",
    re.IGNORECASE,
)

# What CUDA and TensorFlow write if GPU memory has run out. cuBLAS and cuDNN need some when they are loaded.
_GPU_MEMORY_TEXT = re.compile(
    "out.of.memory|OOM when|failed to allocate|resource.?exhausted"
    "|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)

# Signals that users and systems send to end a process.
_FROM_OUTSIDE = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT}


def is_machine_fault(error: BaseException | int) -> bool:
    """Return whether the machine, not the run, is the cause of an error of a worker.

    Args:
        error: The exception of a run, or the exit status of a worker process. An exit status is always a machine fault:
            a process never exits by itself during a run.
    """
    if isinstance(error, int):
        return True
    if isinstance(error, (ArgumentError, StoppedError)) or is_storage_fault(error):
        return False
    if isinstance(error, (MemoryError, ImportError)) or _MACHINE_TEXT.search(str(error)):
        return True
    if error.__cause__ is not None and is_machine_fault(error.__cause__):
        return True
    return not isinstance(error, _RUN) and getattr(error, "error_code", None) not in _RUN_CODES


def is_gpu_memory(reason: str) -> bool:
    """Whether a fault of a process that uses a GPU means that the memory of the GPU has run out."""
    return _GPU_MEMORY_TEXT.search(reason) is not None


def is_from_outside(status: int) -> bool:
    """Whether an exit status means that the process was ended from outside, so that its run cannot be the cause."""
    return status in _FROM_OUTSIDE


def describe(error: BaseException) -> str:
    """Return class and message of an exception in one line."""
    return one_line(f"{type(error).__name__}: {error}".removesuffix(": "), 300)


def describe_exit(status: int, output: str) -> str:
    """Describe in one line how a process ended.

    Args:
        status: Exit status of the process; for a signal, its negative number.
        output: What the process has written to standard error.
    """
    lines = output.strip().splitlines()
    last = f": {one_line(lines[-1], 300)}" if lines else ""
    if status >= 0:
        return f"its process exited with {status}{last}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status == -signal.SIGKILL:  # its last output does not explain this
        return f"its process was killed by {name}, as the system does when memory runs out"
    return f"its process was ended by {name}{last}"
