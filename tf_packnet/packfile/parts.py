"""Lists the arrays of a pack, part by part, in the form in which a pack file stores them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.head import Head
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.packed import model_class
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import witnesses
from tf_packnet.packfile.coding import ITEM_BYTES, to_gaps
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.system.keras_internals import sublayers

Arrays = Iterator[tuple[str, str, np.ndarray]]


def arrays_of(packed: PackedModel, free_values: bool) -> Iterator[tuple[str, Arrays]]:
    """Yield the parts of a pack file, except `model`, which has the config.

    Args:
        packed: The pack.
        free_values: Whether to include the values of free weights.

    Yields:
        Name of a part, and kind, name and value of each of its arrays.

    Raises:
        ArgumentError: If the dtype of a variable is not supported.
    """
    yield "shared", _shared(packed)
    for task in range(1, packed.committed_tasks + 1):
        yield f"task {task}", _of_task(packed, task)
    if free_values:
        yield "free", _free(packed)


def heads_of_tasks(packed: PackedModel) -> list[dict[str, Any]]:
    """Return the name of each task, and its heads: `(units, activation)` by the place of the head in the model."""
    heads = lifecycle.heads(packed)
    return [
        {
            "name": name,
            "heads": {place: (head.outputs_of(number), head.activation_of(number)) for place, head in heads.items()},
        }
        for number, name in enumerate(packed.task_names, start=1)
    ]


def compared(packed: PackedModel, free_values: bool) -> Iterator[tuple[str, Arrays]]:
    """Yield the arrays in which a loaded pack must equal the saved one: `arrays_of` with owner maps instead of gaps."""
    yield "shared", _shared(packed)
    yield "tasks", _owned(packed, free_values)
    for task in range(1, packed.committed_tasks + 1):
        yield f"task {task}", _own(packed, task)
    if free_values:
        yield "free", _base(packed, "prunable")


def _owned(packed: PackedModel, free_values: bool) -> Arrays:
    for path, weight in lifecycle.masked_weights(packed).items():
        owner, frozen = weight.owner_map(), np.asarray(keras.ops.convert_to_numpy(weight.frozen))
        yield "owners", path, owner
        yield "values", path, frozen if free_values else np.where(owner > 0, frozen, np.zeros((), frozen.dtype))


def _of_task(packed: PackedModel, task: int) -> Arrays:
    """Yield the arrays of one task: positions and values of its weights, its heads, biases and state."""
    for path, weight in lifecycle.masked_weights(packed).items():
        owner = weight.owner_map()
        yield "gaps", path, to_gaps(owner, task)
        yield "values", path, np.asarray(keras.ops.convert_to_numpy(weight.frozen))[owner == task]
    yield from _own(packed, task)


def _own(packed: PackedModel, task: int) -> Arrays:
    for place, layer in lifecycle.named_layers(packed):
        for weight in _task_weights(layer, task):
            if task in weight.kept:
                yield "own", f"{place}/{weight.name}", weight.kept[task]
    records = lifecycle.records(packed)
    before, state = records.state.get(task - 1, {}), records.state.get(task, {})
    for name, value in state.items():
        if value is not before.get(name):  # most state is equal to that of the task before
            yield "state", name, _storable(name, value)
    yield from witnesses.to_arrays(records, task)


def _storable(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.name not in ITEM_BYTES:
        expected = f"variables with one of the dtypes {', '.join(ITEM_BYTES)} ({name!r} has another)"
        raise ArgumentError("packed", expected, value.dtype.name)
    return value


def _task_weights(layer: TaskLayer, task: int) -> list[TaskWeight]:
    return layer.weights_of(task) if isinstance(layer, Head) else layer.task_weights


def _shared(packed: PackedModel) -> Arrays:
    """Yield the arrays of no task: variables of other layers, visible pretrained values, masks of new weights."""
    yield from _base(packed, "visible")
    for path, weight in lifecycle.masked_weights(packed).items():
        if weight.fresh is not None:
            yield "fresh", path, weight.fresh.astype(np.uint8)
    for place, layer in (layers_by_path(packed) | model_class.held_layers(packed)).items():
        if isinstance(layer, TaskLayer):
            continue
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        for name, value in store.items():
            yield "variable", f"{place}/{name}", _storable(place, np.asarray(keras.ops.convert_to_numpy(value)))
        if hasattr(layer, "save_assets") and not sublayers(layer):
            yield from _assets(place, layer)


def _assets(place: str, layer: keras.Layer) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        for file in sorted(Path(folder).iterdir()):
            yield "asset", f"{place}/{file.name}", np.frombuffer(file.read_bytes(), np.uint8)


def _free(packed: PackedModel) -> Arrays:
    """Yield the values from which later tasks may start."""
    yield from _base(packed, "prunable")
    for path, weight in lifecycle.masked_weights(packed).items():
        frozen = np.asarray(keras.ops.convert_to_numpy(weight.frozen))
        yield "free", path, frozen[weight.owner_map() == 0]


def _base(packed: PackedModel, pretrained: str) -> Arrays:
    for path, weight in lifecycle.masked_weights(packed).items():
        if weight.pretrained == pretrained:
            yield "base", path, np.asarray(keras.ops.convert_to_numpy(weight.base))
