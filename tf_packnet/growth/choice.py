"""Chooses the rule of each step of a graph."""

from typing import Any

from keras import layers

from tf_packnet.growth.blocks import BothWays, Heads, Recurrent, Table
from tf_packnet.growth.mixers import Convolution, Depthwise, Einsum, Mixer, Separable, Transposed, letters
from tf_packnet.growth.rules import (
    Channelwise,
    Concatenate,
    Flatten,
    Merge,
    Reshape,
    Rule,
    Vectors,
    layers_in,
    plain_class_of,
)
from tf_packnet.layers import TaskLayer
from tf_packnet.structure import channelwise
from tf_packnet.structure.channelwise import is_channels_last, is_operator, is_pointwise, keeps_units_apart
from tf_packnet.structure.steps import Graph, Step, is_plain
from tf_packnet.system.keras_internals import own_variables

_RULES: dict[type, type[Rule]] = {
    layers.Dense: Mixer,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), Convolution),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), Transposed),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), Separable),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), Depthwise),
    layers.EinsumDense: Einsum,
    layers.Embedding: Table,
    **dict.fromkeys((layers.MultiHeadAttention, layers.GroupQueryAttention), Heads),
    **dict.fromkeys((layers.SimpleRNN, layers.GRU, layers.LSTM), Recurrent),
    layers.Bidirectional: BothWays,
    **dict.fromkeys((layers.BatchNormalization, layers.PReLU), Vectors),
    **dict.fromkeys((*channelwise.FUNCTIONS, *channelwise.IDLE), Channelwise),
    **dict.fromkeys((*channelwise.POSITIONS, *channelwise.PADDING), Channelwise),
    layers.Flatten: Flatten,
    layers.Reshape: Reshape,
    **dict.fromkeys(channelwise.MERGES, Merge),
    layers.Concatenate: Concatenate,
}


def rule_of(graph: Graph, step: Step, path: str) -> Rule:
    """Return the rule for a step. Layers and calls that no rule covers get a barrier."""
    rule = _rule_class(step)
    obstacle = None if rule is Rule else _obstacle(rule, graph, step)
    if obstacle is None:
        return (rule if rule is Rule else _for_shapes(rule, graph, step))(graph, step, path)
    barrier = Rule(graph, step, path)
    barrier.obstacle = f"class {barrier.class_name} {obstacle}"
    return barrier


def _rule_class(step: Step) -> type[Rule]:
    layer = step.layer
    if is_operator(layer):
        return Merge
    if type(layer) is layers.TimeDistributed and isinstance(layer.layer, TaskLayer) and len(step.inputs) == 1:
        rule = _RULES.get(plain_class_of(layer.layer), Rule)
        return rule if issubclass(rule, Mixer) and rule is not Einsum else Rule
    return _RULES.get(plain_class_of(layer), Rule)


def _obstacle(rule: type[Rule], graph: Graph, step: Step) -> str | None:
    """Return why the rule of a layer's class does not apply, so that its inputs must not change; None if it applies."""
    layer = _inner(step.layer)
    if _is_frozen(layer):
        return "has weights that belong to no task"
    if not is_channels_last(layer):
        return "has the channels first"
    inputs, outputs = ([graph.shape(n) for n in numbers] for numbers in (step.inputs, step.outputs))
    if issubclass(rule, Recurrent) and len(inputs) > 1 + ("mask" in step.node.arguments.kwargs):
        return "is called with an initial state"
    if not is_plain(step.node, rule.options):
        return "is called with other arguments than tensors"
    if len(outputs) != 1:
        return "has several outputs"
    shapes = (
        outputs if rule in (Table, Heads) or issubclass(rule, Recurrent) else inputs + outputs
    )  # masks have no channels
    if any(len(shape) < 2 or shape[-1] is None for shape in shapes):
        return "has no axis of channels with a fixed length"
    if issubclass(rule, Convolution) and getattr(layer, "groups", 1) > 1:
        return f"has groups={layer.groups}, which need all of their channels in order"
    ways = [layer] if rule is Recurrent else [layer.forward_layer, layer.backward_layer] if rule is BothWays else []
    if not all(map(_is_recurrent, ways)):
        return "is stateful, returns its state, or has another cell or activation than those of Keras"
    if len({way.units for way in ways}) > 1:
        return "has layers of different widths inside"
    return None


def _is_recurrent(layer: Any) -> bool:
    is_known = plain_class_of(layer) in (layers.SimpleRNN, layers.GRU, layers.LSTM)
    return is_known and keeps_units_apart(layer) and isinstance(layer.cell, TaskLayer)


def _for_shapes(rule: type[Rule], graph: Graph, step: Step) -> type[Rule]:
    """Return `rule`, or another rule that the settings or shapes of the layer need."""
    layer, fits = _inner(step.layer), True
    inputs, output = [graph.shape(number) for number in step.inputs], graph.shape(step.outputs[0])
    if rule is Concatenate and layer.axis % len(output) != len(output) - 1:
        return Merge
    if rule is Reshape and len(output) == 2:
        rule, fits = Flatten, None not in inputs[0][1:]
    elif rule is Reshape:
        fits = output[-1] == inputs[0][-1] and None not in output[1:]
    elif rule is Flatten:
        fits = None not in inputs[0][1:]
    elif rule is Vectors:
        axis = len(output) - 1
        fits = getattr(layer, "axis", -1) in (-1, axis) and axis not in (getattr(layer, "shared_axes", None) or ())
    elif rule is Depthwise or isinstance(layer, layers.Activation):
        fits = is_pointwise(layer.activation)
    elif isinstance(layer, layers.Dropout):
        fits = (layer.noise_shape or (1,))[-1] in (1, None)
    elif rule is Einsum:
        x, kernel, outputs = letters(layer)
        fits = x[-1] in kernel and x[-1] not in outputs
    return rule if fits else Rule


def _inner(layer: Any) -> Any:
    """Return the layer inside TimeDistributed, or the layer itself."""
    return layer.layer if type(layer) is layers.TimeDistributed else layer


def _is_frozen(layer: Any) -> bool:
    """Return whether the layer, or one inside it, has weights that belong to no task."""
    return any(own_variables(each) and not isinstance(each, TaskLayer) for each in layers_in(layer))
