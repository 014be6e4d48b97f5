"""State that no weight of a task holds: running means, counters, the weights of excluded layers.

Every variable of a model is either the weight of a task-aware layer, which has owners or one value per task, or it is
found here and gets one value per task as a whole, see `tf_packnet.layers.records`.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.layers.base import TaskLayer
from tf_packnet.structure.places import attributes, by_place, stable_names

Variable = keras.Variable | tf.Variable


def unowned_variables(model: keras.Model) -> dict[str, Variable]:
    """The variables of `model` that belong to no weight of a task, by name, such as `center/mean`.

    These are the variables of layers without a task-aware twin, and every `tf.Variable` in an attribute of a layer,
    lists, tuples, dicts and `tf.Module`s included. The seeds of random generators, metrics and optimizers are left out.
    """
    found: list[tuple[str, Variable]] = []
    seen: set[int] = set()
    for place, layer in {"": model, **by_place(model)}.items():
        for name, variable in own_state(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append((f"{place}/{name}" if place else name, variable))
    names = stable_names(path for path, _ in found)
    return {name: variable for name, (_, variable) in zip(names, found, strict=True)}


def seeds(model: keras.Model) -> list[keras.Variable]:
    """The states of the random generators of `model`."""
    return [generator.state for layer in model._flatten_layers() for generator in layer._seed_generators]


def metric_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of all metrics that the layers of `model` hold: what they count is no state of a task."""
    return [v for layer in model._flatten_layers() for metric in layer._metrics for v in metric.variables]


def own_state(layer: keras.Layer) -> Iterator[tuple[str, Variable]]:
    """The variables that `layer` holds itself and that belong to no weight of a task, by name."""
    owned: set[int] = set()
    if isinstance(layer, TaskLayer):
        owned = {id(variable) for variable in (*layer.trained_variables, *layer.bookkeeping)}
    for variable in layer._trainable_variables + layer._non_trainable_variables:
        if id(variable) not in owned:
            yield variable.name, variable
    yield from tensor_variables(layer)


def tensor_variables(layer: keras.Layer) -> Iterator[tuple[str, tf.Variable]]:
    """Every `tf.Variable` in an attribute of `layer`, by name: Keras neither trains nor saves them."""
    for attribute, value in attributes(layer):
        yield from _inside(attribute, value, set())


def _inside(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, tf.Variable]]:
    if isinstance(value, tf.Variable):
        yield name, value
    elif isinstance(value, (list, tuple, dict, tf.Module)) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, tf.Module):
            parts = vars(value).items()
        else:
            parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _inside(f"{name}.{key}", part, seen)
