"""Rules for layers that mix channels: Dense, EinsumDense and convolutions."""

from typing import Any

import keras

from tf_packnet.growth.channels import Axes, Axis, Channels
from tf_packnet.growth.rules import Rule, Wider, inner_config
from tf_packnet.layers.head import with_outputs
from tf_packnet.structure.channelwise import is_pointwise


class Mixer(Rule):
    """Rule for Dense and convolutions, with a kernel `(..., inputs, units)`."""

    key = "units"

    def _width(self) -> int | None:
        return super()._width() if is_pointwise(self.layer.activation) else None

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        config = self._sized(units)
        if self.layer is not self.step.layer:  # the config of TimeDistributed contains that of the inner layer
            config = {"layer": inner_config(self.step.layer.get_config()["layer"], config)}
        return Wider(units, self._weights(**self._axes(inputs[0], units)), config)

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        return {"kernel": {-2: Axis(x.old, reads=True), -1: Axis(units.old)}, "bias": {-1: Axis(units.old)}}


class Convolution(Mixer):
    """Rule for Conv1D, Conv2D and Conv3D."""

    key = "filters"


class Transposed(Convolution):
    """Rule for transposed convolutions, with a kernel `(..., filters, inputs)`."""

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        return {"kernel": {-1: Axis(x.old, reads=True), -2: Axis(units.old)}, "bias": {-1: Axis(units.old)}}


class Separable(Convolution):
    """Rule for separable convolutions: each channel has its own filters, whose results are then mixed."""

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        between = x.repeated(self.layer.depth_multiplier)
        return {
            "depthwise_kernel": {-2: Axis(x.old)},
            "pointwise_kernel": {-2: Axis(between.old, reads=True), -1: Axis(units.old)},
            "bias": {-1: Axis(units.old)},
        }


class Einsum(Mixer):
    """Rule for an EinsumDense that sums over the last axis of its inputs, as in `abc,cd->abd`."""

    key = "output_shape"

    def _width(self) -> int | None:
        inputs, kernel, outputs = letters(self.layer)
        is_own = outputs[-1] in kernel and outputs[-1] not in inputs and is_pointwise(self.layer.activation)
        return self.output_shapes[0][-1] if is_own else None

    def _axes(self, x: Channels, units: Channels) -> dict[str, Axes]:
        inputs, kernel, outputs = letters(self.layer)
        axes = {kernel.index(inputs[-1]): Axis(x.old, reads=True)}
        if units.grew:
            axes[kernel.index(outputs[-1])] = Axis(units.old)
        has_bias = units.grew and outputs[-1] in (self.layer.bias_axes or "")
        return {"kernel": axes, "bias": {-1: Axis(units.old)} if has_bias else {}}

    def _sized(self, units: Channels) -> dict[str, Any]:
        return with_outputs(self.layer.get_config(), len(units.old)) if units.grew else {}


class Depthwise(Rule):
    """Rule for DepthwiseConv1D and DepthwiseConv2D: each channel has its own filters."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        output = inputs[0].repeated(self.layer.depth_multiplier)
        weights = self._weights(kernel={-2: Axis(inputs[0].old)}, bias={-1: Axis(output.old)})
        return Wider(output, weights)


def letters(layer: keras.layers.EinsumDense) -> tuple[str, str, str]:
    """Return the letters of the axes of inputs, kernel and outputs."""
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, outputs = rest.partition("->")
    return inputs, kernel, outputs
