"""What a `fit` is asked for, looked at before it takes any time."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.batches import StreamedBatches
from tf_packnet.tasks.data_checks import check_class_numbers, check_finite, check_numbers, fits

_FIT = inspect.signature(keras.Model.fit)


@dataclasses.dataclass(frozen=True)
class FitRequest:
    """What callbacks need to know of a `fit` before it begins.

    Attributes:
        callbacks: All its callbacks, in order.
        initial_epoch: Its first epoch, as the user gave it: one that resumes from a backup begins later.
        epochs: The epoch before which it ends.
    """

    callbacks: Sequence[keras.callbacks.Callback]
    initial_epoch: int
    epochs: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "FitRequest":
        """The request in the arguments of a `fit`, each by its name.

        Raises:
            ArgumentError: If the callbacks come as a `CallbackList` that was made for another number of epochs.
        """
        callbacks, epochs = arguments.get("callbacks"), arguments.get("epochs", 1)
        limit = keras.config.max_epochs()
        epochs = min(epochs, limit) if limit else epochs
        if isinstance(callbacks, keras.callbacks.CallbackList):
            made_for = (callbacks.params or {}).get("epochs")
            if made_for != epochs:
                raise ArgumentError("epochs", f"{epochs} in CallbackList(...), the epochs of the fit", made_for)
        return cls(_each(callbacks), arguments.get("initial_epoch", 0), epochs)


def fit_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is given to `fit(*args, **kwargs)`, each argument by its name.

    Raises:
        TypeError: If `keras.Model.fit` has no such argument, or it is given twice.
    """
    given = dict(_FIT.bind(None, *args, **kwargs).arguments)
    del given["self"]
    return given


