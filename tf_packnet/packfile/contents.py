"""What is in a pack file, from its directory alone: no model is built, TensorFlow is not started."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_packnet.errors import PackFileError
from tf_packnet.packfile.container import ArrayEntry, PackFile, Part
from tf_packnet.packfile.directory import parsed


@dataclass(frozen=True)
class WeightEntry:
    """A pruned and owned weight.

    Attributes:
        shape: Its shape.
        dtype: Name of its dtype.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class HeadEntry:
    """The head of one task.

    Attributes:
        units: Its outputs.
        activation: Name of the activation that the task was begun with; None for the head's own.
    """

    units: int
    activation: str | None


@dataclass(frozen=True)
class TaskEntry:
    """One task of a pack file.

    Attributes:
        number: 1-based.
        name: How it is called.
        heads: Its head, or heads by their place in the model; none where the tasks share one.
        owned: How many entries of each weight it owns, by path, such as `dense/kernel`.
        info: What was recorded of it: `class_names`, `accuracy`, ..., see `docs/pack-format.md`.
    """

    number: int
    name: str
    heads: dict[str, HeadEntry]
    owned: dict[str, int]
    info: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of its classes in the order of the outputs; None if they were not recorded."""
        names = self.info.get("class_names")
        return None if names is None else tuple(names)

    @property
    def accuracy(self) -> float | None:
        """Its recorded accuracy on test examples; None if there is none."""
        return self.info.get("accuracy")


@dataclass(frozen=True)
class Contents:
    """What a pack file holds.

    Attributes:
        path: The file.
        tasks: Its tasks, in the order they were learned.
        weights: The weights that tasks own entries of, by path, in layer order.
        parts: Its parts, in the order they lie in.
        pack: `name`, `head`, `freed_weights`, `bias_policy` and `pretrained` of the pack, and what it was
            `written_by`.
        selected_task: Number (1-based) of the task that the pack computed as when it was saved.
        info: What was recorded with `save_pack(info=...)`.
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
        """Whether the values of the free weights are there, which `freed_weights="keep"` goes on from."""
        return any(part.name == "free" for part in self.parts)

    @property
    def free(self) -> dict[str, int]:
        """How many entries of each weight no task owns, by path."""
        return {
            path: weight.size - sum(task.owned.get(path, 0) for task in self.tasks)
            for path, weight in self.weights.items()
        }

    @property
    def free_fraction(self) -> float:
        """Share of all entries that no task owns."""
        return sum(self.free.values()) / sum(weight.size for weight in self.weights.values())

    def part(self, name: str) -> Part | None:
        """The part of this name; None if there is none."""
        return next((part for part in self.parts if part.name == name), None)

    def recorded(self, key: str, task: str) -> Any:
        """What `info` says of `key`, such as `scale`, for a task: its own, or that of all; None if nothing."""
        return self.info.get("tasks", {}).get(task, {}).get(key, self.info.get(key))


def read_contents(path: str | os.PathLike) -> Contents:
    """Reads what is in a pack file: its directory, not its parts.

    Args:
        path: A file that `save_pack` wrote.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        PackFileError: If it is no pack file, of a later version, or its directory is damaged, or its end missing.
    """
    with opened(path) as (_, contents):
        return contents


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[PackFile, Contents]]:
    """While it lasts, the parts of a pack file can be read; its contents come with it."""
    with open(path, "rb") as file:
        pack_file = PackFile(path, file)
        try:
            contents = _contents(Path(path), parsed(pack_file.directory))
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error.args[0]) if error.args else type(error).__name__
            raise PackFileError(path, "directory", f"is none of a pack: {reason}") from error
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
