"""Packs that also inherit from the user's model class, so that methods it overrides, such as `train_step`, are used.

The bases of the class of such a pack are `PackedModel` and the user's class, so that `super().train_step(data)` in the
user's code calls Keras's method. The user's `__init__` is not called for the pack. Its attributes are available anyway:

- A subclassed model is the only layer of the pack's graph. Its attributes are read and set on that layer.
- The attributes of a functional or Sequential model are copied to the pack, with the pack's layers instead of the
  model's. When a pack is loaded, they are copied from a model that is created from the config of the user's class.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import keras

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.packed.attributes import adopt
from tf_packnet.structure import overrides
from tf_packnet.structure.graphs import build_layers, graph_layers
from tf_packnet.system.keras_internals import (
    Functional,
    graph_ends,
    in_stateless_scope,
    own_metrics,
    run_graph,
    unpickle_model,
)

# Keys in the config of a functional model that describe its graph.
_GRAPH_KEYS = ("layers", "input_layers", "output_layers")


if TYPE_CHECKING:

    class _NextBase(Functional):
        """The base after `_UserModelMixin` in a pack's class, for type checkers."""

else:
    _NextBase = object


class _UserModelMixin(_NextBase):
    """First base of a pack's class: delegates attributes to the user's model if that is a layer of the pack."""

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
    """Create the class of a pack whose model has the class `cls`.

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
        adopt(packed, model, copying=source is not None)
    for name, value in description["attributes"].items():
        setattr(packed, name, value)


def describe(model: keras.Model) -> dict[str, Any]:
    """Return the facts about a user's model that a file stores besides its graph: class, config, plain attributes."""
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
            config = keras.saving.serialize_keras_object(model.get_config())  # it may contain layers
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
    """Return the result of `describe` with the current attributes; None if the model's class is one of Keras.

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
        return lambda: cls.from_config(copy.deepcopy(dict(config)))  # it may change nested parts
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
