"""Where a layer stands in a model, by a name that is the same in every process, and how another takes its place.

A place is the chain of names from the model to the layer, such as `encoder/blocks_0/attention/query_dense`: in a
functional model the names of its layers, below that the attributes that hold them. Keras's own names for layers without
one differ between processes: it numbers them in the order they are made.
"""

import itertools
import re
from collections.abc import Callable, Container
from typing import Any

import keras

from tf_packnet.layers.weights import unlocked

# Attributes of Keras's own, in which layers lie that are held elsewhere.
_BOOKKEEPING = {"_layers", "_metrics", "_tracker", "_functional", "_operations", "_nodes"}


def by_place(model: keras.Model) -> dict[str, keras.Layer]:
    """Every layer below `model` by its place; one that is held twice stands where it is met first."""
    found: dict[str, keras.Layer] = {}
    seen: set[int] = set()

    def visit(owner: keras.Layer, prefix: str, saved: bool) -> None:
        for name, child in _children(owner, saved):
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


def _children(owner: keras.Layer, saved: bool) -> list[tuple[str, keras.Layer]]:
    """The layers that `owner` holds itself, each with the last part of its place.

    The names of a graph's layers are `saved` with it, unless it is made by the code of a layer that holds it.
    """
    if is_graph(owner):
        layers = enumerate(owner.layers)
        return [(layer.name if saved else _numbered(layer, index), layer) for index, layer in layers]
    held = {id(layer) for layer in owner._layers if not isinstance(layer, keras.metrics.Metric)}
    found: dict[int, tuple[str, keras.Layer]] = {}

    def collect(name: str, value: Any) -> Any:
        if isinstance(value, keras.Layer) and id(value) in held:
            found.setdefault(id(value), (name.strip("_"), value))
        return value

    for attribute, value in _attributes(owner):
        _mapped(attribute, value, collect)
    return [*found.values(), *((layer.name, layer) for layer in owner._layers if id(layer) in held - found.keys())]


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
    held = {id(layer) for layer in before if not isinstance(layer, keras.metrics.Metric)}
    changed: dict[int, keras.Layer] = {}

    def replace(name: str, value: Any) -> Any:
        if not isinstance(value, keras.Layer) or id(value) not in held:
            return value
        if id(value) not in changed:
            changed[id(value)] = change(value)
        return changed[id(value)]

    with unlocked(owner):
        for attribute, value in _attributes(owner):
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


def _attributes(owner: keras.Layer) -> list[tuple[str, Any]]:
    ours = (item for item in vars(owner).items() if item[0] not in _BOOKKEEPING)
    return [(name, value) for name, value in ours if not name.startswith("_self_")]  # TensorFlow's


def _mapped(name: str, value: Any, function: Callable[[str, Any], Any]) -> Any:
    """`value` with `function(name, part)` for each layer in it; `value` itself if nothing changed."""
    if isinstance(value, keras.Layer):
        return function(name, value)
    if isinstance(value, dict):
        new = {key: _mapped(f"{name}_{key}", part, function) for key, part in value.items()}
        return new if any(new[key] is not value[key] for key in new) else value
    if type(value) is tuple or isinstance(value, list):
        new = [_mapped(f"{name}_{index}", part, function) for index, part in enumerate(value)]
        if all(ours is theirs for ours, theirs in zip(new, value, strict=True)):
            return value
        return tuple(new) if isinstance(value, tuple) else new
    return value


def _numbered(layer: keras.Layer, index: int) -> str:
    return re.sub(r"_\d+$", "", layer.name) + f"_{index}"


def _unique(place: str, taken: Container[str]) -> str:
    numbered = (f"{place}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([place], numbered) if each not in taken)
