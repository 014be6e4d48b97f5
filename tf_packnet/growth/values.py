"""The values of a wider pack: those of the original pack, and those of the new weights for its tasks."""

from collections.abc import Mapping

import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.growth.channels import Axes
from tf_packnet.packed_model import PackedModel

# The saved parts of a weight that have its shape, besides the values for each task (`task_1`, ...).
_PARTS = ("variable", "frozen", "owner", "base")


def wider_state(packed: PackedModel, new: PackedModel, axes: Mapping[int, dict[str, Axes]]) -> dict[str, np.ndarray]:
    """Return the state of `packed`, as `lifecycle.state` does, for the wider pack `new`.

    New entries of masked weights are free. New entries of other weights have their initial values, but are 0 where the
    layer reads new channels.

    Args:
        packed: The pack.
        new: The wider pack, whose weights have their initial values.
        axes: The axes that change, by `id` of the layer of `packed` and name of the weight.

    Raises:
        ArgumentError: If a weight of `new` has another shape.
    """
    state, initial = lifecycle.state(packed), lifecycle.state(new)
    for path, layer in lifecycle.named_layers(packed):
        masked = {weight.name for weight in layer.masked_weights}
        changes = {name: _changed(each) for name, each in axes.get(id(layer), {}).items()}
        for name, value in lifecycle.state_of([(path, layer)]).items():
            *_, weight, part = ("", *name.rpartition("/")[2].split("."))  # heads have a prefix
            if not changes.get(weight) or not (part in _PARTS or part.startswith("task_")):
                continue
            variable = initial.get(name.removesuffix(part) + "variable")  # of a head, only those of the last task
            state[name] = _wider(value, changes[weight], None if weight in masked else variable)
            if variable is not None and variable.shape != state[name].shape:
                expected = f"layers that have the width in their config; {path!r} has the shape {variable.shape}"
                raise ArgumentError("packed", f"{expected} instead of {state[name].shape}", packed.name)
        for each in layer.masked_weights:
            if changes.get(each.name):
                used = np.ones(tuple(each.variable.shape), np.bool_) if each.fresh is None else ~each.fresh
                state[f"{path}/{each.name}.fresh"] = ~_wider(used, changes[each.name], None)
    return state


def _changed(axes: Axes) -> Axes:
    return {index: axis for index, axis in axes.items() if (axis.old < 0).any()}


def _wider(value: np.ndarray, axes: Axes, initial: np.ndarray | None) -> np.ndarray:
    """Return `value` extended by new positions, with the values of `initial` or 0."""
    shape, places = list(value.shape), [np.arange(size) for size in value.shape]
    for index, axis in axes.items():
        shape[index], places[index] = len(axis.old), np.flatnonzero(axis.old >= 0)
    wider = np.zeros(shape, value.dtype)
    if initial is not None and not any(axis.reads for axis in axes.values()):
        wider = np.array(initial, value.dtype)
    wider[np.ix_(*places)] = value
    return wider
