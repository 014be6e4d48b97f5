"""Makes layers with weights but without a twin in `TWINS` task-aware: users' layers, class tokens, scales.

`make_task_aware` changes the class of a built layer to a generated subclass. In this class, every attribute that holds
trainable variables, also in lists, tuples and dicts, returns the values of the selected task. The code of the layer is
reused unchanged, and its inner layers stay in place.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from tf_packnet.layers.base import KERAS_DEFAULT, TaskLayer
from tf_packnet.layers.head import Head, fresh_copy
from tf_packnet.layers.weights import replaced
from tf_packnet.pruning.policies import HEAD
from tf_packnet.structure.layer_configs import creatable, remove_build_config
from tf_packnet.structure.layer_paths import attributes
from tf_packnet.system.keras_internals import initializer_of, own_trainable_variables, own_variables, unlocked

# Name in Keras's registry. It is saved with every pack that has such a layer.
_REGISTERED = {"package": "tf_packnet", "name": "GeneratedTwin"}
# Methods that a layer can override to save other data. A task-aware layer saves its variables.
_HOOKS = ("save_own_variables", "load_own_variables", "save_assets", "load_assets")
# Attributes in which Keras lists the variables that other attributes hold.
_VARIABLE_LISTS = {"_trainable_variables", "_non_trainable_variables"}


def named_weights(layer: keras.Layer) -> dict[str, keras.Variable]:
    """Return the layer's own trainable variables by the attributes that hold them, such as `scale` or `gains_0`."""
    own = {id(variable) for variable in own_trainable_variables(layer)}
    weights: dict[str, keras.Variable] = {}
    seen: set[int] = set()
    for _, name, variable in _held_variables(layer):
        if id(variable) in own and id(variable) not in seen:
            seen.add(id(variable))
            weights[name if name not in weights else f"{name}_{len(weights)}"] = variable
    return weights


def unreachable_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Return the layer's own trainable variables that no attribute, list, tuple or dict of the layer holds."""
    held = {id(variable) for _, _, variable in _held_variables(layer)}
    return [variable for variable in own_trainable_variables(layer) if id(variable) not in held]


def reserved_names(layer: keras.Layer, is_head: bool) -> list[str]:
    """Return the names of attributes and methods of a layer that clash with those of `TaskLayer` or `Head`.

    Methods of Keras's layers, such as `enable_lora`, are overridden on purpose.
    """
    of_keras = {name for base in type(layer).__mro__ if base.__module__.startswith("keras.") for name in vars(base)}
    return sorted(_names_of_twins(is_head) & ({*vars(layer)} | set(dir(layer)) - of_keras))


@functools.cache
def _names_of_twins(is_head: bool) -> frozenset[str]:
    plain = keras.layers.Layer
    added = set(dir(_generated_class(plain, (), is_head)(name="twin"))) - set(dir(plain(name="layer")))
    added |= set(vars(Head)["__annotations__"]) - {"activation"} if is_head else set()
    return frozenset(name for name in added if not name.startswith("__"))


def own_saving_hooks(layer: keras.Layer) -> list[str]:
    """Return the methods with which the class of a layer saves more than its variables. Those of Keras do not."""
    hooks = {name: getattr(type(layer), name, None) for name in _HOOKS}
    return [name for name, hook in hooks.items() if hook and not hook.__module__.startswith("keras.")]


def is_pruned_by_default(variable: keras.Variable) -> bool:
    """Return whether a weight is pruned by default: whether it has more than one axis longer than 1."""
    return sum(size > 1 for size in variable.shape) > 1


def make_task_aware(
    layer: keras.Layer, bias_policy: str, pretrained: str | None, prune: Mapping[str, bool], is_head: bool = False
) -> keras.Layer:
    """Make the weights of a built layer belong to tasks, in place.

    Args:
        layer: A built layer. Its own trainable variables are in attributes, or in lists, tuples or dicts in attributes.
        bias_policy: Policy of the weights that are not pruned: `first_task` or `per_task`; or `head` for all weights.
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
        prune: Whether to prune a weight, by its name in the layer. Default: see `is_pruned_by_default`.
        is_head: Whether the layer becomes a `Head`, whose number of outputs may differ between tasks.

    Returns:
        `layer`, which is now a `TaskLayer`.
    """
    weights = named_weights(layer)
    initializers = {name: getattr(layer, f"{name}_initializer", KERAS_DEFAULT) for name in weights}
    if bias_policy == HEAD:
        copy = fresh_copy(type(layer), creatable(type(layer), layer.get_config()), layer.get_build_config())
        initializers |= {name: initializer_of(variable) for name, variable in named_weights(copy).items()}
    ids = {id(variable) for variable in weights.values()}
    routed = {attribute for attribute, _, variable in _held_variables(layer) if id(variable) in ids}
    cls = _generated_class(type(layer), tuple(sorted(routed)), is_head)  # type: ignore[arg-type]  # no hash for mypy
    layer.__class__ = cls
    layer.set_up_tasks(bias_policy, pretrained, prune)
    with unlocked(layer):
        routes = {
            name: layer._new_route(name, variable, initializers[name], is_pruned_by_default(variable))
            for name, variable in weights.items()
        }
    layer._set_routes(routes)
    if is_head:
        layer.set_up_head({attribute: vars(layer)[attribute] for attribute in layer.routed})
    return layer


