"""Packs that also inherit from the user's model class, so that methods it overrides, such as `train_step`, are used.

The bases of the class of such a pack are `PackedModel` and the user's class, so that `super().train_step(data)` in the
user's code calls Keras's method. The user's `__init__` is not called for the pack. Its attributes are available anyway:

- A subclassed model is the only layer of the pack's graph. Its attributes are read and set on that layer.
- The attributes of a functional or Sequential model are copied to the pack, with the pack's layers instead of the
  model's. When a pack is loaded, they are copied from a model that is created from the config of the user's class.
"""

import contextlib
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

import keras

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.structure import layer_paths, overrides
from tf_packnet.structure.flattening import flat_names, layers_of_graphs
from tf_packnet.structure.graphs import build_layers, copy_layer, copy_state, graph_layers
from tf_packnet.system.keras_internals import (
    Functional,
    all_layers,
    graph_ends,
    has_graph,
    in_stateless_scope,
    own_metrics,
    run_graph,
    unpickle_model,
)
from tf_packnet.training.optimizers import fresh

# Keys in the config of a functional model that describe its graph.
_GRAPH_KEYS = ("layers", "input_layers", "output_layers")


if TYPE_CHECKING:

    class _NextBase(Functional):
        """What follows `_UserModelMixin` in the bases of a pack's class."""

else:
    _NextBase = object


