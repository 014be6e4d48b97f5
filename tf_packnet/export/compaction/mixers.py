"""Compaction rules for dense layers and convolutions, in which every output channel is a sum over input channels."""

from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction.rules import Channelwise, Rule, Value, apply_channelwise, array
from tf_packnet.structure.channelwise import is_pointwise
from tf_packnet.structure.steps import Graph, Step

# On a CPU, selecting one feature costs as much as this many multiplications, see docs/compaction.md.
_SELECTION_COST = 200


class Mixer(Rule):
    """Rule for Dense, Conv1D, Conv2D and Conv3D, with a kernel `(..., inputs, outputs)`."""

    def __init__(self, graph: Graph, step: Step):
        super().__init__(graph, step)
        self.pointwise = is_pointwise(self.layer.activation)
        # With zero padding, a constant channel is not constant at the border, unless the constant is 0.
        self.pads = getattr(self.layer, "padding", "valid") != "valid"
        self.kernels = self._kernels()
        self.reads = self._reads()

    def _kernels(self) -> list[np.ndarray]:
        return [array(self.layer.kernel)]

    def _reads(self) -> np.ndarray:
        """Return whether each output reads each input, `bool` `(inputs, outputs)`."""
        (kernel,) = self.kernels
        return (kernel != 0).reshape(-1, *kernel.shape[-2:]).any(0)

    def _gain(self) -> np.ndarray:
        """Return what an input that is constantly 1 adds to each output, `(inputs, outputs)`."""
        (kernel,) = self.kernels
        return kernel.astype("float64").reshape(-1, *kernel.shape[-2:]).sum(0)

    def _folded(self, known: np.ndarray) -> np.ndarray:
        """Return which inputs are folded into the bias, `bool` `(inputs,)`."""
        return ~np.isnan(known) & ((known == 0) | (not self.pads))

    def _bias(self, known: np.ndarray) -> np.ndarray:
        own = 0.0 if self.layer.bias is None else array(self.layer.bias).astype("float64")
        folded = np.where(self._folded(known), known, 0.0)
        return own + folded @ self._gain()

    def known(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        varies = self.reads[~self._folded(inputs[0])].any(0)
        if not self.pointwise:
            return super().known(inputs)
        constants = np.where(varies, np.nan, self._bias(inputs[0]))
        return [apply_channelwise(self.layer.activation, constants, 2, self.layer.compute_dtype)]

    def needed(self, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> list[np.ndarray]:
        computed_outputs = self._outputs_to_compute(outputs[0])
        return [self.reads[:, computed_outputs].any(1) & ~self._folded(inputs[0])]

    def _outputs_to_compute(self, needed: np.ndarray) -> np.ndarray:
        return needed if self.pointwise else np.ones_like(needed)

    def smaller(self, inputs: list[np.ndarray], needed: list[np.ndarray], values: list[Value]) -> list[Value]:
        outputs = self._outputs_to_compute(needed[0])
        read = self.needed(inputs, needed)[0]
        value = values[0]
        if _selection_is_cheaper(int(value.kept.sum()), int(read.sum()), int(outputs.sum())):
            value = value.only(read)
        bias = self._bias(inputs[0])[outputs]
        return [Value(self._apply(value.tensor, self._cut(value.kept, read, outputs), bias), outputs)]

    def _cut(self, kept: np.ndarray, read: np.ndarray, outputs: np.ndarray) -> list[np.ndarray]:
        """Return the kernels from the inputs that exist in the smaller model to the outputs to compute."""
        (kernel,) = self.kernels
        return [np.where(read[:, None], kernel, 0)[..., kept, :][..., outputs]]

    def _apply(self, tensor: Any, kernels: list[np.ndarray], bias: np.ndarray) -> Any:
        (kernel,) = kernels
        size = {"units" if isinstance(self.layer, keras.layers.Dense) else "filters": len(bias)}
        return apply_layer(type(self.layer), self._config(**size), tensor, kernel, bias)

    def _config(self, **changes: Any) -> dict[str, Any]:
        return {**self.layer.get_config(), "name": self.step.name, **_WITHOUT_TRAINING, **changes}


class LastAxis(Mixer):
    """Rule for an EinsumDense that computes the same as Dense: a Dense layer replaces it."""

    def _apply(self, tensor: Any, kernels: list[np.ndarray], bias: np.ndarray) -> Any:
        dense = keras.layers.Dense(len(bias), activation=self.layer.activation, dtype=self.layer.dtype_policy)
        return apply_layer(type(dense), {**dense.get_config(), "name": self.step.name}, tensor, kernels[0], bias)


class TransposedMixer(Mixer):
    """Rule for Conv1DTranspose, Conv2DTranspose and Conv3DTranspose, with a kernel `(..., outputs, inputs)`."""

    def __init__(self, graph: Graph, step: Step):
        super().__init__(graph, step)
        self.pads = True  # at the border, where fewer positions overlap, constants are not constant

    def _kernels(self) -> list[np.ndarray]:
        return [array(self.layer.kernel).swapaxes(-1, -2)]

    def _apply(self, tensor: Any, kernels: list[np.ndarray], bias: np.ndarray) -> Any:
        return super()._apply(tensor, [kernel.swapaxes(-1, -2) for kernel in kernels], bias)


class SeparableMixer(Mixer):
    """Rule for SeparableConv1D and SeparableConv2D.

    Their kernels are `(..., inputs, multiplier)` and `(1, ..., inputs * multiplier, outputs)`. A depthwise convolution
    and a convolution of width 1, which compute the same, replace the layer.
    """

    def _kernels(self) -> list[np.ndarray]:
        return [array(self.layer.depthwise_kernel), array(self.layer.pointwise_kernel)]

    def _reads(self) -> np.ndarray:
        return self._through(*((kernel != 0).reshape(-1, *kernel.shape[-2:]).any(0) for kernel in self.kernels)) > 0

    def _gain(self) -> np.ndarray:
        sums = [kernel.astype("float64").reshape(-1, *kernel.shape[-2:]).sum(0) for kernel in self.kernels]
        return self._through(*sums)

    def _through(self, depthwise: np.ndarray, pointwise: np.ndarray) -> np.ndarray:
        inputs, multiplier = depthwise.shape
        return np.einsum("im,imo->io", depthwise * 1.0, pointwise.reshape(inputs, multiplier, -1) * 1.0)

    def _cut(self, kept: np.ndarray, read: np.ndarray, outputs: np.ndarray) -> list[np.ndarray]:
        depthwise, pointwise = self.kernels
        multiplier = depthwise.shape[-1]
        depthwise = np.where(read[:, None], depthwise, 0)[..., kept, :]
        return [depthwise, pointwise[..., np.repeat(kept, multiplier), :][..., outputs]]

    def _apply(self, tensor: Any, kernels: list[np.ndarray], bias: np.ndarray) -> Any:
        depthwise, pointwise = kernels
        rank = len(self.layer.kernel_size)
        first = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}[rank](
            self.layer.kernel_size,
            **{name: getattr(self.layer, name) for name in ("strides", "padding", "depth_multiplier", "dilation_rate")},
            use_bias=False,
            dtype=self.layer.dtype_policy,
            name=f"{self.step.name}_depthwise",
        )
        tensor = first(tensor)
        first.kernel.assign(depthwise)
        second = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D}[rank]
        config = second(len(bias), 1, activation=self.layer.activation, dtype=self.layer.dtype_policy).get_config()
        return apply_layer(second, {**config, "name": self.step.name}, tensor, pointwise, bias)


