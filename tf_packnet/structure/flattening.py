"""Copies a model whose nested graphs share layers, such as a tied embedding, into one graph.

Keras saves and loads each nested graph with its own layers, which would separate shared layers.
"""

from collections.abc import Callable
from typing import Any

import keras

from tf_packnet.structure import layer_paths
from tf_packnet.structure.graphs import Copies, build_uncalled, copy_state
from tf_packnet.structure.overrides import accepts
from tf_packnet.structure.refusals import Refusal, refused, unequal_layers
from tf_packnet.system.keras_internals import all_layers, as_function, graph_ends, mask_of, nodes, run_graph


class Flattened:
    """A copy of a model, in which the layers of nested graphs are layers of the outer graph.

    Attributes:
        graph: The copy, with the weights of the model.

    Args:
        model: A Sequential or functional model.

    Raises:
        ArgumentError: If layers cannot be copied; the message names them.
    """

    def __init__(self, model: keras.Model):
        self._places = layers_of_graphs(model)
        self._names = flat_names(model)
        self._copies = Copies(model)
        refusals = [*self._copies.refusals, *_calls_with_masks(model)]
        if refusals:
            raise refused(refusals, model.name)
        for layer in self._places.values():
            if self._names[id(layer)] != layer.name:
                self._copies.rename(layer, self._names[id(layer)])
        self.graph = keras.models.clone_model(
            keras.Model(*graph_ends(model), name=model.name), clone_function=self._operation
        )
        copied = [(place, layer, self._copies.of(layer)) for place, layer in self._places.items()]
        copied = [each for each in copied if isinstance(each[1], keras.Layer)]
        for _, layer, copy in copied:
            if layer.built and not copy.built:
                copy.build_from_config(layer.get_build_config())
            build_uncalled(layer, copy)
        refusals = unequal_layers(model, copied)
        if refusals:
            raise refused(refusals, model.name)
        for _, layer, copy in copied:
            for source, target in zip(all_layers(layer), all_layers(copy), strict=True):
                target.trainable = source.trainable
                copy_state(source, target)

    def paths(self, path: str) -> list[str]:
        """Return the paths in `graph` of a layer of the model; for a nested graph, the paths of its layers.

        Input layers have no path.
        """
        inside = [self._names[id(layer)] for place, layer in self._places.items() if place.startswith(f"{path}/")]
        if inside:
            return list(dict.fromkeys(inside))
        place = path
        while place and place not in self._places:  # a layer inside a layer of a graph
            place = place.rpartition("/")[0]
        return [] if not place else [self._names[id(self._places[place])] + path[len(place) :]]

    def _operation(self, operation: Any) -> Callable[..., Any]:
        """Return the replacement of an operation: its copy, or a function that calls the copies in a nested graph."""
        if not layer_paths.is_graph(operation):
            return self._copies.of(operation)

        def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            def inner(each: Any) -> Callable[..., Any]:
                copy = self._operation(each)
                fixed = training is not None and accepts(getattr(each, "call", each), "training")
                return (lambda *args, **kwargs: copy(*args, **{**kwargs, "training": training})) if fixed else copy

            return run_graph(as_function(operation), inputs, inner)

        return call


def _calls_with_masks(model: keras.Model, prefix: str = "") -> list[Refusal]:
    """Return the nested graphs that are called with masks other than those that their inputs carry."""
    refusals: list[Refusal] = []
    reason = "that is called with a mask although it shares layers with another graph: use separate layers"
    for node in nodes(as_function(model)):
        if layer_paths.is_graph(node.operation):
            path = prefix + node.operation.name
            masks = keras.tree.flatten(node.arguments.kwargs.get("mask"))
            own = {id(mask_of(tensor)) for tensor in node.input_tensors}
            if any(mask is not None and id(mask) not in own for mask in masks):
                refusals.append(Refusal(path, node.operation, reason))
            refusals += _calls_with_masks(node.operation, f"{path}/")
    return refusals


def flat_names(model: keras.Model) -> dict[int, str]:
    """Return the name of each layer and operation of a model's graphs in the flattened copy, by its `id`."""
    names: dict[int, str] = {}
    for place, layer in layers_of_graphs(model).items():
        if id(layer) not in names:
            taken = set(names.values())
            name = layer.name if layer.name not in taken else place.replace("/", "_")
            while name in taken:
                name += "_"
            names[id(layer)] = name
    return names


def layers_of_graphs(model: keras.Model) -> dict[str, Any]:
    """Return the layers and operations of a graph and of its nested graphs, by each path at which they occur."""
    places: dict[str, Any] = {}

    def visit(graph: keras.Model, prefix: str) -> None:
        for operation in as_function(graph).operations:
            if layer_paths.is_graph(operation):
                visit(operation, f"{prefix}{operation.name}/")
            elif not isinstance(operation, keras.layers.InputLayer):
                places[prefix + operation.name] = operation

    visit(model, "")
    return places
