"""Which tasks a pack file has, of either kind, and one of them as a network to predict with."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tf_packnet.errors import ArgumentError, PackFileError, first_line
from tf_packnet.packfile import read_contents
from tf_packnet.packfile.container import MAGIC
from tf_packnet.task_names import task_number

if TYPE_CHECKING:
    import keras


class Choice(NamedTuple):
    """A task of a pack file.

    Attributes:
        path: The file.
        kind: `packnet` (by `save_pack`) or `keras` (by `packed.save`).
        task: Name of the task.
        number: Its number (1-based).
        class_names: Names of its classes; None if the file has none.
        scale: Multiplies raw examples; None if the file does not say.
        white: What a white pixel is in raw examples.
    """

    path: Path
    kind: str
    task: str
    number: int
    class_names: tuple[str, ...] | None = None
    scale: float | None = None
    white: float = 255.0

    def network(self) -> "keras.Model":
        """The task as a plain Keras model.

        Raises:
            ArgumentError: If the task was not committed, or Keras cannot read the file.
            PackFileError: If the file is damaged.
        """
        if self.kind == "packnet":
            from tf_packnet.packfile.loading import load_task

            return load_task(self.path, self.number)
        return self._of_keras_file()

    def _of_keras_file(self) -> "keras.Model":
        import keras

        from tf_packnet.export import dense_model
        from tf_packnet.packed_model import PackedModel

        try:
            packed = keras.saving.load_model(self.path, compile=False)
        except Exception as error:  # whatever Keras raises at what it cannot read
            raise ArgumentError("pack", f"a pack that Keras can load ({first_line(error)})", str(self.path)) from error
        if not isinstance(packed, PackedModel):
            raise ArgumentError("pack", "a pack, from tp.pack(model)", str(self.path))
        if self.number > packed.committed_tasks:
            raise ArgumentError("task", "a task that was committed; this one is still being learned", self.task)
        return dense_model(packed, self.number)


def choose(path: str, task: str | None) -> Choice:
    """The task of a pack file that is asked for, without starting TensorFlow.

    Args:
        path: A file by `save_pack` or `packed.save`.
        task: Its name or number (1-based); None for the only one.

    Raises:
        ArgumentError: If there is no such file, it is no pack, or there is no such task, or several and none asked for.
        PackFileError: If it is a damaged pack file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(MAGIC))
        if start == MAGIC:
            contents = read_contents(path)
            number = _number(contents.task_names, task)
            chosen = contents.tasks[number - 1]
            return Choice(
                Path(path),
                "packnet",
                chosen.name,
                number,
                chosen.class_names,
                contents.recorded("scale", chosen.name),
                contents.recorded("white", chosen.name) or 255.0,
            )
        names = _tasks_of_keras_file(path)
        number = _number(names, task)
        return Choice(Path(path), "keras", names[number - 1], number)
    except PackFileError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = getattr(error, "strerror", None) or "this is neither a .packnet nor a .keras file of a pack"
        raise ArgumentError("pack", f"a pack file ({reason})", path) from error


def _tasks_of_keras_file(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        where = config["config"] if "tasks" in config["config"] else config["build_config"]  # where format 1 has them
        return [str(name) for name in where["tasks"]]
    except (zipfile.BadZipFile, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise ValueError("no pack") from error


def _number(names: list[str], task: str | None) -> int:
    if task is None:
        if len(names) == 1:
            return 1
        listed = ", ".join(map(repr, names))
        raise ArgumentError("task", f"one of {listed}, or its number: this pack has {len(names)} tasks", None)
    is_number = task not in names and task.isascii() and task.isdigit()
    return task_number(names, int(task[:9]) if is_number else task)
