"""Why a model cannot be packed: every layer that stands in the way, each with its place, its class and the reason."""

import re
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.structure import places

# What is quoted of an error that somebody's code raised.
_QUOTED = 300


class Refusal(NamedTuple):
    """One layer that cannot be packed.

    Attributes:
        place: Where it stands.
        layer: The layer.
        reason: What is wrong with it, in words that follow its class: `with ...`, `that ...`.
    """

    place: str
    layer: keras.Layer
    reason: str

    def __str__(self) -> str:
        return f"Layer {self.place!r} is a {type(self.layer).__name__} {self.reason}"


def refused(refusals: Sequence[Refusal], name: str) -> ArgumentError:
    """One error about all layers of the model `name` that cannot be packed, a line for each if there are several."""
    if len(refusals) == 1:
        return ArgumentError("model", f"layers that can be packed. {refusals[0]}", name)
    lines = "".join(f"\n  {refusal}" for refusal in refusals)
    return ArgumentError("model", f"layers that can be packed. {len(refusals)} cannot:{lines}", name)


def quoted(error: Exception, paragraph: int = -1) -> str:
    """One paragraph of an error that somebody's code raised, on one line."""
    text = re.split(r"\n\s*\n", str(error).strip())[paragraph] or type(error).__name__
    return one_line(re.sub(r"^(Exception|Error) encountered[^:]*: ", "", text), _QUOTED)


def of_layers(model: keras.Model) -> list[Refusal]:
    """The layers that cannot be packed whatever becomes of them: excluded ones, and those inside, are no exception."""
    found = []
    for place, layer in by_place(model).items():
        hiding = places.hides_layers(layer)
        if hiding is not None:
            reasons = [f"with an attribute {hiding!r}, where Keras keeps a list of its own: call it something else"]
        else:
            reasons = [*_quantized(layer), *_lost(layer)]
        found += [Refusal(place, layer, reason) for reason in reasons]
    return found


def by_place(model: keras.Model) -> dict[str, keras.Layer]:
    """Every layer below `model` by its place, operations such as `x + y` left out."""
    return {place: layer for place, layer in places.by_place(model).items() if isinstance(layer, keras.Layer)}


def _quantized(layer: keras.Layer) -> list[str]:
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        return [f"that is quantized ({mode}): pack the model first, then export a task and quantize that"]
    if getattr(layer, "lora_enabled", False):
        return [f"with LoRA enabled (rank {layer.lora_rank}): pack the model without it"]
    return []


def _lost(layer: keras.Layer) -> list[str]:
    out_of_reach, unsaved = (
        [inner for inner in inners if inner.weights] for inners in (places.out_of_reach(layer), places.unsaved(layer))
    )
    if out_of_reach:
        return [f"that holds {_named(out_of_reach)} in no attribute, list, tuple or dict: hold them in one of these"]
    if unsaved:
        return [
            f"that holds {_named(unsaved)} where Keras saves nothing: hold them in an attribute that does not begin "
            "with `__` and has no name of Keras's own, or straight in a list, tuple or dict there"
        ]
    return []


def _named(layers: list[keras.Layer]) -> str:
    return ", ".join(f"{layer.name!r} (a {type(layer).__name__})" for layer in layers)


def owners(model: keras.Model) -> dict[int, tuple[str, keras.Layer]]:
    """Which layer below `model` a variable belongs to, by the variable's `id`; the layer with its place.

    Keras lists a variable with every layer that kept it in an attribute before it was built. It belongs to the one
    whose path it has, or else to the innermost one.
    """
    found: dict[int, tuple[str, keras.Layer]] = {}
    for place, layer in by_place(model).items():  # inner layers follow those that hold them
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            named = _made_by(variable, layer)
            if id(variable) not in found or named or not _made_by(variable, found[id(variable)][1]):
                found[id(variable)] = (place, layer)
    return found


def _made_by(variable: keras.Variable, layer: keras.Layer) -> bool:
    return variable.path.rpartition("/")[0] == layer.path


