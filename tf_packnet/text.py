"""Makes text safe where it leaves the program: in terminals, JSON, spreadsheets, Markdown, charts and file names.

Names of tasks, classes, layers and files can contain any character. Stored data keeps them unchanged.
"""

import json
import re
import sys
import unicodedata
from typing import Any

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
# Limit on the bytes of a file name from `file_name`, so that a prefix and a suffix fit into the usual 255.
_MAX_FILE_NAME = 200


def printable(text: Any) -> str:
    r"""Escape invisible characters as `repr` does: control and format characters, lone surrogates, unusual spaces.

    For example, an escape character becomes `\x1b`, a line feed `\n`, and a bidi override `\u202e`.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def printable_lines(text: str) -> str:
    """Escape invisible characters as `printable` does, but keep line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def to_json(value: Any) -> str:
    """Format `value` as indented JSON in printable ASCII."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")  # json.dumps escapes all others


def csv_cell(value: Any) -> Any:
    """Make a value safe for a cell of a CSV file: spreadsheets evaluate text that begins like a formula.

    Returns:
        Printable text, with a leading `'` if it begins like a formula. Numbers, also as text, are returned unchanged.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    # A spreadsheet may skip spaces, and may read a full-width sign like the usual one.
    begins = unicodedata.normalize("NFKC", value.lstrip()[:1])
    return ("'" if begins in tuple("=+-@|") else "") + printable(value)


def markdown(text: Any) -> str:
    """Escape text for Markdown, also within a cell of a table."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", printable(text))


def label(text: Any) -> str:
    """Escape text for Matplotlib, for which `$` begins a formula."""
    return printable(text).replace("$", r"\$")


def file_name(name: str) -> str:
    """Turn a name into a part of a file name: without `/`, encodable in the file system, at most 200 bytes long."""
    encoding = sys.getfilesystemencoding()
    encoded = printable(name).replace("/", "_").encode(encoding, "backslashreplace")
    return encoded[:_MAX_FILE_NAME].decode(encoding, "ignore")
