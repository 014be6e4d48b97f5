"""Infers to which task of a pack examples belong: the task whose head is surest of its answer."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.packed.task_scores import ENTROPY, LOGIT, METHODS, PROBABILITIES, class_axis, output_kind, scores

AUTO = "auto"
EXAMPLE, BATCH = PER = ("example", "batch")


class AutoPrediction(NamedTuple):
    """Predictions of the inferred task of each example.

    Attributes:
        tasks: Name of the task of each example.
        outputs: Outputs of that task for each example: an array if all have the same shape, otherwise a list.
    """

    tasks: list[str]
    outputs: np.ndarray | list[np.ndarray]


def calibrate(packed: Any, x: Any, **predict: Any) -> None:
    """Record the mean and the standard deviation of the scores of the selected task on its own examples `x`."""
    kind, axis = output_kind(packed), class_axis(packed)
    outputs = packed.predict(x, verbose=0, **predict)
    recorded = {}
    for method in METHODS if kind != PROBABILITIES else (ENTROPY,):
        found = np.asarray(scores(outputs, kind, axis, method), np.float64)
        recorded[method] = [float(found.mean()), float(max(found.std(), 1e-6))]
    lifecycle.records(packed).calibration[packed.selected_task] = recorded


def task_scores(
    packed: Any,
    x: Any,
    method: str | None = None,
    tasks: Sequence[int | str] | None = None,
    **predict: Any,
) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Predict `x` as each of several tasks, and score the outputs.

    Args:
        packed: A pack with committed tasks.
        x: As for `predict`, but an array or a structure of arrays.
        method: `entropy`, `energy` or `logit`. Default: see `default_method`.
        tasks: Names or numbers of the tasks. Default: all committed ones.
        **predict: Further arguments of `predict`.

    Returns:
        Names of the tasks; scores, `float64`, shape `(examples, tasks)`, calibrated if all these tasks are; and the
        outputs of each task.

    Raises:
        ArgumentError: If `method` is unknown or does not fit the outputs, there is no such committed task, or a task
            has no class scores.
    """
    numbers = _numbers(packed, tasks)
    method = default_method(packed, numbers) if method is None else method
    check_choice("method", method, METHODS)
    found, outputs = [], []
    with _selection_restored(packed):
        for number in numbers:
            packed.select_task(number)
            kind, axis = output_kind(packed), class_axis(packed)
            outputs.append(packed.predict(x, **{"verbose": 0, **predict}))
            found.append(np.asarray(scores(outputs[-1], kind, axis, method), np.float64))
    mean, spread = np.transpose(calibrations(packed, numbers, method))
    names = packed.task_names
    return [names[number - 1] for number in numbers], (np.stack(found, axis=1) - mean) / spread, outputs


def default_method(packed: Any, numbers: Iterable[int]) -> str:
    """Return the method that was best in our measurements: `logit` for calibrated tasks with logits, else `entropy`."""
    recorded = [lifecycle.records(packed).calibration.get(number, {}) for number in numbers]
    return LOGIT if all(LOGIT in each for each in recorded) else ENTROPY


def calibrations(packed: Any, numbers: Iterable[int], method: str) -> list[list[float]]:
    """Return mean and standard deviation of the scores of tasks; 0 and 1 unless they are recorded for all of them."""
    recorded = [lifecycle.records(packed).calibration.get(number, {}).get(method) for number in numbers]
    known = [each for each in recorded if each is not None]
    return known if len(known) == len(recorded) else [[0.0, 1.0]] * len(recorded)


def infer_task(
    packed: Any,
    x: Any,
    method: str | None = None,
    per: str = EXAMPLE,
    tasks: Sequence[int | str] | None = None,
    **predict: Any,
) -> str | list[str]:
    """Return the most likely task of each example, or of all of them together; see `PackedModel.infer_task`."""
    check_choice("per", per, PER)
    names, found, _ = task_scores(packed, x, method, tasks, **predict)
    if per == BATCH:
        return names[int(found.mean(axis=0).argmax())]
    return [names[index] for index in found.argmax(axis=1)]


def predict_auto(packed: Any, x: Any, method: str | None = None, **predict: Any) -> AutoPrediction:
    """Predict each example as its most likely task."""
    names, found, outputs = task_scores(packed, x, method, **predict)
    best = found.argmax(axis=1)
    chosen = [outputs[index][example] for example, index in enumerate(best)]
    same = len({each.shape for each in chosen}) == 1
    return AutoPrediction([names[index] for index in best], np.stack(chosen) if same else chosen)


def predict_as(packed: Any, task: int | str, *args: Any, **kwargs: Any) -> Any:
    """Predict as `task`, or as the inferred task of each example; the selected task stays selected."""
    if task == AUTO and AUTO not in packed.task_names:
        return predict_auto(packed, *args, **kwargs)
    with _selection_restored(packed):
        packed.select_task(task)
        return packed.predict(*args, **kwargs)


def _numbers(packed: Any, tasks: Sequence[int | str] | None) -> list[int]:
    committed = packed.committed_tasks
    if not committed:
        raise ArgumentError("packed", "a pack with at least one committed task", packed.name)
    if tasks is None:
        return list(range(1, committed + 1))
    numbers = [packed.task_number(task) for task in ([tasks] if isinstance(tasks, (str, int)) else tasks)]
    if not numbers or max(numbers) > committed:
        raise ArgumentError("tasks", "names or numbers of committed tasks", tasks)
    return numbers


@contextlib.contextmanager
def _selection_restored(packed: keras.Model) -> Iterator[None]:
    selected = packed.selected_task
    try:
        yield
    finally:
        if packed.selected_task != selected:
            packed.select_task(selected)
