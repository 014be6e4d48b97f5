"""Reads labelled data sets from tables: CSV or Parquet files, and folders of them."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError, listed
from tf_packnet.system.images import IMAGES, OTHER_IMAGES
from tf_packnet.system.limits import Bound, SizeError
from tf_packnet.system.table_files import OTHER_TABLES, TABLE_RATIO, TABLES, Table, naming, read_table
from tf_packnet.tasks.encodings import (
    MAX_CATEGORIES,
    MAX_LENGTH,
    MAX_VOCABULARY,
    Category,
    Encoding,
    Features,
    Number,
    Text,
    Tokens,
    learn_number,
    learn_words,
    words_of,
)
from tf_packnet.tasks.labelled import Labelled
from tf_packnet.tasks.splitting import held_out_rows
from tf_packnet.tasks.stream import Split

# Names of the column of the labels, in order of preference.
_LABELS = ("label", "class", "target", "y")
# Names of files and folders with training examples, and of those with test examples, in order of preference.
_TRAIN, _TESTS = "train", ("test", "validation", "valid", "val")
# Copies of the encoded examples in memory while they are split and trained on.
_COPIES = 3


class Columns(NamedTuple):
    """Which columns of tables are read, and how.

    Attributes:
        label: The column of the labels. Default: `label`, `class`, `target` or `y`.
        features: The columns of the examples. Default: `text`, or all others.
        text: Columns of text, which are joined. The examples are then sequences of word ids. Default: the column of the
            examples, if there is only one and it contains text.
        length: Number of ids of an example of text, or of a column of lists of ids. Longer examples are truncated,
            shorter ones are padded with 0.
        vocabulary: Number of ids. For text, this includes the ids of padding (0) and of unknown words (1).
    """

    label: str | None = None
    features: Sequence[str] = ()
    text: Sequence[str] = ()
    length: int = 128
    vocabulary: int = 20_000


def is_table(path: str | os.PathLike) -> bool:
    """Whether `path` is a table, a folder of tables, or a folder of such folders."""
    root = Path(os.path.expanduser(path))
    if root.is_file():
        return root.suffix.lower() in (*TABLES, *OTHER_TABLES)
    # Not every table in a subfolder counts: the folder of a class may contain a table next to its images.
    return root.is_dir() and (_has_tables(root) or any(_has_training_tables(folder) for folder in _folders_in(root)))


class _Files(NamedTuple):
    name: str
    train: list[Path]
    test: list[Path]
    is_task: bool
    origin: str


def read_tables(
    paths: Sequence[str | os.PathLike],
    columns: Columns,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_bytes: int | None = None,
) -> list[Labelled]:
    """Read data sets with one encoding, which is learned from the training examples of all of them.

    Args:
        paths: Files, or folders.
        columns: Which columns are read, and how.
        test_fraction: Fraction of each class to hold out for testing if a data set has no test examples.
        seed: Seeds the choice of held-out examples.
        max_bytes: Limit in bytes on the memory for a file, and for all encoded examples; None for the default.

    Returns:
        One data set for each file or folder with training examples, and one for each task of a folder of tasks.

    Raises:
        ArgumentError: If a file cannot be read, or its columns or labels do not match those of the others.
    """
    columns = _checked(columns)
    sets = [files for path in paths for files in _layout(Path(os.path.expanduser(path)))]
    with naming("path"):
        tables = {file: read_table(file, max_bytes) for files in sets for file in (*files.train, *files.test)}
        first = tables[sets[0].train[0]]
        label, features, text = _chosen(first, columns)
        if not (columns.features or columns.text):
            for table in tables.values():
                _check_same_columns(table, first)
        labels = [_labels(files, tables, label) for files in sets]
        rows = [_training_rows(files, own, test_fraction, seed) for files, own in zip(sets, labels, strict=True)]
        training = [
            (tables[file], kept)
            for files, own in zip(sets, rows, strict=True)
            for file, kept in _by_file(files.train, tables, own)
        ]
        encoding = _learned(training, features, text, columns)
        file_bytes = sum(file.stat().st_size for file in tables)
        examples = sum(table.rows for table in tables.values())
        _check_size(examples * encoding.shape[0], file_bytes, max_bytes, first.path)
        return [
            _labelled(files, tables, encoding, own, kept) for files, own, kept in zip(sets, labels, rows, strict=True)
        ]


def refuse(columns: Columns) -> None:
    """Raise ArgumentError if columns are chosen although the data are images: the choice would have no effect."""
    for name, value in (
        ("label_column", columns.label),
        ("feature_columns", columns.features),
        ("text_columns", columns.text),
    ):
        if value:
            raise ArgumentError(name, "no value for images", value if isinstance(value, str) else ",".join(value))


def _checked(columns: Columns) -> Columns:
    if not isinstance(columns, Columns):
        raise ArgumentError("columns", "a tp.tasks.Columns", columns)
    for name, value, most in (
        ("text_length", columns.length, MAX_LENGTH),
        ("vocabulary_size", columns.vocabulary, MAX_VOCABULARY),
    ):
        least = 3 if name == "vocabulary_size" else 1
        if type(value) is not int or not least <= value <= most:
            raise ArgumentError(name, f"{least} to {most:,}", value)
    features, text = ([value] if isinstance(value, str) else list(value) for value in (columns.features, columns.text))
    for name, chosen in (("feature_columns", features), ("text_columns", text)):
        if len(set(chosen)) < len(chosen):
            raise ArgumentError(name, "different names", ",".join(chosen))
    return columns._replace(features=features, text=text)


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file() and _is_visible(file)
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and _is_visible(child))


def _has_tables(folder: Path) -> bool:
    return bool(_tables_below(folder))


def _has_training_tables(folder: Path) -> bool:
    return any(_is_of_split(file, _TRAIN) or file.parent != folder for file in _tables_below(folder))


def _tables_below(folder: Path) -> list[Path]:
    train = folder / _TRAIN
    return _files_in(folder, TABLES) + (_files_in(train, TABLES) if train.is_dir() else [])


def _layout(root: Path) -> list[_Files]:
    """Return the files of each data set at a path."""
    if root.is_file():
        _check_suffixes([root])
        return [_Files(root.stem, [root], [], False, root.stem)]
    origin = Path(os.path.abspath(root)).name
    if _has_tables(root):
        whole = _data_set(root, origin)
        if whole is not None:
            return [whole._replace(name=origin)]
        files = _tables_in(root)
        _refuse_folders(root, _folders_in(root))
        return [_Files(file.stem, [file], [], True, origin) for file in files]
    tasks = []
    for folder in _folders_in(root):
        found = _data_set(folder, origin) if _has_tables(folder) else None
        if found is None:
            expected = f"a table {_TRAIN} ({', '.join(TABLES)}) in each folder of {root}"
            raise ArgumentError("path", expected, os.fspath(folder))
        tasks.append(found._replace(name=folder.name, is_task=True))
    return tasks


def _data_set(folder: Path, origin: str) -> _Files | None:
    """Return the files of a folder that has training examples; None if it has none."""
    train = _split_files(folder, _TRAIN)
    if not train:
        return None
    test_name = next((name for name in _TESTS if _split_files(folder, name)), None)
    test = _split_files(folder, test_name) if test_name else []
    used = {_TRAIN, *_TESTS}
    others = [file for file in _tables_in(folder) if not any(_is_of_split(file, name) for name in used)]
    if others:
        expected = f"only tables named {_TRAIN} or {', '.join(_TESTS)} beside {train[0]}"
        raise ArgumentError("path", expected, os.fspath(others[0]))
    _refuse_folders(folder, [child for child in _folders_in(folder) if child.name not in used])
    return _Files(folder.name, train, test, False, origin)


def _split_files(folder: Path, name: str) -> list[Path]:
    """Return the tables of a split: those in a folder named `name`, or the files named `name`."""
    inside = folder / name
    if inside.is_dir():
        return _tables_in(inside)
    return [file for file in _tables_in(folder) if _is_of_split(file, name)]


def _is_of_split(file: Path, name: str) -> bool:
    """Whether a file is a split or a numbered part of it, such as `train-00000-of-00002.parquet`."""
    return re.fullmatch(rf"{name}([-_.]\d+(-of-\d+)?)?", file.stem, re.IGNORECASE) is not None


def _tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder. Raise ArgumentError if it contains images or unsupported tables."""
    _check_suffixes(_files_in(folder, (*OTHER_TABLES, *IMAGES, *OTHER_IMAGES)))
    return _files_in(folder, TABLES)


