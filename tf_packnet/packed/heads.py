"""Computes the outputs and activation of each head of a new task from the arguments of `begin_task`."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.head import Head, class_axis
from tf_packnet.structure.output_heads import changes_values, is_softmax, operations_after, output_heads
from tf_packnet.structure.refusals import quoted
from tf_packnet.structure.tracing import refusal_of_outputs


def heads_of_task(
    model: keras.Model,
    task: int,
    num_classes: int | Mapping[str, int] | None,
    activation: str | Mapping[str, str] | None,
) -> list[tuple[Head, int, str | None]]:
    """Return each head of `model` with its number of outputs and its activation in a new task.

    Args:
        model: A model with task-aware layers.
        task: Number (1-based) of the new task.
        num_classes: Outputs of all heads, or by head. Default: those of the previous task.
        activation: Name of the activation of all heads, or by head. Default: that of each head.

    Raises:
        ArgumentError: If a head is unknown; if outputs or activation are invalid or do not match; if the head, or a
            layer after it, cannot have this number of outputs; or if an activation is given, but the head has none or
            an operation after the head changes its outputs.
    """
    heads = lifecycle.heads(model)
    numbers = _by_head(model, "num_classes", num_classes, heads)
    activations = _by_head(model, "activation", activation, heads)
    for number in numbers.values():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ArgumentError("num_classes", "a whole number, at least 1", number)
    for name in activations.values():
        _check_activation(name)
    if not heads:
        _check_fixed(model, num_classes, activation)
    outputs = {path: numbers.get(path, head.outputs_of(task - 1)) for path, head in heads.items()}
    for path, head in heads.items():
        if path in numbers or path in activations:
            _check_outputs(model, path, head, outputs[path], activations.get(path))
    _check_sizes(model, heads, outputs, num_classes)
    return [(head, outputs[path], activations.get(path)) for path, head in heads.items()]


def _by_head(model: keras.Model, argument: str, value: Any, heads: dict[str, Head]) -> dict[str, Any]:
    """Return an argument of `begin_task` by the path of each head; empty if it is None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        fixed = _fixed_heads(model, heads)
        if (
            heads
            and fixed
            and any(end.layer is None for end in output_heads(model, Head.first_outputs_of, trace=False))
        ):
            names = ", ".join(map(repr, heads))
            expected = f"a mapping with keys among {names}, because the outputs of head {fixed[0]!r} are fixed"
            raise ArgumentError(argument, expected, value)
        return dict.fromkeys(heads, value)
    groups = model.pack_settings.roles.heads
    value_by_head: dict[str, Any] = {}
    for name, head_value in value.items():
        matches = [path for path in heads if name in (path, path.rpartition("/")[2])]
        if not matches:  # the name of a layer that contains the head
            around = [group for group in groups if name in (group, group.rpartition("/")[2])]
            matches = [path for path in heads if any(path.startswith(f"{group}/") for group in around)]
        if len(matches) != 1:
            raise ArgumentError(argument, "the names of heads as keys, among " + ", ".join(map(repr, heads)), name)
        value_by_head[matches[0]] = head_value
    return value_by_head


def _fixed_heads(model: keras.Model, heads: Iterable[str]) -> list[str]:
    """Return the heads in which no layer can have another number of outputs."""
    roles = model.pack_settings.roles
    groups = [head for head in roles.heads if head not in roles.fixed_heads]
    return [group for group in groups if not any(path == group or path.startswith(f"{group}/") for path in heads)]


def _check_activation(name: Any) -> None:
    try:
        saved = keras.activations.serialize(keras.activations.get(name))
        can_be_saved = isinstance(saved, str) and keras.activations.get(saved) is keras.activations.get(name)
    except (ValueError, TypeError) as error:
        raise ArgumentError("activation", "the name of a Keras activation", name) from error
    if not can_be_saved:
        raise ArgumentError("activation", "the name of a Keras activation", name)


