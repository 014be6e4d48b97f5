"""Finds the heads of a model, from which its outputs come, and the operations between them and the outputs."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.structure import layer_paths
from tf_packnet.structure.refusals import quoted
from tf_packnet.structure.tracing import heads_inside
from tf_packnet.system.keras_internals import (
    all_layers,
    as_function,
    creating_call,
    graph_ends,
    has_mask,
    nodes,
    sublayers,
)

# Layers that return their inputs unchanged in prediction.
_IDENTITY_LAYERS = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def find_heads(graph: keras.Model) -> list[str]:
    """Return the paths of the Dense layers from which the outputs come, directly or through shape-preserving layers.

    Raises:
        ArgumentError: If an output does not come from a Dense layer.
    """
    path_of = layer_paths.paths_by_id(graph)
    heads: list[str] = []
    for output in keras.tree.flatten(graph_ends(graph)[1]):
        head, origin = _dense_before(output)
        if head is None or id(head) not in path_of:
            raise ArgumentError(
                "model",
                "a model that ends in a Dense layer, which becomes the head of each task (or head='shared', or "
                f"head_layers=[...] with the names of the heads). Output {output.name!r} comes from {origin}",
                graph.name,
            )
        if path_of[id(head)] not in heads:
            heads.append(path_of[id(head)])
    return heads


def _dense_before(tensor: Any) -> tuple[keras.layers.Dense | None, str]:
    """Return the Dense layer that `tensor` comes from through activations and similar layers, if any.

    Returns:
        The layer, or None and a description of the layer from which `tensor` comes.
    """
    while True:
        operation, node = creating_call(tensor)
        if operation is None:  # an input of the graph
            return None, "no layer"
        if type(operation) is keras.layers.Dense:
            return operation, ""
        description = f"a {type(operation).__name__}"
        if isinstance(operation, keras.Model):
            try:
                outputs = _inner_graph(operation, node).outputs
            except Exception as error:  # raised by the model's own code
                head = _traced_head(operation, node, tensor)
                if head is not None:
                    return head, ""
                return None, f"{description}, whose call is not a graph of Keras layers ({quoted(error)})"
            if len(outputs) != 1:
                return None, f"{description} with {len(outputs)} outputs"
            tensor = outputs[0]
            continue
        inputs = node.input_tensors
        if getattr(operation, "weights", None) or len(inputs) != 1 or inputs[0].shape != tensor.shape:
            return None, description
        tensor = inputs[0]


def _traced_head(model: keras.Model, node: Any, tensor: Any) -> keras.layers.Dense | None:
    """Return the Dense layer inside a subclassed model from which `tensor`, an output of the call `node`, comes."""
    heads = heads_inside(model, node.arguments)
    index = next((index for index, output in enumerate(node.output_tensors) if output is tensor), len(heads))
    return heads[index] if index < len(heads) else None


def _inner_graph(layer: keras.Layer, node: Any) -> keras.Function:
    """Return the graph inside a layer that contains layers, if necessary by a symbolic call of it.

    Args:
        layer: The layer.
        node: The call of the layer whose arguments are used.

    Raises:
        Exception: Any error of the layer's own code; or of Keras, if its outputs do not come from Keras layers.
    """
    if layer_paths.is_graph(layer):
        return as_function(layer)
    inputs: list[Any] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        inputs.append(keras.KerasTensor(value.shape, value.dtype))
        return inputs[-1]

    args, kwargs = keras.tree.map_structure(fresh, (node.arguments.args, node.arguments.kwargs))
    return keras.Function(inputs, layer.call(*args, **kwargs))


def operations_after(graph: keras.Model, head: keras.Layer) -> list[Any] | None:
    """Return the operations between `head` and the outputs of `graph`, in order.

    Returns:
        The operations; None if they are unknown, because `head` is called by code that is not a graph of Keras layers.
    """
    operations: list[Any] = []
    found_head = False

    def scan(function: keras.Function, inputs_from_head: list[bool]) -> list[bool]:
        """Collect operations, and return for each output whether it comes from the head."""
        nonlocal found_head
        from_head = {id(tensor) for tensor, is_so in zip(function.inputs, inputs_from_head, strict=True) if is_so}
        for node in nodes(function):
            operation = node.operation
            node_inputs = [id(tensor) in from_head for tensor in node.input_tensors]
            node_outputs = [any(node_inputs)] * len(node.outputs)
            if operation is head:
                found_head, node_outputs = True, [True] * len(node.outputs)
            elif isinstance(operation, keras.Layer) and sublayers(operation) and head in all_layers(operation):
                try:
                    node_outputs = scan(_inner_graph(operation, node), node_inputs)
                except Exception:  # raised by the code of a layer
                    continue
            elif any(node_inputs) and operation not in operations:
                operations.append(operation)
            from_head |= {id(tensor) for tensor, is_so in zip(node.outputs, node_outputs, strict=True) if is_so}
        return [id(tensor) in from_head for tensor in function.outputs]

    function = as_function(graph)
    scan(function, [False] * len(function.inputs))
    return operations if found_head else None


def changes_values(operation: Any) -> bool:
    """Return whether an operation may change values in prediction."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is not keras.activations.linear
    if layer_paths.is_graph(operation):
        return any(changes_values(each) for each in operation.layers)
    return not isinstance(operation, _IDENTITY_LAYERS) and type(operation).__name__ != "Cast"