def _check_suffixes(files: Sequence[Path]) -> None:
    unread = [file for file in files if file.suffix.lower() not in TABLES]
    if unread:
        raise ArgumentError("path", f"only tables that can be read ({', '.join(TABLES)})", os.fspath(unread[0]))


def _refuse_folders(root: Path, folders: Sequence[Path]) -> None:
    if folders:
        expected = f"either tables or folders in {root}, which has tables"
        raise ArgumentError("path", expected, os.fspath(folders[0]))


def _chosen(table: Table, columns: Columns) -> tuple[str, list[str], list[str]]:
    """Return the label column, the feature columns, and the feature columns that are text."""
    found = f"{listed(map(repr, table.columns), 20)} of {table.path}"
    lower = {name.lower(): name for name in reversed(table.columns)}
    label = columns.label or next((lower[name] for name in _LABELS if name in lower), None)
    if label not in table.columns:
        raise ArgumentError("label_column", f"one of the columns {found}", columns.label)
    for argument, names in (("feature_columns", columns.features), ("text_columns", columns.text)):
        for name in names:
            if name not in table.columns or name == label:
                raise ArgumentError(argument, f"columns other than the labels, of {found}", name)
    features = list(columns.features or columns.text) or [name for name in table.columns if name != label]
    if not features:
        raise ArgumentError("feature_columns", f"at least one column besides the labels in {table.path}", None)
    if "" in features:
        expected = f"names of columns, as column {list(table.columns).index('') + 1} of {table.path} has no name"
        raise ArgumentError("feature_columns", expected, None)
    text = list(columns.text)
    if not text and len(features) == 1 and table.is_text(features[0]) and not table.is_numeric(features[0]):
        text = features
    if text and sorted(text) != sorted(features):
        others = [name for name in features if name not in text]
        raise ArgumentError("text_columns", "all columns of the examples, or none", ",".join(text or others))
    return label, features, text


