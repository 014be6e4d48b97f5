"""Checks the layers of a model before packing. A `Refusal` is a layer that cannot be packed, with the reason."""

import re
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.structure import layer_paths
from tf_packnet.structure.generated import plain_class
from tf_packnet.system.keras_internals import own_variables, seed_generators

# Limit on the characters that are quoted from an error in a user's code.
_MOST_QUOTED = 300
# Paragraphs that Keras puts before the message of an error in the `call` of a layer.
_CALLING = re.compile(
    r"Exception encountered when calling .*\.|Could not automatically infer .* Error encountered:", re.S
)
_COLOR = re.compile(r"\x1b\[\d*m")


class Refusal(NamedTuple):
    """One layer that cannot be packed.

    Attributes:
        path: Path of the layer.
        layer: The layer.
        reason: A phrase that follows the class name in the message: `with ...`, `that ...`, `whose ...`.
    """

    path: str
    layer: keras.Layer
    reason: str

    def __str__(self) -> str:
        return f"Layer {self.path!r} is a {plain_class(self.layer).__name__} {self.reason}"


def refused(refusals: Sequence[Refusal], name: str) -> ArgumentError:
    """Return one error about all layers of model `name` that cannot be packed, with one line per layer."""
    if len(refusals) == 1:
        return ArgumentError("model", f"layers that can be packed. {refusals[0]}", name)
    lines = "".join(f"\n  {refusal}" for refusal in refusals)
    return ArgumentError("model", f"layers that can be packed. {len(refusals)} cannot:{lines}", name)


def quoted(error: Exception, paragraph: int = -1) -> str:
    """Return one paragraph of an error in a user's code, on one line."""
    paragraphs = [
        each for each in re.split(r"\n\s*\n", _COLOR.sub("", str(error)).strip()) if not _CALLING.fullmatch(each)
    ]
    text = (paragraphs[paragraph] if paragraphs else "") or type(error).__name__
    return one_line(re.sub(r"^(Exception|Error) encountered[^:]*: ", "", text), _MOST_QUOTED)


def unsupported_layers(model: keras.Model) -> list[Refusal]:
    """Return the layers that cannot be in a pack at all, not even as excluded layers."""
    refusals = []
    for path, layer in layers_by_path(model).items():
        overwritten = layer_paths.overwritten_keras_list(layer)
        if overwritten is not None:
            reasons = [f"with an attribute {overwritten!r}, which Keras uses for its own list: rename it"]
        else:
            reasons = [*_quantized(layer), *_lost(layer)]
        refusals += [Refusal(path, layer, reason) for reason in reasons]
    return refusals


def layers_by_path(model: keras.Model) -> dict[str, keras.Layer]:
    """Return every layer inside `model` by its path, without operations such as `x + y`."""
    return {path: layer for path, layer in layer_paths.layers_by_path(model).items() if isinstance(layer, keras.Layer)}


def _quantized(layer: keras.Layer) -> list[str]:
    """Return why a quantized layer, or one with LoRA, cannot be packed."""
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        return [f"that is quantized ({mode}): pack the model first, then quantize the model of an exported task"]
    if getattr(layer, "lora_enabled", False):
        return [f"with LoRA enabled (rank {layer.lora_rank}): disable LoRA before packing"]
    return []


def _lost(layer: keras.Layer) -> list[str]:
    """Return why a layer cannot be packed if it holds layers that cannot be replaced or are not saved."""
    unreachable = [inner for inner in layer_paths.unreachable_layers(layer) if inner.weights]
    if unreachable:
        names = _named(unreachable)
        return [f"that holds {names} outside its attributes, lists, tuples and dicts: hold them in one of these"]
    unsaved = [inner for inner in layer_paths.unsaved_layers(layer) if inner.weights]
    if unsaved:
        return [
            f"that holds {_named(unsaved)} in an attribute that Keras does not save: use an attribute that neither "
            "begins with `__` nor has the name of one of Keras's, or a list, tuple or dict in such an attribute"
        ]
    return []


def _named(layers: list[keras.Layer]) -> str:
    return ", ".join(f"{layer.name!r} (a {type(layer).__name__})" for layer in layers)


def variable_owners(model: keras.Model) -> dict[int, tuple[str, keras.Layer]]:
    """Return the layer inside `model` that each variable belongs to, with its path, by the variable's `id`.

    Keras tracks a variable in every layer that stored it in an attribute before that layer was built. The variable
    belongs to the layer with whose `path` its own path begins, or else to the innermost one.
    """
    owners: dict[int, tuple[str, keras.Layer]] = {}
    for path, layer in layers_by_path(model).items():  # inner layers follow the layers that hold them
        for variable in own_variables(layer):
            created_here = _created_by(layer, variable)
            if id(variable) not in owners or created_here or not _created_by(owners[id(variable)][1], variable):
                owners[id(variable)] = (path, layer)
    return owners


def _created_by(layer: keras.Layer, variable: keras.Variable) -> bool:
    return variable.path.rpartition("/")[0] == layer.path


