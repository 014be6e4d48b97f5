"""What the heads of a new task look like, from what its user asks for."""

from collections.abc import Mapping
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.head import TaskHead
from tf_packnet.structure import tails


def heads_of_task(
    model: keras.Model,
    task: int,
    num_classes: int | Mapping[str, int] | None,
    activation: str | Mapping[str, str] | None,
) -> list[tuple[TaskHead, int, str | None]]:
    """Each head of `model` with the units and the activation that `task` (1-based, to begin) will have in it.

    Args:
        model: A model with masked layers.
        task: Its number.
        num_classes: Units of the head, or by head; None for those of the task before.
        activation: Name of an activation, or by head; None for the head's own.

    Raises:
        ArgumentError: If a head is unknown, or its units or activation are no such thing or do not go together, or an
            activation is asked for where a layer behind the head has another one.
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
            fits = isinstance(saved, str) and keras.activations.get(saved) is keras.activations.get(name)
        except (ValueError, TypeError) as error:
            raise ArgumentError("activation", "the name of a Keras activation", name) from error
        if not fits:  # a function that a file could not name
            raise ArgumentError("activation", "the name of a Keras activation", name)
    if not heads:
        _check_shared(model, num_classes, activation)
    for place, head in heads.items():
        if place in units or place in activations:
            number = units.get(place, head.units_of(task - 1))
            _check_outputs(model, place, head, number, activations.get(place))
    return [(head, units.get(place, head.units_of(task - 1)), activations.get(place)) for place, head in heads.items()]


def _by_head(argument: str, asked: Any, heads: dict[str, TaskHead]) -> dict[str, Any]:
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        return dict.fromkeys(heads, asked)
    found = {}
    for name, value in asked.items():
        matches = [place for place in heads if name in (place, place.rpartition("/")[2])]
        if len(matches) != 1:
            raise ArgumentError(argument, "by head, among " + ", ".join(map(repr, heads)), name)
        found[matches[0]] = value
    return found


def _check_outputs(model: keras.Model, place: str, head: TaskHead, units: int, asked: str | None) -> None:
    """Checks that the task gets the activation that its user asks for, and not the same output for every example."""
    after = tails.behind(model, head) if asked is not None or units == 1 else []
    if asked is not None:
        if after is None:
            expected = f"None for head {place!r}: what its outputs go through cannot be seen in the code that calls it"
            raise ArgumentError("activation", expected, asked)
        for layer in filter(tails.changes, after):
            name = f"{layer.name!r}, a {type(layer).__name__},"
            expected = f"None for head {place!r}: layer {name} comes after it and would change its outputs again"
            raise ArgumentError("activation", expected, asked)
    own = head.own_activation if asked is None else keras.activations.get(asked)
    if units == 1 and tails.is_softmax(own):
        expected = f"at least 2 for head {place!r}, or activation='linear' or 'sigmoid': its softmax"
        raise ArgumentError("num_classes", f"{expected} of one output is always 1", units)
    for layer in filter(tails.is_softmax, after or ()):
        if units == 1:
            expected = f"at least 2 for head {place!r}: the softmax of one output, in layer {layer.name!r}, is always 1"
            raise ArgumentError("num_classes", expected, units)


def _check_shared(model: keras.Model, num_classes: Any, activation: Any) -> None:
    there = model.output_shape[-1]
    if num_classes is not None and (isinstance(num_classes, Mapping) or not 1 <= num_classes <= there):
        raise ArgumentError("num_classes", f"at least 1, and at most the {there} of the shared head", num_classes)
    if activation is not None:
        raise ArgumentError("activation", "None: the tasks share one head", activation)
