"""Where the outputs of a model come from: its heads, and what stands between them and the outputs."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.structure import places
from tf_packnet.structure.refusals import quoted
from tf_packnet.structure.tracing import heads_inside

# Layers that hand on what they get, when the model predicts.
_PASSING = (
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


def heads_of(graph: keras.Model) -> list[str]:
    """The places of the Dense layers that the outputs come from, straight or through layers that keep their shape.

    Raises:
        ArgumentError: If an output comes from something else.
    """
    found = places.places(graph)
    heads = []
    for output in outputs_of(graph):
        head, reason = _dense_before(output)
        if head is None or id(head) not in found:
            raise ArgumentError(
                "model",
                "a model that ends in a Dense layer, the head of which each task gets its own (or head='shared', or "
                f"head_layers=[...] with the names of the heads). Output {output.name!r} comes from {reason}",
                graph.name,
            )
        if found[id(head)] not in heads:
            heads.append(found[id(head)])
    return heads


def outputs_of(graph: keras.Model) -> list[Any]:
    """The output tensors of a Sequential or functional model."""
    return keras.tree.flatten(graph._outputs_struct if hasattr(graph, "_outputs_struct") else graph.outputs)


def _dense_before(tensor: Any) -> tuple[keras.layers.Dense | None, str]:
    """The Dense layer that `tensor` comes from, with only activations and the like in between, or what is there."""
    while True:
        operation, node, _ = tensor._keras_history
        if operation is None:  # where a call that was followed begins
            return None, "no layer"
        if type(operation) is keras.layers.Dense:
            return operation, ""
        of_kind = f"a {type(operation).__name__}"
        if isinstance(operation, keras.Model):
            try:
                outputs = _followed(operation, operation._inbound_nodes[node]).outputs
            except Exception as error:  # whatever the model's own code raises
                head = _traced_head(operation, operation._inbound_nodes[node], tensor)
                if head is not None:
                    return head, ""
                return None, f"{of_kind}, whose call cannot be followed from layer to layer ({quoted(error)})"
            if len(outputs) != 1:
                return None, f"{of_kind} with {len(outputs)} outputs"
            tensor = outputs[0]
            continue
        inputs = operation._inbound_nodes[node].input_tensors
        if getattr(operation, "weights", None) or len(inputs) != 1 or inputs[0].shape != tensor.shape:
            return None, of_kind
        tensor = inputs[0]


def _traced_head(model: keras.Model, node: Any, tensor: Any) -> keras.layers.Dense | None:
    """The Dense layer inside a subclassed model that an output of one of its calls comes from, where tracing tells."""
    found = heads_inside(model, node.arguments)
    place = next((place for place, output in enumerate(node.output_tensors) if output is tensor), len(found))
    return found[place] if place < len(found) else None


def _followed(layer: keras.Layer, node: Any) -> keras.Function:
    """The graph inside a layer made of layers: its own, or its `call`, followed from layer to layer.

    Args:
        layer: The layer.
        node: Of which of its calls.

    Raises:
        Exception: Whatever the layer's own code raises, or Keras, if outputs of it come from no layer.
    """
    if places.is_graph(layer):
        return layer._functional if isinstance(layer, keras.Sequential) else layer
    inputs: list[Any] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        inputs.append(keras.KerasTensor(value.shape, value.dtype))
        return inputs[-1]

    args, kwargs = keras.tree.map_structure(fresh, (node.arguments.args, node.arguments.kwargs))
    return keras.Function(inputs, layer.call(*args, **kwargs))


def behind(graph: keras.Model, head: keras.Layer) -> list[Any] | None:
    """The operations between `head` and the outputs of `graph`, in order.

    None if that cannot be told, because `head` is called by code that cannot be followed.
    """
    found: list[Any] = []
    reached = False

    def scan(function: keras.Function, from_head: list[bool]) -> list[bool]:
        """For each output whether it comes from the head, as some inputs do already."""
        nonlocal reached
        tensors = {id(tensor) for tensor, does in zip(function.inputs, from_head, strict=True) if does}
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for node in function._nodes_by_depth[depth]:
                operation = node.operation
                does = [id(tensor) in tensors for tensor in node.input_tensors]
                results = [any(does)] * len(node.outputs)
                if operation is head:
                    reached, results = True, [True] * len(node.outputs)
                elif getattr(operation, "_layers", None) and head in operation._flatten_layers():
                    try:
                        results = scan(_followed(operation, node), does)
                    except Exception:  # whatever the code of a layer raises
                        continue
                elif any(does) and operation not in found:
                    found.append(operation)
                tensors |= {id(tensor) for tensor, result in zip(node.outputs, results, strict=True) if result}
        return [id(tensor) in tensors for tensor in function.outputs]

    function = graph._functional if isinstance(graph, keras.Sequential) else graph
    scan(function, [False] * len(function.inputs))
    return found if reached else None


def changes(operation: Any) -> bool:
    """Whether the outputs of an operation may differ from its inputs when the model predicts."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is not keras.activations.linear
    if places.is_graph(operation):
        return any(changes(each) for each in operation.layers)
    return not isinstance(operation, _PASSING) and type(operation).__name__ != "Cast"


