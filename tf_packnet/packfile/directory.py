"""The directory of a pack file, checked: its sizes and shapes hold together before anything is unpacked."""

import math
from typing import Any

from tf_packnet.packfile.coding import ITEM_BYTES
from tf_packnet.packfile.container import ArrayEntry, Part, check_arrays
from tf_packnet.packfile.info import check_info
from tf_packnet.pruning.ownership import MAX_TASKS

# What an array may be, see docs/pack-format.md.
KINDS = ("config", "gaps", "values", "own", "state", "witness", "base", "free", "variable", "asset")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


def parsed(directory: Any) -> dict[str, Any]:
    """The directory with its parts as `Part` and its shapes as tuples.

    Raises:
        KeyError: If something is missing; the argument names it.
        TypeError: If something has another type.
        ValueError: If sizes, shapes or names do not fit together.
    """
    found = _of("directory", directory, dict)
    tasks = [_task(task) for task in _of("tasks", found["tasks"], list)]
    names = [task["name"] for task in tasks]
    if not 1 <= len(tasks) <= MAX_TASKS or len(set(names)) < len(names):
        raise ValueError(f"it has {len(tasks)} tasks, named {names[:5]}")
    weights = {
        path: (_dtype(dtype), _shape(shape)) for path, (dtype, shape) in _of("weights", found["weights"], dict).items()
    }
    parts = [_part(part) for part in _of("parts", found["parts"], list)]
    expected = ["model", "shared", *(f"task {number}" for number in range(1, len(tasks) + 1))]
    if [part.name for part in parts] not in (expected, [*expected, "free"]):
        raise ValueError(f"its parts are {[part.name for part in parts][:5]}")
    _check_owned(weights, parts[2 : 2 + len(tasks)])
    selected = _of("selected", found["selected"], int)
    if not 1 <= selected <= len(tasks):
        raise ValueError(f"it has task {selected} selected")
    info = _of("info", found["info"], dict)
    check_info(info, {task["name"]: task["heads"] for task in tasks})
    return {
        "tasks": tasks,
        "weights": weights,
        "parts": parts,
        "selected": selected,
        "info": info,
        "pack": _of("pack", found["pack"], dict),
    }


def _of(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name!r} is a {type(value).__name__}, no {kind.__name__}")
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
        raise ValueError(f"the dtype {dtype!r} is unknown")
    return dtype


def _shape(shape: Any) -> tuple[int, ...]:
    if len(_of("shape", shape, list)) > 32 or any(_of("shape", size, int) < 0 for size in shape):
        raise ValueError(f"{shape[:33]} is no shape")
    return tuple(shape)


def _part(part: Any) -> Part:
    arrays = tuple(_array(array) for array in _of("arrays", _of("part", part, dict)["arrays"], list))
    if len({entry[:2] for entry in arrays}) < len(arrays):
        raise ValueError(f"part {part['name']!r} has an array twice")
    stored, plain = (_of(name, part[name], int) for name in ("stored", "plain"))
    if min(stored, plain) < 0:
        raise ValueError(f"part {part['name']!r} claims less than no bytes")
    wrong = check_arrays(arrays, plain)
    if wrong is not None:
        raise ValueError(f"part {part['name']!r} {wrong}")
    return Part(_of("name", part["name"], str), stored, plain, _of("sha256", part["sha256"], str), arrays)


def _array(array: Any) -> ArrayEntry:
    kind, name, dtype, shape = _of("array", array, list)
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of array")
    return ArrayEntry(kind, _of("name", name, str), _dtype(dtype), _shape(shape))


def _check_owned(weights: dict[str, tuple[str, tuple[int, ...]]], parts: list[Part]) -> None:
    """Every task has its places and as many values of every weight, and all together have no more than there are."""
    owned = dict.fromkeys(weights, 0)
    for part in parts:
        arrays = {entry[:2]: entry for entry in part.arrays}
        for path, (dtype, _) in weights.items():
            gaps, values = arrays["gaps", path], arrays["values", path]
            if gaps.dtype not in _UNSIGNED or values.dtype != dtype:
                raise ValueError(f"part {part.name!r} has {path!r} of another dtype")
            if len(gaps.shape) != 1 or gaps.shape != values.shape:
                raise ValueError(f"part {part.name!r} has not one value for each place of {path!r}")
            owned[path] += gaps.shape[0]
    for path, (_, shape) in weights.items():
        if owned[path] > math.prod(shape):
            raise ValueError(f"its tasks own {owned[path]} of the {math.prod(shape)} entries of {path!r}")
