"""Recognises errors which say that files can no longer be written or read, whatever library raises them."""

import errno
import re

from tf_packnet.errors import ArgumentError, StoppedError

_NAMES = "ENOSPC EDQUOT EROFS EIO ESTALE EACCES EPERM ENODEV ENXIO ENOTCONN"
_ERRNOS = {getattr(errno, name) for name in _NAMES.split()}
# NumPy, HDF5 and TensorFlow raise errors of their own with the text of the system.
_TEXT = re.compile("No space left on device|Disk quota exceeded|Read-only file system|Stale file handle")


def is_storage_fault(error: BaseException) -> bool:
    """Whether an error says that files can no longer be written or read: the disk is full, read-only or gone."""
    if isinstance(error, (ArgumentError, StoppedError)):
        return False
    return (isinstance(error, OSError) and error.errno in _ERRNOS) or bool(_TEXT.search(str(error)))
