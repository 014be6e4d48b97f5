"""Folders as TensorFlow Serving watches them: a model's versions, each in a folder of its number."""

import os
from pathlib import Path

from tf_packnet.errors import ArgumentError
from tf_packnet.export.endpoint import ClassNames, Preprocessing
from tf_packnet.export.pack import export_pack
from tf_packnet.export.task import export_task
from tf_packnet.packed_model import PackedModel


def export_for_serving(
    packed: PackedModel,
    root: str | os.PathLike,
    *,
    task: int | str | None = None,
    name: str | None = None,
    version: int | None = None,
    compact: bool = False,
    preprocessing: Preprocessing = None,
    class_names: ClassNames = None,
) -> Path:
    """Writes the SavedModel `root/name/version`, atomically; the versions that are there stay.

    `tensorflow_model_server --model_name=NAME --model_base_path=ROOT/NAME` serves the newest, and goes over to a newer
    one when it finds it.

    Args:
        packed: The pack.
        root: The folder of all models.
        task: Name or number (1-based) of the committed task to write; None for all of them in one, see `export_pack`.
        name: The name that clients ask for; default the task's, or the pack's.
        version: A number that is not there yet; default one more than the newest.
        compact: As for `export_task`; only with a `task`.
        preprocessing: As for `export_task`.
        class_names: As for `export_task`, or as for `export_pack` without a `task`.

    Returns:
        The folder of the version.

    Raises:
        ArgumentError: If a name, a number or an option does not fit. Nothing is written then.
        RuntimeError: If the task is still being learned.
    """
    if compact and task is None:
        raise ArgumentError("compact", "False without a task: all tasks in one file share their weights", compact)
    if name is None:
        name = packed.name if task is None else packed.task_names[packed.task_number(task) - 1]
    if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
        raise ArgumentError("name", "a name that a folder can have", name)
    folder = Path(root) / name
    path = folder / str(_version(folder, version))
    if task is None:
        export_pack(packed, path, preprocessing=preprocessing, class_names=class_names)
    else:
        export_task(packed, task, path, compact=compact, preprocessing=preprocessing, class_names=class_names)
    return path


def _version(folder: Path, asked: int | None) -> int:
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("root", "a folder of models' folders; there is a file at the model's place", str(folder))
    there = [int(each.name) for each in folder.glob("*") if each.name.isdecimal()]
    if asked is None:
        return max(there, default=0) + 1
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ArgumentError("version", "a whole number, at least 1", asked)
    if asked in there:
        raise ArgumentError("version", f"one that is not there yet (there are {sorted(there)})", asked)
    return asked
