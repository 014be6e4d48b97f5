"""From a pack file and files of examples to a table of predictions."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit, softmax

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.prediction import examples, tables
from tf_packnet.prediction.packs import Choice, choose
from tf_packnet.system import files, quiet

if TYPE_CHECKING:
    import keras


class Asked(NamedTuple):
    """What is to be predicted.

    Attributes:
        pack: A file by `save_pack`, or a `.keras` file of a pack.
        inputs: Files of examples, or folders of images.
        task: Name or number (1-based) of the task; None for the only one.
        format: `table`, `csv` or `json`.
        output: The file to write; None for standard output.
        top: How many classes to name of each example.
        scale: What to multiply whole numbers by; None for what the pack records.
    """

    pack: str
    inputs: tuple[str, ...]
    task: str | None = None
    format: str = "table"
    output: str | None = None
    top: int = 1
    scale: float | None = None


def predict(asked: Asked) -> None:
    """Predicts, and writes what came out.

    Raises:
        ArgumentError: If a file cannot be read or does not fit; the error names it. Nothing is written then.
        PackFileError: If the pack is damaged.
        OSError: If the output cannot be written.
    """
    choice = choose(asked.pack, asked.task)
    paths = examples.files_of(asked.inputs)
    tables.check_output(asked.output)
    quiet.start_tensorflow(on_cpu=True)
    import_layers()
    model = choice.network()
    shape, dtype = _input_of(model, choice)
    wanted = examples.Wanted(shape, dtype, choice.scale if asked.scale is None else asked.scale, choice.white)
    names, batches = [], []
    for called, x in examples.read(paths, wanted):
        names += called
        batches.append(x)
    _check_one_shape(paths, batches)
    x = np.concatenate(batches)
    rows = ranked(probabilities(model, x), choice, asked.top)
    text = tables.render(asked.format, choice.task, names, rows)
    if asked.output is None:
        print(text, end="")
        return
    with files.replacing(asked.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def import_layers() -> None:
    """Makes the layers of packs known to Keras."""
    import tf_packnet.packed_model  # noqa: F401


def _input_of(model: "keras.Model", choice: Choice) -> tuple[tuple[int | None, ...], str]:
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        expected = "a pack with one input and one output, (batch, classes)"
        raise ArgumentError("pack", expected, str(choice.path))
    if model.output_shape[1] == 1 and len(choice.class_names or ()) != 2:
        expected = "a task that tells classes apart; this one has a single output, and no two class names recorded"
        raise ArgumentError("task", expected, choice.task)
    if model.inputs[0].dtype in ("string", "bool"):
        raise ArgumentError("pack", f"a pack that takes numbers, not {model.inputs[0].dtype}", str(choice.path))
    return tuple(model.inputs[0].shape[1:]), model.inputs[0].dtype


def _check_one_shape(paths: list, batches: list[np.ndarray]) -> None:
    shapes = {x.shape[1:] for x in batches}
    if len(shapes) > 1:
        first, last = sorted(shapes)[0], sorted(shapes)[-1]
        raise ArgumentError("input", "examples of one shape", f"shapes from {first} to {last} in {len(paths)} files")


def probabilities(model: "keras.Model", x: np.ndarray) -> np.ndarray:
    """What `model` says about each example.

    Args:
        model: A network with one output `(batch, units)`: logits or probabilities.
        x: Its inputs.

    Returns:
        Probabilities `(examples, units)`, `float32`.
    """
    try:
        found = np.asarray(model.predict(x, batch_size=BATCH, verbose=0), np.float32)
    except Exception as error:  # TensorFlow's own, such as for a word that an Embedding does not have
        expected = f"examples that the network can compute with ({first_line(error)})"
        raise ArgumentError("input", expected, x.shape) from error
    if not np.isfinite(found).all():
        raise ArgumentError("input", "examples that the network has finite outputs for", "NaN or infinity")
    if is_probability(model, found):
        return found
    return expit(found) if found.shape[1] == 1 else softmax(found, axis=1)


BATCH = 256


def is_probability(model: "keras.Model", found: np.ndarray) -> bool:
    """Whether the outputs are probabilities already: by the last layer, or else by what they are."""
    import keras

    last = _last_change(model.outputs[0])
    if isinstance(last, keras.layers.Softmax):
        return True
    activation = getattr(last, "activation", None)
    if isinstance(last, (keras.layers.Dense, keras.layers.Activation)) and activation is not None:
        return activation in (keras.activations.softmax, keras.activations.sigmoid)
    return bool((found >= 0).all() and (found <= 1).all() and np.allclose(found.sum(axis=1), 1, atol=1e-3))


def _last_change(tensor: Any) -> Any:
    """The last layer before `tensor` that is not an activation `linear`."""
    import keras

    from tf_packnet.system.keras_internals import creating_call

    operation, node = creating_call(tensor)
    inputs = node.input_tensors
    passes_on = isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    return _last_change(inputs[0]) if passes_on else operation


def ranked(found: np.ndarray, choice: Choice, top: int) -> list[list[tuple[Any, float]]]:
    """The `top` likeliest classes of each example with their probabilities, the likeliest first."""
    if found.shape[1] == 1:
        found = np.concatenate([1 - found, found], axis=1)
    names = dict(enumerate(choice.class_names or ()))
    order = np.argsort(-found, axis=1, kind="stable")[:, :top]
    return [
        [(names.get(int(index), str(index)), float(row[index])) for index in best]
        for row, best in zip(found, order, strict=True)
    ]
