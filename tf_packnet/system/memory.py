"""Checks the memory limits of the process. With too little memory, TensorFlow's C++ code aborts or crashes."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from tf_packnet.errors import StoppedError

MB = 10**6
# Measured with TensorFlow 2.21. On two cores, the digits preset takes 3,370 MB of address space and 1,030 MB of data
# segment; each further core adds about 25 MB. Importing TensorFlow takes 300 MB of RAM, plus 430 MB of file pages that
# the system can reclaim; the rest depends on the run.
_CORES = len(os.sched_getaffinity(0))
ADDRESS_SPACE, DATA, RESIDENT = (3_450 + 25 * _CORES) * MB, (1_050 + 25 * _CORES) * MB, 500 * MB


def check() -> None:
    """Raise StoppedError if a limit on memory is too low to import TensorFlow."""
    for name, limit, needed in limits():
        if limit < needed:
            raise StoppedError(
                f"not enough memory for TensorFlow: {name} is {limit / MB:,.0f} MB; expected at least "
                f"{needed / MB:,.0f} MB"
            )


def available(root: Path = Path("/")) -> int:
    """Return the memory in bytes that this process and its child processes may take; `sys.maxsize` if unknown."""
    return min((limit for _, limit, _ in _shared_limits(root)), default=sys.maxsize)


def limits(root: Path = Path("/")) -> Iterator[tuple[str, int, int]]:
    """Yield the memory limits of this process: name, limit in bytes, and bytes that TensorFlow needs.

    Args:
        root: The folder that contains `proc` and `sys`.
    """
    for kind, name, needed in (
        (resource.RLIMIT_AS, "the address space (ulimit -v)", ADDRESS_SPACE),
        (resource.RLIMIT_DATA, "the data segment (ulimit -d)", DATA),
    ):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield name, limit, needed
    yield from _shared_limits(root)


def _shared_limits(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the limits that several processes share, in the format of `limits`."""
    for file in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):  # no such file; no limit, "max"
            yield f"the limit of the control group ({file})", int(file.read_text()), RESIDENT
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        kilobytes = {words[0]: int(words[1]) for words in lines}
        yield "the available memory", 1024 * (kilobytes["MemAvailable:"] + kilobytes["SwapFree:"]), RESIDENT


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the limit files of all control groups of this process, for cgroup versions 1 and 2."""
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = top / group.strip("/")
            # In a container, the path may be that on the host. The process's own group is then the top one.
            yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(top))


def room() -> int:
    """Return the memory in bytes that this process may still use in addition to TensorFlow."""
    return min((max(0, limit - needed) for _, limit, needed in limits()), default=2**63 - 1)
