"""Any Keras model as a graph of layers from inputs to outputs, and the layers that its outputs come from."""

import tempfile
from typing import Any

import keras
import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.structure import places
from tf_packnet.structure.overrides import is_subclassed
from tf_packnet.structure.refusals import Refusal, quoted, refused
from tf_packnet.structure.state import tensor_variables
from tf_packnet.system.keras_internals import Functional


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
        expected = f"what model {model.name!r} can be called with ({first_line(error)})"
        raise ArgumentError("inputs", expected, inputs) from error
    return keras.Model(inputs, outputs, name=model.name)


def _inputs_it_was_built_for(model: keras.Model) -> Any:
    shapes = list((model._build_shapes_dict or {}).values())
    if not model.built or len(shapes) != 1 or shapes[0] is None:
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


class Copies:
    """The layers of a model made anew from their configs, one by one.

    Attributes:
        refusals: The layers that cannot be made anew.
    """

    def __init__(self, graph: keras.Model):
        self.refusals: list[Refusal] = []
        self._made: dict[int, Any] = {}
        self._make(graph, "", places.places(graph))

    def _make(self, graph: keras.Model, prefix: str, where: dict[int, str]) -> None:
        for layer in graph.operations if hasattr(graph, "operations") else graph.layers:
            if id(layer) in self._made or isinstance(layer, keras.layers.InputLayer):
                continue
            # Operations such as `x + y` hold nothing; Lambdas neither, and Keras makes no function anew.
            self._made[id(layer)] = layer
            if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
                continue
            if places.is_graph(layer):
                self._make(layer, f"{prefix}{layer.name}/", where)
                continue
            new, reason = _anew(layer)
            if reason is None:
                self._made[id(layer)] = new
            else:
                self.refusals.append(Refusal(where.get(id(layer), prefix + layer.name), layer, reason))

    def joined(self, graph: keras.Model) -> keras.Model:
        """The copies, joined as the layers of `graph` are.

        Raises:
            ArgumentError: If a layer cannot be made anew, or its copy cannot be called.
        """
        if self.refusals:
            raise refused(self.refusals, graph.name)
        try:
            return keras.models.clone_model(graph, clone_function=self._copy)
        except Exception as error:  # whatever the code of a layer raises
            expected = f"a model whose layers, made anew from their get_config(), can be called ({quoted(error, 0)})"
            raise ArgumentError("model", expected, graph.name) from error

    def _copy(self, layer: Any) -> Any:
        if places.is_graph(layer) and self._made[id(layer)] is layer:
            self._made[id(layer)] = keras.models.clone_model(layer, clone_function=self._copy)
        return self._made[id(layer)]


def copied(graph: keras.Model) -> keras.Model:
    """The same graph of layers of the same kinds, with weights of their own.

    Raises:
        ArgumentError: If layers cannot be made anew from their configs; the message names them.
    """
    return Copies(graph).joined(graph)


def copied_layer(layer: keras.Layer) -> keras.Layer:
    """The same for any layer, a model or not; it may not be built.

    Raises:
        ArgumentError: If it cannot be made anew from its config.
    """
    if places.is_graph(layer):
        return copied(layer)
    new, reason = _anew(layer)
    if reason is not None:
        raise refused([Refusal(layer.name, layer, reason)], layer.name)
    return new


def build_left_out(source: keras.Model, target: keras.Model) -> list[list[Any]]:
    """Builds the layers of `target` that no call does, as those of `source` are; returns what `build_again` needs."""
    there = places.by_place(target)
    found = [
        [place, layer.get_build_config()]
        for place, layer in places.by_place(source).items()
        if isinstance(layer, keras.Layer) and layer.built and place in there and not there[place].built
    ]
    build_again(target, found)
    return found


def build_again(model: keras.Model, left_out: list[list[Any]]) -> None:
    """Builds layers that `build_left_out` has found in another model of the same layers."""
    there = places.by_place(model)
    for place, config in left_out:
        if place in there and not there[place].built and config:
            there[place].build_from_config(config)


def _anew(layer: keras.Layer) -> tuple[keras.Layer | None, str | None]:
    """The layer made from its config, or what is wrong with it."""
    kind = type(layer).__name__
    try:
        config = layer.get_config()
    except Exception as error:  # whatever the layer's own code raises
        return None, f"whose get_config() fails, so that it cannot be made anew: {quoted(error, 0)}"
    named = "name" in config
    try:
        new = type(layer).from_config(config)
    except Exception as error:  # whatever the layer's own code raises
        advice = (
            f": let {kind}.__init__ take **kwargs and hand them to super().__init__, and get_config() return the rest"
        )
        of_arguments = isinstance(error, TypeError)
        return None, f"that cannot be made anew from its get_config() ({quoted(error)}){advice if of_arguments else ''}"
    if type(new) is not type(layer):
        return None, f"whose from_config() makes a {type(new).__name__}"
    # Without a name in the config the two may be alike by chance.
    if new.name == layer.name and (named or type(layer).from_config(layer.get_config()).name == layer.name):
        return new, None
    if not named:
        return None, (
            f"whose get_config() gives no name, so that it is another one when it is made anew: let {kind}.__init__ "
            "take `**kwargs` (Keras looks for this word) and hand them to super().__init__"
        )
    return None, f"that is called {new.name!r} when it is made anew: let {kind} hand its name to super().__init__"


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Gives `target` what `source` holds itself, its own layers left out: weights, statistics, vocabularies.

    Args:
        source: A built layer.
        target: A built layer of the same type, or one with variables of the same names.
    """
    tensors = dict(tensor_variables(target))
    for name, variable in tensor_variables(source):
        if name in tensors:
            tensors[name].assign(variable)
    ours, theirs = (layer._trainable_variables + layer._non_trainable_variables for layer in (source, target))
    if type(source) is not type(target):
        own = {variable.name: variable for variable in theirs}
        for variable in ours:
            own[variable.name].assign(variable)
        return
    if source._layers:
        for variable, own in zip(ours, theirs, strict=True):
            own.assign(variable)
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
