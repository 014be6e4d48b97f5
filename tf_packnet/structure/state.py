"""Finds the state of a model that is not in task-aware weights: running means, counters, weights of excluded layers.

A variable of a model is either a weight of a task-aware layer, which has an owner map or one value per task, or it is
returned by `unowned_variables` and gets one value per task in `tf_packnet.layers.records`.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tf_packnet.layers.base import TaskLayer
from tf_packnet.structure.layer_paths import attributes, layers_by_path, stable_names
from tf_packnet.system.keras_internals import all_layers, own_metrics, own_variables, seed_generators

Variable: TypeAlias = keras.Variable | tf.Variable


def unowned_variables(model: keras.Model) -> dict[str, Variable]:
    """Return the variables of `model` that belong to no task-aware weight, by name, such as `center/mean`.

    These are the variables of layers without a task-aware twin, and every `tf.Variable` in an attribute of a layer,
    including lists, tuples, dicts and `tf.Module`s. Seeds of random generators, metrics and optimizers are excluded.
    """
    paths: list[str] = []
    variables: list[Variable] = []
    seen: set[int] = set()
    for path, layer in {"": model, **layers_by_path(model)}.items():
        for name, variable in own_state(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                paths.append(f"{path}/{name}" if path else name)
                variables.append(variable)
    return dict(zip(stable_names(paths), variables, strict=True))


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Return the state variables of the random generators in `model`."""
    return [generator.state for layer in all_layers(model) for generator in seed_generators(layer)]


def metric_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of all metrics in the layers of `model`, which are not part of the state of a task."""
    return [v for layer in all_layers(model) for metric in own_metrics(layer) for v in metric.variables]


def own_state(layer: keras.Layer) -> Iterator[tuple[str, Variable]]:
    """Yield name and variable for the layer's own variables that belong to no task-aware weight."""
    task_variables: set[int] = set()
    if isinstance(layer, TaskLayer):
        task_variables = {id(variable) for variable in (*layer.trained_variables, *layer.bookkeeping)}
    for variable in own_variables(layer):
        if id(variable) not in task_variables:
            yield variable.name, variable
    yield from tensor_variables(layer)


def tensor_variables(layer: keras.Layer) -> Iterator[tuple[str, tf.Variable]]:
    """Yield name and variable for every `tf.Variable` in an attribute of `layer`, which Keras does not track."""
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
