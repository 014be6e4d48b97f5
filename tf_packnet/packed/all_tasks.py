"""Computes batches as several tasks in one compiled call, without changing the selected task.

The kernels of the tasks are computed once, before the first batch, and substituted for those of the selected task. One
function computes a batch as each task in turn, so that the data are read once, and the activations of only one task are
in memory. The outputs are bit-identical to those of `predict` as each task.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import Head
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import same_bits
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.packed.task_scores import class_axis, output_kind, scores
from tf_packnet.structure import overrides
from tf_packnet.structure.state import seeds
from tf_packnet.system.keras_internals import all_layers, autocasts
from tf_packnet.training import acceleration

# Limit in bytes on the weights of several tasks in memory. If there are more tasks, weights are computed per batch.
MOST_BYTES = 2**29

_KERNELS = "kernels"

# Called with the scores of a batch, shape `(examples, tasks)`, and its outputs as each task.
Consumer: TypeAlias = Callable[[np.ndarray, list[np.ndarray]], None]
# The values of a task: its weights in the order of `_weights`, and the state that differs between tasks.
_Values: TypeAlias = tuple[list[Any], dict[str, Any]]


class AllTasks:
    """Computes scores of batches as each of several committed tasks, in one call per group of tasks.

    Create and run it within `state_restored`.

    Args:
        packed: A pack for which `can_compute` is true.
        numbers: Numbers of the tasks.
        method: One of `task_scores.METHODS`.
        with_outputs: Whether the consumer needs the outputs.
    """

    def __init__(self, packed: Any, numbers: Sequence[int], method: str, with_outputs: bool):
        self._packed = packed
        self._method = method
        self._with_outputs = with_outputs
        self._state = {name: lifecycle.records(packed).variables[name] for name in _differing(packed, numbers)}
        size = max(1, MOST_BYTES // max(1, _bytes_of(packed)))
        self._groups = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
        self._layers = lifecycle.task_layers(packed)
        # Kept with the functions of the witnesses, which `compile` drops. No function depends on weights.
        key = ("all tasks", id(packed), method, with_outputs, tuple(self._state))
        self._traced: dict[Any, Callable[..., Any]] = lifecycle.records(packed).functions.setdefault(key, {})

    def run(self, x: Any, consume: Consumer, **predict: Any) -> np.ndarray:
        """Score the data, reading it once, batch by batch.

        Args:
            x: As for `predict`.
            consume: Called with each batch.
            **predict: Further arguments of `predict`.

        Returns:
            Scores, `float32`, shape `(examples, tasks)`.
        """
        packed = self._packed
        functions = [self._function(group) for group in self._groups]
        values = [self._values(group) for group in self._groups] if len(self._groups) == 1 else None

        def score(data: Sequence[Any]) -> Any:
            found, outputs = [], []
            for index, (group, function) in enumerate(zip(self._groups, functions, strict=True)):
                of_group = function(data[0], self._values(group) if values is None else values[index])
                found += of_group[0]
                outputs += of_group[1]
            table = tf.stack(found, axis=1)
            consume(table.numpy(), [each.numpy() for each in outputs])
            return table

        with _predicting_with(packed, score):
            return np.asarray(packed.predict(x, **{"verbose": 0, **predict}))

    def _function(self, group: list[int]) -> Callable[..., Any]:
        """Return the traced function that computes a batch as each task of a group, one after another."""
        structures = tuple(_structure(self._layers, task) for task in group)
        if structures not in self._traced:
            self._traced[structures] = self._new_function(group, structures)
        return self._traced[structures]

    def _new_function(self, group: list[int], structures: Sequence[Any]) -> Callable[..., Any]:
        # Not inlined, so that only one task's activations are in memory, and TensorFlow optimizes each graph once.
        options: dict[str, Any] = {"experimental_attributes": {"_noinline": True}}
        one_of = {
            structure: _compiled(self._packed, self._one_task(task), **options)
            for task, structure in zip(group, structures, strict=True)
        }

        def all_tasks(data: Any, values: Sequence[_Values]) -> tuple[list[Any], list[Any]]:
            found: list[Any] = []
            outputs: list[Any] = []
            for structure, of_task in zip(structures, values, strict=True):
                with tf.control_dependencies(found[-1:]):
                    score, output = one_of[structure](data, of_task)
                found.append(score)
                outputs += [output] if self._with_outputs else []
            return found, outputs

        return _compiled(self._packed, all_tasks, reduce_retracing=True)

    def _one_task(self, task: int) -> Callable[..., Any]:
        """Return a function that computes a batch with given values, for all tasks with the same heads as `task`."""
        packed, layers, state = self._packed, self._layers, self._state

        def compute(data: Any, values: _Values) -> tuple[Any, Any]:
            weights, own_state = values
            with contextlib.ExitStack() as stack:
                stack.enter_context(heads_of(packed, task))
                for (_, weight), value in zip(_weights(layers, task), weights, strict=True):
                    stack.enter_context(weight.substitute(value))
                if own_state:
                    mapping = [(state[name], value) for name, value in own_state.items()]
                    stack.enter_context(keras.StatelessScope(state_mapping=mapping))
                outputs = packed.predict_step(data)
                kind, axis = output_kind(packed), class_axis(packed)
            (output,) = keras.tree.flatten(outputs)
            score = tf.cast(scores(output, kind, axis, self._method), tf.float32)
            return score, output if self._with_outputs else tf.constant(0)

        return compute

    def _values(self, group: Sequence[int]) -> list[_Values]:
        """Compute the weights of tasks in the form in which the layers use them."""
        if _KERNELS not in self._traced:
            self._traced[_KERNELS] = _compiled(self._packed, _select_kernels(self._layers))
        values = []
        for task in group:
            kernels = iter(self._traced[_KERNELS](tf.constant(task, tf.uint8)))
            weights = [
                next(kernels) if isinstance(weight, MaskedWeight) else _cast(layer, weight, weight.value_of(task))
                for layer, weight in _weights(self._layers, task)
            ]
            known = lifecycle.records(self._packed).state.get(task, {})
            state = {
                name: tf.constant(known.get(name, lifecycle.view_of(variable)))
                for name, variable in self._state.items()
            }
            values.append((weights, state))
        return values


def can_compute(packed: Any, numbers: Sequence[int]) -> bool:
    """Return whether `AllTasks` can compute these tasks. Call it within `state_restored`.

    It cannot with a distribution strategy or an overridden `predict`, or if the tasks differ in state that cannot be
    substituted: variables that are not Keras variables, that inference changes, or from which a layer derives other
    values.
    """
    if acceleration.is_distributed(packed) or overrides.is_overridden(packed, "predict", "make_predict_function"):
        return False
    records = lifecycle.records(packed)
    names = _differing(packed, numbers)
    finalized = {
        id(variable)
        for layer in all_layers(packed)
        if callable(getattr(layer, "finalize_state", None))
        for variable in layer.variables
    }
    of_keras = all(isinstance(records.variables[name], keras.Variable) for name in names)
    return not records.volatile and of_keras and not any(id(records.variables[name]) in finalized for name in names)


def distinct(packed: keras.Model, numbers: Sequence[int]) -> list[int]:
    """Return the first task with each combination of numbers of outputs and activations."""
    layers = lifecycle.task_layers(packed)
    first: dict[Any, int] = {}
    for task in numbers:
        first.setdefault(_structure(layers, task), task)
    return list(first.values())


@contextlib.contextmanager
def heads_of(packed: keras.Model, task: int) -> Iterator[None]:
    """Within the block, heads have the outputs and the activation of `task` (1-based, committed)."""
    heads = [layer for layer in lifecycle.task_layers(packed) if isinstance(layer, Head)]
    selected = lifecycle.selected_task(packed)
    try:
        for head in heads:
            head.use_task(task)
        yield
    finally:
        for head in heads:
            head.use_task(selected)


@contextlib.contextmanager
def selection_restored(packed: keras.Model) -> Iterator[None]:
    """Context manager that restores the selected task after the block."""
    selected = lifecycle.selected_task(packed)
    try:
        yield
    finally:
        if lifecycle.selected_task(packed) != selected:
            lifecycle.select_task(packed, selected)


@contextlib.contextmanager
def state_restored(packed: keras.Model) -> Iterator[None]:
    """Context manager that restores the selected task, and the variables and seeds that inference may change."""
    variables = [*lifecycle.bind_state(packed).values(), *seeds(packed)]
    before = [np.array(lifecycle.view_of(variable)) for variable in variables]
    try:
        with selection_restored(packed):
            yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            if not same_bits(lifecycle.view_of(variable), value):
                variable.assign(value)


@contextlib.contextmanager
def _predicting_with(packed: Any, function: Callable[[Sequence[Any]], Any]) -> Iterator[None]:
    """Within the block, `predict` calls `function` with a list of one batch."""
    before = packed.predict_function, packed.steps_per_execution
    packed.predict_function, packed.steps_per_execution = function, 1
    try:
        yield
    finally:
        packed.predict_function, packed.steps_per_execution = before


def _weights(layers: Sequence[TaskLayer], task: int) -> list[tuple[TaskLayer, MaskedWeight | TaskWeight]]:
    """Return the weights that `task` computes with, each with its layer; masked weights come first."""
    masked = [(layer, weight) for layer in layers for weight in layer.masked_weights]
    own = [
        (layer, weight)
        for layer in layers
        for weight in (layer.weights_of(task) if isinstance(layer, Head) else layer.task_weights)
    ]
    return [*masked, *own]


def _select_kernels(layers: Sequence[TaskLayer]) -> Callable[[Any], list[Any]]:
    def select(task: Any) -> list[Any]:
        return [_cast(layer, each, each.value_of(task)) for layer in layers for each in layer.masked_weights]

    return select


def _compiled(packed: Any, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return function if packed.run_eagerly else tf.function(function, autograph=False, **options)


def _cast(layer: TaskLayer, weight: MaskedWeight | TaskWeight, value: Any) -> Any:
    """Cast a value as Keras casts the variable of the weight when the layer reads it."""
    casts = autocasts(weight.variable) and keras.backend.is_float_dtype(weight.variable.dtype)
    return tf.cast(value, layer.compute_dtype if casts else weight.variable.dtype)


def _structure(layers: Sequence[TaskLayer], task: int) -> tuple[Any, ...]:
    """Return the numbers of outputs and activations of a task's heads, on which its traced function depends."""
    return tuple((each.outputs_of(task), each.activation_of(task)) for each in layers if isinstance(each, Head))


def _bytes_of(packed: keras.Model) -> int:
    return sum(lifecycle.view_of(weight.frozen).nbytes for weight in lifecycle.masked_weights(packed).values())


def _differing(packed: keras.Model, numbers: Sequence[int]) -> list[str]:
    """Return the names of the state, outside of weights, in which these tasks differ from the selected one."""
    variables, found = lifecycle.records(packed).variables, {}
    compared: dict[tuple[str, int], bool] = {}  # tasks with equal values share the arrays
    for task in numbers:
        for name, value in lifecycle.records(packed).state.get(task, {}).items():
            key = (name, id(value))
            if name in variables and key not in compared:
                compared[key] = same_bits(lifecycle.view_of(variables[name]), value)
            if not compared.get(key, True):
                found[name] = True
    return list(found)
