"""Exports versioned SavedModels in the folder layout of TensorFlow Serving."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.export.endpoint import ClassNames, Preprocessing
from tf_packnet.export.pack import export_pack
from tf_packnet.export.task import export_task
from tf_packnet.packed_model import PackedModel


@checked
def export_for_serving(
    packed: PackedModel,
    root: str | os.PathLike,
    *,
    task: int | str | None = None,
    name: str | None = None,
    version: int | None = None,
    compact: bool = False,
    per_task_kernels: bool = False,
    preprocessing: Preprocessing = None,
    class_names: ClassNames | Mapping[str, ClassNames] = None,
) -> Path:
    """Write the SavedModel `root/name/version`. Existing versions are kept.

    `tensorflow_model_server --model_name=NAME --model_base_path=ROOT/NAME` serves the newest version and switches to a
    newer one when it appears. The folder is written atomically.

    Args:
        packed: The pack.
        root: The folder of all served models.
        task: Name or number (1-based) of the committed task to export; None exports all tasks, see `export_pack`.
        name: The model name that clients request; default is the name of the task, or of the pack.
        version: A version number that does not exist yet; default is the newest plus 1.
        compact: As for `export_task`; needs a `task`.
        per_task_kernels: As for `export_pack`; only without a `task`.
        preprocessing: As for `export_task`.
        class_names: As for `export_task`, or as for `export_pack` without a `task`.

    Returns:
        The folder of the new version.

    Raises:
        ArgumentError: If the name, the version or an option is invalid. Nothing is written in this case.
        RuntimeError: If the task is still open.
    """
    if compact and task is None:
        raise ArgumentError("compact", "False without a task, because all tasks in one file share weights", compact)
    if per_task_kernels and task is not None:
        raise ArgumentError("per_task_kernels", "False with a task, whose file has no other kernels", per_task_kernels)
    if name is None:
        name = packed.name if task is None else packed.task_names[packed.task_number(task) - 1]
    if not name or Path(name).name != name or name.startswith("."):
        raise ArgumentError("name", "a valid folder name that does not start with a dot", name)
    folder = Path(root) / name
    path = folder / str(_version(folder, version))
    names: Any = class_names  # each of the two functions checks its own form
    if task is None:
        options: Any = {"preprocessing": preprocessing, "class_names": names}
        export_pack(packed, path, per_task_kernels=per_task_kernels, **options)
    else:
        options = {"preprocessing": preprocessing, "class_names": names}
        export_task(packed, task, path, format="saved_model", compact=compact, **options)
    return path


def _version(folder: Path, requested: int | None) -> int:
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("root", "a folder in which no file has the name of the model", str(folder))
    existing = [int(child.name) for child in folder.glob("*") if child.name.isdecimal()]
    if requested is None:
        return max(existing, default=0) + 1
    if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
        raise ArgumentError("version", "an integer of at least 1", requested)
    if requested in existing:
        raise ArgumentError("version", f"a version that does not exist yet, not one of {sorted(existing)}", requested)
    return requested
