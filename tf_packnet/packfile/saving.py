"""`save_pack`: every task of a pack into one file."""

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import container, model_config
from tf_packnet.packfile.checking import aside, check_file
from tf_packnet.packfile.info import check_info
from tf_packnet.packfile.parts import arrays_of, heads_of_tasks
from tf_packnet.system import files
from tf_packnet.version import __version__


def save_pack(
    packed: PackedModel,
    path: str | os.PathLike,
    *,
    info: Mapping[str, Any] | None = None,
    free_values: bool = False,
) -> None:
    """Writes all committed tasks of a pack into one small file, atomically, once it was read back and found the same.

    Args:
        packed: The pack; no task may be open.
        path: The file to write; one that is there is replaced.
        info: What to record with it: `{"dataset": str, "scale": float, "white": float, "tasks": {name: {"class_names":
            [str], "accuracy": float, "scale": float, "white": float, "extra": ...}}, "extra": ...}`, all of it
            optional; see `docs/pack-format.md`.
        free_values: Whether to write the values of free weights too. Only `freed_weights="keep"` goes on from them
            (and a pack with pruned pretrained weights, from those); without them, `begin_task` says so.

    Raises:
        DivergedError: If committed weights are NaN or infinite.
        ArgumentError: If `info` is not as it says above, the pack has no task or an open one, or lacks the free
            values, or cannot be made again from a file to the bit. A file that was there is then as it was.
    """
    _check(packed, free_values)
    heads = heads_of_tasks(packed)
    info = check_info({} if info is None else info, {task["name"]: task["heads"] for task in heads})
    try:
        with aside():
            config = model_config.to_json(packed)
    except Exception as error:  # whatever the code of a layer raises
        expected = f"a pack that can be made again from a file; its network {first_line(error)}"
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
        check_file(temporary, packed, free_values)


def _check(packed: PackedModel, free_values: bool) -> None:
    if not isinstance(packed, PackedModel):
        raise ArgumentError("packed", "a pack, from tp.pack(model)", packed)
    if lifecycle.has_open_task(packed):
        number = packed.committed_tasks + 1
        name = dict(enumerate(packed.task_names, start=1)).get(number, f"task_{number}")
        expected = f"a pack without an open task: this one has task {name!r} open, so commit it first"
        raise ArgumentError("packed", expected, packed.name)
    lifecycle.check_committed_finite(packed)
    if free_values and lifecycle.lacks_free_values(packed):
        expected = "False: this pack was loaded from a file without the values of its free weights"
        raise ArgumentError("free_values", expected, free_values)
