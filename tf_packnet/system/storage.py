"""Recognizes errors of any library that mean that files can no longer be written or read."""

import errno
import re

from tf_packnet.errors import ArgumentError, StoppedError

_NAMES = "ENOSPC EDQUOT EROFS EIO ESTALE EACCES EPERM ENODEV ENXIO ENOTCONN"
_ERRNOS = {getattr(errno, name) for name in _NAMES.split()}
# NumPy, HDF5 and TensorFlow raise errors of other types that contain the message of the system.
_TEXT = re.compile("No space left on device|Disk quota exceeded|Read-only file system|Stale file handle")


def is_storage_fault(error: BaseException) -> bool:
    """Whether an error means that files can no longer be written or read, for example because the disk is full."""
    if isinstance(error, (ArgumentError, StoppedError)):
        return False
    return (isinstance(error, OSError) and error.errno in _ERRNOS) or bool(_TEXT.search(str(error)))
