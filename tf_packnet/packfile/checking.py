"""A pack file is read back before it takes the place of an earlier one: it has to give the pack that was saved."""

import collections
import contextlib
import itertools
import os
import random
import sys
from collections.abc import Iterator

import keras
import numpy as np

from tf_packnet.errors import ArgumentError, PackFileError
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile.loading import load_pack
from tf_packnet.packfile.parts import compared, heads_of_tasks
from tf_packnet.structure.layer_paths import layers_by_path
from tf_packnet.system.keras_internals import global_state


def check_file(path: str | os.PathLike, packed: PackedModel, free_values: bool) -> None:
    """Reads the file at `path` as `load_pack` does and compares what it gives with `packed`, to the bit.

    Args:
        path: The file.
        packed: The pack that it was written of.
        free_values: Whether it has the values of free weights.

    Raises:
        ArgumentError: If it cannot be read, or gives something else.
    """
    try:
        with aside():
            loaded = load_pack(path, max_bytes=sys.maxsize)
    except PackFileError as error:
        raise _not_read_back(packed, f"{error.part} {error.reason}") from error
    different = next(_differences(packed, loaded, free_values), None)
    if different is not None:
        raise _not_read_back(packed, f"{different} comes back otherwise")


def _not_read_back(packed: PackedModel, reason: str) -> ArgumentError:
    return ArgumentError("packed", f"a pack that can be read back from its file; {reason}", packed.name)


def _differences(packed: PackedModel, loaded: PackedModel, free_values: bool) -> Iterator[str]:
    if heads_of_tasks(loaded) != heads_of_tasks(packed) or loaded.selected_task != packed.selected_task:
        yield "the list of its tasks"
    if _structure(loaded) != _structure(packed):
        yield "the list of its layers"
    parts = zip(compared(packed, free_values), compared(loaded, free_values), strict=True)
    for (name, ours), (_, theirs) in parts:
        for (kind, whose, then), now in itertools.zip_longest(ours, theirs, fillvalue=("", "", np.zeros(0))):
            if now[:2] != (kind, whose) or not _same(then, now[2]):
                yield f"{kind} {whose!r} of part {name!r}"


def _structure(packed: PackedModel) -> list[tuple[str, type[keras.Layer]]]:
    return [(place, type(layer)) for place, layer in layers_by_path(packed).items()]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all bits are the same, of NaN too."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    views = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return np.array_equal(*views)


_NAMES = "object_name_uids"


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Layers that are made while it lasts change neither the names nor the seeds of those made later."""
    names = collections.defaultdict(int, global_state.get_global_attribute(_NAMES, {}))
    seeds = random.getstate()  # Keras draws the seed of an initializer and a Dropout from it
    try:
        yield
    finally:
        random.setstate(seeds)
        global_state.set_global_attribute(_NAMES, names)
