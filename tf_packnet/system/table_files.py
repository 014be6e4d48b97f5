"""Reads tables from CSV and Parquet files as columns of text, numbers, or lists of integers.

Errors name the row and the column of a cell. Rows are counted from 1, below the header.
"""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError, first_line, listed
from tf_packnet.system.extras import require_extra
from tf_packnet.system.limits import Bound, SizeError, open_regular
from tf_packnet.system.memory import room

TABLES = (".csv", ".tsv", ".parquet")
# Suffixes of table files that are not supported.
OTHER_TABLES = (".xls", ".xlsx", ".ods", ".json", ".jsonl", ".feather", ".arrow", ".orc", ".gz", ".zip", ".bz2", ".xz")
_DELIMITERS = (",", ";", "\t", "|")
# Texts that count as an empty cell.
_MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL"]
# Memory in bytes for a cell, in addition to its text.
_CELL_BYTES = 8
# Maximum ratio of memory to file size, for compressed files.
TABLE_RATIO = 16


class TableError(ValueError):
    """A table cannot be used.

    Attributes:
        expected: What is expected, and where.
        received: What the table contains instead.
    """

    def __init__(self, expected: str, received: str):
        super().__init__(f"{expected}, not {received}")
        self.expected = expected
        self.received = received


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Context manager that turns a TableError into an ArgumentError about `argument`."""
    try:
        yield
    except TableError as error:
        raise ArgumentError(argument, error.expected, error.received) from error


class Table(NamedTuple):
    """A table in memory.

    Attributes:
        path: The file.
        columns: pyarrow arrays by column name, in the order of the file. All columns of CSV files are text.
        rows: Number of rows.
    """

    path: Path
    columns: dict[str, Any]
    rows: int

    def place(self, row: int, name: str) -> str:
        """Return the position of a cell as text for error messages; `row` counts from 0."""
        return f"in row {row + 1}, column {name!r} of {self.path}"

    def column(self, name: str) -> Any:
        """Return a column, after checking that it has no empty cells.

        Raises:
            TableError: If there is no such column, or a cell is empty.
        """
        import pyarrow.compute as pc

        if name not in self.columns:
            raise TableError(f"a column {name!r} in {self.path}", f"the columns {listed(self.columns, 20)}")
        column = self.columns[name]
        missing = pc.is_null(column, nan_is_null=_is_number(column))
        if pc.any(missing).as_py():
            row = pc.index(missing, True).as_py()
            raise TableError(f"a value {self.place(row, name)}", "an empty cell")
        return column

    def is_numeric(self, name: str) -> bool:
        """Whether a column contains only numbers and empty cells."""
        column = self.columns[name]
        return _is_number(column) or (_is_text(column) and _as_numbers(column) is not None)

    def is_text(self, name: str) -> bool:
        """Whether a column contains text, or numbers in a CSV file."""
        return _is_text(self.columns[name])

    def is_list(self, name: str) -> bool:
        """Whether a column contains lists of integers."""
        return _is_list(self.columns[name])

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, `float64` `(rows,)`.

        Raises:
            TableError: If there is no such column, or a cell is empty or not a finite number.
        """
        column = self.column(name)
        if not _is_number(column) and not _is_text(column):
            raise TableError(f"numbers or text in column {name!r} of {self.path}", f"values of type {column.type}")
        numbers = column if _is_number(column) else _as_numbers(column)
        if numbers is None:
            row = next(row for row, cell in enumerate(column) if _as_numbers(cell) is None)
            self._refuse_number(row, name, column[row].as_py())
        values = np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            self._refuse_number(int(broken[0]), name, float(values[broken[0]]))
        return values

    def refuse_odd_texts(self, name: str) -> None:
        """Raise TableError at the first cell that is not a number, if most cells are numbers."""
        if _is_text(self.columns[name]):
            odd = [row for row, cell in enumerate(self.columns[name]) if _as_numbers(cell) is None]
            if odd and 2 * len(odd) < self.rows:
                self._refuse_number(odd[0], name, self.columns[name][odd[0]].as_py())

    def _refuse_number(self, row: int, name: str, cell: Any) -> None:
        expected = f"a finite number {self.place(row, name)}, as in other cells of {name!r}"
        raise TableError(expected, repr(cell))

    def texts(self, name: str) -> Any:
        """Return a column as a pyarrow array of text. Whole numbers have no decimal point.

        Raises:
            TableError: If there is no such column, a cell is empty, or the column contains neither text nor numbers.
        """
        import pyarrow as pa

        column = self.column(name)
        if _is_number(column):
            values = column.to_pylist()
            return pa.array([str(int(value)) if value == np.floor(value) else repr(value) for value in values])
        if not _is_text(column):
            raise TableError(f"text or numbers in column {name!r} of {self.path}", f"values of type {column.type}")
        return column

    def lists(self, name: str) -> Any:
        """Return a column as a pyarrow array of lists of integers.

        Raises:
            TableError: If there is no such column, a cell is empty, or the column does not contain lists of integers.
        """
        column = self.column(name)
        if not _is_list(column):
            expected = f"lists of integers in column {name!r} of {self.path}"
            raise TableError(expected, f"values of type {column.type}")
        return column


