"""Loads a pack, or one task of it, from a pack file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import HOW_TO_REGISTER, FreezeError, PackFileError
from tf_packnet.export.dense import dense_model
from tf_packnet.packed import model_class
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import model_config, restoring, witnesses
from tf_packnet.packfile.container import PackFile
from tf_packnet.packfile.contents import Contents, opened
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.system.limits import SizeError
from tf_packnet.task_names import task_number

# Number of copies of a part while it is unpacked, besides its arrays.
_UNPACKING = 2

Arrays = dict[tuple[str, str], np.ndarray]


@checked
def load_pack(path: str | os.PathLike, *, max_bytes: int | None = None) -> PackedModel:
    """Load a pack. The outputs of every task are bit-identical to those of the saved pack, and the next task can begin.

    The pack has no optimizer: compile it before the next `fit`. A pack that was saved without the values of its free
    weights cannot continue with `freed_weights="keep"`; `begin_task` raises an error then.

    Args:
        path: A file written by `save_pack`.
        max_bytes: Limit in bytes on the memory for loading. Default: 320 MB, or 32 times the size of the file if that
            is more.

    Returns:
        The pack, without an open task. The selected task is that of the saved pack.

    Raises:
        OSError: If the file does not exist or cannot be read.
        PackFileError: If the file is not a pack file, is damaged, has a later version, or needs more than `max_bytes`.
            The message names the part.
        FreezeError: If the outputs of a task differ from those when it was committed.
    """
    with opened(path, max_bytes) as (file, contents):
        return _loaded(file, contents, len(contents.tasks))


@checked
def load_task(path: str | os.PathLike, task: int | str, *, max_bytes: int | None = None) -> keras.Model:
    """Load one task as a plain Keras model, as `tp.export.dense_model` returns it. Later tasks are not read.

    Args:
        path: A file written by `save_pack`.
        task: Name or number (1-based) of a task.
        max_bytes: As for `load_pack`.

    Returns:
        A plain Keras model, not compiled.

    Raises:
        ArgumentError: If there is no such task.
        OSError: If the file does not exist or cannot be read.
        PackFileError: As for `load_pack`.
        FreezeError: As for `load_pack`.
    """
    with opened(path, max_bytes) as (file, contents):
        number = task_number(contents.task_names, task)
        return dense_model(_loaded(file, contents, number), number)


def _loaded(file: PackFile, contents: Contents, last: int) -> PackedModel:
    """Load the pack with its tasks 1 to `last`."""
    needed_parts = {"model", "shared", *(f"task {number}" for number in range(1, last + 1))}
    if last == len(contents.tasks):
        needed_parts.add("free")
    sizes = {part.name: part.plain for part in contents.parts if part.name in needed_parts}
    total, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
    try:
        file.bound.check(total + _UNPACKING * sizes[largest], "it")
    except SizeError as error:
        raise PackFileError(file.path, f"part {largest!r}", f"is too large: {error}") from error
    parts: dict[str, Arrays] = {}
    before = 0
    for part in contents.parts:
        if part.name in needed_parts:
            parts[part.name] = file.arrays(part, before)
        before += part.stored
    packed = _network(file, parts["model"], total)
    name = "part 'shared'"
    try:
        _load_shared(packed, parts["shared"])
        name = "parts of the tasks"
        packed.restore(restoring.state(packed, contents, parts, last), contents.task_names[:last])
        witnesses.restore(lifecycle.records(packed), parts, last)
        lifecycle.complete_records(packed)
        packed.select_task(last if last < len(contents.tasks) else contents.selected_task)
        lifecycle.check_tasks(packed)
    except FreezeError:
        raise
    except Exception as error:  # a forged file: Keras raises errors of many types if arrays do not fit
        raise PackFileError(file.path, name, f"does not fit its network: {_first_line(error)}") from error
    if "free" not in parts:
        lifecycle.forget_free_values(packed)
    return packed


def _network(file: PackFile, arrays: Arrays, others: int) -> PackedModel:
    try:
        return model_config.from_json(arrays["config", "network"].tobytes(), file.bound, others)
    except Exception as error:  # a forged config: Keras raises errors of many types
        reason = _first_line(error)
        advice = f" {HOW_TO_REGISTER}" if "register_keras_serializable" in reason else ""
        raise PackFileError(file.path, "part 'model'", reason + advice) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _load_shared(packed: PackedModel, arrays: Arrays) -> None:
    """Load the variables and assets that belong to no task."""
    layers = layers_by_path(packed) | model_class.held_layers(packed)
    stores: dict[str, dict[str, dict[str, Any]]] = {"variable": {}, "asset": {}}
    for (kind, path), array in arrays.items():
        if kind in stores:
            place, _, name = path.rpartition("/")
            stores[kind].setdefault(place, {})[name] = array
    with lifecycle.strategy_scope(packed):
        for place, store in stores["variable"].items():
            layers[place].load_own_variables(store)
        for place, store in stores["asset"].items():
            _load_assets(layers[place], store)


def _load_assets(layer: keras.Layer, store: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, array in store.items():
            if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
                raise ValueError(f"an asset has the invalid name {name!r}")
            (Path(folder) / name).write_bytes(array.tobytes())
        layer.load_assets(folder)
