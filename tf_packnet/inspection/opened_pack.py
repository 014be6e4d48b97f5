"""A pack as it lies on disk, opened to be looked at."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.inspection.pack_kinds import ONE_FILE, kind_of
from tf_packnet.packed_model import PackedModel


@dataclass(frozen=True)
class FileFacts:
    """What is known of the file, beside the model in it.

    Attributes:
        name: Its name, without folders.
        bytes: Its size.
        tasks: What it says of each task, by name: `bytes`, `class_names`, `accuracy`, where it has them.
        results: The content of the `results.json` of the run that wrote it; None without one.
        note: What is wrong with that file, if anything is.
        one_file: Whether `save_pack` wrote it, not Keras.
    """

    name: str
    bytes: int
    tasks: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, Any] | None = None
    note: str = ""
    one_file: bool = False


def open_pack(path: Path, results: Path | None = None) -> tuple[PackedModel, FileFacts]:
    """Reads a pack, without what only training needs.

    Args:
        path: What `packed.save` or `save_pack` wrote.
        results: The `results.json` that belongs to it, which may be missing.

    Raises:
        ArgumentError: If it is no pack, or none that can be read; the message says why.
    """
    one_file = kind_of(path) == ONE_FILE
    packed, tasks = _read(_of_one_file if one_file else _of_keras, path)
    found, note = (None, "") if results is None else _read_results(results)
    return packed, FileFacts(path.name, path.stat().st_size, tasks, found, note, one_file)


_Said = dict[str, dict[str, Any]]


def _read(reader: Callable[[Path], tuple[PackedModel, _Said]], path: Path) -> tuple[PackedModel, _Said]:
    try:
        return reader(path)
    except ArgumentError:
        raise
    except Exception as error:  # Keras raises all kinds
        raise ArgumentError("pack", f"a pack that can be read ({first_line(error)})", str(path)) from error


def _of_keras(path: Path) -> tuple[PackedModel, _Said]:
    model = keras.models.load_model(path, compile=False)
    if not isinstance(model, PackedModel):
        raise ArgumentError("pack", f"a pack, not a {type(model).__name__} that was not packed", str(path))
    return model, {}


def _of_one_file(path: Path) -> tuple[PackedModel, _Said]:
    from tf_packnet.packfile import read_contents
    from tf_packnet.packfile.loading import load_pack

    contents = read_contents(path)
    said = {task.name: {"class_names": task.class_names, "accuracy": task.accuracy} for task in contents.tasks}
    for task in contents.tasks:
        said[task.name]["bytes"] = contents.part(f"task {task.number}").stored
    return load_pack(path), said


def _read_results(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError):
        return None, f"{path.name} beside it cannot be read"
    if not isinstance(values, dict):
        return None, f"{path.name} beside it is not that of a run"
    return values, ""
