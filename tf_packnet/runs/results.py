"""What a run found, and how it is written down."""

import contextlib
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config
from tf_packnet.system import files
from tf_packnet.version import __version__

_PACKAGES = ("tensorflow", "keras", "tensorflow-model-optimization", "tensorflow-datasets", "numpy")


@dataclass
class Results:
    """Grows while a run goes on; written after every task.

    Attributes:
        config: The run's config.
        tasks: One dict a task: number, name, class names, examples of each split.
        accuracy: `accuracy[i][j]` is the test accuracy on task `j` after lesson `i` (0-based). A row has the tasks
            learned by then: `i+1`, or all in the one lesson of multinet.
        validation_accuracy: The same on the held-out part of train, for choices.
        free_fraction: Share of the prunable weights without an owner after each lesson: overall, and per layer.
        weights: Weights that each task owns, and how many there are to own.
        seconds: Wall time of each stage: task, stage, seconds, epochs, and whether it was found in the store.
        other_seconds: Wall time of what is no stage, over the whole run: load, evaluate, save.
        environment: Versions, git commit, devices, and what was chosen automatically.
        complete: Whether all tasks were learned and everything was written.
        data_fingerprint: `TaskStream.fingerprint()` of the examples, so that a later command sees that they changed.
    """

    config: Config
    tasks: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    validation_accuracy: list[list[float]] = field(default_factory=list)
    free_fraction: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    other_seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    data_fingerprint: str | None = None

    @property
    def average_accuracy(self) -> float | None:
        """Mean test accuracy over all tasks learned, after the last of them."""
        return float(np.mean(self.accuracy[-1])) if self.accuracy else None

    def add_stage(self, record: dict[str, Any], reused: bool) -> None:
        """Notes the outcome of a stage, as `runner` records it."""
        stage = {name: record[name] for name in ("task", "stage", "seconds", "epochs")}
        self.seconds.append({**stage, "reused": reused})
        if record["learned"] is not None:
            learned = record["learned"]
            self.accuracy.append(learned["accuracy"])
            if learned["validation_accuracy"]:
                self.validation_accuracy.append(learned["validation_accuracy"])
            self.free_fraction.append(learned["free_fraction"])
            self.weights = learned["weights"]

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "data_fingerprint": self.data_fingerprint,
            "complete": self.complete,
            "config": self.config.to_json(),
            "tasks": self.tasks,
            "average_accuracy": self.average_accuracy,
            "accuracy": self.accuracy,
            "validation_accuracy": self.validation_accuracy,
            "free_fraction": self.free_fraction[-1] if self.free_fraction else {"overall": 1.0, "layers": {}},
            "free_fraction_by_task": self.free_fraction,
            "weights": self.weights,
            "seconds": self.seconds,
            "other_seconds": {name: round(seconds, 3) for name, seconds in self.other_seconds.items()},
            "environment": self.environment,
        }

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall time of what happens inside to `other_seconds`."""
        began = time.perf_counter()
        yield
        self.other_seconds[name] = self.other_seconds.get(name, 0.0) + time.perf_counter() - began

    def write(self, path: Path) -> None:
        """Writes `results.json`, atomically."""
        files.write_json(path, self.to_json())


def environment() -> dict[str, Any]:
    """Versions and commit of what runs."""
    return {
        "tf_packnet": __version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    """What git says of the source tree this file is in; None where there is no git, or no tree."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


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


def read_results(path: Path, argument: str, damaged: corruption.Damaged) -> dict[str, Any] | None:
    """The content of a `results.json`; None if it is none, or damaged.

    Raises:
        ArgumentError: If a newer version wrote it; the message names `argument`.
    """
    found = corruption.read_json(path, damaged)
    if found is None or not has_form(found, {"config": dict, "complete": bool}):
        return None
    _check_version(found, argument, path)
    return found if not found["complete"] or _is_complete(found) else None


def read_experiment(path: Path, damaged: corruption.Damaged) -> dict[str, Any] | None:
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
