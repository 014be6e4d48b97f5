"""Computes paths of the layers in a model, which are equal in every process; replaces layers inside other layers.

The path of a layer is the chain of names from the model to the layer, such as `encoder/blocks_0/attention/query_dense`.
In a functional model, these are the names of its layers; inside a layer, the names of the attributes that hold its
layers. Keras's `layer.path` is not used: Keras numbers unnamed layers in the order of creation, which differs between
processes.
"""

import collections
import difflib
import functools
import itertools
import re
from collections.abc import Callable, Container, Iterable
from typing import Any

import keras

from tf_packnet.errors import ArgumentError, listed
from tf_packnet.system.keras_internals import all_layers, has_graph, keras_lists, sublayers, unlocked, untrack

# Attributes in which Keras keeps references to layers that other attributes hold.
_LAYER_ATTRIBUTES = {"_layers", "_metrics", "_tracker"}
_GRAPH_CLASSES = (keras.Sequential, keras.Function)
_GRAPH_ATTRIBUTES = {"_functional", "_operations", "_operations_by_depth", "_nodes", "_nodes_by_depth"}
# Attributes that TensorFlow adds to every object that it tracks.
_TENSORFLOW_ATTRIBUTES = {
    "_self_setattr_tracking",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies",
    "_self_update_uid",
    "_self_name_based_restores",
    "_self_saveable_object_factories",
}
# Whether Keras saves layers in lists of lists: 3.15 does, 3.12 does not.
_SAVES_NESTED = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)


def layers_by_path(model: keras.Model) -> dict[str, keras.Layer]:
    """Return every layer inside `model` by its path. A shared layer has the path at which it is found first."""
    layers: dict[str, keras.Layer] = {}
    seen: set[int] = set()

    def visit(owner: keras.Layer, prefix: str, saved: bool) -> None:
        for name, child in children(owner, saved):
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = _unique(prefix + name, layers)
            layers[path] = child
            visit(child, f"{path}/", saved and is_graph(child))

    visit(model, "", is_graph(model))
    return layers


def paths_by_id(model: keras.Model) -> dict[int, str]:
    """Return the path of every layer inside `model`, by the layer's `id`."""
    return {id(layer): path for path, layer in layers_by_path(model).items()}


def resolved_paths(argument: str, names: Iterable[str], model: keras.Model) -> list[str]:
    """Return the paths of the layers with these names, which are paths, last parts of paths, or Keras names.

    Args:
        argument: Name of the caller's argument, for error messages.
        names: The names.
        model: The model with these layers.

    Raises:
        ArgumentError: If `names` is a string, or a name belongs to no layer or to several.
    """
    if isinstance(names, str):
        raise ArgumentError(argument, f"a list of names, such as [{names!r}]", names)
    keras_names = {path: layer.name for path, layer in layers_by_path(model).items()}
    resolved: list[str] = []
    for name in names:
        if name in keras_names:
            matches = [name]
        else:
            matches = [p for p, keras_name in keras_names.items() if name in (p.rpartition("/")[2], keras_name)]
        if len(matches) != 1:
            near = matches or difflib.get_close_matches(str(name), keras_names, n=len(keras_names), cutoff=0)
            expected = "names of layers of the model, among " + listed(map(repr, near), 20)
            raise ArgumentError(argument, expected, name)
        resolved += matches
    return resolved


def stable_names(paths: Iterable[str]) -> list[str]:
    """Return a name for each of `paths`, in the order of the layers, without the numbers of Keras's layer names.

    If a model is built twice in one process, its layers are called `dense` and `dense_1` the first time, `dense_2` and
    `dense_3` the second time. The stable names are `dense` and `dense:1` both times.
    """
    names: list[str] = []
    count: dict[str, int] = {}
    for path in paths:
        plain = re.sub(r"_\d+(?=/|$)", "", path)
        number = count.get(plain, 0)
        count[plain] = number + 1
        names.append(f"{plain}:{number}" if number else plain)
    return names


