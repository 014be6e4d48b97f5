"""Removes the units, channels and weights of a model that its outputs do not depend on."""

import keras
import numpy as np

from tf_packnet.export.compaction.graph import Graph, functional, inputs_of, trace
from tf_packnet.export.compaction.rulebook import rule
from tf_packnet.export.compaction.rules import Rule, Value, channels
from tf_packnet.structure.graphs import copied, copy_state
from tf_packnet.structure.places import is_graph


def compact_model(model: keras.Model, sparse: bool = True) -> keras.Model:
    """Returns a smaller model that computes the same outputs, for prediction.

    Units and channels that no output depends on are removed, constant ones are folded into the next bias, and kernels
    with many zeros are stored without them (`SparseDense` and similar layers). Layers of unknown types are unchanged,
    and so is everything that they may depend on. Outputs agree up to rounding, because sums have fewer terms.

    Args:
        model: A built model. A model that is neither Sequential nor functional is returned unchanged.
        sparse: Whether kernels may be stored without their zeros. Use False for converters such as TensorFlow Lite's,
            which cannot expand kernels while a file is loaded.

    Returns:
        A functional model with the same inputs and outputs and its own weights. It is not for training: dropout and
        regularizers are removed.
    """
    if not is_graph(model):
        return model
    copy = copied(model)
    for source, target in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        copy_state(source, target)
    graph = trace(copy, sparse)
    rules = [rule(graph, step) for step in graph.steps]
    known = _known(graph, rules)
    needed = _needed(graph, rules, known)
    values = _values(graph, rules, known, needed)
    outputs = [values[number].tensor for number in graph.outputs]
    outputs = keras.tree.pack_sequence_as(functional(copy)._outputs_struct, outputs)
    return keras.Model(inputs_of(copy), outputs, name=model.name)


def _known(graph: Graph, rules: list[Rule]) -> dict[int, np.ndarray]:
    """Computes `known` of every tensor, from the inputs forwards."""
    known = {number: np.full(channels(graph.shape(number)), np.nan) for number in graph.inputs}
    for step_rule in rules:
        results = step_rule.known([known[number] for number in step_rule.step.inputs])
        known.update(zip(step_rule.step.outputs, results, strict=True))
    return known


def _needed(graph: Graph, rules: list[Rule], known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Computes `needed` of every tensor, from the outputs backwards. A tensor keeps at least one channel."""
    needed = {number: np.zeros(values.shape, bool) for number, values in known.items()}
    for number in graph.outputs:
        needed[number][:] = True
    for step_rule in reversed(rules):
        step = step_rule.step
        for number in step.outputs:
            needed[number][0] |= not needed[number].any()
        needed_inputs = step_rule.needed([known[n] for n in step.inputs], [needed[n] for n in step.outputs])
        for number, channels_read in zip(step.inputs, needed_inputs, strict=True):
            needed[number] |= channels_read
    return needed


def _values(
    graph: Graph, rules: list[Rule], known: dict[int, np.ndarray], needed: dict[int, np.ndarray]
) -> dict[int, Value]:
    """Builds every tensor of the smaller model."""
    values = {number: Value(graph.tensors[number], np.ones_like(needed[number])) for number in graph.inputs}
    for step_rule in rules:
        inputs, outputs = step_rule.step.inputs, step_rule.step.outputs
        results = step_rule.smaller(
            [known[n] for n in inputs], [needed[n] for n in outputs], [values[n] for n in inputs]
        )
        values.update(zip(outputs, results, strict=True))
    return values
