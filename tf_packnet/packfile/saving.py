"""`save_pack`: every task of a pack into one file."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import __version__, files, lifecycle, model_class
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TaskHead, TaskLayer
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import container, model_config
from tf_packnet.packfile.coding import ITEM_BYTES, to_gaps
from tf_packnet.packfile.info import check_info
from tf_packnet.structure.places import by_place

Arrays = Iterator[tuple[str, str, np.ndarray]]


def save_pack(
    packed: PackedModel,
    path: str | os.PathLike,
    *,
    info: Mapping[str, Any] | None = None,
    free_values: bool = False,
) -> None:
    """Writes all committed tasks of a pack into one small file, atomically.

    Args:
        packed: The pack; no task may be open.
        path: The file to write; one that is there is replaced.
        info: What to record with it: `{"dataset": str, "scale": float, "white": float, "tasks": {name: {"class_names":
            [str], "accuracy": float, "scale": float, "white": float, "extra": ...}}, "extra": ...}`, all of it
            optional; see `docs/pack-format.md`.
        free_values: Whether to write the values of free weights too. Only `freed_weights="keep"` goes on from them
            (and a pack with pruned pretrained weights, from those); without them, `begin_task` says so.

    Raises:
        ArgumentError: If `info` is not as it says above, the pack has no task or an open one, or lacks the free
            values, or it has layers that cannot be made again from a file.
    """
    heads = _check(packed, free_values)
    info = check_info({} if info is None else info, {task["name"]: task["heads"] for task in heads})
    try:
        config = model_config.to_json(packed)
    except Exception as error:  # whatever the code of a layer raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        expected = f"a pack that can be made again from a file; its network {reason}"
        raise ArgumentError("packed", expected, packed.name) from error
    weights = lifecycle.masked_weights(packed)
    parts = [
        container.pack_part("model", [("config", "network", np.frombuffer(config.encode(), np.uint8))]),
        container.pack_part("shared", _shared(packed)),
        *(container.pack_part(f"task {task}", _of_task(packed, task)) for task in range(1, len(heads) + 1)),
    ]
    if free_values:
        parts.append(container.pack_part("free", _free(packed)))
    directory = {
        "tasks": heads,
        "weights": {path: [weight.variable.dtype, list(weight.variable.shape)] for path, weight in weights.items()},
        "selected": packed.selected_task,
        "info": info,
        "pack": {
            "name": packed.name,
            "head": packed.pack_settings.head,
            "freed_weights": packed.pack_settings.freed_weights,
            "bias_policy": packed.pack_settings.roles.bias_policy,
            "pretrained": packed.pack_settings.roles.pretrained,
            "written_by": f"tf_packnet {__version__}, keras {keras.__version__}",
        },
    }
    with files.replacing(path) as temporary:
        container.write(temporary, directory, parts)


def _check(packed: PackedModel, free_values: bool) -> list[dict[str, Any]]:
    """The name and the heads of each task, of a pack that can be saved."""
    if not isinstance(packed, PackedModel):
        raise ArgumentError("packed", "a pack, from tp.pack(model)", type(packed).__name__)
    if lifecycle.has_open_task(packed):
        number = packed.committed_tasks + 1
        name = dict(enumerate(packed.task_names, start=1)).get(number, f"task_{number}")
        raise ArgumentError("packed", "a pack without an open task: commit it first", f"a pack with task {name!r} open")
    if free_values and lifecycle.lacks_free_values(packed):
        expected = "False: this pack was loaded from a file without the values of its free weights"
        raise ArgumentError("free_values", expected, free_values)
    heads = lifecycle.heads(packed)
    return [
        {
            "name": name,
            "heads": {place: (head.units_of(number), head.activation_of(number)) for place, head in heads.items()},
        }
        for number, name in enumerate(packed.task_names, start=1)
    ]


def _of_task(packed: PackedModel, task: int) -> Arrays:
    """What belongs to one task: where its weights are and what they are, its head, its biases."""
    for path, weight in lifecycle.masked_weights(packed).items():
        owner = weight.owner_map()
        yield "gaps", path, to_gaps(owner, task)
        yield "values", path, np.asarray(keras.ops.convert_to_numpy(weight.frozen))[owner == task]
    for place, layer in lifecycle.named_layers(packed):
        for weight in _task_weights(layer, task):
            if task in weight.kept:
                yield "own", f"{place}/{weight.name}", weight.kept[task]


def _task_weights(layer: TaskLayer, task: int) -> list[TaskWeight]:
    return layer.weights_of(task) if isinstance(layer, TaskHead) else layer.task_weights


def _shared(packed: PackedModel) -> Arrays:
    """What all tasks see: layers that belong to none, and pretrained values that show through."""
    yield from _base(packed, "visible")
    for place, layer in (by_place(packed) | model_class.held_layers(packed)).items():
        if isinstance(layer, TaskLayer):
            continue
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        for name, value in store.items():
            value = np.asarray(keras.ops.convert_to_numpy(value))
            if value.dtype.name not in ITEM_BYTES:
                expected = f"variables of a dtype among {', '.join(ITEM_BYTES)} ({place!r} has another)"
                raise ArgumentError("packed", expected, value.dtype.name)
            yield "variable", f"{place}/{name}", value
        if hasattr(layer, "save_assets") and not layer._layers:
            yield from _assets(place, layer)


def _assets(place: str, layer: keras.Layer) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        for file in sorted(Path(folder).iterdir()):
            yield "asset", f"{place}/{file.name}", np.frombuffer(file.read_bytes(), np.uint8)


def _free(packed: PackedModel) -> Arrays:
    """What later tasks may start from."""
    yield from _base(packed, "prunable")
    for path, weight in lifecycle.masked_weights(packed).items():
        frozen = np.asarray(keras.ops.convert_to_numpy(weight.frozen))
        yield "free", path, frozen[weight.owner_map() == 0]


def _base(packed: PackedModel, pretrained: str) -> Arrays:
    for path, weight in lifecycle.masked_weights(packed).items():
        if weight.pretrained == pretrained:
            yield "base", path, np.asarray(keras.ops.convert_to_numpy(weight.base))