def _check_same_columns(table: Table, first: Table) -> None:
    different = sorted(set(table.columns) ^ set(first.columns))
    if different:
        expected = f"the columns of {first.path} in {table.path}: {listed(map(repr, first.columns), 20)}"
        where = "without" if different[0] in first.columns else "with"
        raise ArgumentError("path", expected, f"{len(table.columns)} columns, {where} {different[0]!r}")


class _Labels(NamedTuple):
    names: list[str]
    train: np.ndarray
    test: np.ndarray


def _labels(files: _Files, tables: dict[Path, Table], name: str) -> _Labels:
    """Return the names of the classes of a data set, and the labels of its examples."""
    texts = [table.texts(name).to_pylist() for table in (tables[file] for file in files.train)]
    distinct = sorted({text for part in texts for text in part})
    if all(tables[file].is_numeric(name) for file in files.train):
        distinct.sort(key=float)
        broken = next((text for text in distinct if float(text) % 1), None)
        if broken is not None:
            expected = f"class numbers or names in column {name!r} of {files.train[0]} (tp.tasks.from_arrays takes"
            raise ArgumentError("label_column", f"{expected} values to predict)", f"{broken}")
    numbers = {text: number for number, text in enumerate(distinct)}
    train = np.array([numbers[text] for part in texts for text in part], np.int32)
    test = np.zeros(0, np.int32)
    for file in files.test:
        found = tables[file].texts(name).to_pylist()
        unknown = next((row for row, text in enumerate(found) if text not in numbers), None)
        if unknown is not None:
            expected = f"only classes with training examples {tables[file].place(unknown, name)}"
            raise ArgumentError("path", expected, found[unknown])
        test = np.concatenate([test, np.array([numbers[text] for text in found], np.int32)])
    return _Labels(distinct, train, test)


