"""Infers which task of a pack examples belong to: the task whose head is most certain."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.packed import all_tasks
from tf_packnet.packed.all_tasks import selection_restored
from tf_packnet.packed.task_scores import (
    ENTROPY,
    LOGIT,
    METHODS,
    PROBABILITIES,
    check_method,
    class_axis,
    output_kind,
    scores,
)
from tf_packnet.tasks.data_checks import fits

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


def check_examples(packed: Any, argument: str, x: Any) -> None:
    """Raise ArgumentError unless `x` can be examples of the network; data that are read in batches are checked then."""
    shape = getattr(x, "shape", None)
    if isinstance(x, str) or shape == () or not (hasattr(x, "__iter__") or hasattr(x, "__getitem__")):
        raise ArgumentError(argument, "examples, as for predict", x)
    if shape is None or len(packed.inputs) > 1:
        return
    expected = tuple(packed.inputs[0].shape[1:])
    if not fits(tuple(shape)[1:], expected):
        raise ArgumentError(argument, f"examples of shape {expected}", f"an array of shape {tuple(shape)}")
    if shape[0] == 0:
        raise ArgumentError(argument, "at least one example", f"an array of shape {tuple(shape)}")


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
    """Predict `x` as each of several tasks, and score the outputs. Reads the data once.

    Args:
        packed: A pack with committed tasks.
        x: As for `predict`.
        method: `entropy`, `energy` or `logit`. Default: see `default_method`.
        tasks: Names or numbers of the tasks. Default: all committed ones.
        **predict: Further arguments of `predict`.

    Returns:
        Names of the tasks; scores, `float64` `(examples, tasks)`, standardized if all these tasks are calibrated; and
        the outputs of each task.

    Raises:
        ArgumentError: If `method` is unknown or does not fit the outputs, there is no such committed task, or a task
            has no class scores.
    """
    parts: list[list[np.ndarray]] = []
    names, found = _scored(packed, x, method, tasks, lambda _, outputs: parts.append(outputs), predict)
    return names, found, [np.concatenate(of_task) for of_task in zip(*parts, strict=True)]


def _scored(
    packed: Any,
    x: Any,
    method: str | None,
    tasks: Sequence[int | str] | None,
    consume: Callable[[np.ndarray, list[np.ndarray]], None] | None,
    predict: dict[str, Any],
) -> tuple[list[str], np.ndarray]:
    """Return names and scores as in `task_scores`. Pass the scores and outputs of each batch to `consume`."""
    check_examples(packed, "x", x)
    numbers = _numbers(packed, tasks)
    method = default_method(packed, numbers) if method is None else method
    _check_outputs(packed, numbers, method)
    mean, spread = np.transpose(calibrations(packed, numbers, method))

    def standardized(found: np.ndarray) -> np.ndarray:
        return (found.astype(np.float64) - mean) / spread

    def consume_batch(found: np.ndarray, outputs: list[np.ndarray]) -> None:
        if consume is not None:
            consume(standardized(found), outputs)

    with all_tasks.state_restored(packed):
        if all_tasks.can_compute(packed, numbers):
            together = all_tasks.AllTasks(packed, numbers, method, consume is not None)
            found = together.run(x, consume_batch, **predict)
        else:
            found, outputs = _one_after_the_other(packed, x, numbers, method, predict)
            consume_batch(found, outputs)
    names = packed.task_names
    return [names[number - 1] for number in numbers], standardized(found)


def _one_after_the_other(
    packed: Any, x: Any, numbers: Sequence[int], method: str, predict: dict[str, Any]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return scores and outputs from one `predict` per task. Streamed data are kept in memory."""
    steps = predict.get("steps")
    batches = list(itertools.islice(x, steps)) if inspect.isgenerator(x) else None
    if isinstance(x, tf.data.Dataset):
        x = (x if steps is None else x.take(steps)).cache()
    found, outputs = [], []
    for number in numbers:
        packed.select_task(number)
        outputs.append(
            packed.predict(x if batches is None else (each for each in batches), **{"verbose": 0, **predict})
        )
        found.append(np.asarray(scores(outputs[-1], output_kind(packed), class_axis(packed), method), np.float32))
    return np.stack(found, axis=1), outputs


def _check_outputs(packed: Any, numbers: Sequence[int], method: str) -> None:
    check_choice("method", method, METHODS)
    for number in all_tasks.distinct(packed, numbers):
        with all_tasks.heads_of(packed, number):
            check_method(method, output_kind(packed))


def default_method(packed: Any, numbers: Iterable[int]) -> str:
    """Return the method that measured best: `logit` if all tasks are calibrated and have logits, else `entropy`."""
    recorded = [lifecycle.records(packed).calibration.get(number, {}) for number in numbers]
    return LOGIT if all(LOGIT in each for each in recorded) else ENTROPY


def calibrations(packed: Any, numbers: Iterable[int], method: str) -> list[list[float]]:
    """Return mean and standard deviation of the scores of each task; 0 and 1 unless all tasks have recorded them."""
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
    names, found = _scored(packed, x, method, tasks, None, predict)
    if per == BATCH:
        return names[int(found.mean(axis=0).argmax())]
    return [names[index] for index in found.argmax(axis=1)]


def predict_auto(
    packed: Any, x: Any, method: str | None = None, tasks: Sequence[int | str] | None = None, **predict: Any
) -> AutoPrediction:
    """Predict each example as its most likely task; the arguments are those of `task_scores`."""
    chosen: list[np.ndarray] = []

    def choose(found: np.ndarray, outputs: list[np.ndarray]) -> None:
        chosen.extend(outputs[index][example] for example, index in enumerate(found.argmax(axis=1)))

    names, found = _scored(packed, x, method, tasks, choose, predict)
    same = len({each.shape for each in chosen}) == 1
    return AutoPrediction([names[index] for index in found.argmax(axis=1)], np.stack(chosen) if same else chosen)


def predict_as(packed: Any, task: int | str, *args: Any, **kwargs: Any) -> Any:
    """Predict as `task`, or as the inferred task of each example; the selected task stays selected."""
    if task == AUTO and AUTO not in packed.task_names:
        return predict_auto(packed, *args, **kwargs)
    with selection_restored(packed):
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