def read_table(path: Path, max_bytes: int | None = None) -> Table:
    """Read a table.

    Args:
        path: A file with one of the suffixes `TABLES`.
        max_bytes: Limit in bytes on the memory for the table; None for the default.

    Raises:
        TableError: If the file cannot be read, is empty, or takes too much memory, if two columns have the same name,
            or if a row and the header differ in the number of cells.
        MissingExtraError: If pyarrow is not installed.
    """
    require_extra("Reading tables", "pyarrow", extra="tables")
    import pyarrow as pa

    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        bound = Bound.of_file(path, max_bytes, TABLE_RATIO)
        names, columns = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, bound, size)
    except SizeError as error:
        raise TableError(f"a smaller table ({error})", str(path)) from error
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"a {path.suffix[1:]} file that can be read ({first_line(error)})", str(path)) from error
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TableError(f"columns with different names in {path}", f"{twice[0]!r} twice")
    rows = len(columns[0]) if columns else 0
    if not rows:
        raise TableError(f"at least one row in {path}", "none")
    return Table(path, dict(zip(names, columns, strict=True)), rows)


def _check_memory(needed: int, path: Path, bound: Bound) -> None:
    bound.check(needed, str(path))
    if not bound.is_explicit and needed > room():
        raise SizeError(f"{path} would take {needed:,} bytes of memory, more than the {room():,} that are free")


def _csv(path: Path, bound: Bound, size: int) -> tuple[list[str], list[Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow

    if not size:
        raise TableError(f"a header and rows in {path}", "an empty file")
    delimiter, names = _header(path)
    _check_memory(size + _CELL_BYTES * size // 2, path, bound)  # a cell and its delimiter have two bytes or more
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    # Columns get numbers as names, because the header may contain a name twice.
    numbered = [str(number) for number in range(len(names))]
    try:
        table = arrow.read_csv(
            path,
            # One thread: with several, errors do not contain the number of the row. A row must fit into a block.
            arrow.ReadOptions(use_threads=False, column_names=numbered, block_size=min(max(size, 2**20), 2**28)),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
            arrow.ConvertOptions(
                column_types=dict.fromkeys(numbered, pa.string()),
                null_values=_MISSING,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if ragged:
            row = ragged[0]
            place = f"row {row.number - 1}" if row.number else "each row"
            expected = f"{row.expected_columns} cell(s) in {place} of {path}, like its header"
            raise TableError(expected, f"{row.actual_columns}: {row.text[:60]!r}") from error
        _check_utf8(path)
        raise
    columns = [pc.utf8_trim_whitespace(table[name].combine_chunks())[1:] for name in numbered]
    columns = [pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column) for column in columns]
    if delimiter == ";":
        columns = [_with_decimal_points(column) for column in columns]
    return names, columns


def _header(path: Path) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns."""
    found: dict[str, list[str]] = {}
    for delimiter in ("\t",) if path.suffix.lower() == ".tsv" else _DELIMITERS:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                found[delimiter] = next(csv.reader(file, delimiter=delimiter), [])
        except UnicodeDecodeError:
            _check_utf8(path)
            raise TableError(f"text in UTF-8 in {path}", "other bytes") from None
        except csv.Error as error:
            raise TableError(f"a header with the names of the columns in {path}", first_line(error)) from error
    delimiter = max(found, key=lambda each: len(found[each]))
    names = [name.strip() for name in found[delimiter]]
    if not names:
        raise TableError(f"a header with the names of the columns in the first line of {path}", "an empty line")
    return delimiter, names


def _check_utf8(path: Path) -> None:
    """Raise TableError at the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                broken = line[error.start : error.start + 1]
                raise TableError(f"text in UTF-8 in line {number} of {path}", f"the byte {broken!r}") from error


def _with_decimal_points(column: Any) -> Any:
    """Replace decimal commas by points, if all cells are numbers."""
    import pyarrow.compute as pc

    is_number = pc.match_substring_regex(column, r"^[+-]?\d*,?\d+([eE][+-]?\d+)?$")
    return pc.replace_substring(column, ",", ".") if pc.all(is_number).as_py() else column


def _parquet(path: Path, bound: Bound, size: int) -> tuple[list[str], list[Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        facts = file.metadata
        cells = facts.num_rows * facts.num_columns
        stored = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        _check_memory(max(stored, size) + _CELL_BYTES * cells, path, bound)
        table = file.read(use_threads=False)
    return table.column_names, [_plain(column.combine_chunks()) for column in table.columns]


def _plain(column: Any) -> Any:
    """Convert a column to the common type of its kind: `string`, `double`, or `list<int64>`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if types.is_large_string(kind) or types.is_string_view(kind):
        return column.cast(pa.string())
    if types.is_boolean(kind):  # as pandas writes it to a CSV file
        return pc.if_else(column, "True", "False")
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pa.float64(), safe=False)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return column.cast(pa.list_(pa.int64())) if is_list and types.is_integer(kind.value_type) else column


def _is_number(column: Any) -> bool:
    return str(column.type) == "double"


def _is_text(column: Any) -> bool:
    return str(column.type) == "string"


def _is_list(column: Any) -> bool:
    return str(column.type).startswith("list<") and str(column.type.value_type) == "int64"


def _as_numbers(column: Any) -> Any:
    """Convert text to numbers; return None if a text is not a number."""
    import pyarrow as pa

    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
