"""Where a layer stands in a model, by a name that is the same in every process, and how another takes its place.

A place is the chain of names from the model to the layer, such as `encoder/blocks_0/attention/query_dense`: in a
functional model the names of its layers, below that the attributes that hold them. Keras's own names for layers without
one differ between processes: it numbers them in the order they are made.
"""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Container, Iterable
from typing import Any

import keras

from tf_packnet.system.keras_internals import unlocked

# Attributes of Keras's own, in which layers lie that are held elsewhere.
_OF_LAYERS = {"_layers", "_metrics", "_tracker"}
_KEEPING_GRAPHS = (keras.Sequential, keras.Function)
_OF_MODELS = {"_functional", "_operations", "_operations_by_depth", "_nodes", "_nodes_by_depth"}
# TensorFlow's own, in every object that it tracks.
_OF_TENSORFLOW = {
    "_self_setattr_tracking",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies",
    "_self_update_uid",
    "_self_name_based_restores",
    "_self_saveable_object_factories",
}
# Whether Keras saves layers in lists of lists; 3.12 does not.
_SAVES_NESTED = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)


def by_place(model: keras.Model) -> dict[str, keras.Layer]:
    """Every layer below `model` by its place; one that is held twice stands where it is met first."""
    found: dict[str, keras.Layer] = {}
    seen: set[int] = set()

    def visit(owner: keras.Layer, prefix: str, saved: bool) -> None:
        for name, child in children(owner, saved):
            if id(child) in seen:
                continue
            seen.add(id(child))
            place = _unique(prefix + name, found)
            found[place] = child
            visit(child, f"{place}/", saved and is_graph(child))

    visit(model, "", is_graph(model))
    return found


def places(model: keras.Model) -> dict[int, str]:
    """The place of every layer below `model`, by the layer's `id`."""
    return {id(layer): place for place, layer in by_place(model).items()}


def stable_names(paths: Iterable[str]) -> list[str]:
    """For each of `paths`, in the order of the layers, a name that does not depend on how Keras numbered the layers.

    A model that is built twice in one process has `dense` and `dense_1` the first time, `dense_2` and `dense_3` the
    second time; both are `dense` and `dense:1` here.
    """
    found: list[str] = []
    count: dict[str, int] = {}
    for path in paths:
        plain = re.sub(r"_\d+(?=/|$)", "", path)
        number = count.get(plain, 0)
        count[plain] = number + 1
        found.append(f"{plain}:{number}" if number else plain)
    return found


def children(owner: keras.Layer, saved: bool) -> list[tuple[str, keras.Layer]]:
    """The layers that `owner` holds itself, each with the last part of its place.

    The names of a graph's layers are `saved` with it, unless it is made by the code of a layer that holds it.
    """
    if is_graph(owner):
        layers = enumerate(owner.layers)
        return [(layer.name if saved else _numbered(layer, index), layer) for index, layer in layers]
    found = _in_attributes(owner)
    return [*found.values(), *((layer.name, layer) for layer in _held(owner) if id(layer) not in found)]


def out_of_reach(owner: keras.Layer) -> list[keras.Layer]:
    """The layers of `owner` that no attribute, list, tuple or dict holds: no other can take their place."""
    if is_graph(owner):
        return []
    found = _in_attributes(owner)
    return [layer for layer in _held(owner) if id(layer) not in found]


def unsaved(owner: keras.Layer) -> list[keras.Layer]:
    """The layers of `owner` that a Keras file of it would not have: Keras looks into attributes, but not everywhere."""
    if is_graph(owner):
        return []
    passed_over = _names_of_any_layer()
    found: set[int] = set()

    def look_into(parts: Any, deeper: bool) -> None:
        for part in parts.values() if isinstance(parts, dict) else parts:
            found.add(id(part))
            if deeper and isinstance(part, (list, dict, tuple)):
                look_into(part, deeper)

    for attribute in dir(owner):
        if attribute.startswith("__") or attribute in passed_over:
            continue
        try:
            value = getattr(owner, attribute)
        except Exception:  # noqa: S112 (as Keras does)
            continue
        look_into(value if isinstance(value, (list, dict, tuple, set)) else [value], _SAVES_NESTED)
    return [layer for layer in _held(owner) if id(layer) not in found]


@functools.cache
def _names_of_any_layer() -> frozenset[str]:
    return frozenset(dir(keras.layers.Layer(name="layer"))) | _OF_TENSORFLOW


def hides_layers(owner: keras.Layer) -> str | None:
    """The attribute of `owner` that hides a list of Keras's own, of its layers or metrics; None if there is none."""
    lists = owner._tracker.config
    for attribute, name in (("_layers", "layers"), ("_metrics", "metrics")):
        if getattr(owner, attribute) is not lists[name][1] and not isinstance(owner, _KEEPING_GRAPHS):
            return attribute
    return None


