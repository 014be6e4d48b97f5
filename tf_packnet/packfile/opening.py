"""Opens pack files of both kinds: `.keras` files by `packed.save`, and `.packnet` files by `save_pack`.

Importing this module does not import TensorFlow, nor do `kind_of` and `tasks_of_keras_file`.
"""

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_packnet.errors import HOW_TO_REGISTER, ArgumentError, first_line
from tf_packnet.packfile.container import MAGIC
from tf_packnet.system import archives
from tf_packnet.system.limits import PACK_RATIO, Bound, open_regular

if TYPE_CHECKING:
    import keras

    from tf_packnet.packed_model import PackedModel

KERAS, PACKNET = "keras", "packnet"
_FIRST_BYTES = {b"PK": KERAS, MAGIC: PACKNET}
_UNKNOWN_CLASS = re.compile("Could not locate ((class|function) '[^']*')")  # in the errors of Keras
_EXPECTED = "a pack file (.keras or .packnet), written by packed.save or save_pack"


def kind_of(path: str | os.PathLike) -> str:
    """Return the kind of a pack file, `KERAS` or `PACKNET`, from its first bytes.

    Raises:
        ArgumentError: If the file cannot be read, or is of neither kind.
    """
    try:
        with open_regular(path) as file:
            start = file.read(max(map(len, _FIRST_BYTES)))
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError("pack", f"a pack file ({reason})", os.fspath(path)) from error
    for first_bytes, kind in _FIRST_BYTES.items():
        if start.startswith(first_bytes):
            return kind
    raise ArgumentError("pack", _EXPECTED, os.fspath(path))


def tasks_of_keras_file(path: str | os.PathLike, max_bytes: int | None = None) -> list[str]:
    """Read the names of the tasks in a `.keras` file, including the open task, without loading the model.

    Raises:
        ArgumentError: If the file is not a pack, or is too large.
    """
    with _one_line_errors(path, (*archives.BROKEN, AttributeError), _EXPECTED):
        config = _config(path, _bound(path, max_bytes))
        # Format 1 of packs has the tasks in the config, later ones in the build config.
        section = config["config"] if "tasks" in config["config"] else config["build_config"]
        return [str(name) for name in section["tasks"]]


def open_pack(path: str | os.PathLike, max_bytes: int | None = None) -> "PackedModel":
    """Load a pack from a file of either kind, without its optimizer.

    Args:
        path: The file.
        max_bytes: As for `load_pack`.

    Raises:
        ArgumentError: If the file is not a pack, or Keras cannot load it; the message says why.
        PackFileError: If it is a damaged `.packnet` file.
        FreezeError: If the outputs of a task in a `.packnet` file differ from those when it was committed.
    """
    if kind_of(path) == PACKNET:
        from tf_packnet.packfile.loading import load_pack

        return load_pack(path, max_bytes=max_bytes)
    import keras

    from tf_packnet.packed_model import PackedModel
    from tf_packnet.packfile import footprint, keras_weights

    with _one_line_errors(path, (Exception,), "a pack that can be loaded"):  # Keras raises errors of many types
        bound = _bound(path, max_bytes)
        keras_weights.check(path, bound)
        config = {**_config(path, bound), "compile_config": None}
        footprint.check(config, lambda each: keras.saving.deserialize_keras_object(each, safe_mode=True), bound)
        model = keras.saving.load_model(Path(path), compile=False)
    if not isinstance(model, PackedModel):
        expected = f"a pack, from tp.pack(model), not a {type(model).__name__} that was not packed"
        raise ArgumentError("pack", expected, os.fspath(path))
    return model


def _bound(path: str | os.PathLike, max_bytes: int | None) -> Bound:
    return Bound.of_file(path, max_bytes, PACK_RATIO)


def _config(path: str | os.PathLike, bound: Bound) -> dict[str, Any]:
    with archives.opened_zip(path, bound) as archive:
        config = bound.parsed(archives.read_member(archive, "config.json").getvalue(), "config.json")
    if not isinstance(config, dict):
        raise archives.InvalidFileError("config.json is not a JSON object")
    return config


@contextlib.contextmanager
def _one_line_errors(path: str | os.PathLike, errors: tuple[type[Exception], ...], expected: str) -> Iterator[None]:
    """Turn errors in the block into an ArgumentError that names the file."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise ArgumentError("pack", f"{expected} (it is damaged or cut short)", os.fspath(path)) from error
    except errors as error:
        unknown = _UNKNOWN_CLASS.search(str(error))
        reason = f"{unknown[1]} is not registered {HOW_TO_REGISTER}" if unknown else first_line(error)
        raise ArgumentError("pack", f"{expected} ({reason})", os.fspath(path)) from error


def open_task(path: str | os.PathLike, number: int, max_bytes: int | None = None) -> "keras.Model":
    """Load task `number` (1-based) from a file of either kind as a plain Keras model.

    Args:
        path: The file.
        number: Number of the task.
        max_bytes: As for `load_pack`.

    Raises:
        ArgumentError: If the task is not committed; also as for `open_pack`.
        PackFileError: As for `open_pack`.
        FreezeError: As for `open_pack`.
    """
    if kind_of(path) == PACKNET:
        from tf_packnet.packfile.loading import load_task

        return load_task(path, number, max_bytes=max_bytes)
    from tf_packnet.export.dense import dense_model

    packed = open_pack(path, max_bytes)
    if number > packed.committed_tasks:
        raise ArgumentError("task", "a committed task; this one is still open", packed.task_names[number - 1])
    return dense_model(packed, number)
