"""A model without what cannot matter to its outputs."""

import keras
import numpy as np

from tf_packnet.export.compaction.graph import Graph, functional, inputs_of, trace
from tf_packnet.export.compaction.rulebook import rule
from tf_packnet.export.compaction.rules import Rule, Value, channels
from tf_packnet.structure.graphs import copy_graph, copy_state
from tf_packnet.structure.layer_paths import is_graph
from tf_packnet.system.keras_internals import all_layers, graph_ends


def compact_model(model: keras.Model, sparse: bool = True) -> keras.Model:
    """The same function of its inputs by a smaller model, for prediction.

    Units and channels that no output depends on are gone, those that are constant are in the next bias, and kernels
    with many zeros are stored without them (`SparseDense` and the like). Layers of a kind that is not known here stay
    as they are, and so does all they may depend on. The outputs agree to rounding: sums have fewer terms.

    Args:
        model: A built model; one that is neither Sequential nor functional is returned as it is.
        sparse: Whether kernels may be stored without their zeros. Not for converters such as TensorFlow Lite's, which
            know nothing of what a SavedModel makes when it is loaded.

    Returns:
        A functional model of the same inputs and outputs, with weights of its own. It is not for training: dropout and
        regularizers are left out.
    """
    if not is_graph(model):
        return model
    own = copy_graph(model)
    for source, target in zip(all_layers(model), all_layers(own), strict=True):
        copy_state(source, target)
    graph = trace(own, sparse)
    found = [rule(graph, step) for step in graph.steps]
    known = _known(graph, found)
    needed = _needed(graph, found, known)
    values = _values(graph, found, known, needed)
    outputs = [values[number].tensor for number in graph.outputs]
    outputs = keras.tree.pack_sequence_as(graph_ends(functional(own))[1], outputs)
    return keras.Model(inputs_of(own), outputs, name=model.name)


def _known(graph: Graph, found: list[Rule]) -> dict[int, np.ndarray]:
    """What is known of every tensor, from the inputs on."""
    known = {number: np.full(channels(graph.shape(number)), np.nan) for number in graph.inputs}
    for each in found:
        results = each.known([known[number] for number in each.step.inputs])
        known.update(zip(each.step.outputs, results, strict=True))
    return known


def _needed(graph: Graph, found: list[Rule], known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """What is needed of every tensor, from the outputs back; of each at least one channel, so that it exists."""
    needed = {number: np.zeros(values.shape, bool) for number, values in known.items()}
    for number in graph.outputs:
        needed[number][:] = True
    for each in reversed(found):
        for number in each.step.outputs:
            needed[number][0] |= not needed[number].any()
        inputs = [known[number] for number in each.step.inputs]
        wanted = each.needed(inputs, [needed[number] for number in each.step.outputs])
        for number, channels_read in zip(each.step.inputs, wanted, strict=True):
            needed[number] |= channels_read
    return needed


def _values(
    graph: Graph, found: list[Rule], known: dict[int, np.ndarray], needed: dict[int, np.ndarray]
) -> dict[int, Value]:
    """Every tensor in the smaller model."""
    values = {number: Value(graph.tensors[number], np.ones_like(needed[number])) for number in graph.inputs}
    for each in found:
        inputs, outputs = each.step.inputs, each.step.outputs
        made = each.smaller([known[n] for n in inputs], [needed[n] for n in outputs], [values[n] for n in inputs])
        values.update(zip(outputs, made, strict=True))
    return values
