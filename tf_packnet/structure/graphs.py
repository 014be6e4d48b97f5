"""Converts any Keras model to a graph of layers; copies layers, graphs and their weights."""

import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.structure import layer_paths
from tf_packnet.structure.generated import plain_class, plain_variables
from tf_packnet.structure.layer_configs import creatable, differs
from tf_packnet.structure.overrides import is_subclassed
from tf_packnet.structure.refusals import Refusal, quoted, refused
from tf_packnet.structure.state import tensor_variables
from tf_packnet.system.keras_internals import (
    Functional,
    all_layers,
    as_function,
    build_shapes,
    graph_ends,
    own_variables,
    sublayers,
)


def as_graph(model: Any, inputs: Any = None) -> keras.Model:
    """Return a Sequential or functional model unchanged; wrap a subclassed model in a graph as its only layer.

    Args:
        model: A built Keras model.
        inputs: Symbolic inputs for a subclassed model. Default: `float32` tensors of the shapes it was built for.

    Raises:
        ArgumentError: If `model` is not a Keras model, is not built, or cannot be called with these inputs.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentError("model", "a Keras model", model)
    for layer in all_layers(model):
        if isinstance(layer, (Functional, keras.Sequential)) and is_subclassed(type(layer)):
            expected = f"models with either a graph of layers or their own `call`; {layer.name!r} has both"
            raise ArgumentError("model", expected, type(layer).__name__)
    if layer_paths.is_graph(model):
        return model
    if inputs is None:
        inputs = _build_inputs(model)
    try:
        outputs = model(inputs)
    except Exception as error:  # raised by the model's own code
        expected = f"inputs with which model {model.name!r} can be called ({first_line(error)})"
        raise ArgumentError("inputs", expected, inputs) from error
    return keras.Model(inputs, outputs, name=model.name)


def _build_inputs(model: keras.Model) -> Any:
    """Return symbolic inputs of the shapes that a subclassed model was built for."""
    shapes = build_shapes(model)
    if not model.built or len(shapes) != 1 or shapes[0] is None:
        expected = "a Sequential model with an Input, a functional model, or a subclassed model that was called"
        raise ArgumentError("model", expected + " (or pass inputs=keras.Input(...) to pack)", model.name)
    if any(isinstance(layer, keras.layers.Embedding) for layer in all_layers(model)):
        expected = f"keras.Input({tuple(shapes[0][1:])}, dtype='int32') or similar, because the model has an Embedding"
        raise ArgumentError("inputs", expected, None)
    return _map_shapes(lambda shape: keras.Input(batch_shape=(None, *shape[1:])), shapes[0])


def _map_shapes(function: Any, shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {key: _map_shapes(function, shape) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return function(tuple(shapes))
    return [_map_shapes(function, shape) for shape in shapes]


def graph_layers(model: keras.Layer) -> list[keras.Layer]:
    """Return `model` and all layers inside it; for a graph, only the layers between its inputs and outputs."""
    if layer_paths.is_graph(model):
        graph = keras.Model(*graph_ends(model), name=model.name)
        return [model, *all_layers(graph, include_self=False)]
    return all_layers(model)


class Copies:
    """Copies of the layers of a model, each created from the config of the layer.

    Attributes:
        refusals: The layers that cannot be created from their configs.
    """

    def __init__(self, graph: keras.Model):
        self.refusals: list[Refusal] = []
        self._copies: dict[int, Any] = {}
        self._input_channels: dict[int, tuple[int, ...]] = {}
        self._copy_layers(graph, "", layer_paths.paths_by_id(graph))

    def _copy_layers(self, graph: keras.Model, prefix: str, path_of: dict[int, str]) -> None:
        for layer in graph.operations if hasattr(graph, "operations") else graph.layers:
            if id(layer) in self._copies or isinstance(layer, keras.layers.InputLayer):
                continue
            # The copy shares operations such as `x + y`, which have no state, and Lambda layers, whose functions Keras
            # cannot copy.
            self._copies[id(layer)] = layer
            if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
                continue
            if layer_paths.is_graph(layer):
                self._copy_layers(layer, f"{prefix}{layer.name}/", path_of)
                continue
            new, reason = _from_config(layer)
            if reason is None:
                self._copies[id(layer)] = new
            else:
                self.refusals.append(Refusal(path_of.get(id(layer), prefix + layer.name), layer, reason))

    def connected(self, graph: keras.Model) -> keras.Model:
        """Return the copies, connected like the layers of `graph`.

        Raises:
            ArgumentError: If a layer cannot be created from its config, or its copy cannot be called.
        """
        if self.refusals:
            raise refused(self.refusals, graph.name)
        try:
            return keras.models.clone_model(graph, clone_function=self._copy_of)
        except Exception as error:  # raised by the code of a layer
            expected = f"layers that can be called after from_config(get_config()) ({quoted(error, 0)})"
            raise ArgumentError("model", expected, graph.name) from error

    def of(self, operation: Any) -> Any:
        """Return the copy of a layer or operation of the graph, or of a graph nested in it."""
        return self._copies[id(operation)]

    def rename(self, operation: Any, name: str) -> None:
        """Give the copy of a layer or operation another name.

        Raises:
            ArgumentError: If it is shared with its copy, and cannot be copied.
        """
        if self.of(operation) is operation:
            try:
                self._copies[id(operation)] = type(operation).from_config(operation.get_config())
            except Exception as error:  # raised by the code of an operation
                reason = "that has the name of a layer in another graph, and cannot be copied: rename it"
                raise refused([Refusal(operation.name, operation, reason)], operation.name) from error
        self.of(operation).name = name

    def change(self, layer: Any, changes: Mapping[str, Any]) -> None:
        """Create the copy of a layer from its config with changes.

        Raises:
            ArgumentError: If the layer cannot be created from that config.
        """
        config = creatable(type(layer), layer.get_config())
        try:
            self._copies[id(layer)] = type(layer).from_config({**config, **changes})
        except Exception as error:  # raised by the layer's own code
            settings = ", ".join(f"{name}={value}" for name, value in changes.items())
            reason = f"that cannot be created with {settings} ({quoted(error)})"
            raise refused([Refusal(layer.name, layer, reason)], layer.name) from error

    def change_inputs(self, graph: keras.Model, channels: tuple[int, ...]) -> None:
        """Change the number of channels of each input in the copy of a nested graph."""
        self._input_channels[id(graph)] = channels

    def _copy_of(self, layer: Any) -> Any:
        if layer_paths.is_graph(layer) and self._copies[id(layer)] is layer:
            inputs = None
            if id(layer) in self._input_channels:
                new = [
                    keras.Input(batch_shape=(*old.shape[:-1], channels), dtype=old.dtype, name=old.name)
                    for old, channels in zip(as_function(layer).inputs, self._input_channels[id(layer)], strict=True)
                ]
                inputs = keras.tree.pack_sequence_as(layer.input, new)
            self._copies[id(layer)] = keras.models.clone_model(layer, inputs, clone_function=self._copy_of)
        return self._copies[id(layer)]


def copy_graph(graph: keras.Model) -> keras.Model:
    """Copy a Sequential or functional model, with new weights.

    Raises:
        ArgumentError: If layers cannot be created from their configs; the message names them.
    """
    return Copies(graph).connected(graph)


def checked_copy(graph: keras.Model, copies: Copies | None = None) -> keras.Model:
    """Copy a Sequential or functional model, with new weights of the same shapes.

    Args:
        graph: The model.
        copies: Copies of its layers. Default: new ones.

    Raises:
        ArgumentError: If a layer differs from the one that its config, or the code of the layer around it, creates.
    """
    copy = (Copies(graph) if copies is None else copies).connected(graph)
    by_path = layer_paths.layers_by_path(copy)
    for path, layer in layer_paths.layers_by_path(graph).items():
        if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.InputLayer):
            continue  # an unnamed input gets another name in the copy
        if _looks_like(layer, by_path.get(path)):
            continue
        expected = (
            f"a model that Keras can create again from its config. Layer {path!r} (a {type(layer).__name__}) then has "
            "another number of outputs or activation: the config of the layer around it must have it as units, "
            "filters, output_shape or num_classes. Or export a SavedModel that is not compact"
        )
        raise ArgumentError("model", expected, graph.name)
    return copy


def _looks_like(layer: keras.Layer, copy: keras.Layer | None) -> bool:
    """Return whether a copy exists and, if it is built, has weights of the same shapes and the same activation."""
    if copy is None or not copy.built:
        return copy is not None
    activations = [getattr(vars(each).get("activation"), "__name__", None) for each in (layer, copy)]
    shapes = [[tuple(variable.shape) for variable in own_variables(each)] for each in (layer, copy)]
    return activations[0] == activations[1] and shapes[0] == shapes[1]


def copy_layer(layer: keras.Layer) -> keras.Layer:
    """Copy any layer or model, with new weights; the copy may be unbuilt.

    Raises:
        ArgumentError: If it cannot be created from its config.
    """
    if layer_paths.is_graph(layer):
        return copy_graph(layer)
    new, reason = _from_config(layer)
    if reason is not None:
        raise refused([Refusal(layer.name, layer, reason)], layer.name)
    return new


def build_uncalled(source: keras.Model, target: keras.Model) -> list[list[Any]]:
    """Build the layers of `target` that no call has built, like those of `source`.

    Returns:
        Path and build config of these layers, for `build_layers`.
    """
    targets = layer_paths.layers_by_path(target)
    build_configs = [
        [path, layer.get_build_config()]
        for path, layer in layer_paths.layers_by_path(source).items()
        if isinstance(layer, keras.Layer) and layer.built and path in targets and not targets[path].built
    ]
    build_layers(target, build_configs)
    return build_configs


def build_layers(model: keras.Model, build_configs: list[list[Any]]) -> None:
    """Build the unbuilt layers of `model` from the result of `build_uncalled`."""
    layers = layer_paths.layers_by_path(model)
    for path, config in build_configs:
        if path in layers and not layers[path].built and config:
            layers[path].build_from_config(config)


def _from_config(layer: keras.Layer) -> tuple[keras.Layer | None, str | None]:
    """Create a copy of `layer` from its config; return the copy, or the reason of a `Refusal`."""
    kind = type(layer).__name__
    try:
        config = layer.get_config()
    except Exception as error:  # raised by the layer's own code
        return None, f"whose get_config() fails, so that it cannot be copied: {quoted(error, 0)}"
    has_name = "name" in config
    accepted = creatable(type(layer), config)
    try:
        new = type(layer).from_config(accepted)
        if len(accepted) < len(config) and differs(_config_when_built(layer, accepted), config):
            new = type(layer).from_config(config)  # fails
    except Exception as error:  # raised by the layer's own code
        reason = f"that cannot be created from its get_config() ({quoted(error)})"
        if isinstance(error, TypeError):
            reason += f": {kind}.__init__ must pass **kwargs to super().__init__, and get_config() return all arguments"
        return None, reason
    if type(new) is not plain_class(layer):
        return None, f"whose from_config() creates a {type(new).__name__}"
    # Without a name in the config, the names may be equal by chance: check with a second copy.
    if new.name == layer.name and (has_name or type(layer).from_config(accepted).name == layer.name):
        return new, None
    if not has_name:
        return None, (
            f"whose get_config() has no name, so that its copy gets a different one: {kind}.__init__ must take "
            "`**kwargs` (Keras looks for this parameter name) and pass them to super().__init__"
        )
    return None, f"whose copy is named {new.name!r}: {kind}.__init__ must pass its name to super().__init__"


def _config_when_built(layer: keras.Layer, config: dict[str, Any]) -> dict[str, Any]:
    """Create a layer from `config`, build it like `layer`, and return its config."""
    new = type(layer).from_config(config)
    if layer.built and not new.built:
        new.build_from_config(layer.get_build_config())
    return new.get_config()


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Copy the layer's own weights, statistics and vocabularies, but not those of its inner layers.

    Args:
        source: A built layer.
        target: A built layer of the same type, or one with variables of the same names.
    """
    tensors = dict(tensor_variables(target))
    for name, variable in tensor_variables(source):
        if name in tensors:
            tensors[name].assign(variable)
    if type(source) is not type(target) and plain_class(source) is plain_class(target):
        for variable, target_variable in zip(plain_variables(source), plain_variables(target), strict=True):
            target_variable.assign(variable)
        return
    if type(source) is not type(target):
        target_variables = {variable.name: variable for variable in own_variables(target)}
        for variable in own_variables(source):
            target_variables[variable.name].assign(variable)
        return
    if sublayers(source):
        for variable, target_variable in zip(own_variables(source), own_variables(target), strict=True):
            target_variable.assign(variable)
        return
    # Copied by saving and loading, because some layers, such as Normalization, derive further values on loading.
    store: dict[str, Any] = {}
    source.save_own_variables(store)
    if store:
        target.load_own_variables({name: np.asarray(value) for name, value in store.items()})
    if hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)
