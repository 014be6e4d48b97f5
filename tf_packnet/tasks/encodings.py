"""Encodes tables as arrays: numbers and categories as features, text and lists of ids as token ids.

An encoding is learned from training examples and stored in the pack, so that new tables are encoded in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tf_packnet.errors import listed
from tf_packnet.system import arrow
from tf_packnet.system.table_files import Table, TableError

# Ids of padding and of unknown words, as in `keras.layers.TextVectorization`.
PADDING, UNKNOWN = 0, 1
_SPECIAL = 2
# A column with more distinct values is probably text, or contains names of examples.
MAX_CATEGORIES = 255
MAX_LENGTH = 100_000
MAX_VOCABULARY = 1_000_000


@dataclass(frozen=True)
class Number:
    """Encodes a column of numbers, which are standardized.

    Attributes:
        name: Name of the column.
        mean: Mean over the training examples.
        deviation: Standard deviation over the training examples; 1 if they are all equal.
    """

    name: str
    mean: float
    deviation: float

    @property
    def width(self) -> int:
        """Number of features."""
        return 1

    def encode(self, table: Table) -> np.ndarray:
        """Return the features, `(rows, 1)`."""
        return ((table.numbers(self.name) - self.mean) / self.deviation)[:, np.newaxis]

    def to_json(self) -> dict[str, Any]:
        """Return the column as JSON values."""
        return {"name": self.name, "mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class Category:
    """Encodes a column of categories as one-hot features.

    Attributes:
        name: Name of the column.
        categories: The categories, sorted.
    """

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.categories)

    def encode(self, table: Table) -> np.ndarray:
        """Return the features, `(rows, categories)`."""
        return np.eye(self.width)[_index(table, self.name, self.categories)]

    def to_json(self) -> dict[str, Any]:
        """Return the column as JSON values."""
        return {"name": self.name, "categories": list(self.categories)}


def _index(table: Table, name: str, known: Sequence[str]) -> np.ndarray:
    """Return the index in `known` of each cell of a column, `(rows,)`.

    Raises:
        TableError: If a cell is not in `known`.
    """
    texts = table.texts(name)
    found = arrow.index_in(texts, known)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        row = int(unknown[0])
        raise TableError(f"one of {listed(known)} {table.place(row, name)}", f"{texts[row].as_py()!r}")
    return found


@dataclass(frozen=True)
class Features:
    """Encodes columns of numbers and categories as one vector of features, `float32`.

    Attributes:
        columns: The columns, in the order of the features.
    """

    columns: tuple[Number | Category, ...]
    dtype: ClassVar[type] = np.float32

    @property
    def shape(self) -> tuple[int]:
        """Shape of an encoded example."""
        return (sum(column.width for column in self.columns),)

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [column.name for column in self.columns]

    def encode(self, table: Table) -> np.ndarray:
        """Return the features of each row, `(rows, features)`."""
        features: np.ndarray = np.empty((table.rows, *self.shape), self.dtype)
        start = 0
        for column in self.columns:
            features[:, start : start + column.width] = column.encode(table)
            start += column.width
        return features

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as JSON values."""
        return {"columns": [column.to_json() for column in self.columns]}


