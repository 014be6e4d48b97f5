"""Which rule a call follows."""

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
    layers.BatchNormalization: rules.Normalized,
    **dict.fromkeys((layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU), rules.Pointwise),
    **dict.fromkeys((layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D), rules.Skipped),
    **dict.fromkeys((layers.SpatialDropout3D, layers.GaussianDropout, layers.GaussianNoise), rules.Skipped),
    **dict.fromkeys((layers.AlphaDropout, layers.ActivityRegularization, layers.Identity), rules.Skipped),
    **dict.fromkeys((layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D), rules.Channelwise),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D), rules.Channelwise),
    **dict.fromkeys((layers.GlobalMaxPooling3D, layers.GlobalAveragePooling3D), rules.Channelwise),
    **dict.fromkeys((layers.Cropping1D, layers.Cropping2D, layers.Cropping3D), rules.Channelwise),
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), rules.Channelwise),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), rules.Padded),
    layers.RepeatVector: rules.Channelwise,
    layers.Flatten: rules.Flattened,
    layers.Reshape: rules.Reshaped,
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply, layers.Average), rules.Merged),
    **dict.fromkeys((layers.Maximum, layers.Minimum), rules.Merged),
    layers.Concatenate: rules.Stacked,
}
_OPERATIONS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def rule(graph: Graph, step: Step) -> Rule:
    """The rule for a step; a barrier wherever something is out of the ordinary."""
    known = RULES.get(type(step.layer), Rule)
    if type(step.layer).__module__ == "keras.src.ops.numpy" and type(step.layer).__name__ in _OPERATIONS:
        known = rules.Operated
    if not is_plain(step.node) or id(step.layer) in graph.shared() or not _is_channels_last(step.layer):
        return Rule(graph, step)
    shapes = [graph.shape(number) for number in step.inputs + step.outputs]
    if len(step.outputs) != 1 or any(len(shape) < 2 or shape[-1] is None for shape in shapes):
        return Rule(graph, step)
    return _special(known, step.layer, shapes[:-1], shapes[-1])(graph, step)


def _special(known: type[Rule], layer: Any, inputs: list[tuple], output: tuple) -> type[Rule]:
    """`known`, or another where the layer's settings ask for it."""
    fits = True
    if issubclass(known, rules.Merged):
        fits = len(inputs) > 1 and {(len(shape), shape[-1]) for shape in inputs} == {(len(output), output[-1])}
    elif known is rules.Stacked and layer.axis % len(output) != len(output) - 1:
        return rules.Joined
    elif known is rules.Reshaped and len(output) == 2:
        known, fits = rules.Flattened, None not in inputs[0][1:]
    elif known is rules.Reshaped:
        fits = output[-1] == inputs[0][-1] and None not in output[1:]
    elif known is rules.Flattened:
        fits = None not in inputs[0][1:]
    elif known is rules.Normalized:
        fits = layer.axis in (-1, len(output) - 1)
    elif known is rules.Pointwise and isinstance(layer, layers.Activation):
        fits = mixers.is_pointwise(layer.activation)
    elif known is mixers.Depthwise:
        fits = layer.depth_multiplier == 1 and mixers.is_pointwise(layer.activation)
    elif issubclass(known, mixers.Mixer):
        fits = getattr(layer, "groups", 1) == 1 and not _is_altered(layer)
    return known if fits else Rule


def _is_channels_last(layer: Any) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _is_altered(layer: keras.Layer) -> bool:
    """Whether LoRA or quantization changes what the layer computes."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))
