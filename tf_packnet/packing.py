"""`pack(model)` converts a Keras model to a `PackedModel`, which can learn several tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers import TaskLayer
from tf_packnet.layers.weights import check_freed_weights
from tf_packnet.packed import model_class
from tf_packnet.packed.attributes import warn_frozen
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.policies import BIAS_POLICIES, HEADS
from tf_packnet.structure import layer_paths, overrides, refusals
from tf_packnet.structure.flattening import Flattened
from tf_packnet.structure.graphs import Copies, as_graph, build_uncalled, copy_state
from tf_packnet.structure.layer_paths import resolved_paths
from tf_packnet.structure.output_heads import activations_after_heads, find_heads, fold_activations, output_heads
from tf_packnet.structure.roles import Roles
from tf_packnet.structure.tracing import layers_with_unmasked_reads, layers_with_untracked_variables, unused_layers
from tf_packnet.system.keras_internals import all_layers, graph_ends, own_trainable_variables, own_variables


@checked
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
    prune: Mapping[str, bool] = MappingProxyType({}),
    inputs: Any = None,
) -> PackedModel:
    """Convert a Keras model to a `PackedModel` with the same topology and weights, which can learn several tasks.

    Args:
        model: A built Sequential, functional or subclassed model with layers of any class. It is not changed.
        head: `per_task`: the layers that compute the outputs (Dense, convolutions, EinsumDense and other layers whose
            config has their number of outputs) become heads, which are not pruned and separate for each task; `shared`:
            they are masked and pruned like other layers, and all tasks share them.
        bias_policy: `first_task`: biases and normalization are trained by task 1, then frozen; `per_task`: each task
            has its own.
        freed_weights: Start values of the free weights in each task: `zero`, `keep` (their values when they were
            pruned) or `reinit` (new random values).
        seed: Seeds the random values of new tasks (heads, `reinit`).
        pretrained: None: task 1 starts from the weights of the model. `task 0`: these weights belong to no task, and
            every task starts its free weights from them, regardless of `freed_weights`.
        prune_pretrained: Used with `pretrained="task 0"`. True: a pruned weight is 0, so that the network of a task is
            sparse. False: a pruned weight returns to its pretrained value, which all tasks see wherever they own no
            weight; each task keeps the weights that differ most from their pretrained values.
        head_layers: Names of the layers to use as heads. Any layers with weights are allowed; a layer that contains
            layers, such as a decoder, becomes a head as a whole. Default: the layers that compute the outputs.
        exclude: Names of layers that are not changed, including the layers inside them: all tasks share them, and they
            are neither trained nor pruned. Layers with `trainable=False` are treated in the same way.
        prune: Whether to prune a weight, by name, such as `{"positions/table": False}`. Default: weights with more than
            one axis longer than 1, such as kernels, are pruned; biases and other vectors follow `bias_policy`.
        inputs: Symbolic inputs (`keras.Input`) of a subclassed model. Default: `float32` tensors of the shapes it was
            built for.

    Returns:
        A `PackedModel`. Its first `begin_task` makes all of its weights candidates.

    Raises:
        ArgumentError: If an argument is invalid, or layers cannot be packed; the message names all such layers.
    """
    check_choice("head", head, HEADS)
    check_choice("bias_policy", bias_policy, BIAS_POLICIES)
    check_freed_weights(freed_weights)
    if pretrained not in (None, "task 0"):
        raise ArgumentError("pretrained", "None or 'task 0'", pretrained)
    pretrained_policy = None if pretrained is None else "prunable" if prune_pretrained else "visible"
    graph = as_graph(model, inputs)
    if any(isinstance(layer, TaskLayer) for layer in all_layers(graph)):
        raise ArgumentError("model", "a model that is not packed yet", model.name)
    model_variables = [variable.name for variable in own_variables(graph)]
    if model_variables:
        expected = f"a model without weights outside its layers; it has {', '.join(model_variables)}"
        raise ArgumentError("model", expected, model.name)
    excluded = resolved_paths("exclude", exclude, graph)
    if graph is not model:
        excluded += _unused(model, graph, excluded)
    roles = Roles((), tuple(excluded), bias_policy, pretrained_policy, _resolved_weights(prune, graph))
    head_paths = None if head_layers is None or head == "shared" else _resolved_heads(head_layers, graph)
    if refusals.layers_in_several_graphs(graph):
        _raise_if_any(graph, refusals.unsupported_layers(graph))
        flat = Flattened(graph)
        graph, roles = flat.graph, roles.with_paths(flat.paths)
        head_paths = head_paths and [new for path in head_paths for new in flat.paths(path)]
    copies = _checked_copies(graph, roles)
    heads, fixed_heads = _heads(graph, head, head_layers, head_paths)
    roles = dataclasses.replace(roles, heads=tuple(heads), fixed_heads=tuple(fixed_heads))
    copy = copies.connected(graph)
    _raise_if_any(graph, refusals.unequal_copies(graph, copy))
    copy = fold_activations(graph, copy, activations_after_heads(graph, roles.heads))
    own_class = overrides.own_class(model)
    description = None if own_class is None else model_class.describe(model)
    try:
        packed = PackedModel.of_network(copy, roles, own_class, head=head, freed_weights=freed_weights, seed=seed)
    except ArgumentError:
        raise
    except Exception as error:  # raised by the code of a layer
        expected = f"layers that can compute with tensors in place of their weights ({refusals.quoted(error, 0)})"
        raise ArgumentError("model", expected, graph.name) from error
    _check_pruned(packed, roles)
    build_configs = build_uncalled(graph, packed)
    _copy_weights(graph, packed)
    _raise_if_any(graph, layers_with_untracked_variables(packed, graph))
    _raise_if_any(graph, layers_with_unmasked_reads(packed))
    if description is not None:
        model_class.take_over_model(packed, {**description, "left_out": build_configs}, model)
    for weight in lifecycle.masked_weights(packed).values():
        weight.set_pretrained()
    return packed


def _checked_copies(graph: keras.Model, roles: Roles) -> Copies:
    """Copy the layers of `graph`; raise ArgumentError with all layers that cannot be packed."""
    found = [*refusals.unsupported_layers(graph), *roles.refused_layers(graph)]
    copies = Copies(graph)
    known = {id(refusal.layer) for refusal in found}
    found += [refusal for refusal in copies.refusals if id(refusal.layer) not in known]
    if found:  # without other refusals, untracked variables are searched in the pack
        found += [refusal for refusal in layers_with_untracked_variables(graph) if id(refusal.layer) not in known]
    _raise_if_any(graph, found)
    return copies


def _raise_if_any(graph: keras.Model, found: Sequence[refusals.Refusal]) -> None:
    if found:
        raise refusals.refused(found, graph.name)


def _heads(
    graph: keras.Model, head: str, head_layers: Sequence[str] | None, head_paths: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the paths of the heads, and of those heads whose number of outputs is fixed."""
    if head == "shared":
        if head_layers:
            raise ArgumentError("head_layers", "None with head='shared'", list(head_layers))
        return [], []
    if head_paths is None:
        return find_heads(graph), []
    heads = list(head_paths)
    path_of = layer_paths.paths_by_id(graph)
    ends = [path_of.get(id(head.layer), "") for head in output_heads(graph)]
    inside = [end for end in ends if any(end.startswith(f"{path}/") for path in heads)]
    fixed = [path for path in heads if path not in ends] if all(ends) else []
    return list(dict.fromkeys([*heads, *inside])), fixed


