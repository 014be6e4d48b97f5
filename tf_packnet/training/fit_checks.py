"""Checks the arguments of a `fit` before it takes any time."""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, listed
from tf_packnet.layers.head import Head
from tf_packnet.structure.output_heads import output_heads
from tf_packnet.system.keras_internals import all_layers, output_names
from tf_packnet.tasks.batches import StreamedBatches
from tf_packnet.tasks.data_checks import check_class_numbers, check_finite, check_numbers, fits

_FIT_SIGNATURE = inspect.signature(keras.Model.fit)


@dataclasses.dataclass(frozen=True)
class FitRequest:
    """The arguments of a `fit` that its callbacks check.

    Attributes:
        callbacks: All callbacks, in order.
        initial_epoch: The first epoch (0-based) that the user gave. A `fit` that resumes from a backup begins later.
        epochs: The epoch (0-based) before which the `fit` ends.
        validation_freq: The number of epochs, or the epochs, after which the `fit` validates; None if it never does.
    """

    callbacks: Sequence[keras.callbacks.Callback]
    initial_epoch: int
    epochs: int
    validation_freq: Any = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "FitRequest":
        """Return the request from the arguments of a `fit`, by name.

        Raises:
            ArgumentError: If `callbacks` is a `CallbackList` for another number of epochs.
        """
        callbacks, epochs = arguments.get("callbacks"), arguments.get("epochs", 1)
        limit = keras.config.max_epochs()
        epochs = min(epochs, limit) if limit else epochs
        if isinstance(callbacks, keras.callbacks.CallbackList):
            list_epochs = (callbacks.params or {}).get("epochs")
            if list_epochs != epochs:
                raise ArgumentError("epochs", f"{epochs} in CallbackList(...), the epochs of the fit", list_epochs)
        validates = arguments.get("validation_data") is not None or bool(arguments.get("validation_split"))
        frequency = arguments.get("validation_freq", 1) if validates else None
        return cls(_flat(callbacks), arguments.get("initial_epoch", 0), epochs, frequency)


def fit_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `fit(*args, **kwargs)`, by name.

    Raises:
        TypeError: If `keras.Model.fit` has no such argument, or if one is given twice.
    """
    arguments = dict(_FIT_SIGNATURE.bind(None, *args, **kwargs).arguments)
    del arguments["self"]
    return arguments


def check_callbacks(model: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Call `check_fit(model, request)` of each callback that has this method.

    Args:
        model: The model to fit.
        arguments: The arguments of the `fit`, by name.

    Raises:
        ArgumentError: If a callback rejects the `fit`.
    """
    request = FitRequest.of(arguments)
    for callback in request.callbacks:
        if hasattr(callback, "check_fit"):
            callback.check_fit(model, request)


def backup_of(callbacks: Any) -> Any | None:
    """Return the first callback with a method `initial_epoch`, such as `tp.EpochBackup`; None without one."""
    return next((each for each in _flat(callbacks) if callable(getattr(each, "initial_epoch", None))), None)


def check_trained(model: keras.Model) -> None:
    """Raise ArgumentError if `model` has a trainable variable that no task owns."""
    trained_by_task = {
        id(variable) for layer in all_layers(model) for variable in getattr(layer, "trained_variables", ())
    }
    others = [variable.path for variable in model.trainable_variables if id(variable) not in trained_by_task]
    if others:
        raise ArgumentError(
            "trainable",
            "False for everything that no task owns, because training it would change the committed tasks",
            f"True for {listed(others)}",
        )


def title_of(callbacks: Any) -> str:
    """Return the title of the training for messages, from a callback such as `tp.StopWhenDiverged`; default: `fit`."""
    return next((each.title for each in _flat(callbacks) if isinstance(getattr(each, "title", None), str)), "fit")


