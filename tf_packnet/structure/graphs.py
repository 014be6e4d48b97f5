"""Any Keras model as a graph of layers from inputs to outputs, and the layers that its outputs come from."""

import tempfile
from typing import Any

import keras
import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.keras_internals import Functional
from tf_packnet.overrides import is_subclassed
from tf_packnet.structure import places
from tf_packnet.structure.tracing import heads_inside


def as_graph(model: Any, inputs: Any = None) -> keras.Model:
    """The model as a Sequential or functional one: itself, or a graph with the subclassed model as its only layer.

    Args:
        model: A built Keras model.
        inputs: What a subclassed model is called with; default `float32` tensors of the shapes it was built for.

    Raises:
        ArgumentError: If it is no Keras model, was not built, or cannot be called with these inputs.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentError("model", "a Keras model", model)
    for layer in model._flatten_layers():
        if isinstance(layer, (Functional, keras.Sequential)) and is_subclassed(type(layer)):
            expected = f"models with a graph of layers or a `call` of their own; {layer.name!r} has both"
            raise ArgumentError("model", expected, type(layer).__name__)
    if places.is_graph(model):
        return model
    if inputs is None:
        inputs = _inputs_it_was_built_for(model)
    try:
        outputs = model(inputs)
    except Exception as error:  # whatever the model's own code raises
        shown = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError("inputs", f"what model {model.name!r} can be called with ({shown[0]})", inputs) from error
    return keras.Model(inputs, outputs, name=model.name)


def _inputs_it_was_built_for(model: keras.Model) -> Any:
    shapes = list((model._build_shapes_dict or {}).values())
    if not model.built or len(shapes) != 1:
        expected = "a Sequential model with an Input, a functional model, or a subclassed model that was called"
        raise ArgumentError("model", expected + " (or give pack inputs=keras.Input(...))", model.name)
    if any(isinstance(layer, keras.layers.Embedding) for layer in model._flatten_layers()):
        expected = f"given, such as keras.Input({tuple(shapes[0][1:])}, dtype='int32'): the model has an Embedding"
        raise ArgumentError("inputs", expected, None)
    return _map_shapes(lambda shape: keras.Input(batch_shape=(None, *shape[1:])), shapes[0])


def _map_shapes(function: Any, shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {key: _map_shapes(function, shape) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return function(tuple(shapes))
    return [_map_shapes(function, shape) for shape in shapes]


def ends(model: keras.Model) -> tuple[Any, Any]:
    """The inputs and outputs of a graph, in the structure that they were given in."""
    if isinstance(model, keras.Sequential) and not hasattr(model, "_inputs_struct"):
        return model.inputs, model.outputs
    return model._inputs_struct, model._outputs_struct


def graph_layers(model: keras.Layer) -> list[keras.Layer]:
    """The layers of a model, itself first; of a graph those on the way to its outputs, no others that it holds."""
    if places.is_graph(model):
        return [model, *keras.Model(*ends(model), name=model.name)._flatten_layers(include_self=False)]
    return model._flatten_layers()


def copied(graph: keras.Model) -> keras.Model:
    """The same graph of layers of the same kinds, with weights of their own.

    Raises:
        ArgumentError: If a layer cannot be made anew from its config; the message names it.
    """

    return keras.models.clone_model(graph, clone_function=_copy, recursive=True)


def copied_layer(layer: keras.Layer) -> keras.Layer:
    """The same for any layer, a model or not; it may not be built."""
    return copied(layer) if places.is_graph(layer) else _copy(layer)


def _copy(layer: keras.Layer) -> keras.Layer:
    # Operations such as `x + y` hold nothing; Lambdas neither, and Keras makes no function anew.
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
        return layer
    try:
        new = type(layer).from_config(layer.get_config())
    except Exception as error:  # whatever the layer's own code raises
        raise _not_copied(layer, (str(error).strip().splitlines() or [type(error).__name__])[-1]) from error
    if new.name != layer.name:
        raise _not_copied(layer, "its name is lost")
    return new


def build_left_out(source: keras.Model, target: keras.Model) -> list[list[Any]]:
    """Builds the layers of `target` that no call does, as those of `source` are; returns what `build_again` needs."""
    pairs = enumerate(zip(graph_layers(source), graph_layers(target), strict=True))
    found = [[number, old.get_build_config()] for number, (old, new) in pairs if old.built and not new.built]
    build_again(target, found)
    return found


def build_again(model: keras.Model, left_out: list[list[Any]]) -> None:
    """Builds layers that `build_left_out` has found in another model of the same layers."""
    layers = graph_layers(model)
    for number, config in left_out:
        if not layers[number].built and config:
            layers[number].build_from_config(config)


def _not_copied(layer: keras.Layer, reason: str) -> ArgumentError:
    kind = type(layer).__name__
    return ArgumentError(
        "model",
        f"layers that Keras can make anew from their get_config(), as loading a saved model needs too; not so "
        f"{layer.name!r}, a {kind}: {reason}. Let {kind}.__init__ take **kwargs and hand them to super().__init__, and "
        "get_config() return its arguments",
        layer.name,
    )


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Gives `target` what `source` holds itself, its own layers left out: weights, statistics, vocabularies.

    Args:
        source: A built layer.
        target: A built layer of the same type, or one with variables of the same names.
    """
    if type(source) is not type(target) or source._layers:
        own = {variable.name: variable for variable in target._trainable_variables + target._non_trainable_variables}
        for variable in source._trainable_variables + source._non_trainable_variables:
            own[variable.name].assign(variable)
        return
    # As saving does: some layers compute more from it, such as Normalization.
    store: dict[str, Any] = {}
    source.save_own_variables(store)
    if store:
        target.load_own_variables({name: np.asarray(value) for name, value in store.items()})
    if hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def heads_of(graph: keras.Model) -> list[str]:
    """The places of the Dense layers that the outputs come from, straight or through layers that keep their shape.

    Raises:
        ArgumentError: If an output comes from something else.
    """
    found = places.places(graph)
    heads = []
    for output in keras.tree.flatten(graph._outputs_struct if hasattr(graph, "_outputs_struct") else graph.outputs):
        head = _dense_before(output)
        if head is None or id(head) not in found:
            raise ArgumentError(
                "model",
                "a model that ends in a Dense layer, the head of which each task gets its own (or head='shared', or "
                f"head_layers=[...] with the names of the heads). Output {output.name!r} comes from a "
                f"{type(output._keras_history.operation).__name__}",
                graph.name,
            )
        if found[id(head)] not in heads:
            heads.append(found[id(head)])
    return heads


def _dense_before(tensor: Any) -> keras.layers.Dense | None:
    """The Dense layer that `tensor` comes from, with nothing but activations and the like in between."""
    while True:
        operation, node, _ = tensor._keras_history
        if type(operation) is keras.layers.Dense:
            return operation
        if isinstance(operation, keras.Model) and places.is_graph(operation):
            outputs = keras.tree.flatten(operation.outputs)
            if len(outputs) != 1:
                return None
            tensor = outputs[0]
            continue
        if isinstance(operation, keras.Model):
            node = operation._inbound_nodes[node]
            places_of = {id(output): place for place, output in enumerate(node.output_tensors)}
            found = heads_inside(operation, node.arguments)
            place = places_of.get(id(tensor))
            return found[place] if place is not None and place < len(found) else None
        inputs = operation._inbound_nodes[node].input_tensors
        if getattr(operation, "weights", None) or len(inputs) != 1 or inputs[0].shape != tensor.shape:
            return None
        tensor = inputs[0]