def _check_outputs(model: keras.Model, path: str, head: Head, number: int, activation: str | None) -> None:
    """Check that no operation after the head changes the requested activation, and that no softmax has one output."""
    operations = operations_after(model, head) if activation is not None or number == 1 else []
    if activation is not None:
        if head.own_activation is None:
            expected = f"None for head {path!r}, a {head.plain_class.__name__} without an attribute `activation`"
            raise ArgumentError("activation", expected, activation)
        if operations is None:
            expected = f"None for head {path!r}, which your code calls, so that the operations after it are unknown"
            raise ArgumentError("activation", expected, activation)
        for layer in filter(changes_values, operations):
            name = f"{layer.name!r} (a {type(layer).__name__})"
            expected = f"None for head {path!r}: layer {name} after it would change its outputs again"
            raise ArgumentError("activation", expected, activation)
    axes = (-1, class_axis(head))
    head_activation = head.own_activation if activation is None else keras.activations.get(activation)
    if number == 1 and class_axis(head) == -1 and is_softmax(head_activation):
        expected = f"at least 2 for head {path!r}, or activation='linear' or 'sigmoid': its softmax"
        raise ArgumentError("num_classes", f"{expected} of one output is always 1", number)
    for layer in operations or ():
        if number == 1 and is_softmax(layer, axes):
            expected = f"at least 2 for head {path!r}: the softmax of one output, in layer {layer.name!r}, is always 1"
            raise ArgumentError("num_classes", expected, number)


def _check_sizes(model: keras.Model, heads: dict[str, Head], outputs: dict[str, int], num_classes: Any) -> None:
    """Check that the heads, and the layers after them, can have these numbers of outputs."""
    changed: dict[Any, int] = {head: outputs[path] for path, head in heads.items() if outputs[path] != head.num_outputs}
    plain = {}
    for head, number in changed.items():
        try:
            plain[head] = head.plain_with(number)
        except Exception as error:  # raised by the code of a layer
            path = next(path for path in heads if heads[path] is head)
            reason = f"a {head.plain_class.__name__} cannot have {number} outputs ({quoted(error)})"
            raise ArgumentError("num_classes", f"{head.num_outputs} for head {path!r}: {reason}", number) from error
    if not any(_has_operations_after(model, head) for head in changed):
        return
    ends = output_heads(model, Head.first_outputs_of, trace=False)
    sizes = [(each.axis, changed[each.layer]) if each.layer in changed else None for each in ends]
    refusal = refusal_of_outputs(model, plain, sizes)
    if refusal is not None:
        names = ", ".join(f"{head.num_outputs} for head {path!r}" for path, head in heads.items() if head in changed)
        raise ArgumentError("num_classes", f"{names}: {refusal}", num_classes)


def _has_operations_after(model: keras.Model, head: Head) -> bool:
    operations = operations_after(model, head)
    return operations is None or not all(isinstance(each, keras.layers.Activation) for each in operations)


def _check_fixed(model: keras.Model, num_classes: Any, activation: Any) -> None:
    """Check the arguments of `begin_task` for a model whose tasks share one head, or have heads of a fixed size."""
    units = model.outputs[0].shape[-1]
    if model.pack_settings.roles.heads:
        names = ", ".join(map(repr, model.pack_settings.roles.heads))
        if num_classes is not None and num_classes != units:
            expected = f"None: the number of outputs of head {names} is fixed (its get_config() does not have it)"
            raise ArgumentError("num_classes", expected, num_classes)
        if activation is not None:
            raise ArgumentError("activation", f"None for head {names}, whose activation is fixed", activation)
        return
    if num_classes is not None and (isinstance(num_classes, Mapping) or not 1 <= num_classes <= units):
        raise ArgumentError("num_classes", f"at least 1, and at most the {units} units of the shared head", num_classes)
    if activation is not None:
        raise ArgumentError("activation", "None, because the tasks share one head", activation)
