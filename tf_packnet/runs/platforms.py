"""The properties of a machine that change numerical results, besides the execution settings that are chosen on it."""

import importlib.metadata
import platform as system
import socket
from pathlib import Path
from typing import Any

from tf_packnet.runs.workers import Workers

CPUINFO = Path("/proc/cpuinfo")
# The instructions with which oneDNN, XLA and Eigen compute floating-point numbers, as Linux names them: x86, then ARM.
_INSTRUCTIONS = {
    *("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx10", "amx_tile", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "fphp", "bf16", "sve", "sve2", "svebf16", "sme", "sme2"),
}


def instructions() -> list[str]:
    """Return the architecture of the processor, and its instruction sets that change numerical results."""
    try:
        flags = set(CPUINFO.read_text(errors="replace").split())
    except OSError:
        flags = set()
    return [system.machine(), *sorted(flags & _INSTRUCTIONS)]


def platform(workers: Workers) -> dict[str, Any]:
    """Return the versions of TensorFlow and Keras, and the instructions of the processors of all workers."""
    processors = workers.gather(instructions())
    alike = all(processor == processors[0] for processor in processors)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    return {**versions, "cpu": processors[0] if alike else processors}


def host() -> str:
    """Return the name of this host."""
    return socket.gethostname()
