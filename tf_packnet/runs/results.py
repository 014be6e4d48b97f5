"""The results of a run: `results.json`, its fields, and how it is checked when read."""

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
from tf_packnet.reporting import metrics
from tf_packnet.reporting.rounds import rounds_in
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config
from tf_packnet.system import files
from tf_packnet.version import __version__

_PACKAGES = ("tensorflow", "keras", "tensorflow-model-optimization", "tensorflow-datasets", "numpy")


@dataclass
class Results:
    """The results of a run so far; written after every task.

    Attributes:
        config: The run's config.
        tasks: One dict per task: number, name, class names, examples of each split.
        accuracy: `accuracy[i][j]` is the test accuracy on task `j` after learning task `i` (0-based); row `i` has
            `i + 1` columns. `multinet` learns all tasks at once: one row with all of them.
        unseen_accuracy: Row `i` has the test accuracy on the tasks after task `i`, each with a new head; None if an
            earlier version of this library computed the stage.
        untrained_accuracy: The same before any task, for all tasks.
        validation_accuracy: As `accuracy`, on the validation split. Use it, not test accuracy, to choose
            hyperparameters.
        free_fraction: Share of the prunable weights that are free after each row: overall, and per layer.
        weights: Number of prunable weights, and of those that each task owns.
        prune_rounds: For each task, the epoch (0-based) of each prune round and the sparsity after it.
        seconds: Wall time of each stage: task, stage, seconds, epochs, and whether it was reused from the store.
        other_seconds: Wall time outside the stages, summed over the run: load, evaluate, store, save.
        environment: Versions, git commit, and execution settings.
        computed_on: The host that computed the results, possibly another one, and its platform, see
            `platforms.platform`.
        retraining: With a time budget, one dict per retraining: `task`, `budget` and `seconds`; and for each prune
            round, the number of epochs after it (`round_epochs`) and the seconds of the round with these epochs
            (`round_seconds`).
        complete: Whether all tasks were learned and all files were written.
        data_fingerprint: `TaskStream.fingerprint()` of the examples, with which later commands detect changed data.
        network: `network_files.fingerprint`, with which later commands detect changed files of the network.
    """

    config: Config
    tasks: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    unseen_accuracy: list[list[float] | None] = field(default_factory=list)
    untrained_accuracy: list[float] | None = None
    validation_accuracy: list[list[float]] = field(default_factory=list)
    free_fraction: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    prune_rounds: list[list[dict[str, Any]]] = field(default_factory=list)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    other_seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    computed_on: dict[str, Any] = field(default_factory=dict)
    retraining: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    data_fingerprint: str = ""
    network: dict[str, str] = field(default_factory=dict)

    @property
    def average_accuracy(self) -> float | None:
        """Mean test accuracy over all tasks learned so far, after the last of them."""
        return float(np.mean(self.accuracy[-1])) if self.accuracy else None

    def add_stage(self, record: dict[str, Any], reused: bool, timing: dict[str, Any] | None = None) -> None:
        """Add the record of a stage (see `learning.compute_stage`), and that of its plan (see `StageBudget.report`)."""
        self.retraining += [timing] if timing else []
        stage = {name: record[name] for name in ("task", "stage", "seconds", "epochs")}
        self.seconds.append({**stage, "reused": reused})
        # Earlier versions recorded no accuracy on unseen tasks.
        self.untrained_accuracy = record.get("untrained") or self.untrained_accuracy
        if record["learned"] is not None:
            learned = record["learned"]
            self.accuracy.append(learned["accuracy"])
            self.unseen_accuracy.append(learned.get("unseen_accuracy"))
            if learned["validation_accuracy"]:
                self.validation_accuracy.append(learned["validation_accuracy"])
            self.free_fraction.append(learned["free_fraction"])
            self.weights = learned["weights"]
            self.prune_rounds.append(rounds_in(record["history"]))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        free = self.free_fraction[-1] if self.free_fraction else {"overall": 1.0, "layers": {}}
        matrix = metrics.to_json(metrics.matrix_of(self.accuracy, self.unseen_accuracy, self.untrained_accuracy))
        rows = {"accuracy": self.accuracy, "accuracy_matrix": matrix}
        return {
            "schema_version": SCHEMA_VERSION,
            "data_fingerprint": self.data_fingerprint,
            "network": self.network,
            "complete": self.complete,
            "config": self.config.to_json(),
            "tasks": self.tasks,
            **metrics.measures({**rows, "free_fraction": free}),
            **rows,
            "validation_accuracy": self.validation_accuracy,
            "free_fraction": free,
            "free_fraction_by_task": self.free_fraction,
            "weights": self.weights,
            "prune_rounds": self.prune_rounds,
            "seconds": self.seconds,
            **({"retraining": self.retraining} if self.config.is_timed else {}),
            "other_seconds": {name: round(seconds, 3) for name, seconds in self.other_seconds.items()},
            "environment": self.environment,
            "computed_on": self.computed_on,
        }

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to `other_seconds`."""
        began = time.perf_counter()
        yield
        self.other_seconds[name] = self.other_seconds.get(name, 0.0) + time.perf_counter() - began

    def write(self, path: Path) -> None:
        """Write `results.json`, atomically."""
        files.write_json(path, self.to_json())


def environment() -> dict[str, Any]:
    """Return versions of Python and packages, and the git commit of this code."""
    return {
        "tf_packnet": __version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    """Return the output of git in the source tree of this file; None without git or a repository."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