def foreign_variables(layer: keras.Layer, owners: dict[int, tuple[str, keras.Layer]]) -> tuple[list[str], list[str]]:
    """Return the variables in attributes of `layer` that belong to other layers, and those that belong to no layer.

    Args:
        layer: A built layer.
        owners: Result of `variable_owners`.

    Returns:
        Descriptions of the variables of other layers, and names of the variables that no layer tracks.
    """
    seeds = {id(generator.state) for generator in seed_generators(layer)}
    variables = {id(v): v for v in [*own_variables(layer), *_variables_in(vars(layer))] if id(v) not in seeds}
    of_others = [
        f"{variable.name} of {owners[key][0]!r}"
        for key, variable in variables.items()
        if key in owners and owners[key][1] is not layer
    ]
    return of_others, [variable.name for key, variable in variables.items() if key not in owners]


def _variables_in(value: Any) -> Iterator[keras.Variable]:
    if isinstance(value, keras.Variable):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _variables_in(part)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _variables_in(part)


def unequal_copies(model: keras.Model, copy: keras.Model, replaced: Container[int] = ()) -> list[Refusal]:
    """Return the layers that differ from their copies in inner layers, in weights, or in how they are shared.

    Args:
        model: A Sequential or functional model.
        copy: A copy of it, created from the configs of the layers.
        replaced: `id`s of layers of `model` that the copy replaces on purpose.
    """
    return unequal_layers(model, [("", model, copy)], replaced)


def unequal_layers(
    model: keras.Model, copied: Sequence[tuple[str, keras.Layer, keras.Layer]], replaced: Container[int] = ()
) -> list[Refusal]:
    """Return the layers of `model` that differ from their copies, see `unequal_copies`.

    Args:
        model: A Sequential or functional model.
        copied: Path, layer and copy of the copied layers of `model`.
        replaced: As for `unequal_copies`.
    """
    refusals: list[Refusal] = []
    path_of = layer_paths.paths_by_id(model)
    copies: dict[int, keras.Layer] = {}
    originals: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer, other: keras.Layer, path: str, saved: bool) -> None:
        if not isinstance(layer, keras.Layer) or id(layer) in replaced:
            return
        seen = id(layer) in copies
        if copies.setdefault(id(layer), other) is not other or originals.setdefault(id(other), layer) is not layer:
            refusals.append(Refusal(path_of[id(layer)], layer, _shared(path, "the model is copied")))
        if seen:
            return
        difference = _difference(layer, other, saved)
        if difference is not None:
            refusals.append(Refusal(path or layer.name, layer, difference))
        else:
            visit_children(layer, other, f"{path}/" if path else "", saved and layer_paths.is_graph(layer))

    def visit_children(owner: keras.Layer, other: keras.Layer, prefix: str, saved: bool) -> None:
        children, copied_children = _children(owner, saved), _children(other, saved)
        for (name, child), (_, copied_child) in zip(children, copied_children, strict=True):
            visit(child, copied_child, prefix + name, saved)

    for path, layer, copy in copied:
        visit(layer, copy, path, True)
    return refusals


def layers_in_several_graphs(model: keras.Model) -> list[Refusal]:
    """Return the layers that several graphs share. Keras saves and loads each graph with its own layers."""
    first_path: dict[int, str] = {}
    refusals: list[Refusal] = []

    def visit(graph: keras.Model, prefix: str) -> None:
        for name, child in _children(graph, True):
            path = prefix + name
            if not isinstance(child, keras.Layer):
                continue
            if first_path.setdefault(id(child), path) != path:
                reason = _shared(path, "Keras loads the model")
                refusals.append(Refusal(first_path[id(child)], child, reason))
            elif layer_paths.is_graph(child):
                visit(child, f"{path}/")

    visit(model, "")
    return refusals


def _shared(path: str, when: str) -> str:
    return f"that is also used at {path!r}, and becomes two layers when {when}: use a separate layer at each place"


def _difference(layer: keras.Layer, copy: keras.Layer, saved: bool) -> str | None:
    """Return how `copy` differs from `layer`, as the reason of a `Refusal`; None if it does not."""
    if type(copy) is not type(layer) and not layer_paths.is_graph(layer):
        return f"whose from_config() creates a {type(copy).__name__}"
    saved = saved and layer_paths.is_graph(layer)
    expected, received = ([name for name, _ in _children(each, saved)] for each in (layer, copy))
    if expected != received:
        return f"whose from_config() creates different inner layers ({_listed_difference(expected, received)})"
    if layer.built and not copy.built:  # no call reaches this layer; it is built later
        return None
    expected, received = _described_weights(layer), _described_weights(copy)
    if expected != received:
        return f"whose from_config() creates different weights ({_listed_difference(expected, received)})"
    return None


def _described_weights(layer: keras.Layer) -> list[str]:
    """Return name and shape of the layer's own variables, without the numbers that Keras adds to default names."""
    return [f"{re.sub(r'_[0-9]+$', '', v.name)} {tuple(v.shape)}" for v in own_variables(layer)]


def _children(owner: keras.Layer, saved: bool) -> list[tuple[str, Any]]:
    """Return `layer_paths.children` without input layers, which have different names in each graph."""
    children = layer_paths.children(owner, saved)
    return [(name, layer) for name, layer in children if not isinstance(layer, keras.layers.InputLayer)]


def _listed_difference(expected: list[str], received: list[str]) -> str:
    missing = [each for each in expected if each not in received]
    added = [each for each in received if each not in expected]
    phrases = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("adds", added)) if names]
    return " and ".join(phrases) or "in a different order"
