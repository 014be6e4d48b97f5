"""Opens pack files of both kinds: `.keras` files by `packed.save`, and `.packnet` files by `save_pack`.

Importing this module does not import TensorFlow, nor do `kind_of` and `tasks_of_keras_file`.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tf_packnet.errors import ArgumentError
from tf_packnet.packfile.container import MAGIC

if TYPE_CHECKING:
    import keras

    from tf_packnet.packed_model import PackedModel

KERAS, PACKNET = "keras", "packnet"
_FIRST_BYTES = {b"PK": KERAS, MAGIC: PACKNET}
_EXPECTED = "a pack file (.keras or .packnet), written by packed.save or save_pack"


def kind_of(path: str | os.PathLike) -> str:
    """Return the kind of a pack file, `KERAS` or `PACKNET`, from its first bytes.

    Raises:
        ArgumentError: If the file cannot be read, or is of neither kind.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(max(map(len, _FIRST_BYTES)))
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError("pack", f"a pack file ({reason})", os.fspath(path)) from error
    for first_bytes, kind in _FIRST_BYTES.items():
        if start.startswith(first_bytes):
            return kind
    raise ArgumentError("pack", _EXPECTED, os.fspath(path))


def tasks_of_keras_file(path: str | os.PathLike) -> list[str]:
    """Read the names of the tasks in a `.keras` file, the open one included, without loading the model.

    Raises:
        ArgumentError: If the file is not that of a pack.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        # Format 1 of packs has the tasks in the config, later ones in the build config.
        section = config["config"] if "tasks" in config["config"] else config["build_config"]
        return [str(name) for name in section["tasks"]]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise ArgumentError("pack", _EXPECTED, os.fspath(path)) from error


def open_pack(path: str | os.PathLike) -> "PackedModel":
    """Load a pack from a file of either kind, without its optimizer.

    Raises:
        ArgumentError: If the file is not a pack, or Keras cannot load it; the message says why.
        PackFileError: If it is a damaged `.packnet` file.
        FreezeError: If the outputs of a task in a `.packnet` file differ from those when it was committed.
    """
    if kind_of(path) == PACKNET:
        from tf_packnet.packfile.loading import load_pack

        return load_pack(path)
    import keras

    from tf_packnet.packed_model import PackedModel

    try:
        model = keras.saving.load_model(Path(path), compile=False)
    except Exception as error:  # Keras raises errors of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ArgumentError("pack", f"a pack that can be loaded ({reason})", os.fspath(path)) from error
    if not isinstance(model, PackedModel):
        expected = f"a pack, from tp.pack(model), not a {type(model).__name__} that was not packed"
        raise ArgumentError("pack", expected, os.fspath(path))
    return model


def open_task(path: str | os.PathLike, number: int) -> "keras.Model":
    """Load task `number` (1-based) from a file of either kind as a plain Keras model.

    Raises:
        ArgumentError: If there is no such committed task; and as for `open_pack`.
        PackFileError: As for `open_pack`.
        FreezeError: As for `open_pack`.
    """
    if kind_of(path) == PACKNET:
        from tf_packnet.packfile.loading import load_task

        return load_task(path, number)
    from tf_packnet.export.dense import dense_model

    packed = open_pack(path)
    if number > packed.committed_tasks:
        raise ArgumentError("task", "a committed task; this one is still open", packed.task_names[number - 1])
    return dense_model(packed, number)