def with_first(callback: keras.callbacks.Callback, callbacks: Any) -> Any:
    """Return the `callbacks` argument for Keras's `fit`, with `callback` in front."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callback.set_model(callbacks.model)
        callbacks.callbacks.insert(0, callback)
        return callbacks
    return [callback, *_flat(callbacks)]


def _flat(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Return the callbacks in an argument of `fit`: None, one, a list (of lists), or a `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return [] if callbacks is None else keras.tree.flatten(callbacks)


def _warn_of_second_scaling(model: keras.Model, batches: StreamedBatches) -> None:
    """Warn if the model has a layer that scales the range of `uint8` to 1, and gets examples that are scaled too."""
    scaling = [each for each in all_layers(model) if isinstance(each, keras.layers.Rescaling)]
    factor = math.prod(float(np.max(each.scale)) for each in scaling)  # one layer may undo another
    if scaling and factor < 0.1 and batches.scale < 0.1:
        warnings.warn(
            f"examples are multiplied by {batches.scale:.4g}, and again by layer {scaling[0].name!r} of the model: "
            "leave out that layer, or make the task with scale=1",
            stacklevel=4,
        )


def check_batches(model: keras.Model, batches: StreamedBatches, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a `fit` whose `x` is `batches`. Warn if model and batches both scale the examples.

    Raises:
        ArgumentError: If an argument would be ignored, because the batches already determine it, or the batches are
            scaled and the model takes integers.
    """
    if len(model.inputs) == 1 and "int" in model.inputs[0].dtype and batches.scale != 1:
        expected = f"1 in the task, because the input {model.inputs[0].name!r} takes {model.inputs[0].dtype}"
        raise ArgumentError("scale", expected, batches.scale)
    _warn_of_second_scaling(model, batches)
    for name in ("y", "batch_size", "sample_weight", "class_weight", "validation_split", "steps_per_epoch"):
        value = arguments.get(name)
        if value is not None and not (name == "validation_split" and value == 0.0):
            expected = "None, because the batches in x already determine it (or arrays or a tf.data.Dataset for x)"
            raise ArgumentError(name, expected, value)


