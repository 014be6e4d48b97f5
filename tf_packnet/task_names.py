"""What a task may be called. Plain Python: pack files are checked by it without TensorFlow."""

import itertools
import unicodedata
from collections.abc import Collection
from typing import Any

from tf_packnet.errors import ArgumentError

MAX_BYTES = 200


def check_task_name(name: Any, taken: Collection[str] = ()) -> str:
    """Returns `name` as plain text if a new task may be called that.

    Args:
        name: The name.
        taken: Names that other tasks have.

    Raises:
        ArgumentError: If it is no text, empty, too long, has control characters or surrogates in it, or is taken.
    """
    if not isinstance(name, str):
        raise ArgumentError("name", "a text", name)
    name = str.__str__(name)  # the value of a member of an enumeration, and not what that prints
    if not name:
        raise ArgumentError("name", "a text that is not empty, or None for task_<number>", name)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ArgumentError("name", "a text without control characters and surrogates", name)
    if len(name.encode()) > MAX_BYTES:
        raise ArgumentError("name", f"at most {MAX_BYTES} bytes in UTF-8 (this has {len(name.encode())})", name)
    if name in taken:
        raise ArgumentError("name", "a name that no task of this pack has yet", name)
    return name


def default_task_name(number: int, taken: Collection[str]) -> str:
    """What task `number` (1-based) is called that got no name: `task_<number>`, or `task_<number>_1` if that is taken.

    Args:
        number: Its number.
        taken: Names that other tasks have.
    """
    name = f"task_{number}"
    numbered = (f"{name}_{index}" for index in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)