def children(owner: keras.Layer, saved: bool) -> list[tuple[str, keras.Layer]]:
    """Return the layers directly inside `owner`, each with the last part of its path.

    Args:
        owner: A layer or model.
        saved: Whether `owner` is a graph whose layer names are saved. False if the code of another layer creates it:
            its layers then get an index instead of Keras's number.
    """
    if is_graph(owner):
        layers = enumerate(owner.layers)
        return [(layer.name if saved else _numbered(layer, index), layer) for index, layer in layers]
    in_attributes = _in_attributes(owner)
    others = [(layer.name, layer) for layer in unreachable_layers(owner)]
    return [*in_attributes.values(), *others]


def unreachable_layers(owner: keras.Layer) -> list[keras.Layer]:
    """Return the layers inside `owner` that cannot be replaced: no attribute, list, tuple or dict holds them."""
    if is_graph(owner):
        return []
    reachable = _in_attributes(owner).keys() | _inside_held(owner)
    return [layer for layer in _tracked_layers(owner) if id(layer) not in reachable]


def unsaved_layers(owner: keras.Layer) -> list[keras.Layer]:
    """Return the layers inside `owner` that Keras does not save, because it does not search all attributes."""
    if is_graph(owner):
        return []
    ignored = _names_of_any_layer()
    saved: set[int] = set()

    def search(parts: Any, nested: bool) -> None:
        for part in parts.values() if isinstance(parts, dict) else parts:
            saved.add(id(part))
            if nested and isinstance(part, (list, dict, tuple)):
                search(part, nested)

    for attribute in dir(owner):
        if attribute.startswith("__") or attribute in ignored:
            continue
        try:
            value = getattr(owner, attribute)
        except Exception:  # Keras ignores all errors too
            continue
        search(value if isinstance(value, (list, dict, tuple, set)) else [value], _SAVES_NESTED)
    saved |= _inside_held(owner)
    return [layer for layer in _tracked_layers(owner) if id(layer) not in saved]


@functools.cache
def _names_of_any_layer() -> frozenset[str]:
    return frozenset(dir(keras.layers.Layer(name="layer"))) | _TENSORFLOW_ATTRIBUTES


def overwritten_keras_list(owner: keras.Layer) -> str | None:
    """Return the attribute of `owner` that replaces Keras's own list of its layers or metrics; None if none does."""
    for attribute, keras_list in keras_lists(owner).items():
        if getattr(owner, attribute) is not keras_list and not isinstance(owner, _GRAPH_CLASSES):
            return attribute
    return None


def _tracked_layers(owner: keras.Layer) -> list[keras.Layer]:
    """Return the layers directly inside `owner`, without metrics."""
    return [layer for layer in sublayers(owner) if not isinstance(layer, keras.metrics.Metric)]


def _in_attributes(owner: keras.Layer) -> dict[int, tuple[str, keras.Layer]]:
    """Return the layers in attributes of `owner`, by their `id`, each with the last part of its path."""
    tracked = {id(layer) for layer in _tracked_layers(owner)}
    names: dict[int, tuple[str, keras.Layer]] = {}
    for attribute, value in sorted(attributes(owner), key=lambda item: _has_late_support(item[0])):

        def collect(name: str, layer: keras.Layer, is_late: bool = _has_late_support(attribute)) -> keras.Layer:
            if id(layer) in tracked:
                use_layer_name = is_late and not _is_named_by_keras(layer)
                names.setdefault(id(layer), (layer.name if use_layer_name else name.strip("_"), layer))
            return layer

        _mapped(attribute, value, collect)
    return names


def _inside_held(owner: keras.Layer) -> set[int]:
    """Return the `id` of every layer inside the layers that attributes of `owner` hold.

    `owner` itself may track some of them too: layers of a list that was passed to a Sequential, which replaced it.
    """
    held = [layer for _, layer in _in_attributes(owner).values()]
    return {id(inner) for layer in held for inner in all_layers(layer, include_self=False)}


