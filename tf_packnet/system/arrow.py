"""Operations on pyarrow arrays: columns of text and of lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_packnet.system.extras import require_extra

# The same characters as in `TextVectorization(standardize="lower_and_strip_punctuation")`.
_PUNCTUATION = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']"""


def _compute() -> Any:
    require_extra("Reading tables", "pyarrow", extra="tables")
    import pyarrow.compute

    return pyarrow.compute


def index_in(texts: Any, known: Sequence[str]) -> np.ndarray:
    """Return the index in `known` of each text, -1 for unknown ones, as a NumPy array `(texts,)`."""
    pc = _compute()
    found = pc.index_in(texts, value_set=pc.cast(list(known), "string"))
    return pc.fill_null(found, -1).to_numpy()


def flattened(lists: Any, missing: int) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate lists of integers.

    Args:
        lists: A pyarrow array of lists.
        missing: Replaces null values in the lists.

    Returns:
        The values of all lists, and the index of the list of each value.
    """
    pc = _compute()
    return pc.fill_null(pc.list_flatten(lists), missing).to_numpy(), pc.list_parent_indices(lists).to_numpy()


def words(texts: Sequence[Any]) -> tuple[Any, np.ndarray]:
    """Split text into words as `TextVectorization` does: lower ASCII letters only, and split at ASCII whitespace.

    Args:
        texts: Columns of text, which are joined by a space.

    Returns:
        All words, as a pyarrow array, and the row of each word.
    """
    pc = _compute()
    joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, " ")
    plain = pc.replace_substring_regex(pc.ascii_lower(joined), _PUNCTUATION, "")
    split = pc.ascii_split_whitespace(plain)
    found, rows = pc.list_flatten(split), pc.list_parent_indices(split)
    is_word = pc.not_equal(found, "")
    return found.filter(is_word), rows.filter(is_word).to_numpy()


def most_frequent(texts: Sequence[Any], most: int) -> list[str]:
    """Return the `most` most frequent texts of several arrays, in the order of `TextVectorization.adapt`."""
    require_extra("Reading tables", "pyarrow", extra="tables")
    import pyarrow as pa

    counts = pa.chunked_array(texts, pa.string()).value_counts()
    found = counts.field("values").to_numpy(zero_copy_only=False)
    order = np.lexsort((found, counts.field("counts").to_numpy()))[::-1]
    return found[order][:most].tolist()
