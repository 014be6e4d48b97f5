"""Inspects a user's model class: the Keras methods that it overrides, and the attributes of its models."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

# Attributes that Keras adds to a model in `fit` and `evaluate`.
_SET_IN_FIT = {"history", "_eval_epoch_iterator", "_eval_data_handler", "distribute_reduction_method"}
_LIBRARIES = ("keras", "tensorflow", "tf_packnet", "builtins")


def own_class(model: keras.Model) -> type[keras.Model] | None:
    """Return the class of `model` if a pack must inherit from it; otherwise None.

    This is the case if the class overrides methods that Keras uses in training, evaluation and prediction, or if it is
    a subclassed model whose `call` has additional arguments.
    """
    cls = type(model)
    user_classes = [each for each in cls.__mro__ if _is_user_class(each)]
    overrides = any(name in vars(each) for each in user_classes for name in trainer_methods())
    return cls if overrides or (is_subclassed(cls) and additional_arguments(cls)) else None


@functools.cache
def trainer_methods() -> frozenset[str]:
    """Return the names that a model class may override, such as `train_step`, `compute_loss` and `metrics`."""
    trainers = [cls for cls in keras.Model.__mro__ if cls.__name__.endswith("Trainer")]
    return frozenset({name for cls in trainers for name in vars(cls) if not name.startswith("__")} | {"add_loss"})


def is_subclassed(cls: type[keras.Model]) -> bool:
    """Return whether models of this class have their own `call`, rather than a graph of layers."""
    return not cls.call.__module__.startswith(("keras.", "tf_packnet."))


def additional_arguments(cls: type[keras.Model]) -> list[str]:
    """Return the arguments of `call` except the first one, `training` and `mask`."""
    names = list(inspect.signature(cls.call).parameters)[2:]
    return [name for name in names if name not in ("training", "mask")]


def is_overridden(model: keras.Model, *names: str) -> bool:
    """Return whether a user's class overrides one of these methods in `model`, which may be a pack."""
    defining_classes = (_defining_class(type(model), name) for name in names)
    return any(cls is not None and _is_user_class(cls) for cls in defining_classes)


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Return whether `function` has a parameter with this name, or `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


def _defining_class(cls: type, name: str) -> type | None:
    """Return the first class in the MRO that defines `name`, ignoring classes of this library."""
    others = (each for each in cls.__mro__ if each.__module__.partition(".")[0] != "tf_packnet")
    return next((each for each in others if name in vars(each)), None)


def _is_user_class(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in _LIBRARIES


def attributes(model: keras.Model) -> dict[str, Any]:
    """Return the attributes of a model that neither Keras nor TensorFlow has set."""
    return {name: value for name, value in vars(model).items() if name not in _keras_attributes()}


def has_attribute(model: keras.Model, name: str) -> bool:
    """Return whether `name` is one of the `attributes` of `model`."""
    return name in vars(model) and name not in _keras_attributes()


@functools.cache
def _keras_attributes() -> frozenset[str]:
    """Return the names of all attributes of Keras's own models, including those set by TensorFlow."""
    inputs = keras.Input((1,), name="x")
    outputs = keras.layers.Activation("linear", name="y", dtype="float32")(inputs)
    models = [
        keras.Model(inputs, outputs, name="functional"),
        keras.Sequential([keras.Input((1,), name="x"), keras.layers.Activation("linear", name="y")], name="sequential"),
    ]
    for model in models:
        model.compile(keras.optimizers.SGD(name="sgd"), "mse", metrics=["mse"], run_eagerly=True)
    return frozenset(_SET_IN_FIT.union(*map(vars, models)))