def _has_late_support(attribute: str) -> bool:
    """Return whether early versions of this library ignored an attribute.

    For compatibility with their files, layers in it come last and keep their own names.
    """
    return attribute.startswith("_self_") or attribute in _GRAPH_ATTRIBUTES


def _is_named_by_keras(layer: keras.Layer) -> bool:
    """Return whether the layer has a default name: its class in snake case, and a number."""
    kind = re.sub(r"\W+", "", type(layer).__name__)
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
    return re.fullmatch(rf"{re.escape(kind)}(_\d+)?", layer.name) is not None


def is_graph(layer: keras.Layer) -> bool:
    """Return whether `layer` is a model that Keras stores as a graph of layers: functional, or a built Sequential."""
    has_keras_call = isinstance(layer, keras.Model) and type(layer).call.__module__.startswith(
        ("keras.", "tf_packnet.")
    )
    return has_keras_call and (has_graph(layer) or (isinstance(layer, keras.Sequential) and layer.built))


def replace_children(owner: keras.Layer, change: Callable[[keras.Layer], keras.Layer]) -> None:
    """Replace every layer that `owner` holds in attributes, lists, tuples and dicts by `change(layer)`.

    Raises:
        LookupError: If a layer to replace is held elsewhere; the argument of the error is the layer.
    """
    before = list(sublayers(owner))
    tracked = {id(layer) for layer in _tracked_layers(owner)}
    inside_held = _inside_held(owner)
    changed: dict[int, keras.Layer] = {}

    def replace(name: str, value: Any) -> Any:
        if not isinstance(value, keras.Layer) or id(value) not in tracked:
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
            if id(layer) in (tracked & inside_held) - changed.keys():
                changed[id(layer)] = change(layer)
            if id(layer) in tracked - changed.keys() and change(layer) is not layer:
                raise LookupError(layer)
            if changed.get(id(layer), layer) is not layer:
                untrack(owner, layer)
        # Restores the order, by which weights are copied and listed.
        sublayers(owner)[:] = [changed.get(id(layer), layer) for layer in before]


def attributes(owner: keras.Layer) -> list[tuple[str, Any]]:
    """Return the attributes of a layer except those in which Keras and TensorFlow track its parts."""
    ignored = _LAYER_ATTRIBUTES | _TENSORFLOW_ATTRIBUTES
    if isinstance(owner, _GRAPH_CLASSES):
        ignored |= _GRAPH_ATTRIBUTES
    return [(name, value) for name, value in vars(owner).items() if name not in ignored]


def _mapped(name: str, value: Any, function: Callable[[str, Any], Any]) -> Any:
    """Return `value` with every layer in it replaced by `function(name, layer)`; `value` itself if nothing changed."""
    if isinstance(value, keras.Layer):
        return function(name, value)
    if isinstance(value, dict):
        new = {
            key: _mapped(f"{name}_{_key_in_path(key, index)}", part, function)
            for index, (key, part) in enumerate(value.items())
        }
        if all(new[key] is value[key] for key in new):
            return value
        return collections.OrderedDict(new) if isinstance(value, collections.OrderedDict) else new
    if isinstance(value, (tuple, list)):
        parts = [_mapped(f"{name}_{index}", part, function) for index, part in enumerate(value)]
        if all(ours is theirs for ours, theirs in zip(parts, value, strict=True)):
            return value
        if hasattr(value, "_make"):  # a namedtuple, perhaps in a wrapper of TensorFlow
            return value._make(parts)
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _key_in_path(key: Any, index: int) -> Any:
    """Return the form of a dict key in a path: the key, or its index if `str(key)` differs between processes."""
    kind: Any = type(key)  # mypy would look up the methods of `type`
    return index if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__ else key


def _numbered(layer: keras.Layer, index: int) -> str:
    """Return the name of a layer with `index` instead of Keras's number."""
    return re.sub(r"_\d+$", "", layer.name) + f"_{index}"


def _unique(path: str, taken: Container[str]) -> str:
    numbered = (f"{path}_{number}" for number in itertools.count(1))
    return next(candidate for candidate in itertools.chain([path], numbered) if candidate not in taken)
