"""Checks the directory of a pack file: sizes and shapes must be consistent before anything is decompressed."""

import math
from typing import Any

from tf_packnet.packfile.coding import ITEM_BYTES
from tf_packnet.packfile.container import ArrayEntry, Part, problem_with_arrays
from tf_packnet.packfile.info import check_info
from tf_packnet.pruning.ownership import MAX_TASKS

# The kinds of arrays, see docs/pack-format.md.
KINDS = ("config", "gaps", "values", "own", "state", "witness", "base", "fresh", "free", "variable", "asset")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


def parsed(directory: Any) -> dict[str, Any]:
    """Check the JSON of a directory, and return it with parts as `Part` and shapes as tuples.

    Raises:
        KeyError: If a key is missing; the argument names it.
        TypeError: If a value has the wrong type.
        ValueError: If sizes, shapes or names are inconsistent.
    """
    _of("directory", directory, dict)
    tasks = [_task(task) for task in _of("tasks", directory["tasks"], list)]
    names = [task["name"] for task in tasks]
    if not 1 <= len(tasks) <= MAX_TASKS or len(set(names)) < len(names):
        raise ValueError(f"it has {len(tasks)} tasks, named {names[:5]}")
    weights = {
        path: (_dtype(dtype), _shape(shape))
        for path, (dtype, shape) in _of("weights", directory["weights"], dict).items()
    }
    parts = [_part(part) for part in _of("parts", directory["parts"], list)]
    expected = ["model", "shared", *(f"task {number}" for number in range(1, len(tasks) + 1))]
    if [part.name for part in parts] not in (expected, [*expected, "free"]):
        raise ValueError(f"its parts are {[part.name for part in parts][:5]}")
    _check_owned(weights, parts[2 : 2 + len(tasks)])
    selected = _of("selected", directory["selected"], int)
    if not 1 <= selected <= len(tasks):
        raise ValueError(f"it has task {selected} selected, of {len(tasks)} tasks")
    info = _of("info", directory["info"], dict)
    check_info(info, {task["name"]: task["heads"] for task in tasks})
    return {
        "tasks": tasks,
        "weights": weights,
        "parts": parts,
        "selected": selected,
        "info": info,
        "pack": _of("pack", directory["pack"], dict),
    }


def _of(name: str, value: Any, expected: type) -> Any:
    """Return `value` if it has the expected type."""
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{name!r} is a {type(value).__name__}, not a {expected.__name__}")
    return value


def _task(task: Any) -> dict[str, Any]:
    heads = {place: _head(head) for place, head in _of("heads", _of("task", task, dict)["heads"], dict).items()}
    return {"name": _of("name", task["name"], str), "heads": heads}


def _head(head: Any) -> tuple[int, str | None]:
    units, activation = head
    if _of("units", units, int) < 1:
        raise ValueError(f"a head has {units} units")
    return units, activation if activation is None else _of("activation", activation, str)


def _dtype(dtype: Any) -> str:
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown")
    return dtype


def _shape(shape: Any) -> tuple[int, ...]:
    if len(_of("shape", shape, list)) > 32 or any(_of("shape", size, int) < 0 for size in shape):
        raise ValueError(f"{shape[:33]} is not a shape")
    return tuple(shape)


def _part(part: Any) -> Part:
    arrays = tuple(_array(array) for array in _of("arrays", _of("part", part, dict)["arrays"], list))
    if len({entry[:2] for entry in arrays}) < len(arrays):
        raise ValueError(f"part {part['name']!r} lists an array twice")
    stored, plain = (_of(name, part[name], int) for name in ("stored", "plain"))
    if min(stored, plain) < 0:
        raise ValueError(f"part {part['name']!r} has a negative size")
    problem = problem_with_arrays(arrays, plain)
    if problem is not None:
        raise ValueError(f"part {part['name']!r} {problem}")
    return Part(_of("name", part["name"], str), stored, plain, _of("sha256", part["sha256"], str), arrays)


def _array(array: Any) -> ArrayEntry:
    kind, name, dtype, shape = _of("array", array, list)
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of array")
    return ArrayEntry(kind, _of("name", name, str), _dtype(dtype), _shape(shape))


def _check_owned(weights: dict[str, tuple[str, tuple[int, ...]]], parts: list[Part]) -> None:
    """Check that each task has one value per owned entry, and that all tasks together own at most all entries."""
    owned = dict.fromkeys(weights, 0)
    for part in parts:
        arrays = {entry[:2]: entry for entry in part.arrays}
        for path, (dtype, _) in weights.items():
            gaps, values = arrays["gaps", path], arrays["values", path]
            if gaps.dtype not in _UNSIGNED or values.dtype != dtype:
                raise ValueError(f"part {part.name!r} has {path!r} with another dtype")
            if len(gaps.shape) != 1 or gaps.shape != values.shape:
                raise ValueError(f"part {part.name!r} does not have one value per position of {path!r}")
            owned[path] += gaps.shape[0]
    for path, (_, shape) in weights.items():
        if owned[path] > math.prod(shape):
            raise ValueError(f"its tasks own {owned[path]} of the {math.prod(shape)} entries of {path!r}")