class GeneratedTwin(TaskLayer):
    """Mixin of the generated classes. Files contain the layer without it: loading a pack makes it task-aware again."""

    plain_class: type[keras.Layer]
    routed: tuple[str, ...]  # the attributes that hold trainable variables

    def get_config(self) -> dict[str, Any]:
        serialized = _as_plain(self, keras.saving.serialize_keras_object)
        serialized["config"] = creatable(self.plain_class, serialized["config"])
        remove_build_config(self, serialized)
        return {"layer": serialized}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.Layer:
        return keras.saving.deserialize_keras_object(config["layer"])


class GeneratedHead(Head, GeneratedTwin):
    """Mixin of the generated classes of heads."""

    def plain_config(self) -> dict[str, Any]:
        return creatable(self.plain_class, _as_plain(self, lambda layer: layer.get_config()))

    def plain_weights(self, plain: keras.Layer) -> dict[str, keras.Variable]:
        return named_weights(plain)

    def get_config(self) -> dict[str, Any]:
        plain = fresh_copy(self.plain_class, self.last_config(), None)
        return {"layer": keras.saving.serialize_keras_object(plain)}


class _Routes:
    """Descriptor of an attribute that replaces the variables in it by the values of the selected task."""

    def __init__(self, attribute: str):
        self.attribute = attribute

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        try:
            held = vars(layer)[self.attribute]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {self.attribute!r}") from None
        values = {id(weight.variable): weight.value for weight in layer._routes.values()}
        return replaced(held, lambda v: values[id(v)]() if id(v) in values else v)

    def __set__(self, layer: Any, value: Any) -> None:
        vars(layer)[self.attribute] = value


@functools.cache
def _generated_class(plain: type[keras.Layer], attributes: tuple[str, ...], is_head: bool) -> type[Any]:
    """Return the task-aware subclass of `plain` that routes the given attributes."""
    members: dict[str, Any] = {attribute: _Routes(attribute) for attribute in attributes}
    members |= {"plain_class": plain, "routed": attributes, "__module__": __name__}
    cls = type(f"Task{plain.__name__}", (GeneratedHead if is_head else GeneratedTwin, plain), members)
    return keras.saving.register_keras_serializable(**_REGISTERED)(cls)


def plain_class(layer: keras.Layer) -> type[keras.Layer]:
    """Return the class of a layer, without what `make_task_aware` has added."""
    return layer.plain_class if isinstance(layer, GeneratedTwin) else type(layer)


@contextlib.contextmanager
def without_reads(layer: GeneratedTwin) -> Iterator[None]:
    """Let the layer compute with zeros inside the block instead of reading its weights."""
    routes = layer._routes
    zeros: Any = {name: _Zeros(weight.variable) for name, weight in routes.items()}
    layer._set_routes(zeros)
    try:
        yield
    finally:
        layer._set_routes(routes)


class _Zeros:
    """Stands in for a weight; its value is 0."""

    regularizer = None

    def __init__(self, variable: keras.Variable):
        self.variable = variable

    def value(self) -> Any:
        return keras.ops.zeros(self.variable.shape, self.variable.dtype)


def plain_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Return the layer's own variables without those that `make_task_aware` has added, in their original order."""
    if not isinstance(layer, GeneratedTwin):
        return own_variables(layer)
    return own_trainable_variables(layer) + layer.variables_of_no_task


def _as_plain(layer: Any, function: Callable[[keras.Layer], Any]) -> Any:
    """Return `function(layer)`, called while the layer has its plain class."""
    generated, layer.__class__ = type(layer), layer.plain_class
    try:
        return function(layer)
    finally:
        layer.__class__ = generated


def _held_variables(layer: keras.Layer) -> Iterator[tuple[str, str, keras.Variable]]:
    """Yield attribute, name and variable for every variable in the attributes of a layer."""
    for attribute, value in attributes(layer):
        if attribute not in _VARIABLE_LISTS:
            for name, variable in _variables_in(attribute.strip("_"), value):
                yield attribute, name, variable


def _variables_in(name: str, value: Any) -> Iterator[tuple[str, keras.Variable]]:
    if isinstance(value, keras.Variable):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _variables_in(f"{name}_{key}", part)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _variables_in(f"{name}_{index}", part)


keras.saving.register_keras_serializable(**_REGISTERED)(GeneratedTwin)
