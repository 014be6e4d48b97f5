"""All that training goes on from in the middle of a `fit`: weights, owners, optimizer, random generators."""

from typing import NamedTuple

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.weights import view
from tf_packnet.training import optimizers

PACK, OTHER, OPTIMIZER, BUILT = "pack/", "other/", "optimizer/", "built/"


class Parts(NamedTuple):
    """Where the state of a model lies. Looking for it takes as long as capturing it."""

    layers: list[tuple[str, TaskLayer]]
    others: list[keras.Variable]


def parts(model: keras.Model) -> Parts:
    """Where the state of `model` lies, for every `capture` of one `fit`: the optimizer may still be built in it."""
    return Parts(lifecycle.named_layers(model), _other_variables(model))


def capture(model: keras.Model, where: Parts | None = None) -> dict[str, np.ndarray]:
    """The state of a compiled model with task-aware layers, by name, for `restore`; it stays as it is.

    On CPU nothing is copied: a variable that changes takes new memory, while somebody looks at the old one.

    Args:
        model: The model.
        where: Its `parts`, if they are known.
    """
    layers, others = where or parts(model)
    found = {PACK + name: value for name, value in lifecycle.state_of(layers).items()}
    for prefix, variables in ((OTHER, others), (OPTIMIZER, _optimizer_variables(model))):
        found.update({f"{prefix}{place}": view(variable) for place, variable in enumerate(variables)})
    place_of = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    for number, (_, _, optimizer) in enumerate(optimizers.of_user(model)):  # Keras builds them in their first step
        if optimizer.built:
            trained = [place_of[id(variable)] for variable in optimizers.trained_by(optimizer)]
            found[f"{BUILT}{number}"] = np.array(trained, np.int64)
    return found


def restore(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """The inverse of `capture`, on a model of the same architecture whose optimizer was built for its weights.

    Raises:
        ValueError: If `state` is that of another model or optimizer.
    """
    pack = {name.removeprefix(PACK): state[name] for name in state if name.startswith(PACK)}
    for number, (_, _, optimizer) in enumerate(optimizers.of_user(model)):
        if f"{BUILT}{number}" in state and not optimizer.built:
            optimizer.build([model.trainable_variables[place] for place in state[f"{BUILT}{number}"]])
    groups = {OTHER: _other_variables(model), OPTIMIZER: _optimizer_variables(model)}
    ours = {f"{prefix}{place}": variable for prefix, some in groups.items() for place, variable in enumerate(some)}
    theirs = {name for name in state if not name.startswith((PACK, BUILT))}
    different = [name for name in ours if name in theirs and tuple(ours[name].shape) != state[name].shape]
    if set(ours) != theirs or different:
        raise ValueError("the state is that of another model, or of another optimizer")
    try:
        lifecycle.load_state(model, pack)
    except KeyError as error:
        raise ValueError(f"the state is that of another model: it has no {error}") from error
    with lifecycle.strategy_scope(model):
        for name, variable in ours.items():
            variable.assign(state[name])


def _optimizer_variables(model: keras.Model) -> list[keras.Variable]:
    return [variable for optimizer in optimizers.all_of(model) for variable in optimizer.variables]


def _other_variables(model: keras.Model) -> list[keras.Variable]:
    """What is in no task-aware layer's own state: weights and statistics of other layers, and random generators."""
    found = []
    for layer in model._flatten_layers():
        if not isinstance(layer, TaskLayer):
            found += layer._trainable_variables + layer._non_trainable_variables
        found += [generator.state for generator in layer._seed_generators]
    return list({id(variable): variable for variable in found}.values())
