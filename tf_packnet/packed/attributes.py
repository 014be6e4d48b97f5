"""Copies the attributes of a user's functional or Sequential model to its pack, with the layers of the pack.

Nested models in the pack get the class and the attributes of the user's nested models. In files, they are plain
functional models.
"""

import contextlib
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tf_packnet.structure import layer_paths, overrides
from tf_packnet.structure.flattening import flat_names, layers_of_graphs
from tf_packnet.structure.graphs import copy_layer, copy_state, graph_layers
from tf_packnet.structure.layer_configs import make_creatable
from tf_packnet.system.keras_internals import Functional, all_layers, has_graph
from tf_packnet.training.optimizers import fresh


def adopt(packed: keras.Model, source: keras.Model, copying: bool) -> None:
    """Copy the attributes of a functional or Sequential model to the pack.

    Layers of the model in the attributes are replaced by those of the pack.

    Args:
        packed: The pack.
        source: The model.
        copying: Whether to copy layers outside the graph, optimizers and metrics, so that `source` stays unchanged.
    """
    replacements = {id(source): packed, **{id(layer): layer for layer in _inner_layers(packed)}}
    replacements |= {id(layer): new for layer, new in _counterparts(source, packed)}
    frozen: list[str] = []

    def replaced(name: str, value: Any) -> Any:
        if isinstance(value, keras.Layer):
            if id(value) not in replacements:
                replacements[id(value)] = _layer_outside_graph(value, replacements, copying)
                of_pack = isinstance(value, Functional) and any(id(each) in replacements for each in value.layers)
                frozen.extend([name] if value.trainable_variables and copying and not of_pack else [])
            new = replacements[id(value)]
            if type(new) is Functional and type(value) is not Functional:
                take_class(new, value)
            return new
        if isinstance(value, dict):
            return {key: replaced(name, part) for key, part in value.items()}
        if type(value) is tuple or isinstance(value, list):
            parts = [replaced(name, part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, types.MethodType) and value.__self__ is source:
            return types.MethodType(value.__func__, packed)
        if copying and isinstance(value, keras.optimizers.Optimizer):
            return fresh(value)
        if copying and isinstance(value, (keras.metrics.Metric, keras.random.SeedGenerator)):
            return type(value).from_config(value.get_config())
        return value

    def take_class(graph: keras.Model, model: keras.Model) -> None:
        """Give a nested graph the class and the attributes of the user's model."""
        graph.__class__ = type(model)
        for name, value in overrides.attributes(model).items():
            setattr(graph, name, replaced(name, value))

    vars(packed)["_adopting"] = True
    try:
        for name, value in overrides.attributes(source).items():
            setattr(packed, name, replaced(name, value))
    finally:
        del vars(packed)["_adopting"]
    warn_frozen(sorted(set(frozen)), type(source).__name__)


def warn_frozen(names: list[str], cls: str) -> None:
    """Warn about trainable layers on which the outputs of a model do not depend: they are frozen."""
    if names:
        warnings.warn(
            f"the outputs of {cls} do not depend on these layers, which are therefore frozen for all tasks: "
            f"{', '.join(names)}. Set `trainable = False` on them to avoid this warning",
            stacklevel=2,
        )


def _counterparts(source: keras.Model, packed: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Return pairs of a layer in the graph of a user's model and the layer of the pack that replaces it."""
    if not layer_paths.is_graph(source):  # a Sequential model that is not built
        source_layers, packed_layers = _inner_layers(source), _inner_layers(packed)
        same_number = len(source_layers) == len(packed_layers)  # loading creates a Sequential model without layers
        return list(zip(source_layers, packed_layers, strict=True)) if same_number else []
    ours, theirs = (
        [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        for model in (source, packed)
    )
    if any(map(layer_paths.is_graph, ours)) and not any(map(layer_paths.is_graph, theirs)):  # a flattened model
        by_name, names = {layer.name: layer for layer in theirs}, flat_names(source)
        ours = [layer for layer in layers_of_graphs(source).values() if names[id(layer)] in by_name]
        theirs = [by_name[names[id(layer)]] for layer in ours]
    pairs: list[tuple[keras.Layer, keras.Layer]] = []
    for layer, new in zip(ours, theirs, strict=True):
        pairs.append((layer, new))
        if layer_paths.is_graph(layer):
            pairs += _counterparts(layer, new)
        else:
            pairs += zip(all_layers(layer, include_self=False), all_layers(new, include_self=False), strict=False)
    return pairs


def _inner_layers(model: keras.Model) -> list[keras.Layer]:
    """Return all layers in the graph of a model; for an unbuilt Sequential model, all layers inside it."""
    if isinstance(model, keras.Sequential) and not has_graph(model) and not model.built:
        return [inner for layer in model.layers for inner in all_layers(layer)]
    return [layer for layer in graph_layers(model)[1:] if not isinstance(layer, keras.layers.InputLayer)]


def _layer_outside_graph(layer: keras.Layer, replacements: Mapping[int, keras.Layer], copying: bool) -> keras.Layer:
    """Freeze a layer outside the graph, such as a teacher; rebuild a model that shares layers with the graph."""
    inner = all_layers(layer, include_self=False)
    if isinstance(layer, Functional) and any(id(each) in replacements for each in inner):
        return keras.models.clone_model(layer, clone_function=lambda each: replacements.get(id(each), each))
    if copying:
        new = copy_layer(layer)
        if layer.built and not new.built:
            new.build_from_config(layer.get_build_config())
        for source, target in zip(graph_layers(layer), graph_layers(new), strict=True):
            copy_state(source, target)
        layer = new
    layer.trainable = False
    return layer


def network_config(packed: keras.Model) -> dict[str, Any]:
    """Return the config of the pack's network, a functional model from which Keras can create all layers."""
    network = packed.network()
    with _plain_graphs(packed):
        config = network.get_config()
        make_creatable(network, config)
    return config


@contextlib.contextmanager
def _plain_graphs(packed: keras.Model) -> Iterator[None]:
    """Within the block, nested graphs with the class of a user's model are plain functional models, as in files."""
    classes: list[tuple[Any, type]] = []

    def visit(graph: keras.Model) -> None:
        for layer in graph.layers:
            if layer_paths.is_graph(layer):
                classes.extend([(layer, type(layer))] if not isinstance(layer, keras.Sequential) else [])
                visit(layer)

    visit(packed)
    for layer, _ in classes:
        layer.__class__ = Functional
    try:
        yield
    finally:
        for layer, cls in classes:
            layer.__class__ = cls
