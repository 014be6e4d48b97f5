"""Chooses the compaction rule of each layer call."""

from typing import Any

import keras
from keras import layers

from tf_packnet.export.compaction import mixers, rules
from tf_packnet.export.compaction.graph import Graph, Step, is_plain
from tf_packnet.export.compaction.rules import Rule

RULES: dict[type, type[Rule]] = {
    **dict.fromkeys((layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D), mixers.Mixer),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), mixers.SeparableMixer),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), mixers.Depthwise),
    layers.BatchNormalization: rules.Normalization,
    **dict.fromkeys((layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU), rules.Pointwise),
    **dict.fromkeys((layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D), rules.Skip),
    **dict.fromkeys((layers.SpatialDropout3D, layers.GaussianDropout, layers.GaussianNoise), rules.Skip),
    **dict.fromkeys((layers.AlphaDropout, layers.ActivityRegularization, layers.Identity), rules.Skip),
    **dict.fromkeys((layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D), rules.Channelwise),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalMaxPooling3D, layers.GlobalAveragePooling3D), rules.Channelwise),
    **dict.fromkeys((layers.Cropping1D, layers.Cropping2D, layers.Cropping3D), rules.Channelwise),
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), rules.Channelwise),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), rules.Padding),
    layers.RepeatVector: rules.Channelwise,
    layers.Flatten: rules.Flatten,
    layers.Reshape: rules.Reshape,
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply, layers.Average), rules.Merge),
    **dict.fromkeys((layers.Maximum, layers.Minimum), rules.Merge),
    layers.Concatenate: rules.ConcatenateChannels,
}
_OPERATIONS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def rule(graph: Graph, step: Step) -> Rule:
    """Returns the rule for a step. Layers and calls that no rule covers get a barrier (`Rule`)."""
    rule_class = RULES.get(type(step.layer), Rule)
    if type(step.layer).__module__ == "keras.src.ops.numpy" and type(step.layer).__name__ in _OPERATIONS:
        rule_class = rules.Operation
    if not is_plain(step.node) or id(step.layer) in graph.shared() or not _is_channels_last(step.layer):
        return Rule(graph, step)
    shapes = [graph.shape(number) for number in step.inputs + step.outputs]
    if len(step.outputs) != 1 or any(len(shape) < 2 or shape[-1] is None for shape in shapes):
        return Rule(graph, step)
    return _for_settings(rule_class, step.layer, shapes[:-1], shapes[-1])(graph, step)


def _for_settings(rule_class: type[Rule], layer: Any, inputs: list[tuple], output: tuple) -> type[Rule]:
    """Returns `rule_class`, or another rule if the layer's settings or shapes need one."""
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
        fits = mixers.is_pointwise(layer.activation)
    elif rule_class is mixers.Depthwise:
        fits = layer.depth_multiplier == 1 and mixers.is_pointwise(layer.activation)
    elif issubclass(rule_class, mixers.Mixer):
        fits = getattr(layer, "groups", 1) == 1 and not _is_altered(layer)
    return rule_class if fits else Rule


def _is_channels_last(layer: Any) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _is_altered(layer: keras.Layer) -> bool:
    """Returns whether LoRA or quantization changes what the layer computes."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))
