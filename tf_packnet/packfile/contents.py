"""Reads the contents of a pack file from its directory, without building a model or importing TensorFlow."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_packnet.arguments import checked
from tf_packnet.errors import PackFileError
from tf_packnet.packfile.container import ArrayEntry, PackFile, Part
from tf_packnet.packfile.directory import parsed
from tf_packnet.system.limits import PACK_RATIO, Bound, open_regular


@dataclass(frozen=True)
class WeightEntry:
    """A prunable weight, whose entries are owned by tasks.

    Attributes:
        shape: Its shape.
        dtype: Name of its dtype.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class HeadEntry:
    """The head of one task.

    Attributes:
        units: Number of outputs.
        activation: Name of the activation that the task was begun with; None for the activation of the head.
    """

    units: int
    activation: str | None


@dataclass(frozen=True)
class TaskEntry:
    """One task of a pack file.

    Attributes:
        number: Its number (1-based).
        name: Its name.
        heads: Its heads, by their place in the model; empty if all tasks share one.
        owned: Number of entries that the task owns in each weight, by path such as `dense/kernel`.
        info: Recorded facts such as `class_names` and `accuracy`, see `docs/pack-format.md`.
    """

    number: int
    name: str
    heads: dict[str, HeadEntry]
    owned: dict[str, int]
    info: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of its classes in the order of the outputs; None if not recorded."""
        names = self.info.get("class_names")
        return None if names is None else tuple(names)

    @property
    def accuracy(self) -> float | None:
        """Its test accuracy; None if not recorded."""
        return self.info.get("accuracy")


@dataclass(frozen=True)
class Contents:
    """The contents of a pack file.

    Attributes:
        path: The file.
        tasks: Its tasks, in the order they were learned.
        weights: The prunable weights by path, in layer order.
        parts: Its parts, in file order.
        pack: `name`, `head`, `freed_weights`, `bias_policy` and `pretrained` of the pack, and the versions that it was
            `written_by`.
        selected_task: Number (1-based) of the task that was selected when the pack was saved.
        info: The `info` given to `save_pack`.
    """

    path: Path
    tasks: tuple[TaskEntry, ...]
    weights: dict[str, WeightEntry]
    parts: tuple[Part, ...]
    pack: dict[str, Any]
    selected_task: int
    info: dict[str, Any]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [task.name for task in self.tasks]

    @property
    def has_free_values(self) -> bool:
        """Whether the file has the values of free weights, which `freed_weights="keep"` needs."""
        return any(part.name == "free" for part in self.parts)

    @property
    def free(self) -> dict[str, int]:
        """Number of free entries in each weight, by path."""
        return {
            path: weight.size - sum(task.owned.get(path, 0) for task in self.tasks)
            for path, weight in self.weights.items()
        }

    @property
    def free_fraction(self) -> float:
        """Fraction of all entries that are free."""
        return sum(self.free.values()) / sum(weight.size for weight in self.weights.values())

    def part(self, name: str) -> Part | None:
        """Return the part of this name; None if there is none."""
        return next((part for part in self.parts if part.name == name), None)

    def recorded(self, key: str, task: str) -> Any:
        """Return the value of `key`, such as `scale`, for a task: its own, or that of the pack; None without one."""
        return self.info.get("tasks", {}).get(task, {}).get(key, self.info.get(key))


@checked
def read_contents(path: str | os.PathLike, *, max_bytes: int | None = None) -> Contents:
    """Read the directory of a pack file, but not its parts.

    Args:
        path: A file written by `save_pack`.
        max_bytes: As for `load_pack`.

    Raises:
        OSError: If the file does not exist or cannot be read.
        PackFileError: If it is not a pack file, has a later version, or is damaged or truncated.
    """
    with opened(path, max_bytes) as (_, contents):
        return contents


@contextlib.contextmanager
def opened(path: str | os.PathLike, max_bytes: int | None) -> Iterator[tuple[PackFile, Contents]]:
    """Context manager that opens a pack file, from which parts can be read inside the block."""
    with open_regular(path) as file:
        pack_file = PackFile(path, file, Bound.of_file(path, max_bytes, PACK_RATIO))
        try:
            contents = _contents(Path(path), parsed(pack_file.directory))
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error.args[0]) if error.args else type(error).__name__
            raise PackFileError(path, "directory", f"is not that of a pack: {reason}") from error
        pack_file.check_length(contents.parts)
        yield pack_file, contents


def _contents(path: Path, directory: dict[str, Any]) -> Contents:
    parts = directory["parts"]
    info = directory["info"]
    by_name = {part.name: part for part in parts}
    tasks = tuple(
        TaskEntry(
            number,
            task["name"],
            {place: HeadEntry(*head) for place, head in task["heads"].items()},
            _owned(by_name[f"task {number}"].arrays),
            info.get("tasks", {}).get(task["name"], {}),
        )
        for number, task in enumerate(directory["tasks"], start=1)
    )
    weights = {path: WeightEntry(shape, dtype) for path, (dtype, shape) in directory["weights"].items()}
    return Contents(path, tasks, weights, tuple(parts), directory["pack"], directory["selected"], info)


def _owned(arrays: tuple[ArrayEntry, ...]) -> dict[str, int]:
    return {entry.name: entry.shape[0] for entry in arrays if entry.kind == "gaps"}
