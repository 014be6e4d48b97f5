"""Objects in a bucket or a folder, given by a URL. Writes are atomic; uploads and downloads are verified.

Buckets need no locks: if two processes write the same object with `once`, the first one wins.
"""

import contextlib
import enum
import errno
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.system import files
from tf_packnet.system.extras import require_extra

EXPECTED = "a folder, or a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER"
# Seconds to wait before each retry of a failed operation on a bucket. s3fs and gcsfs also retry by themselves.
DELAYS = (1.0, 2.0, 4.0, 8.0)
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}, "gs": {}}
_URL = re.compile(r"(?P<protocol>[^/]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")
_Result = TypeVar("_Result")


class Found(enum.Enum):
    """Result of a download."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    MISSING = enum.auto()


class Objects(Protocol):
    """The objects below a URL."""

    url: str

    def download(self, name: str, path: Path, is_whole: Callable[[], bool]) -> Found:
        """Copy an object to the file `path`.

        Args:
            name: Name of the object, with `/` between its parts.
            path: The file, which is overwritten. After the call it exists only if the object does.
            is_whole: Function that returns whether `path` contains an undamaged object.

        Raises:
            OSError: If the objects cannot be reached or read.
        """

    def upload(self, path: Path, name: str, once: bool = False) -> bool:
        """Copy a file to an object, and read the object back to verify it.

        Args:
            path: The file.
            name: Name of the object.
            once: Whether to leave an existing object unchanged.

        Returns:
            Whether the object now has the content of the file; always True without `once`.

        Raises:
            OSError: If the objects cannot be reached or written.
        """

    def delete(self, name: str) -> None:
        """Delete an object, if it exists and may be deleted."""


def is_url(text: str) -> bool:
    """Whether `text` has the form of a URL, not of the path of a folder."""
    return _URL.match(text) is not None


def open_url(argument: str, url: str) -> Objects:
    """Check the form of a URL, and return the objects below it. No connection is made.

    Raises:
        ArgumentError: If the URL does not have one of the forms in `EXPECTED`.
        MissingExtraError: If the library for the protocol is not installed.
    """
    protocol, _, rest = url.partition("://")
    rest = rest.rstrip("/")
    bucket, *parts = rest.split("/")
    is_clean = rest.isprintable() and "?" not in rest and not {"", ".", ".."} & set(parts)
    if protocol == "file" and not bucket and parts and is_clean:
        return Folder(Path(rest))
    if protocol not in _OPTIONS or not _BUCKET.fullmatch(bucket) or not is_clean:
        raise ArgumentError(argument, EXPECTED, re.sub("//[^/]*@", "//***@", url))  # a password may be in it
    if protocol == "s3":
        require_extra(f"--{argument}=s3://", "fsspec", "s3fs", extra="s3")
    else:
        require_extra(f"--{argument}=gs://", "fsspec", "gcsfs", extra="gcs")
    return Bucket(protocol, rest)


def check(argument: str, objects: Objects) -> None:
    """Check with an object `.tf_packnet` that objects can be written and read, and that missing ones are recognized.

    Raises:
        ArgumentError: If the check fails.
        OSError: If the bucket cannot be reached now.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe")
        path.write_text("tf_packnet\n")
        try:
            objects.upload(path, ".tf_packnet")
            objects.download(".missing", path, lambda: True)  # S3 denies this to who may not list the bucket
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise
            expected = f"a place that can be written and read ({error.strerror or error})"
            raise ArgumentError(argument, expected, objects.url) from error


class Folder:
    """The objects in a folder.

    Args:
        root: The folder; created when the first object is written.
    """

    def __init__(self, root: Path):
        self.url = f"file://{root}"
        self._root = root

    def download(self, name: str, path: Path, is_whole: Callable[[], bool]) -> Found:
        try:
            with files.open_file(self._root / name) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        except (FileNotFoundError, NotADirectoryError):
            return Found.MISSING
        return Found.WHOLE if is_whole() else Found.DAMAGED

    def upload(self, path: Path, name: str, once: bool = False) -> bool:
        target, checksum = self._root / name, files.sha256(path)
        with contextlib.suppress(FileExistsError), files.replacing(target, once=once) as temporary:
            shutil.copyfile(path, temporary)
        is_equal = files.sha256(target) == checksum
        if not once and not is_equal:
            raise OSError(errno.EIO, "its content is not what was written", str(target))
        return is_equal

    def delete(self, name: str) -> None:
        with contextlib.suppress(PermissionError):
            files.remove(self._root / name)


class Bucket:
    """The objects in a bucket of S3 or Google Cloud Storage.

    Args:
        protocol: `s3` or `gs`.
        prefix: Name of the bucket, followed by the prefix of the names of all objects, if any.
    """

    def __init__(self, protocol: str, prefix: str):
        self.url = f"{protocol}://{prefix}"
        self._protocol, self._prefix = protocol, prefix
        self._opened: Any = None

    @property
    def _files(self) -> Any:
        if self._opened is None:
            import fsspec

            self._opened = fsspec.filesystem(self._protocol, use_listings_cache=False, **_OPTIONS[self._protocol])
        return self._opened

    def download(self, name: str, path: Path, is_whole: Callable[[], bool]) -> Found:
        def attempt() -> Found:
            try:
                self._files.get_file(f"{self._prefix}/{name}", str(path))
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                return Found.MISSING
            return Found.WHOLE if is_whole() else Found.DAMAGED

        found = self._retried(name, attempt)
        return self._retried(name, attempt) if found is Found.DAMAGED else found  # on its way, perhaps

    def upload(self, path: Path, name: str, once: bool = False) -> bool:
        checksum = files.sha256(path)

        def attempt() -> bool:
            try:
                self._write(path, f"{self._prefix}/{name}", once)
                with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                    copy = os.path.join(folder, "copy")
                    self._files.get_file(f"{self._prefix}/{name}", copy)
                    is_equal = files.sha256(copy) == checksum
            except FileNotFoundError as error:
                raise PermissionError(errno.EACCES, one_line(str(error), 200)) from error  # there is no such bucket
            if not once and not is_equal:
                raise OSError(errno.EIO, "its content is not what was written")
            return is_equal

        return self._retried(name, attempt)

    def delete(self, name: str) -> None:
        def attempt() -> None:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                self._files.rm_file(f"{self._prefix}/{name}")

        self._retried(name, attempt)

    def _write(self, path: Path, name: str, once: bool) -> None:
        if not once:
            self._files.put_file(str(path), name)
            return
        try:
            self._files.pipe_file(name, path.read_bytes(), mode="create")
        except FileExistsError:
            pass
        except OSError as error:  # how other servers than Amazon's say that it exists
            if "precondition" not in str(error).lower() and "pre-condition" not in str(error).lower():
                raise

    def _retried(self, name: str, attempt: Callable[[], _Result]) -> _Result:
        """Return the result of `attempt`. It is called again after an error that may be transient.

        Raises:
            OSError: With `errno.EACCES` if access is denied, with `errno.ENOTCONN` if all attempts fail.
        """
        for delay in (*DELAYS, None):
            try:
                return attempt()
            except (ValueError, TypeError, PermissionError) as error:
                raise OSError(errno.EACCES, _reason(error), f"{self.url}/{name}") from error
            except Exception as error:  # the libraries for HTTP have many classes of their own
                if delay is None:
                    raise OSError(errno.ENOTCONN, f"no connection ({_reason(error)})", f"{self.url}/{name}") from error
            time.sleep(delay * random.uniform(0.5, 1))
        raise AssertionError


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(str(text), 200)