# Version of `results.json` and `experiment.json`. Increase it when the present code could not read the new files.
SCHEMA_VERSION = 2
# The type of each value of a JSON file, nested as the values are.
Form = dict[str, Any]

_TASK: Form = {"number": int, "name": str, "class_names": [str], "examples": dict}
# The values of a complete run that tables and figures need.
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


def read_results(path: Path, argument: str, on_damaged: corruption.OnDamaged) -> dict[str, Any] | None:
    """Read a `results.json`.

    Args:
        path: The file.
        argument: The argument that errors name.
        on_damaged: Called with `path` if it is damaged.

    Returns:
        Its content; None if it is missing, damaged, or not a `results.json`.

    Raises:
        ArgumentError: If a newer version of this library wrote it.
    """
    content = corruption.read_json(path, on_damaged)
    if content is None or not has_form(content, {"config": dict, "complete": bool}):
        return None
    _check_version(content, argument, path)
    return content if not content["complete"] or _has_all_results(content) else None


def read_experiment(path: Path, on_damaged: corruption.OnDamaged) -> dict[str, Any] | None:
    """Read an `experiment.json`; None if it is missing, damaged, or another kind of file.

    Raises:
        ArgumentError: If a newer version of this library wrote it.
    """
    content = corruption.read_json(path, on_damaged)
    if content is None or not has_form(content, {"experiment": str, "varies": [str], "config": dict}):
        return None
    _check_version(content, "output_dir", path)
    return content


def has_form(value: Any, form: Any) -> bool:
    """Whether a JSON value has all values of `form`, with the right types. Further values are allowed."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            name in value and has_form(value[name], inner) for name, inner in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(each, form[0]) for each in value)
    if form is float and type(value) is int:
        return True
    return type(value) is form


def _has_all_results(content: dict[str, Any]) -> bool:
    """Whether a `results.json` has all values that tables and figures need, with consistent lengths."""
    if not has_form(content, _RESULTS):
        return False
    numbers = [task["number"] for task in content["tasks"]]
    columns = [len(row) for row in content["accuracy"]]
    validation_columns = [len(row) for row in content["validation_accuracy"]]
    return (
        numbers == list(range(1, len(numbers) + 1))
        and columns in (numbers, numbers[-1:])
        and validation_columns in (columns, [])
        and len(content["weights"]["owned"]) == len(numbers) > 0
        and content["weights"]["prunable"] > 0
        and _is_matrix(content.get("accuracy_matrix"), len(numbers))
        and all(has_form(share, float) for share in content["free_fraction"]["layers"].values())
    )


def _is_matrix(value: Any, tasks: int) -> bool:
    """Whether `value` is the accuracy matrix of a complete run, or None; earlier versions wrote none."""
    if value is None:
        return True
    return (
        isinstance(value, list)
        and len(value) == tasks + 1
        and all(isinstance(row, list) and len(row) == tasks for row in value)
        and all(each is None or has_form(each, float) for row in value for each in row)
    )


def _check_version(content: dict[str, Any], argument: str, path: Path) -> None:
    version = content.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version > SCHEMA_VERSION:
        expected = (
            f"results of this version or an earlier one ({path.name} has schema_version {version}, this version reads "
            f"up to {SCHEMA_VERSION}: a newer tf_packnet wrote it)"
        )
        raise ArgumentError(argument, expected, str(path.parent))