def _held(owner: keras.Layer) -> list[keras.Layer]:
    return [layer for layer in owner._layers if not isinstance(layer, keras.metrics.Metric)]


def _in_attributes(owner: keras.Layer) -> dict[int, tuple[str, keras.Layer]]:
    """The layers that attributes of `owner` hold, by their `id`, each with the last part of its place."""
    held = {id(layer) for layer in _held(owner)}
    found: dict[int, tuple[str, keras.Layer]] = {}
    for attribute, value in sorted(attributes(owner), key=lambda item: _was_passed_over(item[0])):

        def collect(name: str, layer: keras.Layer, own_name: bool = _was_passed_over(attribute)) -> keras.Layer:
            if id(layer) in held:
                own = own_name and not _is_numbered(layer)
                found.setdefault(id(layer), (layer.name if own else name.strip("_"), layer))
            return layer

        _mapped(attribute, value, collect)
    return found


def _was_passed_over(attribute: str) -> bool:
    """Whether earlier versions did not look into it: layers in it come last, and keep the names they were given."""
    return attribute.startswith("_self_") or attribute in _OF_MODELS


def _is_numbered(layer: keras.Layer) -> bool:
    """Whether Keras has named the layer, by its class and a number that differs between processes."""
    kind = re.sub(r"\W+", "", type(layer).__name__)
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
    return re.fullmatch(rf"{re.escape(kind)}(_\d+)?", layer.name) is not None


def is_graph(layer: keras.Layer) -> bool:
    """Whether Keras itself knows how the layers of this model are joined: a built Sequential, or functional."""
    of_keras = isinstance(layer, keras.Model) and type(layer).call.__module__.startswith(("keras.", "tf_packnet."))
    return of_keras and (hasattr(layer, "_inputs_struct") or (isinstance(layer, keras.Sequential) and layer.built))


def swap_children(owner: keras.Layer, change: Callable[[keras.Layer], keras.Layer]) -> None:
    """Puts `change(child)` in the place of every layer that `owner` holds in attributes, lists, tuples and dicts.

    Raises:
        LookupError: If a layer that would change is held in no such place; its argument is the layer.
    """
    before = list(owner._layers)
    held = {id(layer) for layer in _held(owner)}
    changed: dict[int, keras.Layer] = {}

    def replace(name: str, value: Any) -> Any:
        if not isinstance(value, keras.Layer) or id(value) not in held:
            return value
        if id(value) not in changed:
            changed[id(value)] = change(value)
        return changed[id(value)]

    with unlocked(owner):
        for attribute, value in attributes(owner):
            new = _mapped(attribute, value, replace)
            if new is not value:
                setattr(owner, attribute, new)
        for layer in before:
            if id(layer) in held - changed.keys() and change(layer) is not layer:
                raise LookupError(layer)
            if changed.get(id(layer), layer) is not layer:
                owner._tracker.untrack(layer)
        # In the order there was: weights are copied and listed by it.
        owner._layers[:] = [changed.get(id(layer), layer) for layer in before]


def attributes(owner: keras.Layer) -> list[tuple[str, Any]]:
    """The attributes of a layer that are its own, not Keras's or TensorFlow's bookkeeping."""
    passed_over = _OF_LAYERS | _OF_TENSORFLOW | (_OF_MODELS if isinstance(owner, _KEEPING_GRAPHS) else set())
    return [(name, value) for name, value in vars(owner).items() if name not in passed_over]


def _mapped(name: str, value: Any, function: Callable[[str, Any], Any]) -> Any:
    """`value` with `function(name, part)` for each layer in it; `value` itself if nothing changed."""
    if isinstance(value, keras.Layer):
        return function(name, value)
    if isinstance(value, dict):
        new = {
            key: _mapped(f"{name}_{_of_key(key, index)}", part, function)
            for index, (key, part) in enumerate(value.items())
        }
        if all(new[key] is value[key] for key in new):
            return value
        return collections.OrderedDict(new) if isinstance(value, collections.OrderedDict) else new
    if isinstance(value, (tuple, list)):
        new = [_mapped(f"{name}_{index}", part, function) for index, part in enumerate(value)]
        if all(ours is theirs for ours, theirs in zip(new, value, strict=True)):
            return value
        if hasattr(value, "_fields"):  # a namedtuple, in a wrapper of TensorFlow's
            return value._make(new)
        return tuple(new) if isinstance(value, tuple) else new
    return value


def _of_key(key: Any, index: int) -> Any:
    """What stands for a key of a dict in a place: itself, or its number if it prints otherwise in every process."""
    return index if type(key).__str__ is object.__str__ and type(key).__repr__ is object.__repr__ else key


def _numbered(layer: keras.Layer, index: int) -> str:
    return re.sub(r"_\d+$", "", layer.name) + f"_{index}"


def _unique(place: str, taken: Container[str]) -> str:
    numbered = (f"{place}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([place], numbered) if each not in taken)
