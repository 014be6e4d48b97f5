"""`pack(model)`: a Keras model in, its masked twin out, ready to learn task after task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.weights import check_freed_weights
from tf_packnet.packed import model_class
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.policies import BIAS_POLICIES, HEADS
from tf_packnet.structure import overrides, places, refusals
from tf_packnet.structure.graphs import Copies, as_graph, build_left_out, copy_state
from tf_packnet.structure.roles import Roles
from tf_packnet.structure.tails import fold, folds, heads_of
from tf_packnet.structure.tracing import unused_layers
from tf_packnet.structure.untracked import of_untracked


def pack(
    model: keras.Model,
    head: str = "per_task",
    bias_policy: str = "first_task",
    freed_weights: str = "zero",
    seed: int = 0,
    *,
    pretrained: str | None = None,
    prune_pretrained: bool = True,
    head_layers: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    inputs: Any = None,
) -> PackedModel:
    """Makes the masked twin of a Keras model: same topology, same starting weights, room for many tasks.

    Args:
        model: A built Sequential, functional or subclassed model of the layers that `tp.layers` has twins of (dense,
            convolutions of all kinds, embeddings, recurrent layers, normalisation), of layers without trainable
            weights, and of layers made of these, such as MultiHeadAttention, Bidirectional or your own. It is left as
            it was.
        head: `per_task`: the Dense layers that the outputs come from become unpruned heads of which each task has its
            own; `shared`: they are masked and pruned like the rest, and serve all tasks.
        bias_policy: `first_task`: biases and normalisation are trained by task 1, then frozen; `per_task`: each task
            has its own.
        freed_weights: How the weights that a task gives back start the next one: `zero`, `keep` or `reinit`.
        seed: Seeds the draws of later tasks (heads, `reinit`).
        pretrained: None: the weights that the model has are where task 1 starts. `task 0`: they belong to nobody, and
            every task starts its free weights from them (whatever `freed_weights` says).
        prune_pretrained: With `task 0`: a weight that a task prunes is 0 for it, so that its network is sparse. False:
            it goes back to its pretrained value, which all tasks see wherever they own nothing, and a task keeps the
            weights that it moved furthest from there.
        head_layers: Names of the heads, where they cannot be told from the outputs.
        exclude: Names of layers that stay as they are, with all that is in them: one value for all tasks, never
            trained and never pruned. A layer with `trainable=False` does too.
        inputs: For a subclassed model: what it is called with, as `keras.Input`. Default: `float32` tensors of the
            shapes it was built for.

    Returns:
        A `PackedModel`; its first `begin_task` opens all of its weights.

    Raises:
        ArgumentError: If an argument is unknown, or layers cannot be packed; the message names all of them.
    """
    check_choice("head", head, HEADS)
    check_choice("bias_policy", bias_policy, BIAS_POLICIES)
    check_freed_weights(freed_weights)
    if pretrained not in (None, "task 0"):
        raise ArgumentError("pretrained", "None or 'task 0'", pretrained)
    base = None if pretrained is None else "prunable" if prune_pretrained else "visible"
    graph = as_graph(model, inputs)
    if any(isinstance(layer, TaskLayer) for layer in graph._flatten_layers()):
        raise ArgumentError("model", "a model that was not packed before", model.name)
    own = [variable.name for variable in graph._trainable_variables + graph._non_trainable_variables]
    if own:
        raise ArgumentError("model", f"no weights outside its layers; it has {', '.join(own)} of its own", model.name)
    excluded = _resolved("exclude", exclude, graph)
    excluded += [] if graph is model else _unused(model, graph, excluded)
    roles = Roles((), tuple(excluded), bias_policy, base)
    copies = _copies(graph, roles)
    roles = dataclasses.replace(roles, heads=tuple(_heads(graph, head, head_layers)))
    copy = copies.joined(graph)
    _refuse(graph, refusals.of_copy(graph, copy))
    copy = fold(graph, copy, folds(graph, roles.heads))
    own_class = overrides.own_class(model)
    description = None if own_class is None else model_class.describe(model)
    arguments = {"head": head, "freed_weights": freed_weights, "seed": seed}
    packed = PackedModel.of_network(copy, roles, own_class, **arguments)
    left_out = build_left_out(graph, packed)
    _copy_weights(graph, packed)
    _refuse(graph, of_untracked(packed, graph))
    if description is not None:
        model_class.become(packed, {**description, "left_out": left_out}, model)
    for weight in lifecycle.masked_weights(packed).values():
        weight.set_pretrained()
    return packed


def _copies(graph: keras.Model, roles: Roles) -> Copies:
    """Copies of the layers of `graph`, after checking that all of them can be packed."""
    found = [*refusals.of_layers(graph), *refusals.of_graphs(graph), *roles.objections(graph)]
    copies = Copies(graph)
    known = {id(refusal.layer) for refusal in found}
    found += [refusal for refusal in copies.refusals if id(refusal.layer) not in known]
    if found:  # and what is looked for in the pack otherwise
        found += [refusal for refusal in of_untracked(graph) if id(refusal.layer) not in known]
    _refuse(graph, found)
    return copies


def _refuse(graph: keras.Model, found: Sequence[refusals.Refusal]) -> None:
    if found:
        raise refusals.refused(found, graph.name)


def _heads(graph: keras.Model, head: str, head_layers: Sequence[str] | None) -> list[str]:
    """The places of the heads."""
    if head == "shared":
        if head_layers:
            raise ArgumentError("head_layers", "None with head='shared'", list(head_layers))
        return []
    if head_layers is None:
        return heads_of(graph)
    heads = _resolved("head_layers", head_layers, graph)
    there = places.by_place(graph)
    for place in heads:
        if type(there[place]) is not keras.layers.Dense:
            expected = f"Dense layers; {place!r} is a {type(there[place]).__name__}"
            raise ArgumentError("head_layers", expected, head_layers)
    return heads


def _resolved(argument: str, names: Sequence[str], graph: keras.Model) -> list[str]:
    """The places of the layers with these `names`: whole places, their last parts, or what Keras calls the layers."""
    if isinstance(names, str):
        raise ArgumentError(argument, f"a list of names, such as [{names!r}]", names)
    called = {place: layer.name for place, layer in places.by_place(graph).items()}
    found = []
    for name in names:
        matches = [name] if name in called else [p for p in called if name in (p.rpartition("/")[2], called[p])]
        if len(matches) != 1:
            expected = "names of layers of the model, among " + ", ".join(map(repr, matches or called))
            raise ArgumentError(argument, expected, name)
        found += matches
    return found


def _unused(model: keras.Model, graph: keras.Model, excluded: Sequence[str]) -> list[str]:
    """The places of the layers that a subclassed model does not compute with, such as a teacher; warns of them."""
    there = places.by_place(graph)
    known = {id(inner) for place in excluded for inner in there[place]._flatten_layers()}
    unused = {id(layer) for layer in unused_layers(model, graph._inputs_struct)}
    found = []
    for place, layer in there.items():
        inner = layer._flatten_layers()
        with_weights = [each for each in inner if each._trainable_variables or id(each) in unused]
        if not with_weights or id(layer) in known or not all(id(each) in unused for each in with_weights):
            continue
        known |= {id(each) for each in inner}  # the whole of it
        found += [place] if layer.trainable else []
    model_class.say_frozen(found, type(model).__name__)
    return found


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    there = places.by_place(target)
    for place, old in places.by_place(source).items():
        if isinstance(old, keras.Layer) and not isinstance(old, keras.layers.InputLayer):
            copy_state(old, there[place])
