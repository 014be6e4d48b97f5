"""A pack that is an instance of its user's model class too, so that what the class replaces of Keras's is honoured.

The bases of such a pack's class are `PackedModel` and the user's class, so that `super().train_step(data)` in user's
code reaches Keras's. The user's `__init__` is not run on it. What it has set is found all the same:

- A subclassed model is the only layer of the pack's graph. Its attributes are looked up, and set, on that layer.
- A functional or Sequential model has become a graph of packed layers. Its attributes are taken over by the pack, with
  packed layers in the place of the model's. When a pack is loaded they come from a model that is created from the
  config of the user's class.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Mapping, Set
from typing import Any

import keras

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.structure import overrides
from tf_packnet.structure.graphs import build_again, copied_layer, copy_state, ends, graph_layers
from tf_packnet.system.keras_internals import Functional, in_stateless_scope
from tf_packnet.training.optimizers import fresh

_GRAPH = ("layers", "input_layers", "output_layers")


class _HonoursOverrides:
    """Before `PackedModel` in the bases: attributes and `call` arguments of the user's class."""

    def __getattr__(self, name: str) -> Any:
        inner = vars(self).get("_user_layer")
        if inner is not None and overrides.has(inner, name):
            return getattr(inner, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = vars(self).get("_user_layer")
        if inner is not None and overrides.has(inner, name):
            setattr(inner, name, value)
        elif "_adopting" in vars(self):
            keras.Model.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def add_loss(self, loss: Any) -> None:
        """As in a subclassed model; Keras's functional models have none."""
        if overrides.replaced(self, "add_loss"):
            self._user_class.add_loss(self, loss)
        else:
            keras.Layer.add_loss(self, loss)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        _, arguments = super().__reduce__()
        return _unpickled, (self._user_class, *arguments)


class _Start:
    """Before the user's class in the bases: Keras's own `__init__` is run in the place of the user's."""

    def __init__(self, *args: Any, **kwargs: Any):
        (Functional if "outputs" in kwargs else keras.Model).__init__(self, *args, **kwargs)


def _unpickled(cls: type[keras.Model], file: Any) -> keras.Model:
    with keras.saving.CustomObjectScope({keras.saving.get_registered_name(cls): cls}):
        return keras.Model._unpickle_model(file)


@functools.cache
def packed_class(base: type[keras.Model], cls: type[keras.Model]) -> type[keras.Model]:
    """The class of packs of models of class `cls`.

    Args:
        base: `PackedModel`.
        cls: The user's model class.

    Raises:
        ArgumentError: If `cls` has methods that are called as those of packs.
    """
    _check_names(base, cls, {name for each in cls.__mro__ if not issubclass(base, each) for name in vars(each)})
    namespace = {"__module__": base.__module__, "__doc__": cls.__doc__, "_pack_class": base, "_user_class": cls}
    if overrides.is_subclassed(cls):
        namespace |= {"call": _call_like(cls), "compute_output_spec": _output_spec}
    if issubclass(cls, keras.Sequential):
        namespace |= {"add": _fixed, "pop": _fixed}
    made = type(f"Packed{cls.__name__}", (_HonoursOverrides, base, _Start, cls), namespace)
    # A file names it as `base`, which finds the user's class in the config.
    package, _, name = keras.saving.get_registered_name(base).partition(">")
    keras.saving.register_keras_serializable(package, name)(made)
    keras.saving.register_keras_serializable(package, name)(base)
    return made


def _check_attributes(packed: keras.Model, model: keras.Model) -> None:
    names = set(overrides.attributes(model))
    _check_names(packed._pack_class, packed._user_class, names, packed._names_of_pack)


def _check_names(
    base: type[keras.Model], cls: type[keras.Model], names: set[str], more: Set[str] = frozenset()
) -> None:
    taken = {name for each in base.__mro__ if each.__module__.startswith("tf_packnet") for name in vars(each)} | more
    clash = sorted(name for name in names & taken if not hasattr(Functional, name))
    if clash:
        raise ArgumentError("model", f"a class without names that packs have ({', '.join(clash)})", cls.__name__)


def _call_like(cls: type[keras.Model]) -> Callable[..., Any]:
    """A `call` with the arguments of `cls.call`, which hands them to the layer of that class in the graph."""
    theirs = inspect.signature(cls.call)
    parameters = list(theirs.parameters.values())
    if "training" not in theirs.parameters:
        last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        parameters.insert(last, inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(self.call).bind(*args, **kwargs).arguments
        inputs, *_ = given.values()
        rest = dict(list(given.items())[1:])
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                rest |= rest.pop(parameter.name, {})
        if "training" in rest and ("training" not in theirs.parameters or rest["training"] is None):
            del rest["training"]

        def with_rest(operation: Any) -> Any:
            if operation is not self._user_layer:
                return operation
            return lambda *args, **kwargs: operation(*args, **{**kwargs, **rest})

        outputs = self._run_through_graph(self._standardize_inputs(inputs), operation_fn=with_rest)
        return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs

    call.__signature__ = theirs.replace(parameters=parameters)
    return call


def _fixed(self: Any, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"the layers of pack {self.name!r} are fixed: add and remove layers before tp.pack(model)")


def _output_spec(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    return Functional.compute_output_spec(self, inputs)


def become(packed: keras.Model, description: Mapping[str, Any], source: keras.Model | None = None) -> None:
    """Gives a fresh pack of a `packed_class` what the user's model has.

    Args:
        packed: The pack.
        description: The user's class and how its model is made again, see `describe`.
        source: The user's model, which stays as it was; None if there is only its description.
    """
    object.__setattr__(packed, "_description", dict(description))
    build_again(packed, description["left_out"])
    if overrides.is_subclassed(packed._user_class):
        inner = next(layer for layer in packed.layers if isinstance(layer, packed._user_class))
        _check_attributes(packed, inner)
        packed._metrics.extend(metric for metric in inner._metrics if metric not in packed._metrics)
        object.__setattr__(packed, "_user_layer", inner)
    else:
        try:
            model = source or _maker(packed._user_class, description["config"], ends(packed))()
        except ValueError:
            if not in_stateless_scope():
                raise
            return  # the pack is only measured, where Keras makes no optimizers
        _check_attributes(packed, model)
        _adopt(packed, model, copying=source is not None)
    for name, value in description["attributes"].items():
        setattr(packed, name, value)


def describe(model: keras.Model) -> dict[str, Any]:
    """What a file needs to know of a user's model besides its graph: class, config and plain attributes."""
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
        except Exception as error:  # whatever the user's code raises; packing needs no config, a file does
            return {**description, "error": first_line(error)}
        if _is_revived_as_graph(cls, config):  # its layers are those of the pack
            config = {name: value for name, value in config.items() if name not in _GRAPH}
        elif _is_revived_as_sequence(cls):
            config = {"name": config["name"]}
        description["config"] = config
        try:
            _maker(cls, config, ends(model))
        except TypeError as error:
            description["error"] = f"{cls.__name__}.__init__() is {error}"
    return description


def description_of(packed: keras.Model) -> dict[str, Any] | None:
    """What `describe` gave, with the attributes as they are now; None for a pack of Keras's own model classes.

    Raises:
        ArgumentError: If the user's model cannot be made again from it.
    """
    if not hasattr(type(packed), "_user_class"):
        return None
    description = packed._description
    if "error" in description:
        expected = f"a model that Keras can make again from its get_config() ({description['error']})"
        raise ArgumentError("model", expected, description["class_name"])
    holder = vars(packed).get("_user_layer", packed)
    return {**description, "attributes": _plain_attributes(holder, vars(packed).get("_names_of_pack", frozenset()))}


def user_class(description: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> type[keras.Model]:
    """The class that a pack's config names.

    Raises:
        ArgumentError: If it is neither registered with Keras nor among the custom objects.
    """
    for name in (description["registered_name"], description["class_name"]):
        found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
        if isinstance(found, type) and issubclass(found, keras.Model):
            return found
    raise ArgumentError(
        "custom_objects",
        f"the class of the packed model, {description['registered_name']!r}: import it, registered with "
        "@keras.saving.register_keras_serializable(), or give custom_objects",
        sorted(custom_objects or {}),
    )


def held_layers(packed: keras.Model) -> dict[str, keras.Layer]:
    """The layers that a functional pack holds besides its graph, such as a teacher's, by a name to save them under."""
    if not hasattr(type(packed), "_user_class") or "_user_layer" in vars(packed):
        return {}
    seen = {id(layer) for layer in graph_layers(packed)}
    found: dict[str, keras.Layer] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, keras.Layer):
            for number, layer in enumerate(graph_layers(value)):
                if id(layer) not in seen:
                    seen.add(id(layer))
                    found[f"self.{name}/{number}"] = layer
        elif isinstance(value, (dict, list, tuple)):
            parts = value.values() if isinstance(value, dict) else value
            for number, part in enumerate(parts):
                collect(f"{name}.{number}", part)

    for name, value in sorted(overrides.attributes(packed).items()):
        if name not in packed._names_of_pack:
            collect(name, value)
    return found


def _is_revived_as_graph(cls: type[keras.Model], config: Mapping[str, Any]) -> bool:
    own = cls.from_config.__func__ is not keras.Model.from_config.__func__
    return not own and all(name in config for name in _GRAPH)


def _is_revived_as_sequence(cls: type[keras.Model]) -> bool:
    return cls.from_config.__func__ is keras.Sequential.from_config.__func__


def _maker(cls: type[keras.Model], config: Mapping[str, Any], graph: tuple[Any, Any]) -> Callable[[], keras.Model]:
    """Makes a model of the user's class, as loading it would: of the layers of `graph`, or with layers of its own.

    Raises:
        TypeError: If the config does not have all that the class asks for.
    """
    of_keras = (keras.Model.from_config.__func__, keras.Sequential.from_config.__func__)
    if cls.from_config.__func__ not in of_keras:
        return lambda: cls.from_config(dict(config))
    signature = inspect.signature(cls.__init__)
    takes_all = any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values())
    of_graph = not _is_revived_as_sequence(cls) and (takes_all or "outputs" in signature.parameters)
    arguments = graph if of_graph else ()
    signature.bind(None, *arguments, **config)
    return lambda: cls(*arguments, **config)


def _plain_attributes(model: keras.Model, others: frozenset[str] = frozenset()) -> dict[str, Any]:
    found = overrides.attributes(model).items()
    return {name: value for name, value in found if name not in others and type(value) in (bool, int, float, str)}


def _adopt(packed: keras.Model, source: keras.Model, copying: bool) -> None:
    """Gives the pack the attributes of a functional or Sequential model, with its own layers in their place."""
    theirs, ours = _inner_layers(source), _inner_layers(packed)
    same = {id(source): packed, **{id(layer): layer for layer in ours}}
    if len(theirs) == len(ours):
        same |= {id(layer): new for layer, new in zip(theirs, ours, strict=True)}
    frozen: list[str] = []

    def taken(name: str, value: Any) -> Any:
        if isinstance(value, keras.Layer):
            if id(value) not in same:
                same[id(value)] = _other_layer(value, same, copying)
                frozen.extend([name] if value.trainable_variables and copying else [])
            return same[id(value)]
        if isinstance(value, dict):
            return {key: taken(name, part) for key, part in value.items()}
        if type(value) is tuple or isinstance(value, list):
            parts = [taken(name, part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, types.MethodType) and value.__self__ is source:
            return types.MethodType(value.__func__, packed)
        if copying and isinstance(value, keras.optimizers.Optimizer):
            return fresh(value)
        if copying and isinstance(value, (keras.metrics.Metric, keras.random.SeedGenerator)):
            return type(value).from_config(value.get_config())
        return value

    vars(packed)["_adopting"] = True
    try:
        for name, value in overrides.attributes(source).items():
            setattr(packed, name, taken(name, value))
    finally:
        del vars(packed)["_adopting"]
    say_frozen(sorted(set(frozen)), type(source).__name__)


def say_frozen(names: list[str], cls: str) -> None:
    """Warns of layers that a model has and does not compute its outputs with: no task trains them."""
    if names:
        warnings.warn(
            f"{', '.join(names)}: layers that {cls} has, but does not compute its outputs with. They are frozen as "
            "they are, for all tasks; `trainable = False` says the same without this warning",
            stacklevel=2,
        )


def _inner_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model's graph, inner ones included; of a Sequential model that was not built, its own."""
    if isinstance(model, keras.Sequential) and not hasattr(model, "_inputs_struct") and not model.built:
        return [inner for layer in model.layers for inner in layer._flatten_layers()]
    return graph_layers(model)[1:]


def _other_layer(layer: keras.Layer, same: Mapping[int, keras.Layer], copying: bool) -> keras.Layer:
    """A layer that is not in the graph, such as a teacher: frozen. A model of the graph's layers is made of ours."""
    inner = layer._flatten_layers(include_self=False)
    if isinstance(layer, Functional) and any(id(each) in same for each in inner):
        return keras.models.clone_model(layer, clone_function=lambda each: same.get(id(each), each))
    if copying:
        new = copied_layer(layer)
        if layer.built and not new.built:
            new.build_from_config(layer.get_build_config())
        for theirs, ours in zip(graph_layers(layer), graph_layers(new), strict=True):
            copy_state(theirs, ours)
        layer = new
    layer.trainable = False
    return layer
