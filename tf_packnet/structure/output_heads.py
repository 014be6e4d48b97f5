"""Finds the heads of a model, which compute its outputs, and the operations between heads and outputs."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.head import class_axis, number_of_outputs
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

# Layers that return the values of their inputs unchanged in prediction, possibly at other positions.
_UNCHANGING_LAYERS = (
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling3D,
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


_UNCHANGING_OPERATIONS = ("Cast", "Reshape", "Stack", "Transpose")


@dataclass(frozen=True)
class OutputHead:
    """The origin of an output of a model.

    Attributes:
        layer: The head; None if the output does not come from a head.
        axis: The axis of the output with one entry per class, at least 0.
        reason: The layer that the output comes from instead of a head.
    """

    layer: keras.Layer | None
    axis: int = 0
    reason: str = ""


Outputs = Callable[[Any], int | None]


def find_heads(graph: keras.Model) -> list[str]:
    """Return the paths of the heads that the outputs come from, see `output_heads`.

    Raises:
        ArgumentError: If an output does not come from a layer that can be a head.
    """
    path_of = layer_paths.paths_by_id(graph)
    heads: list[str] = []
    for output, head in zip(keras.tree.flatten(graph_ends(graph)[1]), output_heads(graph), strict=True):
        if head.layer is None or id(head.layer) not in path_of:
            raise ArgumentError(
                "model",
                "a model that ends in a Dense layer, a convolution or another layer whose config has its number of "
                "outputs, which becomes the head of each task (or head='shared', or head_layers=[...] with the names "
                f"of the heads, which may be any layers with weights). Output {output.name!r} comes from {head.reason}",
                graph.name,
            )
        if path_of[id(head.layer)] not in heads:
            heads.append(path_of[id(head.layer)])
    return heads


def output_heads(graph: keras.Model, outputs: Outputs = number_of_outputs, trace: bool = True) -> list[OutputHead]:
    """Return the head of each output of `graph`.

    An output comes from a head directly, or through operations with one input and without weights that keep the axis of
    the classes: activations, resizing, pooling over positions and so on.

    Args:
        graph: A Sequential or functional model.
        outputs: Returns the number of outputs of a layer that can be a head, None for other layers.
        trace: Whether to trace the call of a layer that is not a graph of Keras layers, which takes time.
    """
    return [_head_of(output, outputs, trace) for output in keras.tree.flatten(graph_ends(graph)[1])]


def _head_of(tensor: Any, outputs: Outputs, trace: bool) -> OutputHead:
    after: list[Any] = []  # the calls between the head and the output, the last one first
    while True:
        operation, node = creating_call(tensor)
        if operation is None:  # an input of the graph
            return OutputHead(None, reason="no layer")
        number = outputs(operation)
        if number is not None:
            return _followed(_with_axis(operation, tensor, number), after)
        is_weightless = not getattr(operation, "weights", None)
        if not is_weightless and sublayers(operation):
            return _followed(_head_inside(operation, node, tensor, outputs, trace), after)
        if not is_weightless or len(node.input_tensors) != 1 or len(node.output_tensors) != 1:
            return OutputHead(None, reason=f"a {type(operation).__name__}")
        after.append(node)
        (tensor,) = node.input_tensors


def _head_inside(layer: Any, node: Any, tensor: Any, outputs: Outputs, trace: bool) -> OutputHead:
    """Return the head inside a layer from which `tensor`, an output of the call `node`, comes."""
    description = f"a {type(layer).__name__}"
    try:
        inner = _inner_graph(layer, node).outputs
        found = OutputHead(None, reason=f"{description} with {len(inner)} outputs")
        if len(inner) == 1:
            found = _head_of(inner[0], outputs, trace)
    except Exception as error:  # raised by the layer's own code, or by Keras, if the outputs come from other code
        reason = f"{description}, whose call is not a graph of Keras layers ({quoted(error)})"
        found = OutputHead(None, reason=reason)
    if found.layer is not None or not trace or layer_paths.is_graph(layer):
        return found
    heads = heads_inside(layer, node.arguments, outputs)
    index = next((index for index, output in enumerate(node.output_tensors) if output is tensor), len(heads))
    head = heads[index] if index < len(heads) else None
    traced = found if head is None else _with_axis(head, tensor, outputs(head))
    return found if traced.layer is None else traced


def _with_axis(head: keras.Layer, tensor: Any, number: int | None) -> OutputHead:
    """Return a head whose output `tensor` has `number` entries in the axis of the classes."""
    axis = class_axis(head) % len(tensor.shape) if len(tensor.shape) > 1 else 0
    if tensor.shape[axis] != number:
        return OutputHead(None, reason=f"a {type(head).__name__} with {tensor.shape[axis]} outputs, not {number}")
    return OutputHead(head, axis)


def _followed(head: OutputHead, after: list[Any]) -> OutputHead:
    """Follow the axis of the classes from the output of `head` through the calls `after` it, the last one first."""
    if head.layer is None:
        return head
    axis = head.axis
    for node in reversed(after):
        new_axis = _axis_after(node, axis)
        if new_axis is None:
            kind = type(node.operation).__name__
            return OutputHead(None, reason=f"a {kind} that does not keep the outputs of {head.layer.name!r} apart")
        axis = new_axis
    return OutputHead(head.layer, axis)


def _axis_after(node: Any, axis: int) -> int | None:
    """Return the axis of a call's output that has the entries of `axis` of its input; None if there is none.

    It is the axis that grows by one if the input gets one more entry. An operation that only accepts inputs of this
    size, such as a Reshape, must keep the size of the axis, counted from the same end.
    """
    (tensor,), (output,) = node.input_tensors, node.output_tensors
    size = tensor.shape[axis]

    def larger(value: Any) -> Any:
        if value is not tensor:
            return value
        return keras.KerasTensor((*value.shape[:axis], size + 1, *value.shape[axis + 1 :]), value.dtype)

    args, kwargs = keras.tree.map_structure(larger, (node.arguments.args, node.arguments.kwargs))
    try:
        shape = node.operation.compute_output_spec(*args, **kwargs).shape
    except Exception:  # raised by an operation that takes only this size
        shape = None
    if shape is None or (shape == output.shape and type(node.operation).__name__ == "Reshape"):
        new_axis = len(output.shape) - 1 if axis == len(tensor.shape) - 1 else axis
        return new_axis if new_axis < len(output.shape) and output.shape[new_axis] == size else None
    changed = [index for index, (one, other) in enumerate(zip(output.shape, shape, strict=False)) if one != other]
    is_kept = len(shape) == len(output.shape) and len(changed) == 1 and shape[changed[0]] == size + 1
    return changed[0] if is_kept else None


def _inner_graph(layer: keras.Layer, node: Any) -> keras.Function:
    """Return the graph inside a layer that contains layers. If necessary, call the layer symbolically.

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
    if isinstance(operation, keras.layers.UpSampling2D):
        return operation.interpolation != "nearest"
    return not isinstance(operation, _UNCHANGING_LAYERS) and type(operation).__name__ not in _UNCHANGING_OPERATIONS


