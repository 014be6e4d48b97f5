"""Reads what earlier commands left, and trusts none of it: sizes are bounded, and what has another form is not ours."""

from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import corruption

# The form of `results.json` and `experiment.json`, to be raised when a reader of today could not read it.
SCHEMA_VERSION = 2
Form = dict[str, Any]

_TASK: Form = {"number": int, "name": str, "class_names": [str], "examples": dict}
# What is needed to show the results of a complete run, and to draw an experiment's figures.
_RESULTS: Form = {
    "tasks": [_TASK],
    "accuracy": [[float]],
    "validation_accuracy": [[float]],
    "average_accuracy": float,
    "free_fraction": {"overall": float, "layers": dict},
    "weights": {"prunable": int, "owned": [int]},
    "seconds": [{"epochs": int, "reused": bool}],
    "environment": {"packages": dict},
}


def results(path: Path, argument: str, damaged: corruption.Damaged) -> dict[str, Any] | None:
    """The content of a `results.json`; None if it is none, or damaged.

    Raises:
        ArgumentError: If a newer version wrote it; the message names `argument`.
    """
    found = corruption.read_json(path, damaged)
    if found is None or not has_form(found, {"config": dict, "complete": bool}):
        return None
    _check_version(found, argument, path)
    return found if not found["complete"] or _is_complete(found) else None


def experiment(path: Path, damaged: corruption.Damaged) -> dict[str, Any] | None:
    """The content of an `experiment.json`; None if it is none, or damaged.

    Raises:
        ArgumentError: If a newer version wrote it.
    """
    found = corruption.read_json(path, damaged)
    if found is None or not has_form(found, {"experiment": str, "varies": [str], "config": dict}):
        return None
    _check_version(found, "output_dir", path)
    return found


def has_form(value: Any, form: Any) -> bool:
    """Whether JSON values are of the types that `form` has in their place; more may be there."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            name in value and has_form(value[name], inner) for name, inner in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(each, form[0]) for each in value)
    if form is float and type(value) is int:
        return True
    return type(value) is form


def _is_complete(found: dict[str, Any]) -> bool:
    """Whether all is there that a table of the results shows."""
    if not has_form(found, _RESULTS):
        return False
    numbers = [task["number"] for task in found["tasks"]]
    lessons = [len(row) for row in found["accuracy"]]
    validated = [len(row) for row in found["validation_accuracy"]]
    return (
        numbers == list(range(1, len(numbers) + 1))
        and lessons in (numbers, numbers[-1:])
        and validated in (lessons, [])
        and len(found["weights"]["owned"]) == len(numbers) > 0
        and found["weights"]["prunable"] > 0
        and all(has_form(share, float) for share in found["free_fraction"]["layers"].values())
    )


def _check_version(found: dict[str, Any], argument: str, path: Path) -> None:
    version = found.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version > SCHEMA_VERSION:
        expected = (
            f"results of this version or an earlier one ({path.name} there has schema_version {version}, this version "
            f"reads up to {SCHEMA_VERSION}: a newer tf_packnet wrote it)"
        )
        raise ArgumentError(argument, expected, str(path.parent))
