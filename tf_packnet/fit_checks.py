"""What a `fit` is asked for, looked at before it takes any time."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_packnet.errors import ArgumentError

_FIT = inspect.signature(keras.Model.fit)


def fit_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is given to `fit(*args, **kwargs)`, each argument by its name.

    Raises:
        TypeError: If `keras.Model.fit` has no such argument, or it is given twice.
    """
    given = dict(_FIT.bind(None, *args, **kwargs).arguments)
    del given["self"]
    return given


def check_callbacks(model: keras.Model, callbacks: Any, epochs: int) -> None:
    """Lets each callback that has a `check_fit(model, callbacks, epochs)` object to what is beside it.

    Raises:
        ArgumentError: If one does.
    """
    each = _each(callbacks)
    for callback in each:
        if hasattr(callback, "check_fit"):
            callback.check_fit(model, each, epochs)


def backup_of(callbacks: Any) -> Any | None:
    """The callback that knows from which epoch on a `fit` is to be done, see `tp.EpochBackup`; None without one."""
    return next((callback for callback in _each(callbacks) if hasattr(callback, "initial_epoch")), None)


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
    if callbacks is None:
        return []
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]


def check_batches_alone(arguments: Mapping[str, Any]) -> None:
    """Checks what is given to `fit` beside `ResidentBatches` or `StreamedBatches`, which bring all of that.

    Raises:
        ArgumentError: If it would be ignored.
    """
    for name in ("y", "batch_size", "sample_weight", "class_weight", "validation_split", "steps_per_epoch"):
        value = arguments.get(name)
        if value is not None and not (name == "validation_split" and value == 0.0):
            raise ArgumentError(name, "None: these batches bring all (or arrays or a tf.data.Dataset for x)", value)