def _resolved_heads(names: Sequence[str], graph: keras.Model) -> list[str]:
    """Return the paths of the layers with these `names`, which must have weights."""
    paths = resolved_paths("head_layers", names, graph)
    layers = layer_paths.layers_by_path(graph)
    for path in paths:
        if not getattr(layers[path], "trainable_weights", None):
            expected = f"layers with trainable weights; {path!r} is a {type(layers[path]).__name__}"
            raise ArgumentError("head_layers", expected, names)
    return paths


def _resolved_weights(prune: Mapping[str, bool], graph: keras.Model) -> tuple[tuple[str, bool], ...]:
    """Return the items of `prune` with the paths of the layers."""
    if not isinstance(prune, Mapping) or not all(isinstance(each, bool) for each in prune.values()):
        raise ArgumentError("prune", 'a mapping such as {"positions/table": False}', prune)
    items = []
    for name, is_pruned in prune.items():
        layer, separator, weight = str(name).rpartition("/")
        if not separator:
            raise ArgumentError("prune", "names of weights with their layer, such as 'positions/table'", name)
        items.append((f"{resolved_paths('prune', [layer], graph)[0]}/{weight}", is_pruned))
    return tuple(items)


def _check_pruned(packed: PackedModel, roles: Roles) -> None:
    """Raise ArgumentError if a weight in `roles.prune` does not exist or cannot be pruned."""
    layers = dict(lifecycle.named_layers(packed))
    for name, _ in roles.prune:
        path, _, weight_name = name.rpartition("/")
        layer = layers.get(path)
        names: list[str] = []
        if layer is not None and not roles.is_in_head(path):
            names += [weight.name for weight in layer.masked_weights]
            names += [weight.name for weight in layer.task_weights if weight.variable.trainable]
        if weight_name not in names:
            found = ", ".join(repr(f"{path}/{each}") for each in names) or "none in this layer"
            raise ArgumentError("prune", f"names of trainable weights outside heads ({found})", name)


def _unused(model: keras.Model, graph: keras.Model, excluded: Sequence[str]) -> list[str]:
    """Return the paths of trainable layers that the `call` of a subclassed model does not use; warn about them."""
    layers = layer_paths.layers_by_path(graph)
    known = {id(inner) for path in excluded for inner in all_layers(layers[path])}
    unused = {id(layer) for layer in unused_layers(model, graph_ends(graph)[0])}
    frozen: list[str] = []
    for path, layer in layers.items():
        inner = all_layers(layer)
        with_weights = [each for each in inner if own_trainable_variables(each) or id(each) in unused]
        if not with_weights or id(layer) in known or not all(id(each) in unused for each in with_weights):
            continue
        known |= {id(each) for each in inner}  # inner layers are not listed again
        frozen += [path] if layer.trainable else []
    warn_frozen(frozen, type(model).__name__)
    return frozen


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    target_layers = layer_paths.layers_by_path(target)
    for path, layer in layer_paths.layers_by_path(source).items():
        if isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.InputLayer):
            copy_state(layer, target_layers[path])
