"""What each layer does with wider inputs, and whether it can be wider itself: one rule per class of layer."""

import math
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from tf_packnet.growth.channels import Axes, Axis, Channels, joined, same
from tf_packnet.layers import TWINS, TaskLayer
from tf_packnet.layers.head import Head, with_outputs
from tf_packnet.structure import channelwise
from tf_packnet.structure.channelwise import is_channels_last, is_operator, is_pointwise, keeps_units_apart
from tf_packnet.structure.generated import plain_class
from tf_packnet.structure.steps import Graph, Step, is_plain
from tf_packnet.system.keras_internals import all_layers, own_variables


class ConflictError(Exception):
    """A layer cannot compute with these inputs; the layers whose units they are must keep their width.

    Attributes:
        reason: What the layer does.
        is_local: Whether the outputs are known anyway: they are those before.
    """

    def __init__(self, reason: str, is_local: bool):
        super().__init__(reason)
        self.reason, self.is_local = reason, is_local


@dataclass
class Wider:
    """A layer in the wider network.

    Attributes:
        output: The channels of its output.
        weights: Layers that hold weights, by `id`, each with the axes that change, by name of the weight.
        config: The part of the layer's config that changes.
    """

    output: Channels
    weights: dict[int, dict[str, Axes]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


class Rule:
    """A barrier, which is right for any layer: it needs its inputs as they are.

    Args:
        graph: The graph that contains the step.
        step: The call of the layer.
        path: Path of the layer.

    Attributes:
        layer: The layer; inside TimeDistributed, the inner one.
        key: Key of the width in the layer's config.
        width: Number of units before, if the layer can have more; otherwise None.
        is_pruned: Whether tasks own weights of the layer.
    """

    options: tuple[str, ...] = ()
    key = ""

    def __init__(self, graph: Graph, step: Step, path: str):
        self.step, self.path, self.layer = step, path, step.layer
        self.input_shapes = [graph.shape(number) for number in step.inputs]
        self.output_shapes = [graph.shape(number) for number in step.outputs]
        if type(self.layer) is layers.TimeDistributed:
            self.layer = self.layer.layer
        self.is_pruned = self._is_pruned()
        self.width = self._width() if self.key and self.is_pruned else None

    def _width(self) -> int | None:
        return int(getattr(self.layer, self.key))

    def _is_pruned(self) -> bool:
        inner = [each for each in _layers_in(self.layer) if isinstance(each, TaskLayer)]
        return any(each.masked_weights for each in inner) and not isinstance(self.layer, Head)

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        """Return the layer in the wider network.

        Args:
            inputs: The channels of its inputs.
            units: Its units. For a layer without a width of its own: the channels of its first output before.

        Raises:
            ConflictError: If it cannot compute with these inputs.
        """
        if any(each.grew for each in inputs):
            raise ConflictError(f"{self._name()} reads their units as they are", is_local=True)
        return Wider(units)

    def _name(self) -> str:
        return f"{self.path!r} (class {self.class_name})"

    @property
    def class_name(self) -> str:
        """Name of the class of Keras or of the user."""
        return _plain_class(self.step.layer).__name__

    def _weights(self, **weights: Axes) -> dict[int, dict[str, Axes]]:
        return {id(self.layer): weights}

    def _sized(self, units: Channels) -> dict[str, Any]:
        """Return the part of the config that has the width, if there are new units."""
        return {self.key: len(units.old)} if units.grew else {}


class Mixer(Rule):
    """Rule of Dense and convolutions, with a kernel `(..., inputs, units)`."""

    key = "units"

    def _width(self) -> int | None:
        return super()._width() if is_pointwise(self.layer.activation) else None

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        config = self._sized(units)
        if self.layer is not self.step.layer:  # the config of TimeDistributed has that of the inner layer
            inner = self.step.layer.get_config()["layer"]
            inner.pop("build_config", None)  # with the shape of the inputs before
            config = {"layer": {**inner, "config": {**inner["config"], **config}}}
        return Wider(units, self._weights(**self._axes(inputs[0], units)), config)

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        return {"kernel": {-2: Axis(x.old, reads=True), -1: Axis(units.old)}, "bias": {-1: Axis(units.old)}}


class Convolution(Mixer):
    """Rule of Conv1D, Conv2D and Conv3D."""

    key = "filters"


class Transposed(Convolution):
    """Rule of transposed convolutions, with a kernel `(..., filters, inputs)`."""

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        return {"kernel": {-1: Axis(x.old, reads=True), -2: Axis(units.old)}, "bias": {-1: Axis(units.old)}}


class Separable(Convolution):
    """Rule of separable convolutions: each channel has several filters, whose results are then mixed."""

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        between = x.repeated(self.layer.depth_multiplier)
        return {
            "depthwise_kernel": {-2: Axis(x.old)},
            "pointwise_kernel": {-2: Axis(between.old, reads=True), -1: Axis(units.old)},
            "bias": {-1: Axis(units.old)},
        }


class Einsum(Mixer):
    """Rule of EinsumDense where the last axis of its inputs is summed over, as in `abc,cd->abd`."""

    key = "output_shape"

    def _width(self) -> int | None:
        inputs, kernel, outputs = _letters(self.layer)
        is_own = outputs[-1] in kernel and outputs[-1] not in inputs and is_pointwise(self.layer.activation)
        return self.output_shapes[0][-1] if is_own else None

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        inputs, kernel, outputs = _letters(self.layer)
        axes = {kernel.index(inputs[-1]): Axis(x.old, reads=True)}
        if units.grew:
            axes[kernel.index(outputs[-1])] = Axis(units.old)
        has_bias = units.grew and outputs[-1] in (self.layer.bias_axes or "")
        return {"kernel": axes, "bias": {-1: Axis(units.old)} if has_bias else {}}

    def _sized(self, units: Channels) -> dict[str, Any]:
        return with_outputs(self.layer.get_config(), len(units.old)) if units.grew else {}


class Table(Rule):
    """Rule of Embedding."""

    key = "output_dim"

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(units, self._weights(embeddings={-1: Axis(units.old)}), self._sized(units))


class Recurrent(Rule):
    """Rule of SimpleRNN, GRU and LSTM: the kernels of their cells have the units of all gates side by side."""

    options = ("mask",)
    key = "units"

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        cell = self.layer.cell
        gates = Axis(units.tiled(cell.kernel.shape[-1] // self.layer.units).old)
        weights = {
            "kernel": {-2: Axis(inputs[0].old, reads=True), -1: gates},
            "recurrent_kernel": {-2: Axis(units.old, reads=True), -1: gates},
            "bias": {-1: gates},
        }
        return Wider(units, {id(cell): weights}, self._sized(units))


class Heads(Rule):
    """Rule of MultiHeadAttention and GroupQueryAttention: a barrier that can have more heads inside."""

    options = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask", "use_causal_mask")

    def __init__(self, graph: Graph, step: Step, path: str):
        self.key = "num_heads" if hasattr(step.layer, "num_heads") else "num_key_value_heads"
        super().__init__(graph, step, path)
        # The equations of the layer bind a mask with more axes to its number of heads.
        if any(len(shape) > len(self.output_shapes[0]) for shape in self.input_shapes):
            self.width = None

    def _width(self) -> int | None:
        return int(self.layer.get_config()[self.key])

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        config = self.layer.get_config()
        output = super().wider(inputs, same(self.output_shapes[0][-1] or 1)).output
        if not units.grew:
            return Wider(output)
        times = config.get("num_query_heads", 1) // config.get("num_key_value_heads", 1)
        queries = units.repeated(times)
        changes = {self.key: len(units.old)}
        if "num_query_heads" in config:
            changes["num_query_heads"] = len(queries.old)
        weights: dict[int, dict[str, Axes]] = {}
        for name, heads in {"query": queries, "gate": queries, "key": units, "value": units}.items():
            inner = getattr(self.layer, f"_{name}_dense", None)
            if inner is not None:  # the kernel is (features, heads, size)
                weights[id(inner)] = {"kernel": {1: Axis(heads.old)}, "bias": {0: Axis(heads.old)}}
        weights[id(self.layer._output_dense)] = {"kernel": {0: Axis(queries.old, reads=True)}}
        return Wider(output, weights, changes)


class Channelwise(Rule):
    """Rule of layers that compute each channel from that channel alone."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(inputs[0])


class Vectors(Channelwise):
    """Rule of BatchNormalization and PReLU, whose weights have an entry per channel."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        names = ("gamma", "beta", "moving_mean", "moving_variance", "alpha")
        return Wider(inputs[0], self._weights(**{name: {-1: Axis(inputs[0].old)} for name in names}))


class Depthwise(Rule):
    """Rule of DepthwiseConv1D and DepthwiseConv2D: each channel has several filters."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        output = inputs[0].repeated(self.layer.depth_multiplier)
        weights = self._weights(kernel={-2: Axis(inputs[0].old)}, bias={-1: Axis(output.old)})
        return Wider(output, weights)


class Flatten(Rule):
    """Rule of Flatten, and of Reshape to one axis: each channel becomes one channel per position."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        output = inputs[0].tiled(math.prod(size or 1 for size in self.input_shapes[0][1:-1]))
        return Wider(output, config=_reshaped(self.layer, output))


class Reshape(Channelwise):
    """Rule of Reshape where it keeps the channels."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(inputs[0], config=_reshaped(self.layer, inputs[0]))


class Merge(Rule):
    """Rule of layers such as Add that combine tensors channel by channel."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        by = frozenset().union(*(each.by for each in inputs))
        widest = max(inputs, key=lambda each: each.before)
        for each in inputs:
            is_broadcast = each.before == 1 < widest.before and not each.grew
            if not np.array_equal(each.old, widest.old) and not is_broadcast:
                raise ConflictError(f"{self._name()} combines their units", is_local=False)
        return Wider(Channels(widest.old, by))


class Concatenate(Rule):
    """Rule of Concatenate along the channels."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(joined(inputs))


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
    return _rule_class(graph, step)(graph, step, path)


def _rule_class(graph: Graph, step: Step) -> type[Rule]:
    layer = step.layer
    if type(layer) is layers.TimeDistributed and isinstance(layer.layer, TaskLayer) and len(step.inputs) == 1:
        layer = layer.layer
        rule = _RULES.get(_plain_class(layer), Rule)
        rule = rule if issubclass(rule, Mixer) and rule is not Einsum else Rule
    else:
        rule = Merge if is_operator(layer) else _RULES.get(_plain_class(layer), Rule)
    if not is_plain(step.node, rule.options) or not is_channels_last(layer) or _is_frozen(layer):
        return Rule
    inputs, outputs = ([graph.shape(n) for n in numbers] for numbers in (step.inputs, step.outputs))
    shapes = outputs if rule in (Table, Recurrent, Heads) else inputs + outputs  # masks have no channels
    has_state = rule is Recurrent and len(inputs) > 1 + ("mask" in step.node.arguments.kwargs)
    if has_state or len(outputs) != 1 or any(len(shape) < 2 or shape[-1] is None for shape in shapes):
        return Rule
    return _for_settings(rule, layer, inputs, outputs[0])


def _for_settings(rule: type[Rule], layer: Any, inputs: list[tuple], output: tuple) -> type[Rule]:
    """Return `rule`, or another one if the layer's settings or shapes need it."""
    fits = True
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
    elif issubclass(rule, Convolution):
        fits = getattr(layer, "groups", 1) == 1
    elif rule is Einsum:
        x, kernel, outputs = _letters(layer)
        fits = x[-1] in kernel and x[-1] not in outputs
    elif rule is Recurrent:
        fits = keeps_units_apart(layer) and isinstance(layer.cell, TaskLayer)
    return rule if fits else Rule


def _plain_class(layer: Any) -> type:
    """Return the class of Keras or of the user that a task-aware layer replaces."""
    if isinstance(layer, Head):
        return layer.plain_class
    plain = {masked: cls for cls, masked in TWINS.items()}
    return plain.get(type(layer)) or plain_class(layer)


def _letters(layer: keras.layers.EinsumDense) -> tuple[str, str, str]:
    """Return the letters of the axes of inputs, kernel and outputs."""
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, outputs = rest.partition("->")
    return inputs, kernel, outputs


def _is_frozen(layer: Any) -> bool:
    """Return whether the layer, or one inside it, has weights that belong to no task."""
    return any(own_variables(each) and not isinstance(each, TaskLayer) for each in _layers_in(layer))


def _layers_in(step: Any) -> list[keras.Layer]:
    """Return a layer and all layers inside it; of an operation none."""
    return all_layers(step) if isinstance(step, keras.Layer) else []


def _reshaped(layer: Any, output: Channels) -> dict[str, Any]:
    """Return the part of the config of a Reshape that has the number of channels; of a Flatten, nothing."""
    shape = getattr(layer, "target_shape", None)
    if not output.grew or shape is None or shape[-1] == -1:
        return {}
    return {"target_shape": [*shape[:-1], len(output.old)]}