class _Rows(NamedTuple):
    train: np.ndarray
    test: np.ndarray


def _training_rows(files: _Files, labels: _Labels, test_fraction: float, seed: int) -> _Rows:
    """Return the rows of the training files to train on, and those to hold out for testing."""
    if files.test:
        return _Rows(np.arange(len(labels.train)), np.zeros(0, np.int64))
    rng = np.random.default_rng([seed, 1])  # as for other data sets without test examples
    return _Rows(*held_out_rows(files.name, labels.train, range(len(labels.names)), test_fraction, rng))


def _by_file(files: Sequence[Path], tables: dict[Path, Table], rows: _Rows) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield each file with the indices of its training rows."""
    start = 0
    for file in files:
        end = start + tables[file].rows
        yield file, rows.train[(rows.train >= start) & (rows.train < end)] - start
        start = end


def _learned(
    training: Sequence[tuple[Table, np.ndarray]], features: list[str], text: list[str], columns: Columns
) -> Encoding:
    tables = [table for table, _ in training]
    lists = [name for name in features if any(table.is_list(name) for table in tables if name in table.columns)]
    if lists and len(features) > 1:
        expected = f"only column {lists[0]!r}, as it contains lists"
        raise ArgumentError("feature_columns", expected, ",".join(features))
    if lists:
        return Tokens(lists[0], columns.length, columns.vocabulary)
    if text:
        parts = []
        for table, kept in training:
            words, rows = words_of(table, text)
            parts.append(words.take(np.flatnonzero(np.isin(rows, kept))))
        return Text(tuple(text), columns.length, learn_words(parts, columns.vocabulary))
    return Features(tuple(_feature(name, training) for name in features))


def _feature(name: str, training: Sequence[tuple[Table, np.ndarray]]) -> Number | Category:
    for table, _ in training:
        table.column(name)
    if all(table.is_numeric(name) for table, _ in training):
        return learn_number(name, [table.numbers(name)[kept] for table, kept in training])
    # Categories of held-out examples are included: the set of categories is not a statistic of the examples.
    categories = sorted({text for table, _ in training for text in table.texts(name).unique().to_pylist()})
    if len(categories) > MAX_CATEGORIES:
        for table, _ in training:
            table.refuse_odd_texts(name)
        expected = f"other columns than {name!r} of {training[0][0].path}, whose {len(categories):,} different texts "
        expected += f"are too many for categories (at most {MAX_CATEGORIES}); --text_columns reads text"
        raise ArgumentError("feature_columns", expected, None)
    return Category(name, tuple(categories))


def _check_size(values: int, file_bytes: int, max_bytes: int | None, path: Path) -> None:
    try:
        Bound(max_bytes, file_bytes, TABLE_RATIO).check(4 * _COPIES * values, f"{values:,} encoded values")
    except SizeError as error:
        raise ArgumentError("path", f"smaller tables ({error})", os.fspath(path)) from error


def _labelled(files: _Files, tables: dict[Path, Table], encoding: Encoding, labels: _Labels, rows: _Rows) -> Labelled:
    examples = Split(np.concatenate([encoding.encode(tables[file]) for file in files.train]), labels.train)
    if files.test:
        test = Split(np.concatenate([encoding.encode(tables[file]) for file in files.test]), labels.test)
    else:
        test = examples.take(rows.test)
    return Labelled(
        files.name,
        examples.take(rows.train),
        test,
        labels.names,
        files.is_task,
        sum(file.stat().st_size for file in (*files.train, *files.test)),
        files.origin,
        encoding,
    )