def borrowed(layer: keras.Layer, belongs: dict[int, tuple[str, keras.Layer]]) -> tuple[list[str], list[str]]:
    """The variables that `layer` keeps and that are not its own: those of other layers, in words, and those of none.

    Args:
        layer: A built layer.
        belongs: What `owners` says.
    """
    listed = layer._trainable_variables + layer._non_trainable_variables
    seeds = {id(generator.state) for generator in layer._seed_generators}
    found = {id(v): v for v in [*listed, *_variables_in(vars(layer))] if id(v) not in seeds}
    of_others = [
        f"{variable.name} of {belongs[key][0]!r}"
        for key, variable in found.items()
        if key in belongs and belongs[key][1] is not layer
    ]
    return of_others, [variable.name for key, variable in found.items() if key not in belongs]


def _variables_in(value: Any) -> Iterator[keras.Variable]:
    if isinstance(value, keras.Variable):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _variables_in(part)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _variables_in(part)


def of_copy(model: keras.Model, copy: keras.Model, replaced: Container[int] = ()) -> list[Refusal]:
    """The layers whose copies are not as they are: made of other layers, with other weights, or not shared alike.

    Args:
        model: A Sequential or functional model.
        copy: The same model made anew.
        replaced: Layers of `model`, by their `id`, that the copy has others for on purpose.
    """
    found: list[Refusal] = []
    where = places.places(model)
    copies: dict[int, keras.Layer] = {}
    originals: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer, other: keras.Layer, place: str, saved: bool) -> None:
        if not isinstance(layer, keras.Layer) or id(layer) in replaced:
            return
        seen = id(layer) in copies
        if copies.setdefault(id(layer), other) is not other or originals.setdefault(id(other), layer) is not layer:
            found.append(Refusal(where[id(layer)], layer, _shared(place, "when the model is made anew")))
        if seen:
            return
        differences = _differences(layer, other, saved)
        if differences is not None:
            found.append(Refusal(place or layer.name, layer, differences))
        else:
            inside(layer, other, f"{place}/" if place else "", saved and places.is_graph(layer))

    def inside(owner: keras.Layer, other: keras.Layer, prefix: str, saved: bool) -> None:
        for (name, child), (_, its) in zip(_children(owner, saved), _children(other, saved), strict=True):
            visit(child, its, prefix + name, saved)

    visit(model, copy, "", True)
    return found


def of_graphs(model: keras.Model) -> list[Refusal]:
    """Layers of several graphs: Keras saves a graph with its layers, and makes each of them anew for each graph."""
    held: dict[int, str] = {}
    found: list[Refusal] = []

    def visit(graph: keras.Model, prefix: str) -> None:
        for name, child in _children(graph, True):
            place = prefix + name
            if not isinstance(child, keras.Layer):
                continue
            if held.setdefault(id(child), place) != place:
                reason = _shared(place, "when Keras loads the model")
                found.append(Refusal(held[id(child)], child, reason))
            elif places.is_graph(child):
                visit(child, f"{place}/")

    visit(model, "")
    return found


def _shared(place: str, when: str) -> str:
    return f"that is used at {place!r} too, and two are made of it {when}: give each place a layer of its own"


def _differences(layer: keras.Layer, copy: keras.Layer, saved: bool) -> str | None:
    if type(copy) is not type(layer) and not places.is_graph(layer):
        return f"whose from_config() makes a {type(copy).__name__}"
    saved = saved and places.is_graph(layer)
    mine, its = ([name for name, _ in _children(each, saved)] for each in (layer, copy))
    if mine != its:
        return f"whose from_config() makes other layers than it has ({_unlike(mine, its)})"
    if layer.built and not copy.built:  # no call reaches it; it is built afterwards
        return None
    mine, its = (
        # Keras numbers variables without a name.
        [
            f"{re.sub(r'_[0-9]+$', '', v.name)} {tuple(v.shape)}"
            for v in each._trainable_variables + each._non_trainable_variables
        ]
        for each in (layer, copy)
    )
    return None if mine == its else f"whose from_config() makes other weights than it has ({_unlike(mine, its)})"


def _children(owner: keras.Layer, saved: bool) -> list[tuple[str, Any]]:
    """As `places.children`, without the inputs of graphs: Keras makes and names them anew for each."""
    found = places.children(owner, saved)
    return [(name, layer) for name, layer in found if not isinstance(layer, keras.layers.InputLayer)]


def _unlike(mine: list[str], its: list[str]) -> str:
    lost, new = ([each for each in one if each not in other] for one, other in ((mine, its), (its, mine)))
    words = [f"{what} {', '.join(names)}" for what, names in (("lacks", lost), ("adds", new)) if names]
    return " and ".join(words) or "in another order"
