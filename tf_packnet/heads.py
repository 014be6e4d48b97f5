"""What the heads of a new task look like, from what its user asks for."""

from collections.abc import Mapping
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.head import TaskHead


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
        ArgumentError: If a head is unknown, or its units or activation are no such thing.
    """
    heads = lifecycle.heads(model)
    units = _by_head("num_classes", num_classes, heads)
    activations = _by_head("activation", activation, heads)
    for number in units.values():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ArgumentError("num_classes", "a whole number, at least 1", number)
    for name in activations.values():
        try:
            keras.activations.get(name)
        except (ValueError, TypeError) as error:
            raise ArgumentError("activation", "the name of a Keras activation", name) from error
    if not heads:
        _check_shared(model, num_classes, activation)
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


def _check_shared(model: keras.Model, num_classes: Any, activation: Any) -> None:
    there = model.output_shape[-1]
    if num_classes is not None and (isinstance(num_classes, Mapping) or not 1 <= num_classes <= there):
        raise ArgumentError("num_classes", f"at least 1, and at most the {there} of the shared head", num_classes)
    if activation is not None:
        raise ArgumentError("activation", "None: the tasks share one head", activation)
