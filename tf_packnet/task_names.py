"""Names of tasks: checks them, makes default names, and finds the number of a task by its name."""

import itertools
import unicodedata
from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

from tf_packnet.errors import ArgumentError

MAX_BYTES = 200


def check_task_name(name: Any, taken: Collection[str] = ()) -> str:
    """Check the name of a new task and return it as a plain `str`.

    Args:
        name: The name.
        taken: Names of the other tasks.

    Raises:
        ArgumentError: If `name` is not a string, empty, too long, taken, or contains control characters or surrogates.
    """
    if not isinstance(name, str):
        raise ArgumentError("name", "a string", name)
    name = str.__str__(name)  # for a member of a string enumeration: its value
    if not name:
        raise ArgumentError("name", "a string that is not empty, or None for task_<number>", name)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ArgumentError("name", "a string without control characters and surrogates", name)
    if len(name.encode()) > MAX_BYTES:
        raise ArgumentError("name", f"at most {MAX_BYTES} bytes in UTF-8 (this name has {len(name.encode())})", name)
    if name in taken:
        raise ArgumentError("name", "a name that no task of this pack has yet", name)
    return name


def default_task_name(number: int, taken: Collection[str]) -> str:
    """Return the name of a task that was begun without one: `task_<number>`, or `task_<number>_1` if that is taken.

    Args:
        number: Task number (1-based).
        taken: Names of the other tasks.
    """
    name = f"task_{number}"
    numbered = (f"{name}_{index}" for index in itertools.count(1))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)


def task_number(names: Sequence[str], task: int | str, last: int | None = None) -> int:
    """Return the number (1-based) of the task with this name or number.

    Args:
        names: Names of the tasks, in order.
        task: Name or number of a task.
        last: Largest valid number. Default: the number of names.

    Raises:
        ArgumentError: If there is no such task.
    """
    last = len(names) if last is None else last
    if isinstance(task, str) and task in names:
        return names.index(task) + 1
    if isinstance(task, Integral) and not isinstance(task, bool) and 1 <= task <= last:
        return int(task)
    choices = ", ".join(map(repr, names))
    expected = f"one of {choices}, or its number" if names else f"the number of a task, 1 to {last}"
    raise ArgumentError("task", expected, task)
