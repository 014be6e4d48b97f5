"""What the `call` of a subclassed model does, seen in a TensorFlow graph of it: nothing is computed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.layers import TWINS


def heads_inside(model: keras.Model, arguments: Any) -> list[keras.layers.Dense | None]:
    """The Dense layer that each output comes from, straight or through what keeps its shape; None where none does.

    Args:
        model: A subclassed model.
        arguments: What it is called with, symbolic tensors among it: an object with `args` and `kwargs`.

    Returns:
        One for each output; empty if the model cannot be traced.
    """
    made: dict[Any, keras.layers.Dense] = {}

    def outputs(args: Any, kwargs: Any) -> Any:
        with _watched(model, made):
            return model(*args, **kwargs)

    try:
        graph = _traced(outputs, arguments.args, arguments.kwargs)
    except Exception:  # whatever the model's own code raises
        return []
    finally:
        model._clear_losses()
    return [_dense_before(tensor, made) for tensor in graph.outputs]


def unused_layers(model: keras.Model, inputs: Any) -> list[keras.Layer]:
    """The layers with weights, at any depth, that the `call` of a subclassed model leaves out; none if that is unknown.

    Args:
        model: A built model.
        inputs: Symbolic tensors to call it with.
    """
    read: set[int] = set()
    try:
        for training in (False, True):
            graph = _traced(lambda x, training=training: model(x, training=training), inputs)
            read |= {id(tensor) for tensor in graph.captured_inputs}
        handles = {id(variable): id(variable._value.handle) for variable in model.variables}
    except Exception:  # whatever the model's own code raises; variables of a distribution strategy
        return []
    finally:
        model._clear_losses()
    return [layer for layer in model._flatten_layers(include_self=False) if _is_unused(layer, read, handles)]


def _is_unused(layer: keras.Layer, read: set[int], handles: dict[int, int]) -> bool:
    own = layer._trainable_variables + layer._non_trainable_variables
    if not own:
        return type(layer) in TWINS and not layer.built
    return all(handles.get(id(variable)) not in read for variable in own)


def _traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """The concrete function of `function`, for symbolic tensors like those in `arguments`."""
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype)
        for tensor in keras.tree.flatten(arguments)
        if isinstance(tensor, keras.KerasTensor)
    ]

    def called(*tensors: Any) -> list[Any]:
        given = iter(tensors)
        filled = keras.tree.map_structure(
            lambda each: next(given) if isinstance(each, keras.KerasTensor) else each, arguments
        )
        return keras.tree.flatten(function(*filled))

    return tf.function(called, autograph=False).get_concrete_function(*specs)


@contextlib.contextmanager
def _watched(model: keras.Model, made: dict[Any, keras.layers.Dense]) -> Iterator[None]:
    """Notes in `made` what the Dense layers of `model` give."""
    layers = [layer for layer in model._flatten_layers() if type(layer) is keras.layers.Dense]

    def watching(layer: keras.layers.Dense, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            made[outputs.ref()] = layer
            return outputs

        return noted

    for layer in layers:
        vars(layer)["call"] = watching(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def _dense_before(tensor: tf.Tensor, made: dict[Any, keras.layers.Dense]) -> keras.layers.Dense | None:
    while tensor.ref() not in made:
        inputs = [each for each in tensor.op.inputs if not _is_constant(each)]
        if len(inputs) != 1 or inputs[0].dtype == tf.resource or inputs[0].shape.as_list() != tensor.shape.as_list():
            return None
        (tensor,) = inputs
    return made[tensor.ref()]


def _is_constant(tensor: tf.Tensor) -> bool:
    return tensor.op.type == "Const"
