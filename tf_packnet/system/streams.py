"""Standard output and standard error of a command, for any text in any encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tf_packnet.text import printable_lines


class OutputStream(io.TextIOBase):
    """Writes printable text to another stream.

    Args:
        stream: The stream.
        name: Its name in error messages.
        required: Whether a failed write raises OSError. If not, a full disk or a closed terminal does not end a run
            because of its log. A closed pipe always raises BrokenPipeError.
        rendered: Whether the text is already printable, and its control characters are intended.

    Attributes:
        rendered: The same stream, for text that is already printable.
    """

    def __init__(self, stream: TextIO, name: str, required: bool, rendered: bool = False):
        self._stream, self._name, self._required = stream, name, required
        self._is_rendered = rendered
        self.rendered = self if rendered else OutputStream(stream, name, required, rendered=True)

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text if self._is_rendered else printable_lines(text)))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            with contextlib.suppress(OSError):  # the rest would fail again, at the latest when the process ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._required or isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self._name) from error

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer


@contextlib.contextmanager
def any_output() -> Iterator[None]:
    """Context manager in which `sys.stdout` and `sys.stderr` accept any text, even if they are closed or ASCII only."""
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _safe(sys.stdout, "standard output", required=True)
    sys.stderr = _safe(sys.stderr, "standard error", required=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _fill_closed_descriptors() -> None:
    """Connect closed standard descriptors to `/dev/null`. Otherwise the next opened file would get their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _safe(stream: TextIO | None, name: str, required: bool) -> TextIO:
    if stream is None:  # it was closed when Python started
        stream = open(os.devnull, "w")  # noqa: SIM115  used until the process ends
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return OutputStream(stream, name, required)  # type: ignore[return-value]
