"""Saves a pack to a pack file, and reads the file back before it replaces an existing file."""

import collections
import contextlib
import itertools
import os
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, PackFileError
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import container, model_config
from tf_packnet.packfile.info import check_info
from tf_packnet.packfile.loading import load_pack
from tf_packnet.packfile.parts import arrays_of, compared, heads_of_tasks
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.system import files
from tf_packnet.system.keras_internals import global_state
from tf_packnet.version import __version__

_LAYER_NAMES = "object_name_uids"  # Keras's global counters of layer names


@checked
def save_pack(
    packed: PackedModel,
    path: str | os.PathLike,
    *,
    info: Mapping[str, Any] | None = None,
    free_values: bool = False,
) -> None:
    """Write all committed tasks of a pack to one small file.

    The file is read back and compared with the pack, bit by bit, before it replaces an existing file atomically.

    Args:
        packed: The pack, without an open task.
        path: The file to write. An existing file is replaced.
        info: Facts to record: `{"dataset": str, "scale": float, "white": float, "resize": str, "table": ...,
            "tasks": {name: {"class_names": [str], "accuracy": float, "scale": float, "white": float, "resize": str,
            "table": ..., "extra": ...}}, "extra": ...}`. All keys are optional;
            see `docs/pack-format.md`.
        free_values: Whether to write the values of free weights too. They are needed to continue with
            `freed_weights="keep"` or with pruned pretrained weights; without them `begin_task` raises an error.

    Raises:
        DivergedError: If committed weights are NaN or infinite.
        ArgumentError: If `info` is invalid, the pack has no committed task or an open one, lacks the free values, or
            cannot be restored from a file bit by bit. An existing file is then unchanged.
    """
    _check(packed, free_values)
    heads = heads_of_tasks(packed)
    info = check_info({} if info is None else info, {task["name"]: task["heads"] for task in heads})
    try:
        with _preserved_names_and_seeds():
            config = model_config.to_json(packed)
    except Exception as error:  # the code of a layer may raise any error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        expected = f"a pack that can be rebuilt from a file; its network {reason}"
        raise ArgumentError("packed", expected, packed.name) from error
    weights = lifecycle.masked_weights(packed)
    parts = [
        container.pack_part("model", [("config", "network", np.frombuffer(config.encode(), np.uint8))]),
        *(container.pack_part(name, arrays) for name, arrays in arrays_of(packed, free_values)),
    ]
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
        _read_back(temporary, packed, free_values)


def _check(packed: PackedModel, free_values: bool) -> None:
    if not isinstance(packed, PackedModel):
        raise ArgumentError("packed", "a pack, from tp.pack(model)", packed)
    if lifecycle.has_open_task(packed):
        number = packed.committed_tasks + 1
        name = dict(enumerate(packed.task_names, start=1)).get(number, f"task_{number}")
        expected = f"a pack without an open task (task {name!r} is open; commit it first)"
        raise ArgumentError("packed", expected, packed.name)
    lifecycle.check_committed_finite(packed)
    if free_values and lifecycle.lacks_free_values(packed):
        expected = "False, because this pack was loaded from a file without the values of its free weights"
        raise ArgumentError("free_values", expected, free_values)


def _read_back(path: str | os.PathLike, packed: PackedModel, free_values: bool) -> None:
    """Load the file at `path` and compare the result with `packed`, bit by bit.

    Args:
        path: The file.
        packed: The pack that was saved.
        free_values: Whether the file has the values of free weights.

    Raises:
        ArgumentError: If the file cannot be loaded, or the loaded pack differs.
    """
    try:
        with _preserved_names_and_seeds():
            loaded = load_pack(path, max_bytes=sys.maxsize)
    except PackFileError as error:
        raise _cannot_be_read_back(packed, f"{error.part} {error.reason}") from error
    difference = next(_differences(packed, loaded, free_values), None)
    if difference is not None:
        raise _cannot_be_read_back(packed, f"{difference} differs after loading")


def _cannot_be_read_back(packed: PackedModel, reason: str) -> ArgumentError:
    return ArgumentError("packed", f"a pack that can be read back from its file; {reason}", packed.name)


def _differences(packed: PackedModel, loaded: PackedModel, free_values: bool) -> Iterator[str]:
    """Yield a description of each difference between the saved and the loaded pack."""
    if heads_of_tasks(loaded) != heads_of_tasks(packed) or loaded.selected_task != packed.selected_task:
        yield "the list of its tasks"
    if _layer_classes(loaded) != _layer_classes(packed):
        yield "the list of its layers"
    missing = ("", "", np.zeros(0))
    parts = zip(compared(packed, free_values), compared(loaded, free_values), strict=True)
    for (part, saved_arrays), (_, loaded_arrays) in parts:
        pairs = itertools.zip_longest(saved_arrays, loaded_arrays, fillvalue=missing)
        for (kind, name, saved_value), (loaded_kind, loaded_name, loaded_value) in pairs:
            if (loaded_kind, loaded_name) != (kind, name) or not _same_bits(saved_value, loaded_value):
                yield f"{kind} {name!r} of part {part!r}"


def _layer_classes(packed: PackedModel) -> list[tuple[str, type[keras.Layer]]]:
    return [(place, type(layer)) for place, layer in layers_by_path(packed).items()]


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays have the same bits, including those of NaN."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return np.array_equal(one, other)


@contextlib.contextmanager
def _preserved_names_and_seeds() -> Iterator[None]:
    """Context manager in which creating layers does not affect the names and seeds of layers created later."""
    names = collections.defaultdict(int, global_state.get_global_attribute(_LAYER_NAMES, {}))
    seeds = random.getstate()  # Keras draws the seeds of initializers and Dropout from it
    try:
        yield
    finally:
        random.setstate(seeds)
        global_state.set_global_attribute(_LAYER_NAMES, names)
