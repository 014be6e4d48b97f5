"""Which methods of Keras's a user's model class replaces, and which attributes a user's model has."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

# What Keras adds to a model after `compile`, in `fit` and `evaluate`.
_LATER = {"history", "_eval_epoch_iterator", "_eval_data_handler", "distribute_reduction_method"}
_LIBRARIES = ("keras", "tensorflow", "tf_packnet", "builtins")


def own_class(model: keras.Model) -> type[keras.Model] | None:
    """The class of `model`, if it replaces what Keras does in training, evaluation and prediction; otherwise None.

    A subclassed model whose `call` takes further arguments counts too: a plain functional model would not take them.
    """
    cls = type(model)
    replaces = any(name in vars(each) for each in cls.__mro__ if _is_users(each) for name in trainer_methods())
    return cls if replaces or (is_subclassed(cls) and further_arguments(cls)) else None


@functools.cache
def trainer_methods() -> frozenset[str]:
    """Names of what a model class may replace: `train_step`, `compute_loss`, `metrics`, `compile` and so on."""
    trainers = [cls for cls in keras.Model.__mro__ if cls.__name__.endswith("Trainer")]
    return frozenset({name for cls in trainers for name in vars(cls) if not name.startswith("__")} | {"add_loss"})


def is_subclassed(cls: type[keras.Model]) -> bool:
    """Whether models of this class compute with a `call` of their own, not as Keras's graphs of layers do."""
    return not cls.call.__module__.startswith(("keras.", "tf_packnet."))


def further_arguments(cls: type[keras.Model]) -> list[str]:
    """The arguments of `call` but for the first one, `training` and `mask`."""
    names = list(inspect.signature(cls.call).parameters)[2:]
    return [name for name in names if name not in ("training", "mask")]


def replaced(model: keras.Model, *names: str) -> bool:
    """Whether the user's class replaces one of these methods of Keras's in `model`, a pack or not."""
    first = (_first(type(model), name) for name in names)
    return any(cls is not None and _is_users(cls) for cls in first)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


def _first(cls: type, name: str) -> type | None:
    """The first class that has `name`, those of this library left out."""
    ours = (each for each in cls.__mro__ if each.__module__.partition(".")[0] != "tf_packnet")
    return next((each for each in ours if name in vars(each)), None)


def _is_users(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in _LIBRARIES


def attributes(model: keras.Model) -> dict[str, Any]:
    """The attributes of a user's model that neither Keras nor TensorFlow set."""
    return {name: value for name, value in vars(model).items() if name not in _of_keras()}


def has(model: keras.Model, name: str) -> bool:
    """Whether `name` is one of the `attributes` of a user's model."""
    return name in vars(model) and name not in _of_keras()


@functools.cache
def _of_keras() -> frozenset[str]:
    """Names of the attributes that Keras's own models have, those of TensorFlow included."""
    inputs = keras.Input((1,), name="x")
    outputs = keras.layers.Activation("linear", name="y", dtype="float32")(inputs)
    models = [
        keras.Model(inputs, outputs, name="functional"),
        keras.Sequential([keras.Input((1,), name="x"), keras.layers.Activation("linear", name="y")], name="sequential"),
    ]
    for model in models:
        model.compile(keras.optimizers.SGD(name="sgd"), "mse", metrics=["mse"], run_eagerly=True)
    return frozenset(_LATER.union(*map(vars, models)))