def check_callbacks(model: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Lets each callback that has a `check_fit(model, request)` object to the `fit` that it is given to.

    Args:
        model: The model that is fitted.
        arguments: The arguments of the `fit`, each by its name.

    Raises:
        ArgumentError: If one does.
    """
    request = FitRequest.of(arguments)
    for callback in request.callbacks:
        if hasattr(callback, "check_fit"):
            callback.check_fit(model, request)


def backup_of(callbacks: Any) -> Any | None:
    """The callback that knows from which epoch on a `fit` is to be done, see `tp.EpochBackup`; None without one."""
    return next((each for each in _each(callbacks) if callable(getattr(each, "initial_epoch", None))), None)


def check_trained(model: keras.Model) -> None:
    """Raises ArgumentError if training `model` would change a variable that no task owns."""
    owned = {id(variable) for layer in model._flatten_layers() for variable in getattr(layer, "trained_variables", ())}
    strange = [variable.path for variable in model.trainable_variables if id(variable) not in owned]
    if strange:
        listed = ", ".join(strange[:5]) + " and others" * (len(strange) > 5)
        raise ArgumentError(
            "trainable",
            "False for everything that no task owns, since training it would change the tasks that were learned before",
            f"True for {listed}",
        )


def title_of(callbacks: Any) -> str:
    """What is being trained, in the words of a callback such as `tp.StopWhenDiverged`; `fit` without one."""
    return next((each.title for each in _each(callbacks) if isinstance(getattr(each, "title", None), str)), "fit")


def with_first(callback: keras.callbacks.Callback, callbacks: Any) -> Any:
    """What to give to Keras's `fit` so that `callback` is called before the others."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callback.set_model(callbacks.model)
        callbacks.callbacks.insert(0, callback)
        return callbacks
    return [callback, *_each(callbacks)]


def _each(callbacks: Any) -> list[keras.callbacks.Callback]:
    """As Keras takes them: None, one, a list (of lists), or a `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return [] if callbacks is None else keras.tree.flatten(callbacks)


def check_batches_alone(arguments: Mapping[str, Any]) -> None:
    """Checks what is given to `fit` beside `ResidentBatches` or `StreamedBatches`, which bring all of that.

    Raises:
        ArgumentError: If it would be ignored.
    """
    for name in ("y", "batch_size", "sample_weight", "class_weight", "validation_split", "steps_per_epoch"):
        value = arguments.get(name)
        if value is not None and not (name == "validation_split" and value == 0.0):
            raise ArgumentError(name, "None: these batches bring all (or arrays or a tf.data.Dataset for x)", value)


def check_fit_data(model: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Checks what is given to `model.fit(**arguments)`: arrays by their values, data sets by their shapes.

    Nothing is taken out of a data set or a generator; what Keras alone understands is left to it.

    Raises:
        ArgumentError: If examples have another shape than the model's inputs, are no finite numbers, or are none; or
            labels are no classes of the open task's head.
    """
    x = arguments.get("x")
    if isinstance(x, StreamedBatches):
        if not (math.isfinite(x.scale) and x.scale != 0):
            raise ArgumentError("scale", "a number, not 0", x.scale)
        _check_arrays(model, "x", "y", x.images, x.labels)
    elif hasattr(x, "element_spec"):
        _check_spec(model, "x", x.element_spec)
    else:
        _check_arrays(model, "x", "y", x, arguments.get("y"))
    held_out = arguments.get("validation_data")
    if isinstance(held_out, (tuple, list)) and len(held_out) in (2, 3):
        _check_arrays(model, "validation_data", "validation_data", *held_out[:2])
    elif hasattr(held_out, "element_spec"):
        _check_spec(model, "validation_data", held_out.element_spec)


def _check_arrays(model: keras.Model, x_name: str, y_name: str, x: Any, y: Any) -> None:
    for values, wanted in _by_input(model, x):
        if not isinstance(values, np.ndarray) or not values.ndim:
            continue
        if len(values) == 0:
            raise ArgumentError(x_name, "at least one example", f"an array of shape {values.shape}")
        _check_input(x_name, values, values.shape, wanted)
        if wanted.dtype != "string":
            check_finite(x_name, values)
            if "int" in wanted.dtype and values.dtype.kind == "f" and (values != np.floor(values)).any():
                raise ArgumentError(x_name, f"whole numbers for the input {wanted.name!r}", f"{values.dtype} fractions")
    if isinstance(y, np.ndarray):
        _check_labels(model, y_name, y)


def _check_spec(model: keras.Model, argument: str, spec: Any) -> None:
    for described, wanted in _by_input(model, spec[0] if isinstance(spec, tuple) else spec):
        shape = getattr(described, "shape", None)
        if shape is not None and shape.rank is not None:
            _check_input(argument, described, tuple(shape), wanted)


def _check_input(argument: str, values: Any, shape: tuple[int | None, ...], wanted: keras.KerasTensor) -> None:
    if wanted.dtype != "string":
        dtype = values.dtype
        check_numbers(argument, values if isinstance(dtype, np.dtype) else _Described(dtype.as_numpy_dtype, shape))
    if not shape or not fits(shape[1:], wanted.shape[1:]):
        expected = f"batches of shape {tuple(wanted.shape)} for the input {wanted.name!r}"
        raise ArgumentError(argument, expected, f"shape {shape}")


class _Described:
    """Dtype and shape of a tensor that is not there yet, as NumPy has them."""

    def __init__(self, dtype: Any, shape: tuple[int | None, ...]):
        self.dtype, self.shape = np.dtype(dtype), shape


def _by_input(model: keras.Model, x: Any) -> list[tuple[Any, keras.KerasTensor]]:
    """Each of `x` with the input it is for; nothing where only Keras can tell."""
    inputs = model.inputs
    if isinstance(x, Mapping):
        return [(x[wanted.name], wanted) for wanted in inputs if wanted.name in x]
    if isinstance(x, (list, tuple)):
        return list(zip(x, inputs, strict=True)) if len(x) == len(inputs) else []
    return [(x, inputs[0])] if len(inputs) == 1 and hasattr(x, "shape") and hasattr(x, "dtype") else []


def _check_labels(model: keras.Model, argument: str, y: np.ndarray) -> None:
    loss, classes = getattr(model, "loss", None), _classes(model)
    if classes is None:
        return
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        check_class_numbers(argument, y, classes, getattr(loss, "ignore_class", None))
    elif loss in ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy):
        check_class_numbers(argument, y, classes)
    elif isinstance(loss, keras.losses.BinaryCrossentropy) or loss == "binary_crossentropy":
        check_numbers(argument, y)
        if y.size and not (y.min() >= 0 and y.max() <= 1):  # False for NaN too
            raise ArgumentError(argument, "labels from 0 to 1", f"labels from {y.min()} to {y.max()}")
    elif y.dtype.kind == "f":
        check_finite(argument, y)


def _classes(model: keras.Model) -> int | None:
    """Outputs of the open task; None for a model of several, whose labels Keras gives to each."""
    heads = list(lifecycle.heads(model).values())
    if len(model.outputs) != 1 or len(heads) > 1:
        return None
    return heads[0].units_of(lifecycle.committed_tasks(model) + 1) if heads else model.output_shape[-1]
