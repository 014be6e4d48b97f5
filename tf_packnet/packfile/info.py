"""What may be recorded with a pack: the names of the classes, accuracies, how examples are scaled."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks import Task


def info_of(
    tasks: Sequence[Task],
    dataset: str | None = None,
    accuracy: Mapping[str, float] | None = None,
    extra: Any = None,
) -> dict[str, Any]:
    """What to record with a pack that learned `tasks`, for `save_pack(info=...)`.

    Args:
        tasks: The tasks that are committed, such as `stream[:2]`.
        dataset: Name of the data set.
        accuracy: Test accuracy by the name of a task.
        extra: Anything that JSON can hold.
    """
    info: dict[str, Any] = {"tasks": {task.name: _facts(task, accuracy or {}) for task in tasks}}
    given = {"dataset": dataset, "extra": extra}
    return {**info, **{key: value for key, value in given.items() if value is not None}}


def _facts(task: Task, accuracy: Mapping[str, float]) -> dict[str, Any]:
    train = task.splits["train"]
    facts: dict[str, Any] = {"class_names": list(task.class_names), "scale": float(train.scale)}
    if train.images.dtype == np.uint8 and train.scale < 1:
        facts["white"] = round(1 / train.scale)  # the scale brings it to 1
    if task.name in accuracy:
        facts["accuracy"] = float(accuracy[task.name])
    return facts


def check_info(info: Any, heads: Mapping[str, Mapping[str, tuple[int, str | None]]]) -> dict[str, Any]:
    """Checks what is recorded with a pack, see `docs/pack-format.md`; returns it as JSON gives it back.

    Args:
        info: What was given.
        heads: For each task its heads, `(units, activation)` by their place.

    Raises:
        ArgumentError: If it has an unknown key, or a value is not what its key says.
    """
    if not isinstance(info, Mapping):
        raise ArgumentError("info", "a mapping", info)
    _check_keys("info", info, {"dataset": _text, "scale": _positive, "white": _positive, "tasks": None, "extra": None})
    tasks = info.get("tasks", {})
    if not isinstance(tasks, Mapping) or not set(tasks) <= set(heads):
        expected = "a mapping by the names of tasks, " + ", ".join(map(repr, heads))
        raise ArgumentError("info['tasks']", expected, tasks)
    for task, facts in tasks.items():
        name = f"info['tasks'][{task!r}]"
        if not isinstance(facts, Mapping):
            raise ArgumentError(name, "a mapping", facts)
        checks = {"class_names": _texts, "accuracy": _fraction, "scale": _positive, "white": _positive, "extra": None}
        _check_keys(name, facts, checks)
        units = [units for units, _ in heads[task].values()]
        classes = facts.get("class_names")
        # One output may tell two classes apart.
        if classes is not None and len(units) == 1 and len(classes) not in ({1, 2} if units == [1] else set(units)):
            raise ArgumentError(f"{name}['class_names']", f"{units[0]}, one for each output", classes)
    try:
        return json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError("info", "what JSON can hold", info) from error


def _check_keys(name: str, facts: Mapping[str, Any], checks: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key not in checks:
            raise ArgumentError(name, "keys among " + ", ".join(map(repr, checks)), key)
        expected = checks[key](value) if checks[key] is not None else None
        if expected is not None:
            raise ArgumentError(f"{name}[{key!r}]", expected, value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _positive(value: Any) -> str | None:
    return None if _number(value) and value > 0 else "a finite number above 0"


def _fraction(value: Any) -> str | None:
    return None if _number(value) and 0 <= value <= 1 else "a number from 0 to 1"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _texts(value: Any) -> str | None:
    of_texts = isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
    return None if of_texts and value else "a list of texts"
