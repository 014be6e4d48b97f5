"""Computes the units and activation of each head of a new task from the arguments of `begin_task`."""

from collections.abc import Mapping
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.head import TaskHead
from tf_packnet.structure.output_heads import changes_values, is_softmax, operations_after


def heads_of_task(
    model: keras.Model,
    task: int,
    num_classes: int | Mapping[str, int] | None,
    activation: str | Mapping[str, str] | None,
) -> list[tuple[TaskHead, int, str | None]]:
    """Return each head of `model` with its number of units and its activation in a new task.

    Args:
        model: A model with task-aware layers.
        task: Number (1-based) of the new task.
        num_classes: Units of all heads, or by head. Default: those of the previous task.
        activation: Name of the activation of all heads, or by head. Default: the head's own.

    Raises:
        ArgumentError: If a head is unknown; if units or activation are invalid or do not match; or if an activation is
            given although an operation after the head changes its outputs.
    """
    heads = lifecycle.heads(model)
    units = _by_head("num_classes", num_classes, heads)
    activations = _by_head("activation", activation, heads)
    for number in units.values():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ArgumentError("num_classes", "a whole number, at least 1", number)
    for name in activations.values():
        try:
            saved = keras.activations.serialize(keras.activations.get(name))
            can_be_saved = isinstance(saved, str) and keras.activations.get(saved) is keras.activations.get(name)
        except (ValueError, TypeError) as error:
            raise ArgumentError("activation", "the name of a Keras activation", name) from error
        if not can_be_saved:
            raise ArgumentError("activation", "the name of a Keras activation", name)
    if not heads:
        _check_shared(model, num_classes, activation)
    for path, head in heads.items():
        if path in units or path in activations:
            number = units.get(path, head.units_of(task - 1))
            _check_outputs(model, path, head, number, activations.get(path))
    return [(head, units.get(path, head.units_of(task - 1)), activations.get(path)) for path, head in heads.items()]


def _by_head(argument: str, value: Any, heads: dict[str, TaskHead]) -> dict[str, Any]:
    """Return an argument of `begin_task` by the path of each head; empty if it is None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(heads, value)
    value_by_head: dict[str, Any] = {}
    for name, head_value in value.items():
        matches = [path for path in heads if name in (path, path.rpartition("/")[2])]
        if len(matches) != 1:
            raise ArgumentError(argument, "the names of heads as keys, among " + ", ".join(map(repr, heads)), name)
        value_by_head[matches[0]] = head_value
    return value_by_head


def _check_outputs(model: keras.Model, path: str, head: TaskHead, units: int, activation: str | None) -> None:
    """Check that no operation after the head changes the requested activation, and that no softmax has one output."""
    operations = operations_after(model, head) if activation is not None or units == 1 else []
    if activation is not None:
        if operations is None:
            expected = f"None for head {path!r}, which your code calls, so that the operations after it are unknown"
            raise ArgumentError("activation", expected, activation)
        for layer in filter(changes_values, operations):
            name = f"{layer.name!r} (a {type(layer).__name__})"
            expected = f"None for head {path!r}: layer {name} after it would change its outputs again"
            raise ArgumentError("activation", expected, activation)
    head_activation = head.own_activation if activation is None else keras.activations.get(activation)
    if units == 1 and is_softmax(head_activation):
        expected = f"at least 2 for head {path!r}, or activation='linear' or 'sigmoid': its softmax"
        raise ArgumentError("num_classes", f"{expected} of one output is always 1", units)
    for layer in filter(is_softmax, operations or ()):
        if units == 1:
            expected = f"at least 2 for head {path!r}: the softmax of one output, in layer {layer.name!r}, is always 1"
            raise ArgumentError("num_classes", expected, units)


def _check_shared(model: keras.Model, num_classes: Any, activation: Any) -> None:
    """Check the arguments of `begin_task` for a model whose tasks share one head."""
    units = model.output_shape[-1]
    if num_classes is not None and (isinstance(num_classes, Mapping) or not 1 <= num_classes <= units):
        raise ArgumentError("num_classes", f"at least 1, and at most the {units} units of the shared head", num_classes)
    if activation is not None:
        raise ArgumentError("activation", "None, because the tasks share one head", activation)
