"""Orders of classes and tasks: natural, shuffled by a seed, or listed."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError

NATURAL, SHUFFLED = "natural", "shuffled"
Order = str | Sequence[int | str]


def entries(order: Any) -> list[str]:
    """Return the entries of an order (a sequence, or text separated by commas), without surrounding spaces."""
    parts = order.split(",") if isinstance(order, str) else order if isinstance(order, Iterable) else ()
    return [str(part).strip() for part in parts]


def is_order(order: Any) -> bool:
    """Whether `order` has entries that are all distinct and not empty."""
    parts = entries(order)
    return 1 <= len(parts) == len(set(parts)) and all(parts)


def arrange(argument: str, names: Sequence[str], order: Order, seed: int, first: int) -> list[int]:
    """Return the indices of classes or tasks in an order.

    Args:
        argument: The argument to name in errors: `class_order` or `task_order`. The two are shuffled independently.
        names: Names of the classes or tasks, in their natural order.
        order: `natural`; `shuffled`, by the seed; or a list of names or numbers, as a sequence or as text separated by
            commas. The result contains only the classes or tasks in the list.
        seed: Seeds the order.
        first: Number of the first class or task.

    Raises:
        ArgumentError: If `order` lists an unknown class or task, or one twice.
    """
    wanted = entries(order)
    if wanted == [NATURAL]:
        return list(range(len(names)))
    if wanted == [SHUFFLED]:
        return generator(seed, argument).permutation(len(names)).tolist()
    numbers = [str(number) for number in range(first, first + len(names))]
    for table in (list(names), numbers):  # names that are numbers count as names
        if is_order(wanted) and set(wanted) <= set(table):
            return [table.index(entry) for entry in wanted]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    expected = f"{NATURAL}, {SHUFFLED}, or different ones of {shown} or of their numbers {first} to {numbers[-1]}"
    raise ArgumentError(argument, expected, order if isinstance(order, str) else ",".join(wanted) or order)


def choose(names: Sequence[str], order: Order, num_tasks: int | None, seed: int, reason: str = "") -> list[int]:
    """Return the indices of the tasks to learn, in order.

    Args:
        names: Names of all tasks, in their natural order.
        order: As for `arrange`.
        num_tasks: Number of tasks to learn; None for all in `order`.
        seed: Seeds a shuffled order.
        reason: Why there are no more tasks, for the error message.

    Raises:
        ArgumentError: As for `arrange`, or if there are fewer than `num_tasks` tasks.
    """
    if num_tasks is not None and num_tasks < 1:
        raise ArgumentError("num_tasks", "at least 1", num_tasks)
    chosen = arrange("task_order", names, order, seed, first=1)
    if num_tasks is not None and num_tasks > len(chosen):
        is_part = len(chosen) < len(names)
        expected = f"at most the {len(chosen)} tasks of task_order" if is_part else f"at most {len(names)} ({reason})"
        raise ArgumentError("num_tasks", expected, num_tasks)
    return chosen[:num_tasks]


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a random generator that is independent of the generators for other purposes with the same seed."""
    key = b"".join(str(word).encode() + b"\0" for word in purpose)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))