class Depthwise(Channelwise):
    """Rule for DepthwiseConv1D and DepthwiseConv2D with multiplier 1, in which channels do not mix."""

    def known(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        kernel, own = array(self.layer.kernel), 0.0 if self.layer.bias is None else array(self.layer.bias)
        sums = kernel.astype("float64").reshape(-1, kernel.shape[-2]).sum(0)
        unread = (kernel == 0).reshape(-1, kernel.shape[-2]).all(0)
        constant = unread | (inputs[0] == 0) | (~np.isnan(inputs[0]) & (self.layer.padding == "valid"))
        value = own + np.where(constant & ~unread, inputs[0], 0.0) * sums
        known = np.where(constant, value, np.nan)
        return [apply_channelwise(self.layer.activation, known, 2, self.layer.compute_dtype)]

    def smaller(self, inputs: list[np.ndarray], needed: list[np.ndarray], values: list[Value]) -> list[Value]:
        layer, kept = self.copy(), values[0].kept
        tensor = layer(values[0].tensor)
        layer.kernel.assign(array(self.layer.kernel)[..., kept, :])
        if layer.bias is not None:
            layer.bias.assign(array(self.layer.bias)[kept])
        return [Value(tensor, kept)]


def apply_layer(
    layer_class: type[keras.Layer], config: dict[str, Any], tensor: Any, kernel: np.ndarray, bias: np.ndarray
) -> Any:
    """Create a layer with this kernel and bias, and apply it to `tensor`.

    Args:
        layer_class: A Keras layer class.
        config: The config of the layer.
        tensor: The input.
        kernel: The kernel of the layer.
        bias: The bias of the layer; a bias of zeros is left out.

    Returns:
        The output tensor.
    """
    layer = layer_class.from_config({**config, "use_bias": bool(bias.any())})
    output = layer(tensor)
    layer.kernel.assign(kernel)
    if layer.bias is not None:
        layer.bias.assign(bias)
    return output


_WITHOUT_TRAINING = dict.fromkeys(
    ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint", "activity_regularizer")
)


def _selection_is_cheaper(kept: int, read: int, outputs: int) -> bool:
    return 0 < read < kept and (kept - read) * outputs > _SELECTION_COST * read