class _UserModelMixin(_NextBase):
    """First base of a pack's class: delegates attributes to the user's model where it is a layer of the pack."""

    def __getattr__(self, name: str) -> Any:
        inner = vars(self).get("_user_layer")
        if inner is not None and overrides.has_attribute(inner, name):
            return getattr(inner, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = vars(self).get("_user_layer")
        if inner is not None and overrides.has_attribute(inner, name):
            setattr(inner, name, value)
        elif "_adopting" in vars(self):
            keras.Model.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def add_loss(self, loss: Any) -> None:
        """Add a loss as in a subclassed model; Keras's functional models do not support this."""
        if overrides.is_overridden(self, "add_loss"):
            self._user_class.add_loss(self, loss)
        else:
            keras.Layer.add_loss(self, loss)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        _, arguments = super().__reduce__()
        return _unpickled, (self._user_class, *arguments)


class _SkipUserInit:
    """Base before the user's class: calls the `__init__` of Keras instead of the user's."""

    def __init__(self, *args: Any, **kwargs: Any):
        (Functional if "outputs" in kwargs else keras.Model).__init__(self, *args, **kwargs)


def _unpickled(cls: type[keras.Model], file: Any) -> keras.Model:
    with keras.saving.CustomObjectScope({keras.saving.get_registered_name(cls): cls}):
        return unpickle_model(file)


@functools.cache
def packed_class(base: type[keras.Model], cls: type[keras.Model]) -> type[keras.Model]:
    """Create the class of packs of models of class `cls`.

    Args:
        base: `PackedModel`.
        cls: The user's model class.

    Raises:
        ArgumentError: If a method of `cls` has the name of a method of packs.
    """
    _check_names(base, cls, {name for each in cls.__mro__ if not issubclass(base, each) for name in vars(each)})
    namespace: dict[str, Any] = {"_pack_class": base, "_user_class": cls}
    namespace |= {"__module__": base.__module__, "__doc__": cls.__doc__}
    if overrides.is_subclassed(cls):
        namespace |= {"call": _call_with_signature_of(cls), "compute_output_spec": _output_spec}
    if issubclass(cls, keras.Sequential):
        namespace |= {"add": _raise_fixed, "pop": _raise_fixed}
    new_class = type(f"Packed{cls.__name__}", (_UserModelMixin, base, _SkipUserInit, cls), namespace)
    # Files contain the registered name of `base`, whose `from_config` finds the user's class in the config.
    package, _, name = keras.saving.get_registered_name(base).partition(">")
    keras.saving.register_keras_serializable(package, name)(new_class)
    keras.saving.register_keras_serializable(package, name)(base)
    return new_class


def _check_attributes(packed: keras.Model, model: keras.Model) -> None:
    names = set(overrides.attributes(model))
    _check_names(packed._pack_class, packed._user_class, names, packed._names_of_pack)


def _check_names(
    base: type[keras.Model], cls: type[keras.Model], names: set[str], more: Set[str] = frozenset()
) -> None:
    taken = {name for each in base.__mro__ if each.__module__.startswith("tf_packnet") for name in vars(each)} | more
    clash = sorted(name for name in names & taken if not hasattr(Functional, name))
    if clash:
        expected = f"a class without names that packs use ({', '.join(clash)})"
        raise ArgumentError("model", expected, cls.__name__)


def _call_with_signature_of(cls: type[keras.Model]) -> Callable[..., Any]:
    """Return a `call` with the arguments of `cls.call`, which passes them to the user's model in the graph."""
    user_signature = inspect.signature(cls.call)
    parameters = list(user_signature.parameters.values())
    if "training" not in user_signature.parameters:
        last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        parameters.insert(last, inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.call).bind(*args, **kwargs).arguments
        inputs, *_ = arguments.values()
        options = dict(list(arguments.items())[1:])
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                options |= options.pop(parameter.name, {})
        if "training" in options and ("training" not in user_signature.parameters or options["training"] is None):
            del options["training"]

        def with_options(operation: Any) -> Any:
            if operation is not self._user_layer:
                return operation
            return lambda *args, **kwargs: operation(*args, **{**kwargs, **options})

        outputs = run_graph(self, inputs, with_options)
        return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs

    call.__signature__ = user_signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # of `inspect`
    return call


def _raise_fixed(self: Any, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"the layers of pack {self.name!r} cannot change: add and remove layers before tp.pack(model)")


def _output_spec(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    return Functional.compute_output_spec(self, inputs)


def take_over_model(packed: keras.Model, description: Mapping[str, Any], source: keras.Model | None = None) -> None:
    """Give a new pack, whose class is a `packed_class`, the attributes of the user's model.

    Args:
        packed: The pack.
        description: Result of `describe`, and `left_out`, the result of `graphs.build_uncalled`.
        source: The user's model, which is not changed. Default: a model created from `description`.
    """
    object.__setattr__(packed, "_description", dict(description))
    build_layers(packed, description["left_out"])
    if overrides.is_subclassed(packed._user_class):
        inner = next(layer for layer in packed.layers if isinstance(layer, packed._user_class))
        _check_attributes(packed, inner)
        metrics = own_metrics(packed)
        metrics.extend(metric for metric in own_metrics(inner) if metric not in metrics)
        object.__setattr__(packed, "_user_layer", inner)
    else:
        try:
            model = source or _constructor(packed._user_class, description["config"], graph_ends(packed))()
        except ValueError:
            if not in_stateless_scope():
                raise
            return  # Keras only computes the size of the pack, in a scope in which optimizers cannot be created
        _check_attributes(packed, model)
        _adopt(packed, model, copying=source is not None)
    for name, value in description["attributes"].items():
        setattr(packed, name, value)


def describe(model: keras.Model) -> dict[str, Any]:
    """Return what a file needs to store about a user's model besides its graph: class, config, plain attributes."""
    cls = type(model)
    description = {
        "module": cls.__module__,
        "class_name": cls.__name__,
        "registered_name": keras.saving.get_registered_name(cls),
        "config": None,
        "attributes": _plain_attributes(model),
    }
    if not overrides.is_subclassed(cls):
        try:
            config = model.get_config()
        except Exception as error:  # raised by the user's code; only saving needs the config
            return {**description, "error": first_line(error)}
        if _loads_as_graph(cls, config):  # the pack has the layers
            config = {name: value for name, value in config.items() if name not in _GRAPH_KEYS}
        elif _loads_as_sequential(cls):
            config = {"name": config["name"]}
        description["config"] = config
        try:
            _constructor(cls, config, graph_ends(model))
        except TypeError as error:
            description["error"] = f"{cls.__name__}.__init__(): {error}"
    return description


def description_of(packed: keras.Model) -> dict[str, Any] | None:
    """Return the result of `describe` with the present attributes; None if the user's model has a class of Keras.

    Raises:
        ArgumentError: If the user's model cannot be created from its config.
    """
    if not hasattr(type(packed), "_user_class"):
        return None
    description = packed._description
    if "error" in description:
        expected = f"a model that Keras can create from its get_config() ({description['error']})"
        raise ArgumentError("model", expected, description["class_name"])
    holder = vars(packed).get("_user_layer", packed)
    return {**description, "attributes": _plain_attributes(holder, vars(packed).get("_names_of_pack", frozenset()))}


def user_class(description: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> type[keras.Model]:
    """Return the user's model class that is named in the config of a pack.

    Raises:
        ArgumentError: If it is neither registered with Keras nor in the custom objects.
    """
    for name in (description["registered_name"], description["class_name"]):
        found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
        if isinstance(found, type) and issubclass(found, keras.Model):
            return found
    raise ArgumentError(
        "custom_objects",
        f"the class of the packed model, {description['registered_name']!r}: import a class registered with "
        "@keras.saving.register_keras_serializable(), or pass custom_objects",
        sorted(custom_objects or {}),
    )


def held_layers(packed: keras.Model) -> dict[str, keras.Layer]:
    """Return the layers in attributes of a pack outside its graph, such as a teacher, by their names in pack files."""
    if not hasattr(type(packed), "_user_class") or "_user_layer" in vars(packed):
        return {}
    seen = {id(layer) for layer in graph_layers(packed)}
    layers: dict[str, keras.Layer] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, keras.Layer):
            for number, layer in enumerate(graph_layers(value)):
                if id(layer) not in seen:
                    seen.add(id(layer))
                    layers[f"self.{name}/{number}"] = layer
        elif isinstance(value, (dict, list, tuple)):
            parts = value.values() if isinstance(value, dict) else value
            for number, part in enumerate(parts):
                collect(f"{name}.{number}", part)

    for name, value in sorted(overrides.attributes(packed).items()):
        if name not in packed._names_of_pack:
            collect(name, value)
    return layers


@contextlib.contextmanager
def plain_graphs(packed: keras.Model) -> Iterator[None]:
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


def _loads_as_graph(cls: type[keras.Model], config: Mapping[str, Any]) -> bool:
    """Return whether Keras creates models of this class as functional models from the config."""
    uses_keras_from_config = cls.from_config.__func__ is keras.Model.from_config.__func__
    return uses_keras_from_config and all(name in config for name in _GRAPH_KEYS)


def _loads_as_sequential(cls: type[keras.Model]) -> bool:
    return cls.from_config.__func__ is keras.Sequential.from_config.__func__


def _constructor(
    cls: type[keras.Model], config: Mapping[str, Any], graph: tuple[Any, Any]
) -> Callable[[], keras.Model]:
    """Return a function that creates a model of the user's class like Keras's loading does.

    Args:
        cls: The user's model class.
        config: Its config.
        graph: Inputs and outputs, for a class whose `__init__` takes them.

    Raises:
        TypeError: If the config lacks arguments of `cls.__init__`.
    """
    keras_from_config = (keras.Model.from_config.__func__, keras.Sequential.from_config.__func__)
    if cls.from_config.__func__ not in keras_from_config:
        return lambda: cls.from_config(dict(config))
    signature = inspect.signature(cls.__init__)
    has_varargs = any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values())
    takes_graph = not _loads_as_sequential(cls) and (has_varargs or "outputs" in signature.parameters)
    arguments = graph if takes_graph else ()
    signature.bind(None, *arguments, **config)
    return lambda: cls(*arguments, **config)


def _plain_attributes(model: keras.Model, excluded: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the attributes of a user's model that JSON can represent."""
    attributes = overrides.attributes(model).items()
    return {
        name: value for name, value in attributes if name not in excluded and type(value) in (bool, int, float, str)
    }


def _adopt(packed: keras.Model, source: keras.Model, copying: bool) -> None:
    """Set the attributes of a functional or Sequential model on the pack, with the pack's layers instead of its own.

    Args:
        packed: The pack.
        source: The model.
        copying: Whether `source` must not change, so that other layers, optimizers and metrics are copied.
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
    """Warn about trainable layers of a model that do not contribute to its outputs: they are not trained."""
    if names:
        warnings.warn(
            f"the outputs of {cls} do not depend on these layers, which are therefore frozen for all tasks: "
            f"{', '.join(names)}. Set `trainable = False` on them to avoid this warning",
            stacklevel=2,
        )


def _counterparts(source: keras.Model, packed: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Return pairs of a layer in the graph of a user's model and the layer of the pack that replaces it."""
    if not layer_paths.is_graph(source):  # a Sequential model that is not built
        return list(zip(_inner_layers(source), _inner_layers(packed), strict=True))
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
    """Return all layers inside a model's graph; of an unbuilt Sequential model all layers inside it."""
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