def is_softmax(function: Any) -> bool:
    """Whether a layer or an activation computes a softmax over the classes: always the same if there is only one."""
    if isinstance(function, keras.layers.Softmax):
        return function.axis == -1
    return getattr(function, "activation", function) in (keras.activations.softmax, keras.activations.log_softmax)


@dataclass(frozen=True)
class Fold:
    """A layer behind a head that is nothing but an activation: the head takes the activation over.

    Attributes:
        head: The Dense layer.
        layer: The layer behind it.
        activation: The name of its activation.
    """

    head: keras.layers.Dense
    layer: keras.Layer
    activation: str


def folds(graph: keras.Model, heads: Container[str]) -> list[Fold]:
    """The layers of `graph` that are nothing but the activation of one of the `heads`, given by their places."""
    where = places.places(graph)
    found: list[Fold] = []

    def visit(inner: keras.Model) -> None:
        functional = inner._functional if isinstance(inner, keras.Sequential) else inner
        nodes = [node for level in functional._nodes_by_depth.values() for node in level]
        called = [node.operation for node in nodes]
        outputs = {id(tensor) for tensor in functional.outputs}
        for node in nodes:
            operation = node.operation
            if places.is_graph(operation) and called.count(operation) == 1:
                visit(operation)
            head = node.input_tensors[0]._keras_history.operation if len(node.input_tensors) == 1 else None
            if head is None or where.get(id(head)) not in heads or called.count(head) != 1:
                continue
            users = [each for each in nodes if any(x is node.input_tensors[0] for x in each.input_tensors)]
            alone = len(users) == 1 and id(node.input_tensors[0]) not in outputs and called.count(operation) == 1
            name = _activation(operation)
            if alone and name is not None and _can_take_over(head, operation, node.input_tensors[0]):
                found.append(Fold(head, operation, name))

    visit(graph)
    return found


def fold(graph: keras.Model, copy: keras.Model, found: Sequence[Fold]) -> keras.Model:
    """`copy`, a copy of `graph`, whose heads have the activations that `found` says; the layers behind them pass on."""
    if not found:
        return copy
    there = {id(layer): place for place, layer in places.by_place(graph).items()}
    copies = places.by_place(copy)
    instead: dict[int, keras.Layer] = {}
    for each in found:
        copies[there[id(each.head)]].activation = keras.activations.get(each.activation)
        config = keras.layers.Layer.get_config(copies[there[id(each.layer)]])
        instead[id(copies[there[id(each.layer)]])] = keras.layers.Activation.from_config(
            {**config, "activation": "linear"}
        )

    replacements = {id(layer) for layer in instead.values()}

    def visit(layer: Any) -> Any:
        if places.is_graph(layer) and id(layer) not in instead:
            instead[id(layer)] = anew(layer)
        return instead.get(id(layer), layer)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return layer(args[0]) if id(layer) in replacements else layer(*args, **kwargs)  # a Softmax is given a mask

    def anew(model: keras.Model) -> keras.Model:
        functional = {} if isinstance(model, keras.Sequential) else {"call_function": call}
        return keras.models.clone_model(model, clone_function=visit, **functional)

    return anew(copy)


def _can_take_over(head: keras.layers.Dense, layer: keras.Layer, tensor: Any) -> bool:
    return (
        head.activation is keras.activations.linear
        and head.activity_regularizer is None
        and head.compute_dtype == layer.compute_dtype
        and getattr(tensor, "_keras_mask", None) is None
    )


def _activation(layer: Any) -> str | None:
    """The name of the activation that `layer` is, None if it is something else."""
    names: dict[type, Callable[[Any], str | None]] = {
        keras.layers.Activation: lambda layer: _named(layer.activation),
        keras.layers.Softmax: lambda layer: "softmax" if layer.axis == -1 else None,
        keras.layers.ReLU: lambda layer: (
            "relu" if layer.max_value is None and not layer.negative_slope and not layer.threshold else None
        ),
    }
    return names[type(layer)](layer) if type(layer) in names else None


def _named(activation: Any) -> str | None:
    name = keras.activations.serialize(activation)
    of_keras = isinstance(name, str) and keras.activations.get(name) is activation
    return name if of_keras and name != "linear" else None
