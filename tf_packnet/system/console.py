"""Prints tables and progress in any terminal. Text from users and files is printed safely."""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from tf_packnet.text import printable, printable_lines

# Plausible numbers of columns and lines of a terminal. Other values are ignored.
_SIZES = range(20, 10_001)


class Console(rich.console.Console):
    """A console that prints strings literally: without markup and emoji codes, and with control characters escaped."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, _environ=_environment(), **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, such as a cell of a table, into one line of printable text."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render anything. Text that did not pass through `render_str` is made printable here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable_lines(segment.text))

    @property
    def file(self) -> IO[str]:
        """The stream to write to."""
        stream: Any = rich.console.Console.file.fget(self)  # type: ignore[attr-defined]
        return getattr(stream, "rendered", stream)  # of an OutputStream

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    @property
    def encoding(self) -> str:
        """Encoding of the stream. Text in memory is assumed to be printed to standard output later."""
        return (getattr(self.file, "encoding", None) or getattr(sys.stdout, "encoding", None) or "utf-8").lower()

    def on_broken_pipe(self) -> None:
        """Let the caller handle a broken pipe, as for `print`."""
        raise


def _environment() -> Mapping[str, str]:
    """Return the environment without impossible terminal sizes."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES") or _is_size(value)}


def _is_size(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 10 and int(value) in _SIZES
