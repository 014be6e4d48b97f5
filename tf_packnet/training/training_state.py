"""Captures and restores the state that a `fit` needs to resume: weights, owner maps, optimizers, random generators."""

from typing import NamedTuple

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.weights import view
from tf_packnet.system.keras_internals import all_layers, own_variables, seed_generators
from tf_packnet.training import optimizers

# Prefixes of the names in a captured state. Backups contain them: do not change them.
_PACK, _OTHER, _OPTIMIZER, _BUILT = "pack/", "other/", "optimizer/", "built/"


class Parts(NamedTuple):
    """The layers and variables that hold the state of a model. Finding them takes as long as capturing the state."""

    layers: list[tuple[str, TaskLayer]]
    others: list[keras.Variable]


def parts(model: keras.Model) -> Parts:
    """Return the parts of `model` for every `capture` of one `fit`.

    Optimizers are left out: they may not be built yet.
    """
    return Parts(lifecycle.named_layers(model), _other_variables(model))


def capture(model: keras.Model, known_parts: Parts | None = None) -> dict[str, np.ndarray]:
    """Capture the state of a compiled model with task-aware layers, for `restore`.

    On CPU nothing is copied: while the returned arrays exist, TensorFlow allocates new memory for a variable that
    changes.

    Args:
        model: The model.
        known_parts: `parts(model)`, if it has been computed before.

    Returns:
        Read-only arrays by name.
    """
    layers, others = known_parts or parts(model)
    state = {_PACK + name: value for name, value in lifecycle.state_of(layers).items()}
    for prefix, variables in ((_OTHER, others), (_OPTIMIZER, _optimizer_variables(model))):
        state.update({f"{prefix}{index}": view(variable) for index, variable in enumerate(variables)})
    index_of = {id(variable): index for index, variable in enumerate(model.trainable_variables)}
    for number, (_, _, optimizer) in enumerate(optimizers.of_user(model)):  # built in their first step
        if optimizer.built:
            trained = [index_of[id(variable)] for variable in optimizers.trained_by(optimizer)]
            state[f"{_BUILT}{number}"] = np.array(trained, np.int64)
    return state


def restore(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Restore what `capture` returned.

    Args:
        model: A model of the same architecture, whose optimizer is built.
        state: Arrays by name.

    Raises:
        ValueError: If `state` is from another model or optimizer.
    """
    pack = {name.removeprefix(_PACK): state[name] for name in state if name.startswith(_PACK)}
    for number, (_, _, optimizer) in enumerate(optimizers.of_user(model)):
        if f"{_BUILT}{number}" in state and not optimizer.built:
            optimizer.build([model.trainable_variables[index] for index in state[f"{_BUILT}{number}"]])
    groups = {_OTHER: _other_variables(model), _OPTIMIZER: _optimizer_variables(model)}
    variables = {
        f"{prefix}{index}": variable for prefix, group in groups.items() for index, variable in enumerate(group)
    }
    names = {name for name in state if not name.startswith((_PACK, _BUILT))}
    if set(variables) != names or any(tuple(variables[name].shape) != state[name].shape for name in names):
        raise ValueError("the state is from another model or another optimizer")
    try:
        lifecycle.load_state(model, pack)
    except KeyError as error:
        raise ValueError(f"the state is from another model: it has no {error}") from error
    with lifecycle.strategy_scope(model):
        for name, variable in variables.items():
            variable.assign(state[name])


def _optimizer_variables(model: keras.Model) -> list[keras.Variable]:
    return [variable for optimizer in optimizers.all_of(model) for variable in optimizer.variables]


def _other_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the weights and statistics of layers that are not task-aware, and all random generators."""
    variables = []
    for layer in all_layers(model):
        if not isinstance(layer, TaskLayer):
            variables += own_variables(layer)
        variables += [generator.state for generator in seed_generators(layer)]
    return list({id(variable): variable for variable in variables}.values())
