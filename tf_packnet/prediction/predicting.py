"""Predicts examples from files with a task of a pack file, and writes a table."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import expit, softmax

from tf_packnet.errors import ArgumentError
from tf_packnet.packfile import read_contents
from tf_packnet.packfile.opening import PACKNET, kind_of, open_pack, open_task, tasks_of_keras_file
from tf_packnet.prediction import examples, tables
from tf_packnet.system import files, python_files, quiet
from tf_packnet.system.images import RESIZES
from tf_packnet.tasks.encodings import Encoding, from_json

if TYPE_CHECKING:
    import keras

    from tf_packnet.packed_model import PackedModel

_BATCH_SIZE = 256
AUTO = "auto"  # the task name that asks to infer the task


class Asked(NamedTuple):
    """A request for predictions.

    Attributes:
        pack: A file written by `save_pack`, or a `.keras` file of a pack.
        inputs: Files of examples, or folders of images.
        task: Name or number (1-based) of the task; `auto` to infer that of each example; None for the only one.
        format: `table`, `csv` or `json`.
        output: The file to write; None for standard output.
        top: Number of classes to list per example.
        scale: Factor for integer examples; None for the recorded one.
        max_bytes: Limit in bytes on the memory for opening the pack, and for each file of examples; None for the
            default, see `tf_packnet.system.limits`.
        layers: A Python file that defines layers of the pack; None for none.
    """

    pack: str
    inputs: tuple[str, ...]
    task: str | None = None
    format: str = "table"
    output: str | None = None
    top: int = 1
    scale: float | None = None
    max_bytes: int | None = None
    layers: str | None = None


class Choice(NamedTuple):
    """A task of a pack file.

    Attributes:
        path: The file.
        task: Name of the task.
        number: Its number (1-based).
        class_names: Names of its classes; None if the file does not have them.
        scale: Factor for raw examples; None if the file does not have it.
        white: Value of a white pixel in raw examples.
        resize: How images are resized to the input.
        encoding: How tables become examples; None if the file does not have it.
    """

    path: Path
    task: str
    number: int
    class_names: tuple[str, ...] | None = None
    scale: float | None = None
    white: float = 255.0
    resize: str = RESIZES[0]
    encoding: Encoding | None = None

    def network(self, max_bytes: int | None = None) -> "keras.Model":
        """Load the task as a plain Keras model.

        Args:
            max_bytes: Limit in bytes on the memory for loading; None for the default.

        Raises:
            ArgumentError: If the task is not committed, or Keras cannot load the file.
            PackFileError: If the file is damaged.
        """
        return open_task(self.path, self.number, max_bytes)


def predict(asked: Asked) -> None:
    """Predict the examples and write the predictions.

    Raises:
        ArgumentError: If a file cannot be read, or its examples do not have the shape of the inputs. The message names
            the file, and nothing is written.
        PackFileError: If the pack file is damaged.
        OSError: If the output cannot be written.
    """
    choices = choose_all(asked.pack, asked.task, asked.max_bytes)
    choice = choices[0]
    paths = examples.files_of(asked.inputs, asked.max_bytes)
    tables.check_output(asked.output)
    python_files.check("layers", asked.layers)
    quiet.start_tensorflow(on_cpu=True)
    python_files.load_for("layers", asked.layers)
    from tf_packnet.packfile import footprint

    is_auto = asked.task == AUTO and choice.task != AUTO
    model = open_pack(asked.pack, asked.max_bytes) if is_auto else choice.network(asked.max_bytes)
    shape, dtype = _input_of(model, choice)
    scale = choice.scale if asked.scale is None else asked.scale
    spec = examples.InputSpec(shape, dtype, scale, choice.white, choice.resize, choice.encoding)
    names: list[str] = []
    rows: list[tables.Row] = []
    tasks: list[str] = []
    batch_size = footprint.batch_size(model, _BATCH_SIZE)
    for batch_names, x in _in_batches(examples.read(paths, spec, asked.max_bytes), batch_size, paths):
        names += batch_names
        if is_auto:
            for task, row in _inferred(model, x, choices, batch_size, asked.top):
                tasks.append(task)
                rows.append(row)
        else:
            rows += ranked(probabilities(model, _outputs(model, x, batch_size)), choice, asked.top)
    text = tables.render(asked.format, AUTO if is_auto else choice.task, names, rows, tasks)
    if asked.output is None:
        print(text, end="")
        return
    with files.replacing(asked.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def choose_all(path: str, task: str | None, max_bytes: int | None = None) -> list[Choice]:
    """Find a task as `choose` does; or all tasks if `task` is `auto` and no task has this name.

    Raises:
        ArgumentError: As for `choose`; or if the tasks convert raw examples in different ways.
    """
    contents = read_contents(path, max_bytes=max_bytes) if kind_of(path) == PACKNET else None
    names = tasks_of_keras_file(path, max_bytes) if contents is None else contents.task_names
    if task != AUTO or AUTO in names:
        return [choose(path, task, max_bytes)]
    choices = [choose(path, name, max_bytes) for name in names]
    settings = [(each.scale, each.white, each.resize, each.encoding) for each in choices]
    if any(each != settings[0] for each in settings):
        expected = "a task: auto needs tasks with the same recorded scale, white, resize and table"
        raise ArgumentError("task", expected, task)
    return choices


def _inferred(
    packed: "PackedModel", x: np.ndarray, choices: list[Choice], batch_size: int, top: int
) -> Iterator[tuple[str, tables.Row]]:
    """Yield the inferred task of each example, and the most likely classes of this task."""
    from tf_packnet.packed.task_inference import task_scores

    by_name = {choice.task: choice for choice in choices}
    numbers = [choice.number for choice in choices if choice.number <= packed.committed_tasks]
    names, scores, outputs = task_scores(packed, x, tasks=numbers, batch_size=batch_size)
    if not all(np.isfinite(each).all() for each in outputs):
        raise ArgumentError("input", "examples for which the network has finite outputs", "NaN or infinity")
    rows = []
    for name, each in zip(names, outputs, strict=True):
        packed.select_task(name)
        rows.append(ranked(probabilities(packed, np.asarray(each, np.float32)), by_name[name], top))
    for example, index in enumerate(scores.argmax(axis=1)):
        yield names[index], rows[index][example]


def choose(path: str, task: str | None, max_bytes: int | None = None) -> Choice:
    """Find a task in a pack file, without importing TensorFlow.

    Args:
        path: A file written by `save_pack` or `packed.save`.
        task: Name or number (1-based) of the task; None for the only one.
        max_bytes: Limit in bytes on the memory for reading the file; None for the default.

    Raises:
        ArgumentError: If the file cannot be read or is not a pack, the task does not exist, or `task` is None and the
            file has several tasks.
        PackFileError: If it is a damaged `.packnet` file.
    """
    if kind_of(path) != PACKNET:
        names = tasks_of_keras_file(path, max_bytes)
        number = _number(names, task)
        return Choice(Path(path), names[number - 1], number)
    contents = read_contents(path, max_bytes=max_bytes)
    entry = contents.tasks[_number(contents.task_names, task) - 1]
    table = contents.recorded("table", entry.name)
    return Choice(
        Path(path),
        entry.name,
        entry.number,
        entry.class_names,
        contents.recorded("scale", entry.name),
        contents.recorded("white", entry.name) or 255.0,
        contents.recorded("resize", entry.name) or RESIZES[0],
        None if table is None else from_json(table),
    )


def _number(names: list[str], task: str | None) -> int:
    listed = ", ".join(map(repr, names))
    if task is None:
        if len(names) == 1:
            return 1
        raise ArgumentError("task", f"one of {listed}, or its number: this pack has {len(names)} tasks", None)
    if task in names:
        return names.index(task) + 1
    if task.isascii() and task.isdigit() and 1 <= int(task[:9]) <= len(names):
        return int(task[:9])
    raise ArgumentError("task", f"one of {listed}, or its number", task)


def _input_of(model: "keras.Model", choice: Choice) -> tuple[tuple[int | None, ...], str]:
    """Return the shape of one example and the dtype of the model's input."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.outputs[0].shape) < 2:
        expected = "a pack with one input and one output of shape (batch, classes) or (batch, positions, classes)"
        raise ArgumentError("pack", expected, str(choice.path))
    from tf_packnet.structure.output_values import class_axis_of

    if model.output_shape[class_axis_of(model)] == 1 and len(choice.class_names or ()) != 2:
        expected = "a classification task; this one has a single output and does not record two class names"
        raise ArgumentError("task", expected, choice.task)
    if model.inputs[0].dtype in ("string", "bool"):
        raise ArgumentError("pack", f"a pack with numeric input, not {model.inputs[0].dtype}", str(choice.path))
    return tuple(model.inputs[0].shape[1:]), model.inputs[0].dtype


