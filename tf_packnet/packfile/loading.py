"""`load_pack` and `load_task`: a pack from a file, or one task of it."""

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import FreezeError, PackFileError, first_line
from tf_packnet.export.dense import dense_model
from tf_packnet.packed import model_class
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import model_config, restoring, witnesses
from tf_packnet.packfile.container import PackFile
from tf_packnet.packfile.contents import Contents, opened
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.task_names import task_number

# What the variables of a loaded pack may take, unless more is allowed.
MAX_BYTES = 2**33

Arrays = dict[tuple[str, str], np.ndarray]


def load_pack(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> PackedModel:
    """Reads a pack back: every task computes what it did, to the bit, and the next one may begin.

    It comes without an optimizer: compile it before the next `fit`. What was saved without the values of its free
    weights cannot go on with `freed_weights="keep"`, and `begin_task` says so.

    Args:
        path: A file that `save_pack` wrote.
        max_bytes: What the variables may take in memory; a file that asks for more is refused.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        PackFileError: If the file is damaged, of a later version or none of a pack; the message names the part.
        FreezeError: If a task does not compute what it did when it was committed.
    """
    with opened(path) as (file, contents):
        return _loaded(file, contents, len(contents.tasks), max_bytes)


def load_task(path: str | os.PathLike, task: int | str, *, max_bytes: int = MAX_BYTES) -> keras.Model:
    """Reads one task as a plain Keras model, as `tp.export.dense_model` gives it; later tasks are not read.

    Args:
        path: A file that `save_pack` wrote.
        task: Name or number (1-based) of a task.
        max_bytes: As for `load_pack`.

    Raises:
        ArgumentError: If there is no such task.
        OSError: If there is no such file, or it cannot be read.
        PackFileError: As for `load_pack`.
    """
    with opened(path) as (file, contents):
        number = task_number(contents.task_names, task)
        return dense_model(_loaded(file, contents, number, max_bytes), number)


def _loaded(file: PackFile, contents: Contents, last: int, max_bytes: int) -> PackedModel:
    """The pack with the tasks up to `last`."""
    wanted = {"model", "shared", *(f"task {number}" for number in range(1, last + 1))}
    if last == len(contents.tasks):
        wanted.add("free")
    claimed = sum(part.plain for part in contents.parts if part.name in wanted)
    if claimed > max_bytes:
        raise PackFileError(file.path, "directory", f"claims {claimed:,} bytes; max_bytes of as much would allow that")
    parts: dict[str, Arrays] = {}
    before = 0
    for part in contents.parts:
        if part.name in wanted:
            parts[part.name] = file.arrays(part, before)
        before += part.stored
    packed = _network(file, parts["model"], max_bytes)
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
    except Exception as error:  # a forged file: Keras raises what it likes at arrays that do not fit
        raise PackFileError(file.path, name, f"does not fit its network: {first_line(error)}") from error
    if "free" not in parts:
        lifecycle.forget_free_values(packed)
    return packed


def _network(file: PackFile, arrays: Arrays, max_bytes: int) -> PackedModel:
    try:
        return model_config.from_json(arrays["config", "network"].tobytes().decode(), max_bytes)
    except Exception as error:  # a forged config: Keras raises what it likes
        raise PackFileError(file.path, "part 'model'", first_line(error)) from error


def _load_shared(packed: PackedModel, arrays: Arrays) -> None:
    """Gives the layers that belong to no task their variables and assets."""
    layers = layers_by_path(packed) | model_class.held_layers(packed)
    stores: dict[str, dict[str, dict[str, Any]]] = {"variable": {}, "asset": {}}
    for (kind, whose), array in arrays.items():
        if kind in stores:
            place, _, name = whose.rpartition("/")
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
                raise ValueError(f"an asset is called {name!r}")
            (Path(folder) / name).write_bytes(array.tobytes())
        layer.load_assets(folder)
