"""Traces a model into a list of layer calls between numbered tensors. Nested models are inlined where possible."""

import itertools
import operator
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import keras

from tf_packnet.structure.layer_paths import is_graph


@dataclass(frozen=True)
class Step:
    """One call of a layer, or of an operation such as `x + y`.

    Attributes:
        layer: The Keras layer or operation that is called.
        name: The layer's name, with a number if an earlier step has the same name.
        node: Keras's record of the call.
        inputs: Numbers of the input tensors.
        outputs: Numbers of the output tensors.
    """

    layer: Any
    name: str
    node: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class Graph:
    """The steps of a model in topological order.

    Attributes:
        tensors: Keras's symbolic tensors; the number of a tensor is its index.
        steps: The calls.
        inputs: Numbers of the model's inputs, flattened.
        outputs: Numbers of the model's outputs, flattened.
        nested: The inlined models, each with the numbers of the tensors that it is called with.
    """

    tensors: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    nested: list[tuple[keras.Model, tuple[int, ...]]] = field(default_factory=list)

    def shape(self, number: int) -> tuple[int | None, ...]:
        """Return the shape of a tensor, including the batch axis."""
        return tuple(self.tensors[number].shape)

    def first_name(self, layer: Any) -> str:
        """Return the name of the first step that calls a layer."""
        return next(step.name for step in self.steps if step.layer is layer)

    def shared(self) -> set[int]:
        """Return the ids of the layers with weights that are called more than once."""
        calls = Counter(id(step.layer) for step in self.steps if getattr(step.layer, "weights", None))
        return {layer for layer, count in calls.items() if count > 1}


def is_plain(node: Any, allowed: Collection[str] = ()) -> bool:
    """Return whether a call has only tensors and arguments with allowed names: no `training=True`, for example."""
    options = [value for value in node.arguments.args if not _is_tensors(value)]
    for name, value in node.arguments.kwargs.items():
        if name not in allowed and (name != "training" or value is not False):
            options.append(value)
    return all(part is None for value in options for part in keras.tree.flatten(value))  # masks may be [None, None]


def functional(model: keras.Model) -> Any:
    """Return the functional model of a Sequential model; return a functional model itself."""
    return model._functional if isinstance(model, keras.Sequential) else model


def inputs_of(model: keras.Model) -> Any:
    """Return the symbolic inputs of a Sequential or functional model in their original structure."""
    return functional(model)._inputs_struct


def trace(model: keras.Model) -> Graph:
    """Return the graph of a Sequential or functional model."""
    graph = Graph()
    numbers: dict[int, int] = {}
    for tensor in functional(model).inputs:
        numbers[id(tensor)] = _new(graph, tensor)
    graph.inputs = list(numbers.values())
    _visit(functional(model), numbers, graph)
    graph.outputs = [numbers[id(tensor)] for tensor in functional(model).outputs]
    return graph


def _visit(model: Any, numbers: dict[int, int], graph: Graph) -> None:
    """Append the steps of `model`. `numbers` maps the `id`s of its tensors to numbers, and must contain its inputs."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            inputs = tuple(numbers[id(tensor)] for tensor in node.arguments.keras_tensors)
            if _can_be_inlined(node):
                inner = functional(node.operation)
                graph.nested.append((node.operation, inputs))
                inner_numbers = {id(tensor): number for tensor, number in zip(inner.inputs, inputs, strict=True)}
                _visit(inner, inner_numbers, graph)
                for tensor, result in zip(node.outputs, inner.outputs, strict=True):
                    numbers[id(tensor)] = inner_numbers[id(result)]
                continue
            for tensor in node.outputs:
                numbers[id(tensor)] = _new(graph, tensor)
            outputs = tuple(numbers[id(tensor)] for tensor in node.outputs)
            graph.steps.append(Step(node.operation, _name(node.operation, graph), node, inputs, outputs))


def _can_be_inlined(node: Any) -> bool:
    """Return whether a nested model can be replaced by its layers: it must not cast or reshape its inputs."""
    model = node.operation
    if not isinstance(model, keras.Model) or not is_graph(model) or not is_plain(node):
        return False
    inner = functional(model)
    expected, actual = ([(t.shape, t.dtype) for t in ts] for ts in (inner.inputs, node.arguments.keras_tensors))
    return expected == actual and _in_order(inner, node) and len(inner.outputs) == len(node.outputs)


def _in_order(model: Any, node: Any) -> bool:
    """Return whether a call passes the tensors in the order of the model's inputs."""
    if len(model.inputs) == 1:
        return True
    passed = [*node.arguments.args, *(value for value in node.arguments.kwargs.values() if value is not None)]
    try:
        keras.tree.assert_same_structure(model._inputs_struct, passed[0])
    except (TypeError, ValueError):
        return False
    return all(map(operator.is_, keras.tree.flatten(passed[0]), node.arguments.keras_tensors))


def _new(graph: Graph, tensor: Any) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _name(layer: Any, graph: Graph) -> str:
    taken = {step.name for step in graph.steps}
    numbered = (f"{layer.name}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([layer.name], numbered) if name not in taken)


def _is_tensors(value: Any) -> bool:
    return all(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(value))