def _in_batches(
    parts: Iterable[tuple[list[str], np.ndarray]], batch_size: int, paths: list[Path]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Regroup names and examples so that each yielded part, except the last one, consists of whole batches.

    Raises:
        ArgumentError: If the examples have several shapes.
    """
    names: list[str] = []
    waiting: list[np.ndarray] = []
    for part_names, x in parts:
        if waiting and x.shape[1:] != waiting[0].shape[1:]:
            first, last = sorted((x.shape[1:], waiting[0].shape[1:]))
            received = f"shapes from {first} to {last} in {len(paths)} files"
            raise ArgumentError("input", "examples of equal shape", received)
        names += part_names
        waiting.append(x)
        whole = len(names) // batch_size * batch_size
        if whole:
            x = np.concatenate(waiting)
            yield names[:whole], x[:whole]
            names, waiting = names[whole:], [x[whole:]]
    if names:
        yield names, np.concatenate(waiting)


def _outputs(model: "keras.Model", x: np.ndarray, batch_size: int) -> np.ndarray:
    try:
        outputs = np.asarray(model.predict(x, batch_size=batch_size, verbose=0), np.float32)
    except Exception as error:  # from TensorFlow, such as for an index that an Embedding does not have
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArgumentError("input", f"examples that the network can compute with ({reason})", x.shape) from error
    if not np.isfinite(outputs).all():
        raise ArgumentError("input", "examples for which the network has finite outputs", "NaN or infinity")
    return outputs


def probabilities(model: "keras.Model", outputs: np.ndarray) -> np.ndarray:
    """Convert the outputs of a network with one output, logits or probabilities, to class probabilities.

    Returns:
        See `to_probabilities`.
    """
    from tf_packnet.structure.output_values import class_axis_of, returns_probabilities

    return to_probabilities(outputs, class_axis_of(model), returns_probabilities(model))


def to_probabilities(outputs: np.ndarray, class_axis: int, are_probabilities: bool | None) -> np.ndarray:
    """Convert logits or probabilities to class probabilities.

    Args:
        outputs: Outputs of a network `(examples, units)`. There may be axes of positions between these axes or,
            depending on the head, after them.
        class_axis: The axis of the units.
        are_probabilities: Whether they are probabilities; None decides by the values.

    Returns:
        Probabilities `(examples, units)`, `float32`: the means over all positions. A single unit is the probability of
        the second class.
    """
    outputs = np.moveaxis(outputs, class_axis, -1)
    if are_probabilities is None:
        in_range = (outputs >= 0).all() and (outputs <= 1).all()
        are_probabilities = bool(in_range and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))
    if not are_probabilities:
        outputs = expit(outputs) if outputs.shape[-1] == 1 else softmax(outputs, axis=-1)
    return outputs.mean(axis=tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs


def ranked(probabilities: np.ndarray, choice: Choice, top: int) -> tables.Rows:
    """Return the `top` most likely classes of each example with their probabilities, the most likely first."""
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], axis=1)
    names = dict(enumerate(choice.class_names or ()))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(names.get(int(index), str(index)), float(row[index])) for index in best]
        for row, best in zip(probabilities, order, strict=True)
    ]
