"""Converts the arrays of a pack file to the state of a pack, as `lifecycle.state` returns it."""

import json
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.head import Head
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile.coding import take_gaps
from tf_packnet.packfile.contents import Contents

Parts = dict[str, dict[tuple[str, str], np.ndarray]]


def state(packed: PackedModel, contents: Contents, parts: Parts, last: int) -> dict[str, np.ndarray]:
    """Return the state of `packed` after its task `last`, for `PackedModel.restore`.

    Args:
        packed: The pack, built from its config.
        contents: The contents of the file.
        parts: The arrays of its parts, including those of tasks 1 to `last`.
        last: Number (1-based) of the last task to restore.

    Raises:
        KeyError: If an array is missing.
        ValueError: If an array does not fit its weight.
    """
    paths = {
        path: (weight.variable.dtype, tuple(weight.variable.shape))
        for path, weight in lifecycle.masked_weights(packed).items()
    }
    if paths != {path: (weight.dtype, weight.shape) for path, weight in contents.weights.items()}:
        raise ValueError("the directory lists other weights than the network has")
    return {
        f"{place}/{name}": value
        for place, layer in lifecycle.named_layers(packed)
        for name, value in _of_layer(place, layer, contents, parts, last).items()
    }


def _of_layer(place: str, layer: TaskLayer, contents: Contents, parts: Parts, last: int) -> dict[str, Any]:
    store: dict[str, Any] = {
        "committed_tasks": np.array(last),
        "open": np.array(False),
        "selected_task": np.array(last),
    }
    if isinstance(layer, Head):
        return {**store, **_of_head(place, layer, contents, parts, last)}
    for weight in layer.masked_weights:
        store.update(_prefixed(weight.name, _of_masked(f"{place}/{weight.name}", weight, parts, last)))
    for own in layer.task_weights:
        tasks = range(1, 2 if own.policy == "first_task" else last + 1)
        kept = {task: _own(parts, task, f"{place}/{own.name}", own.variable.shape) for task in tasks}
        store.update(_prefixed(own.name, _of_task_weight(kept, own.variable.shape, own.variable.dtype)))
    return store


def _of_masked(path: str, weight: MaskedWeight, parts: Parts, last: int) -> dict[str, Any]:
    shape, dtype = tuple(weight.variable.shape), np.dtype(weight.variable.dtype)
    owner, frozen = np.zeros(weight.variable.shape, np.uint8).reshape(-1), np.zeros(shape, dtype).reshape(-1)
    variable = np.zeros_like(frozen)
    for task in range(1, last + 1):
        arrays = parts[f"task {task}"]
        places, values = take_gaps(owner, arrays["gaps", path], task), arrays["values", path]
        frozen[places] = values
        if task == last:  # for equality with a trained pack; nothing reads it
            variable[places] = values
    if "free" in parts:
        frozen[owner == 0] = parts["free"]["free", path]
    store = {"variable": variable, "frozen": frozen, "owner": owner}
    if weight.pretrained is not None:
        part = parts["shared"] if weight.pretrained == "visible" else parts.get("free", {})
        store["base"] = part["base", path] if part else np.zeros(shape, dtype)
    if ("fresh", path) in parts["shared"]:
        store["fresh"] = parts["shared"]["fresh", path]
    store = {name: array.reshape(shape) for name, array in store.items()}
    return {**store, "shown": np.array(last, np.uint8), "learning": np.array(False)}


def _of_task_weight(kept: dict[int, np.ndarray], shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    latest = kept[max(kept)] if kept else np.zeros(shape, dtype)
    return {
        "variable": latest,
        "frozen": latest,
        "learning": np.array(False),
        **{f"task_{task}": value for task, value in kept.items()},
    }


def _of_head(place: str, head: Head, contents: Contents, parts: Parts, last: int) -> dict[str, Any]:
    entries = {task.number: task.heads[place] for task in contents.tasks[:last]}
    named = {task: entry.activation for task, entry in entries.items() if entry.activation is not None}
    for name in named.values():
        keras.activations.get(name)  # an unknown name raises now, not when the task is selected
    store: dict[str, Any] = {
        "units_of": np.array([(task, entry.units) for task, entry in entries.items()], int),
        "activation_of": np.frombuffer(json.dumps(named).encode(), np.uint8),
    }
    for units in {head.num_outputs, *(entry.units for entry in entries.values())}:
        tasks = [task for task, entry in entries.items() if entry.units == units]
        shapes = head.shapes_with(units)
        for weight in head.task_weights:
            shape = shapes[weight.name]
            kept = {task: _own(parts, task, f"{place}/{weight.name}", shape) for task in tasks}
            values = _of_task_weight(kept, shape, weight.variable.dtype)
            store.update(_prefixed(f"units_{units}.{weight.name}", values))
    return store


def _own(parts: Parts, task: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = parts[f"task {task}"]["own", name]
    if value.shape != tuple(shape):
        raise ValueError(f"{name!r} of task {task} has shape {value.shape}, not {tuple(shape)}")
    return value


def _prefixed(prefix: str, store: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in store.items()}
