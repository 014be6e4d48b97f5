"""The facts recorded with a pack, such as class names, accuracies and the scale of examples."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.images import RESIZES
from tf_packnet.tasks import Task
from tf_packnet.tasks.encodings import from_json


def info_of(
    tasks: Sequence[Task],
    dataset: str | None = None,
    accuracy: Mapping[str, float] | None = None,
    extra: Any = None,
) -> dict[str, Any]:
    """Return the facts to record with a pack that has learned `tasks`, for `save_pack(info=...)`.

    Args:
        tasks: The committed tasks, such as `stream[:2]`.
        dataset: Name of the data set.
        accuracy: Test accuracy by task name.
        extra: Any JSON value.
    """
    encodings = [None if task.encoding is None else task.encoding.to_json() for task in tasks]
    shared = encodings[0] if all(each == encodings[0] for each in encodings) else None
    info: dict[str, Any] = {"tasks": {task.name: _facts(task, accuracy or {}) for task in tasks}}
    if shared is None:
        for task, encoding in zip(tasks, encodings, strict=True):
            info["tasks"][task.name] |= {} if encoding is None else {"table": encoding}
    optional = {"dataset": dataset, "extra": extra, "table": shared}
    return {**info, **{key: value for key, value in optional.items() if value is not None}}


def _facts(task: Task, accuracy: Mapping[str, float]) -> dict[str, Any]:
    train = task.splits["train"]
    facts: dict[str, Any] = {"class_names": list(task.class_names), "scale": float(train.scale)}
    if train.images.dtype == np.uint8 and train.scale < 1:
        facts["white"] = round(1 / train.scale)  # the raw pixel value that is scaled to 1
    if task.resize is not None:
        facts["resize"] = task.resize
    if task.name in accuracy:
        facts["accuracy"] = float(accuracy[task.name])
    return facts


def check_info(info: Any, heads: Mapping[str, Mapping[str, tuple[int, str | None]]]) -> dict[str, Any]:
    """Check the facts to record with a pack, see `docs/pack-format.md`.

    Args:
        info: The facts.
        heads: The heads of each task by task name: `(units, activation)` by the place of the head in the model.

    Returns:
        The facts as JSON values.

    Raises:
        ArgumentError: If a key is unknown, or a value does not fit its key.
    """
    if not isinstance(info, Mapping):
        raise ArgumentError("info", "a mapping", info)
    checks: dict[str, Any] = {"dataset": _text, "scale": _positive, "white": _positive, "resize": _resize}
    checks |= {"table": _table, "tasks": None, "extra": None}
    _check_keys("info", info, checks)
    tasks = info.get("tasks", {})
    if not isinstance(tasks, Mapping) or not set(tasks) <= set(heads):
        expected = "a mapping from task names to facts; the tasks are " + ", ".join(map(repr, heads))
        raise ArgumentError("info['tasks']", expected, tasks)
    for task, facts in tasks.items():
        name = f"info['tasks'][{task!r}]"
        if not isinstance(facts, Mapping):
            raise ArgumentError(name, "a mapping", facts)
        checks = {
            "class_names": _texts,
            "accuracy": _fraction,
            "scale": _positive,
            "white": _positive,
            "resize": _resize,
            "table": _table,
            "extra": None,
        }
        _check_keys(name, facts, checks)
        units = [units for units, _ in heads[task].values()]
        classes = facts.get("class_names")
        # A single output can distinguish two classes.
        if classes is not None and len(units) == 1 and len(classes) not in ({1, 2} if units == [1] else set(units)):
            raise ArgumentError(f"{name}['class_names']", f"{units[0]} names, one per output", classes)
    try:
        return json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError("info", "JSON values", info) from error


def _check_keys(name: str, facts: Mapping[str, Any], checks: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key not in checks:
            raise ArgumentError(name, "only the keys " + ", ".join(map(repr, checks)), key)
        expected = checks[key](value) if checks[key] is not None else None
        if expected is not None:
            raise ArgumentError(f"{name}[{key!r}]", expected, value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _positive(value: Any) -> str | None:
    return None if _number(value) and value > 0 else "a finite number above 0"


def _fraction(value: Any) -> str | None:
    return None if _number(value) and 0 <= value <= 1 else "a number from 0 to 1"


def _resize(value: Any) -> str | None:
    return None if value in RESIZES else f"one of {', '.join(RESIZES)}"


def _table(value: Any) -> str | None:
    try:
        from_json(value)
    except ValueError as error:
        return str(error)
    return None


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


def _texts(value: Any) -> str | None:
    all_strings = isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
    return None if all_strings and value else "a list of at least one string"
