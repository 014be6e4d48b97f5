"""Memory that a process keeps for its next step instead of giving it back to the system."""

import ctypes
import platform

# Parameters of glibc's mallopt, see malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed() -> bool:
    """Lets this process reuse what it frees, arrays of any size: glibc's default is to unmap those beyond 32 MiB.

    Every gradient step of a network with a large kernel makes such arrays. Each time the system maps them anew, page by
    page, and fills them with zeros: 9,000 page faults a step of the CIFAR-10 preset. The price is that the process
    stays as large as it once was. The launchers call it; call it yourself before you train a large network.

    Returns:
        Whether it did: the C library may be another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
