"""A model as a list of steps between numbered tensors; models inside it are opened."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import keras

from tf_packnet.structure.layer_paths import is_graph
from tf_packnet.system.keras_internals import as_function, graph_ends, nodes


@dataclass(frozen=True)
class Step:
    """One call of a layer, or of an operation such as `x + y`.

    Attributes:
        layer: What is called: a layer, or an operation of Keras.
        name: The layer's name, numbered if a step before has it too.
        node: Keras's record of the call.
        inputs: Numbers of the tensors that go in.
        outputs: Numbers of the tensors that come out.
    """

    layer: Any
    name: str
    node: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class Graph:
    """The steps of a model in an order in which they can be computed.

    Attributes:
        tensors: Keras's symbolic tensors; their numbers are their positions.
        steps: The calls.
        inputs: Numbers of the model's inputs, flat.
        outputs: Numbers of its outputs, flat.
        sparse: Whether kernels of the smaller model may be stored without their zeros.
    """

    tensors: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    sparse: bool = True

    def shape(self, number: int) -> tuple[int | None, ...]:
        """Shape of a tensor, the batch first."""
        return tuple(self.tensors[number].shape)

    def first_name(self, layer: Any) -> str:
        """The name of the first step that calls a layer."""
        return next(step.name for step in self.steps if step.layer is layer)

    def shared(self) -> set[int]:
        """The `id` of every layer with weights that is called more than once."""
        calls = Counter(id(step.layer) for step in self.steps if getattr(step.layer, "weights", None))
        return {layer for layer, count in calls.items() if count > 1}


def is_plain(node: Any) -> bool:
    """Whether a call has no arguments but its tensors: `training=True` changes what a layer does."""
    given = [value for value in node.arguments.args if not _is_tensors(value)]
    given += [value for name, value in node.arguments.kwargs.items() if name != "training" or value is not False]
    return all(value is None for value in given)


def functional(model: keras.Model) -> Any:
    """Keras's own graph of a Sequential or functional model."""
    return as_function(model)


def inputs_of(model: keras.Model) -> Any:
    """The symbolic inputs of a Sequential or functional model, structured as it was made with them."""
    return graph_ends(functional(model))[0]


def trace(model: keras.Model, sparse: bool = True) -> Graph:
    """The graph of a Sequential or functional model."""
    graph = Graph(sparse=sparse)
    numbers: dict[int, int] = {}
    for tensor in functional(model).inputs:
        numbers[id(tensor)] = _new(graph, tensor)
    graph.inputs = list(numbers.values())
    _visit(functional(model), numbers, graph)
    graph.outputs = [numbers[id(tensor)] for tensor in functional(model).outputs]
    return graph


def _visit(model: Any, numbers: dict[int, int], graph: Graph) -> None:
    """Appends the steps of `model`; `numbers` has the numbers of its tensors, its inputs' from the start."""
    for node in nodes(model):
        if node.is_input:
            continue
        inputs = tuple(numbers[id(tensor)] for tensor in node.arguments.keras_tensors)
        if _can_be_opened(node):
            inner = functional(node.operation)
            inside = {id(inner.inputs[0]): inputs[0]}
            _visit(inner, inside, graph)
            for tensor, result in zip(node.outputs, inner.outputs, strict=True):
                numbers[id(tensor)] = inside[id(result)]
            continue
        for tensor in node.outputs:
            numbers[id(tensor)] = _new(graph, tensor)
        outputs = tuple(numbers[id(tensor)] for tensor in node.outputs)
        graph.steps.append(Step(node.operation, _name(node.operation, graph), node, inputs, outputs))


def _can_be_opened(node: Any) -> bool:
    """Whether the layers of a model that is called do the same without it: it casts and reshapes no inputs."""
    model = node.operation
    if not isinstance(model, keras.Model) or not is_graph(model) or not is_plain(node):
        return False
    inner = functional(model)
    inside, outside = ([(t.shape, t.dtype) for t in ts] for ts in (inner.inputs, node.arguments.keras_tensors))
    return inside == outside and len(inner.inputs) == 1 and len(inner.outputs) == len(node.outputs)


def _new(graph: Graph, tensor: Any) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _name(layer: Any, graph: Graph) -> str:
    taken = {step.name for step in graph.steps}
    numbered = (f"{layer.name}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([layer.name], numbered) if name not in taken)


def _is_tensors(value: Any) -> bool:
    return all(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(value))
