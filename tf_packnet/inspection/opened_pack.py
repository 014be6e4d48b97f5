"""Opens a pack file for inspection, with the results of the run that wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import read_contents
from tf_packnet.packfile.opening import PACKNET, kind_of
from tf_packnet.packfile.opening import open_pack as load
from tf_packnet.system.limits import read_json


@dataclass(frozen=True)
class FileFacts:
    """Facts about a pack file that are not in the model.

    Attributes:
        name: Name of the file, without folders.
        bytes: Size of the file.
        tasks: What a `.packnet` file records of each task, by name: `bytes`, `class_names`, `accuracy`.
        results: The content of the run's `results.json`; None without one.
        note: Why `results.json` cannot be used; empty if it can.
        one_file: Whether it is a `.packnet` file, not a `.keras` file.
    """

    name: str
    bytes: int
    tasks: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, Any] | None = None
    note: str = ""
    one_file: bool = False


def open_pack(path: Path, results: Path | None = None, max_bytes: int | None = None) -> tuple[PackedModel, FileFacts]:
    """Load a pack, without its optimizer, and the facts about its file.

    Args:
        path: A file by `packed.save` or `save_pack`.
        results: Path of the run's `results.json`, which need not exist.
        max_bytes: As for `tp.load_pack`.

    Raises:
        ArgumentError: If the file is not a pack or cannot be loaded; the message says why.
    """
    is_packnet = kind_of(path) == PACKNET
    try:
        packed = load(path, max_bytes)
        tasks = _recorded_tasks(path, max_bytes) if is_packnet else {}
    except ArgumentError:
        raise
    except Exception as error:  # a damaged file, or changed outputs of a task
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ArgumentError("pack", f"a pack that can be loaded ({reason})", str(path)) from error
    values, note = (None, "") if results is None else _read_results(results)
    return packed, FileFacts(path.name, path.stat().st_size, tasks, values, note, is_packnet)


def _recorded_tasks(path: Path, max_bytes: int | None) -> dict[str, dict[str, Any]]:
    contents = read_contents(path, max_bytes=max_bytes)
    stored = {part.name: part.stored for part in contents.parts}
    return {
        task.name: {
            "class_names": task.class_names,
            "accuracy": task.accuracy,
            "bytes": stored[f"task {task.number}"],
        }
        for task in contents.tasks
    }


def _read_results(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the content of `results.json`, or None and a note if it cannot be used."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError):
        return None, f"{path.name} in the same folder cannot be read"
    if not isinstance(values, dict):
        return None, f"{path.name} in the same folder is not that of a run"
    return values, ""