def is_softmax(function: Any, axes: tuple[int, ...] = (-1,)) -> bool:
    """Return whether a layer or an activation is a (log) softmax over one of the `axes`, those of the classes."""
    if isinstance(function, keras.layers.Softmax):
        return function.axis in axes
    return getattr(function, "activation", function) in (keras.activations.softmax, keras.activations.log_softmax)


@dataclass(frozen=True)
class ActivationAfterHead:
    """An activation layer directly after a head, which the head can apply itself.

    Attributes:
        head: The head.
        layer: The activation layer.
        activation: Name of the activation.
    """

    head: keras.Layer
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
    """Fold activations into the heads before them: the heads apply them, and the activation layers become linear.

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


def _can_apply(head: Any, layer: keras.Layer, tensor: Any) -> bool:
    """Return whether `head` can apply the activation of `layer` to its output `tensor` with the same result."""
    return (
        vars(head).get("activation") is keras.activations.linear
        and type(head).call.__module__.startswith("keras.")  # a user's code may continue after the activation
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


def last_operation(tensor: Any) -> Any:
    """Return the last layer before `tensor`, skipping linear activations and layers that only move values."""
    operation, node = creating_call(tensor)
    is_skipped = operation is not None and len(node.input_tensors) == 1 and not changes_values(operation)
    return last_operation(node.input_tensors[0]) if is_skipped else operation
