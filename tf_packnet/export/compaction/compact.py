"""Removes the units, channels and weights of a model that its outputs do not depend on."""

import re
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers

from tf_packnet.arguments import checked
from tf_packnet.export.compaction import blocks, mixers, rules
from tf_packnet.export.compaction.rules import Rule, Value, channels
from tf_packnet.export.compaction.sparse import make_plain, make_sparse
from tf_packnet.structure import channelwise
from tf_packnet.structure.channelwise import is_channels_last, is_operator, is_pointwise, keeps_units_apart
from tf_packnet.structure.graphs import Copies, checked_copy, copy_state
from tf_packnet.structure.layer_paths import is_graph
from tf_packnet.structure.steps import Graph, Step, functional, inputs_of, is_plain, trace
from tf_packnet.system.keras_internals import all_layers, mark_called

# The rule of each layer class; other layers are barriers.
_RULES: dict[type, type[Rule]] = {
    **dict.fromkeys((layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D), mixers.Mixer),
    layers.EinsumDense: mixers.LastAxis,
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), mixers.TransposedMixer),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), mixers.SeparableMixer),
    **dict.fromkeys((layers.MultiHeadAttention, layers.GroupQueryAttention), blocks.Heads),
    **dict.fromkeys((layers.SimpleRNN, layers.GRU, layers.LSTM), blocks.Recurrent),
    layers.Embedding: blocks.Table,
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), mixers.Depthwise),
    layers.BatchNormalization: rules.Normalization,
    **dict.fromkeys(channelwise.FUNCTIONS, rules.Pointwise),
    **dict.fromkeys(channelwise.IDLE, rules.Skip),
    **dict.fromkeys(channelwise.POSITIONS, rules.Channelwise),
    **dict.fromkeys(channelwise.PADDING, rules.Padding),
    layers.Flatten: rules.Flatten,
    layers.Reshape: rules.Reshape,
    **dict.fromkeys(channelwise.MERGES, rules.Merge),
    layers.Concatenate: rules.ConcatenateChannels,
}


@checked
def compact_model(model: keras.Model, sparse: bool = True) -> keras.Model:
    """Return a smaller model that computes the same outputs, for prediction.

    Units and channels that no output depends on are removed, and constant ones are folded into the next bias. Layers of
    unknown types are left unchanged, as is everything that they may depend on. Outputs agree up to rounding, because
    sums have fewer terms. In files of the model, weights with many zeros are stored without them, in layers of every
    type.

    Args:
        model: A built model. A model that is neither Sequential nor functional is returned unchanged.
        sparse: Whether files of the model store weights without their zeros. Use False for a `.keras` file that is
            loaded without this library, and for converters such as TensorFlow Lite's.

    Returns:
        A functional model with the same inputs and outputs and its own weights. It is not for training: dropout and
        regularizers are removed.

    Raises:
        ArgumentError: If Keras cannot create a layer again from its config.
    """
    if not is_graph(model):
        return model
    copies = Copies(model)
    copy = checked_copy(model, copies)
    _copy_states(model, copies)
    make_plain(copy)
    graph = trace(copy)
    step_rules = [_rule(graph, step) for step in graph.steps]
    known = _known(graph, step_rules)
    needed = _needed(graph, step_rules, known)
    values = _values(graph, step_rules, known, needed)
    outputs = [values[number].tensor for number in graph.outputs]
    outputs = keras.tree.pack_sequence_as(functional(copy)._outputs_struct, outputs)
    compact = keras.Model(inputs_of(copy), outputs, name=model.name)
    if sparse:
        make_sparse(compact)
    return mark_called(compact)


def _copy_states(model: keras.Model, copies: Copies) -> None:
    """Copy the state of all layers of a graph, and of the graphs in it."""
    for layer in functional(model).layers:
        if is_graph(layer):
            _copy_states(layer, copies)
        elif not isinstance(layer, layers.InputLayer):
            for source, target in zip(all_layers(layer), all_layers(copies.of(layer)), strict=True):
                copy_state(source, target)


def _known(graph: Graph, step_rules: list[Rule]) -> dict[int, np.ndarray]:
    """Compute `known` of every tensor, from the inputs forwards."""
    known = {number: np.full(channels(graph.shape(number)), np.nan) for number in graph.inputs}
    for step_rule in step_rules:
        results = step_rule.known([known[number] for number in step_rule.step.inputs])
        known.update(zip(step_rule.step.outputs, results, strict=True))
    return known