def check_fit_data(model: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Check the data for `model.fit(**arguments)`: the values of arrays, the shapes of data sets.

    Data sets and generators are not iterated. Kinds of data that only Keras understands are not checked.

    Raises:
        ArgumentError: If there are no examples, if they do not have the shape of the model's inputs, if they are not
            finite numbers, or if labels are not classes of the open task's head.
    """
    x: Any = arguments.get("x")
    if isinstance(x, StreamedBatches):
        if not (math.isfinite(x.scale) and x.scale != 0):
            raise ArgumentError("scale", "a finite number other than 0", x.scale)
        _check_arrays(model, "x", "y", x.images, x.labels)
    elif hasattr(x, "element_spec"):
        _check_spec(model, "x", x.element_spec)
    else:
        _check_arrays(model, "x", "y", x, arguments.get("y"))
    check_examples(model, "validation_data", arguments.get("validation_data"))


def check_examples(model: keras.Model, argument: str, data: Any) -> None:
    """Check examples `(x, y)`, or a data set of them, like the data of a `fit`. Errors name `argument`."""
    if isinstance(data, (tuple, list)) and len(data) in (2, 3):
        _check_arrays(model, argument, argument, *data[:2])
    elif hasattr(data, "element_spec"):
        _check_spec(model, argument, data.element_spec)


def _check_arrays(model: keras.Model, x_name: str, y_name: str, x: Any, y: Any) -> None:
    for values, model_input in _by_input(model, x):
        if not isinstance(values, np.ndarray) or not values.ndim:
            continue
        if len(values) == 0:
            raise ArgumentError(x_name, "at least one example", f"an array of shape {values.shape}")
        _check_input(x_name, values, values.shape, model_input)
        if model_input.dtype != "string":
            check_finite(x_name, values)
            if "int" in model_input.dtype and values.dtype.kind == "f" and (values != np.floor(values)).any():
                expected = f"whole numbers for the input {model_input.name!r}"
                raise ArgumentError(x_name, expected, f"{values.dtype} fractions")
    _check_labels(model, y_name, y)


def _check_spec(model: keras.Model, argument: str, spec: Any) -> None:
    for input_spec, model_input in _by_input(model, spec[0] if isinstance(spec, tuple) else spec):
        shape = getattr(input_spec, "shape", None)
        if shape is not None and shape.rank is not None:
            _check_input(argument, input_spec, tuple(shape), model_input)


def _check_input(argument: str, values: Any, shape: tuple[int | None, ...], model_input: keras.KerasTensor) -> None:
    if model_input.dtype != "string":
        dtype = values.dtype
        check_numbers(argument, values if isinstance(dtype, np.dtype) else _ArraySpec(dtype.as_numpy_dtype, shape))
    if not shape or not fits(shape[1:], model_input.shape[1:]):
        expected = f"batches of shape {tuple(model_input.shape)} for the input {model_input.name!r}"
        raise ArgumentError(argument, expected, f"shape {shape}")


class _ArraySpec:
    """NumPy dtype and shape of an array that does not exist yet."""

    def __init__(self, dtype: Any, shape: tuple[int | None, ...]):
        self.dtype, self.shape = np.dtype(dtype), shape


def _by_input(model: keras.Model, x: Any) -> list[tuple[Any, keras.KerasTensor]]:
    """Return pairs of an array or tensor in `x` and its model input; empty if only Keras can tell."""
    inputs = model.inputs
    if isinstance(x, Mapping):
        return [(x[each.name], each) for each in inputs if each.name in x]
    if isinstance(x, (list, tuple)):
        return list(zip(x, inputs, strict=True)) if len(x) == len(inputs) else []
    return [(x, inputs[0])] if len(inputs) == 1 and hasattr(x, "shape") and hasattr(x, "dtype") else []


def _check_labels(model: keras.Model, argument: str, y: Any) -> None:
    outputs = model.outputs
    names = output_names(model)
    labels = _by_output(y, names)
    losses = _by_output(getattr(model, "loss", None), names, same_for_all=True)
    for index, (output, classes) in enumerate(zip(outputs, _classes(model), strict=True)):
        values, loss = labels.get(index), losses.get(index)
        if classes is not None and isinstance(values, np.ndarray):
            _check_labels_of_output(argument, values, loss, classes, len(output.shape))


def _check_labels_of_output(argument: str, y: np.ndarray, loss: Any, classes: int, rank: int) -> None:
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        check_class_numbers(argument, y, classes, getattr(loss, "ignore_class", None))
    elif loss in ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy):
        check_class_numbers(argument, y, classes)
    elif isinstance(loss, keras.losses.BinaryCrossentropy) or loss == "binary_crossentropy":
        check_numbers(argument, y)
        if y.size and not (y.min() >= 0 and y.max() <= 1):  # False for NaN too
            raise ArgumentError(argument, "labels from 0 to 1", f"labels from {y.min()} to {y.max()}")
    elif isinstance(loss, keras.losses.CategoricalCrossentropy) or loss == "categorical_crossentropy":
        check_numbers(argument, y)
        if y.ndim != rank or y.shape[getattr(loss, "axis", -1)] != classes:
            expected = f"one-hot labels of {classes} classes, with as many axes as the output"
            raise ArgumentError(argument, expected, f"shape {y.shape}")
        check_finite(argument, y)
    elif y.dtype.kind == "f":
        check_finite(argument, y)


def _by_output(value: Any, names: list[str], same_for_all: bool = False) -> dict[int, Any]:
    """Return an argument of `fit` or `compile` by the index of each output, as far as Keras assigns it to outputs.

    Args:
        value: One value, or a list, tuple or mapping of values.
        names: Names of the outputs.
        same_for_all: Whether one value holds for all of several outputs.
    """
    if isinstance(value, Mapping):
        return {index: value[name] for index, name in enumerate(names) if name in value}
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value)) if len(value) == len(names) else {}
    return dict.fromkeys(range(len(names)), value) if same_for_all or len(names) == 1 else {}


def _classes(model: keras.Model) -> list[int | None]:
    """Return the number of classes of each output in the open task; None where it is unknown."""
    heads = lifecycle.heads(model).values()
    task = lifecycle.committed_tasks(model) + 1
    if not heads:
        return [output.shape[-1] for output in model.outputs]
    if len(model.outputs) == 1:
        return [head.outputs_of(task) for head in heads] if len(heads) == 1 else [None]
    found = [each.layer for each in output_heads(model, Head.first_outputs_of, trace=False)]
    return [head.outputs_of(task) if isinstance(head, Head) else None for head in found]