def is_softmax(function: Any) -> bool:
    """Return whether a layer or an activation is a (log) softmax over the classes."""
    if isinstance(function, keras.layers.Softmax):
        return function.axis == -1
    return getattr(function, "activation", function) in (keras.activations.softmax, keras.activations.log_softmax)


@dataclass(frozen=True)
class ActivationAfterHead:
    """An activation layer directly after a head, which the head can apply itself.

    Attributes:
        head: The Dense layer.
        layer: The activation layer.
        activation: Name of the activation.
    """

    head: keras.layers.Dense
    layer: keras.Layer
    activation: str


def activations_after_heads(graph: keras.Model, heads: Container[str]) -> list[ActivationAfterHead]:
    """Return the activation layers of `graph` directly after one of the `heads`, which are given by their paths."""
    path_of = layer_paths.paths_by_id(graph)
    found: list[ActivationAfterHead] = []

    def visit(inner: keras.Model) -> None:
        function = as_function(inner)
        calls = nodes(function)
        called = [node.operation for node in calls]
        outputs = {id(tensor) for tensor in function.outputs}
        for node in calls:
            operation = node.operation
            if layer_paths.is_graph(operation) and called.count(operation) == 1:
                visit(operation)
            if len(node.input_tensors) != 1:
                continue
            (tensor,) = node.input_tensors
            head, _ = creating_call(tensor)
            if head is None or path_of.get(id(head)) not in heads or called.count(head) != 1:
                continue
            users = [each for each in calls if any(x is tensor for x in each.input_tensors)]
            is_only_user = len(users) == 1 and id(tensor) not in outputs and called.count(operation) == 1
            name = _activation_of(operation)
            if is_only_user and name is not None and _can_apply(head, operation, tensor):
                found.append(ActivationAfterHead(head, operation, name))

    visit(graph)
    return found


def fold_activations(graph: keras.Model, copy: keras.Model, activations: Sequence[ActivationAfterHead]) -> keras.Model:
    """Let the heads apply the activations after them; the activation layers become linear.

    Args:
        graph: A Sequential or functional model.
        copy: A copy of it, which is changed.
        activations: Result of `activations_after_heads(graph, ...)`.

    Returns:
        The changed copy.
    """
    if not activations:
        return copy
    path_of = layer_paths.paths_by_id(graph)
    copies = layer_paths.layers_by_path(copy)
    replacements: dict[int, keras.Layer] = {}
    for each in activations:
        copies[path_of[id(each.head)]].activation = keras.activations.get(each.activation)
        layer = copies[path_of[id(each.layer)]]
        config = keras.layers.Layer.get_config(layer)
        replacements[id(layer)] = keras.layers.Activation.from_config({**config, "activation": "linear"})
    linear_layers = {id(layer) for layer in replacements.values()}

    def visit(layer: Any) -> Any:
        if layer_paths.is_graph(layer) and id(layer) not in replacements:
            replacements[id(layer)] = clone(layer)
        return replacements.get(id(layer), layer)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A Softmax may be called with a mask, which Activation does not take.
        return layer(args[0]) if id(layer) in linear_layers else layer(*args, **kwargs)

    def clone(model: keras.Model) -> keras.Model:
        options = {} if isinstance(model, keras.Sequential) else {"call_function": call}
        return keras.models.clone_model(model, clone_function=visit, **options)

    return clone(copy)


def _can_apply(head: keras.layers.Dense, layer: keras.Layer, tensor: Any) -> bool:
    """Return whether `head` can apply the activation of `layer` to its output `tensor` with the same result."""
    return (
        head.activation is keras.activations.linear
        and head.activity_regularizer is None
        and head.compute_dtype == layer.compute_dtype
        and not has_mask(tensor)
    )


def _activation_of(layer: Any) -> str | None:
    """Return the name of the activation that `layer` applies; None if it is another layer or activation."""
    names: dict[type, Callable[[Any], str | None]] = {
        keras.layers.Activation: lambda layer: _activation_name(layer.activation),
        keras.layers.Softmax: lambda layer: "softmax" if layer.axis == -1 else None,
        keras.layers.ReLU: lambda layer: (
            "relu" if layer.max_value is None and not layer.negative_slope and not layer.threshold else None
        ),
    }
    return names[type(layer)](layer) if type(layer) in names else None


def _activation_name(activation: Any) -> str | None:
    """Return the name of an activation of Keras; None for `linear` and for user functions."""
    name = keras.activations.serialize(activation)
    is_keras_activation = isinstance(name, str) and keras.activations.get(name) is activation
    return name if is_keras_activation and name != "linear" else None