def _needed(graph: Graph, step_rules: list[Rule], known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Compute `needed` of every tensor, from the outputs backwards. A tensor keeps at least one channel."""
    needed = {number: np.zeros(values.shape, bool) for number, values in known.items()}
    for number in graph.outputs:
        needed[number][:] = True
    for step_rule in reversed(step_rules):
        step = step_rule.step
        for number in step.outputs:
            needed[number][0] |= not needed[number].any()
        needed_inputs = step_rule.needed([known[n] for n in step.inputs], [needed[n] for n in step.outputs])
        for number, channels_read in zip(step.inputs, needed_inputs, strict=True):
            needed[number] |= channels_read
    return needed


def _values(
    graph: Graph, step_rules: list[Rule], known: dict[int, np.ndarray], needed: dict[int, np.ndarray]
) -> dict[int, Value]:
    """Build every tensor of the smaller model."""
    values = {number: Value(graph.tensors[number], np.ones_like(needed[number])) for number in graph.inputs}
    for step_rule in step_rules:
        inputs, outputs = step_rule.step.inputs, step_rule.step.outputs
        results = step_rule.smaller(
            [known[n] for n in inputs], [needed[n] for n in outputs], [values[n] for n in inputs]
        )
        values.update(zip(outputs, results, strict=True))
    return values


def _rule(graph: Graph, step: Step) -> Rule:
    """Return the rule for a step. Layers and calls that no rule covers get a barrier (`Rule`)."""
    if id(step.layer) in graph.shared():
        return Rule(graph, step)
    if type(step.layer) is layers.TimeDistributed and type(step.layer.layer) is layers.Dense and len(step.inputs) == 1:
        step = replace(step, layer=step.layer.layer)  # Dense treats positions in the same way
    rule_class = _RULES.get(type(step.layer), Rule)
    if is_operator(step.layer):
        rule_class = rules.Operation
    if not is_plain(step.node, rule_class.options) or not is_channels_last(step.layer):
        return Rule(graph, step)
    if rule_class is blocks.Recurrent and len(step.inputs) > 1 + ("mask" in step.node.arguments.kwargs):
        return Rule(graph, step)  # an initial state
    shapes = [graph.shape(number) for number in step.inputs + step.outputs]
    of_channels = shapes[-1:] if rule_class in (blocks.Table, blocks.Recurrent) else shapes  # masks have no channels
    if len(step.outputs) != 1 or any(len(shape) < 2 or shape[-1] is None for shape in of_channels):
        return Rule(graph, step)
    return _for_settings(rule_class, step.layer, shapes[:-1], shapes[-1])(graph, step)


def _for_settings(rule_class: type[Rule], layer: Any, inputs: list[tuple], output: tuple) -> type[Rule]:
    """Return `rule_class`, or another rule if the layer's settings or shapes need one."""
    fits = True
    if issubclass(rule_class, rules.Merge):
        fits = len(inputs) > 1 and {(len(shape), shape[-1]) for shape in inputs} == {(len(output), output[-1])}
    elif rule_class is rules.ConcatenateChannels and layer.axis % len(output) != len(output) - 1:
        return rules.ConcatenatePositions
    elif rule_class is rules.Reshape and len(output) == 2:
        rule_class, fits = rules.Flatten, None not in inputs[0][1:]
    elif rule_class is rules.Reshape:
        fits = output[-1] == inputs[0][-1] and None not in output[1:]
    elif rule_class is rules.Flatten:
        fits = None not in inputs[0][1:]
    elif rule_class is rules.Normalization:
        fits = layer.axis in (-1, len(output) - 1)
    elif rule_class is rules.Pointwise and isinstance(layer, layers.Activation):
        fits = is_pointwise(layer.activation)
    elif rule_class is mixers.Depthwise:
        fits = layer.depth_multiplier == 1 and is_pointwise(layer.activation)
    elif rule_class is mixers.LastAxis:
        fits = _is_dense(layer.equation, layer.kernel.shape) and not _is_altered(layer)
    elif issubclass(rule_class, mixers.Mixer):
        fits = getattr(layer, "groups", 1) == 1 and not _is_altered(layer)
    elif rule_class is blocks.Recurrent:
        fits = keeps_units_apart(layer)
    elif rule_class in (blocks.Heads, blocks.Table):
        # A mask with more axes has a part for each head.
        fits = all(len(shape) <= len(output) for shape in inputs) and not any(map(_is_altered, all_layers(layer)))
    return rule_class if fits else Rule


def _is_dense(equation: str, kernel: tuple[int, ...]) -> bool:
    """Return whether an EinsumDense multiplies the last axis with a matrix, as `abc,cd->abd` and `...x,xy->...y` do."""
    inputs, matrix, outputs = re.split(",|->", equation.replace(" ", ""))
    return len(matrix) == len(kernel) == 2 and inputs[-1:] + outputs[-1:] == matrix and inputs[:-1] == outputs[:-1]


def _is_altered(layer: keras.Layer) -> bool:
    """Return whether LoRA or quantization changes what the layer computes."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))