@dataclass(frozen=True)
class Text:
    """Encodes text as the ids of its words, as `keras.layers.TextVectorization` does.

    Attributes:
        columns: Columns whose texts are joined by a space.
        length: Number of ids of an example. Longer texts are truncated, shorter ones are padded with 0.
        vocabulary: The words, in the order of their ids. The first has id 2.
    """

    columns: tuple[str, ...]
    length: int
    vocabulary: tuple[str, ...]
    dtype: ClassVar[type] = np.int32

    @property
    def shape(self) -> tuple[int]:
        """Shape of an encoded example."""
        return (self.length,)

    @property
    def size(self) -> int:
        """Number of ids, including the ids of padding and of unknown words."""
        return len(self.vocabulary) + _SPECIAL

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.columns)

    def encode(self, table: Table) -> np.ndarray:
        """Return the ids of each row, `(rows, length)`."""
        words, rows = words_of(table, self.columns)
        ids = arrow.index_in(words, self.vocabulary) + _SPECIAL
        ids[ids < _SPECIAL] = UNKNOWN
        return _padded(ids, rows, table.rows, self.length)

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as JSON values."""
        return {"text": list(self.columns), "length": self.length, "vocabulary": list(self.vocabulary)}


@dataclass(frozen=True)
class Tokens:
    """Encodes a column of lists of token ids.

    Attributes:
        column: Name of the column.
        length: Number of ids of an example. Longer lists are truncated, shorter ones are padded with 0.
        size: Vocabulary size: ids are 0 to `size - 1`.
    """

    column: str
    length: int
    size: int
    dtype: ClassVar[type] = np.int32

    @property
    def shape(self) -> tuple[int]:
        """Shape of an encoded example."""
        return (self.length,)

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [self.column]

    def encode(self, table: Table) -> np.ndarray:
        """Return the ids of each row, `(rows, length)`."""
        ids, rows = arrow.flattened(table.lists(self.column), missing=-1)
        wrong = np.flatnonzero((ids < 0) | (ids >= self.size))
        if len(wrong):
            place = table.place(int(rows[wrong[0]]), self.column)
            found = int(ids[wrong[0]])
            raise TableError(f"ids from 0 to {self.size - 1:,} {place}", str(found) if found != -1 else "-1, or none")
        return _padded(ids, rows, table.rows, self.length)

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as JSON values."""
        return {"tokens": self.column, "length": self.length, "size": self.size}


Encoding = Features | Text | Tokens


def words_of(table: Table, columns: Sequence[str]) -> tuple[Any, np.ndarray]:
    """Return all words of `columns` as a pyarrow array, and the row of each word."""
    return arrow.words([table.texts(name) for name in columns])


def _padded(ids: np.ndarray, rows: np.ndarray, count: int, length: int) -> np.ndarray:
    """Arrange ids as one line per row, truncated and padded with 0.

    Args:
        ids: The ids of all rows, `(ids,)`.
        rows: The row of each id, sorted.
        count: Number of rows.
        length: Number of ids per row.

    Returns:
        `int32` array `(count, length)`.
    """
    starts = np.searchsorted(rows, np.arange(count))
    position = np.arange(len(ids)) - starts[rows]
    kept = position < length
    padded = np.full((count, length), PADDING, np.int32)
    padded[rows[kept], position[kept]] = ids[kept]
    return padded


def learn_number(name: str, values: Sequence[np.ndarray]) -> Number:
    """Learn the encoding of a column of numbers from training examples.

    Raises:
        TableError: If the mean or the standard deviation is not finite.
    """
    joined = np.concatenate(values)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(joined.mean()), float(joined.std())
    if not (np.isfinite(mean) and np.isfinite(deviation)):
        raise TableError(f"numbers in column {name!r} whose variance float64 can hold", f"up to {abs(joined).max():g}")
    return Number(name, mean, deviation or 1.0)


def learn_words(words: Sequence[Any], size: int) -> tuple[str, ...]:
    """Return the most frequent words of training examples, in the order of `TextVectorization.adapt`.

    Args:
        words: Arrays of words.
        size: Number of ids, including the ids of padding and of unknown words.
    """
    return tuple(arrow.most_frequent(words, size - _SPECIAL))


def from_json(value: Any) -> Encoding:
    """Restore an encoding from the JSON values of `to_json`.

    Raises:
        ValueError: If `value` is not an encoding.
    """
    try:
        encoding = _restored(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("an encoding of a table") from error
    names = encoding.names()
    if encoding.to_json() != value or not names or len(set(names)) < len(names):
        raise ValueError("an encoding of a table")
    return encoding


def _restored(value: Mapping[str, Any]) -> Encoding:
    if "columns" in value:
        columns = tuple(
            Category(_text(each["name"]), tuple(map(_text, each["categories"])))
            if "categories" in each
            else Number(_text(each["name"]), _real(each["mean"]), _real(each["deviation"], 0.0))
            for each in value["columns"]
        )
        return Features(columns)
    length = _whole(value["length"], MAX_LENGTH)
    if "text" in value:
        return Text(tuple(map(_text, value["text"])), length, tuple(map(_text, value["vocabulary"])))
    return Tokens(_text(value["tokens"]), length, _whole(value["size"], MAX_VOCABULARY))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _real(value: Any, above: float = -np.inf) -> float:
    if not isinstance(value, float) or not above < value < np.inf:
        raise TypeError(value)
    return value


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise TypeError(value)
    return value
