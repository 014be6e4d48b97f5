"""Dense layers and convolutions: every output channel is a sum over input channels."""

from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction import storage
from tf_packnet.export.compaction.rules import Channelwise, Rule, Value, applied, array
from tf_packnet.export.compaction.sparse import SPARSE_TWINS

# Activations that work on each value by itself.
POINTWISE = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "tanh", "sigmoid", "softplus"),
    *("softsign", "exponential", "hard_sigmoid", "hard_silu", "hard_tanh", "mish", "log_sigmoid", "squareplus"),
}
# Selecting a feature costs as much as this many products on CPU (docs/compaction.md): it pays for few of many.
SELECTING = 200


def is_pointwise(activation: Any) -> bool:
    """Whether an activation is known to work on each value by itself."""
    name = getattr(activation, "__name__", "")
    return name in POINTWISE and keras.activations.get(name) is activation


class Mixer(Rule):
    """Dense, Conv1D, Conv2D, Conv3D: kernel `(..., inputs, outputs)`."""

    def __init__(self, graph, step):
        super().__init__(graph, step)
        self.pointwise = is_pointwise(self.layer.activation)
        # Where a convolution pads with zeros, a constant other than 0 is none at the border.
        self.pads = getattr(self.layer, "padding", "valid") != "valid"
        self.kernels = self._kernels()
        self.reads = self._reads()

    def _kernels(self) -> list[np.ndarray]:
        return [array(self.layer.kernel)]

    def _reads(self) -> np.ndarray:
        """Which input an output reads, `(inputs, outputs)`."""
        (kernel,) = self.kernels
        return (kernel != 0).reshape(-1, *kernel.shape[-2:]).any(0)

    def _gain(self) -> np.ndarray:
        """What a constant 1 in each input adds to each output, `(inputs, outputs)`."""
        (kernel,) = self.kernels
        return kernel.astype("float64").reshape(-1, *kernel.shape[-2:]).sum(0)

    def _folded(self, known: np.ndarray) -> np.ndarray:
        """Which inputs go into the bias."""
        return ~np.isnan(known) & ((known == 0) | (not self.pads))

    def _bias(self, known: np.ndarray) -> np.ndarray:
        own = 0.0 if self.layer.bias is None else array(self.layer.bias).astype("float64")
        folded = np.where(self._folded(known), known, 0.0)
        return own + folded @ self._gain()

    def known(self, inputs):
        varies = self.reads[~self._folded(inputs[0])].any(0)
        if not self.pointwise:
            return super().known(inputs)
        return [
            applied(self.layer.activation, np.where(varies, np.nan, self._bias(inputs[0])), 2, self.layer.compute_dtype)
        ]

    def needed(self, inputs, outputs):
        wanted = self._wanted(outputs[0])
        return [self.reads[:, wanted].any(1) & ~self._folded(inputs[0])]

    def _wanted(self, needed: np.ndarray) -> np.ndarray:
        return needed if self.pointwise else np.ones_like(needed)

    def smaller(self, inputs, needed, values):
        wanted = self._wanted(needed[0])
        read = self.needed(inputs, needed)[0]
        value = values[0]
        if _selecting_pays(int(value.kept.sum()), int(read.sum()), int(wanted.sum())):
            value = value.only(read)
        bias = self._bias(inputs[0])[wanted]
        return [Value(self._computed(value.tensor, self._cut(value.kept, read, wanted), bias), wanted)]

    def _cut(self, kept: np.ndarray, read: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
        """The kernels for the inputs that are there; what is known of them is in the bias."""
        (kernel,) = self.kernels
        return [np.where(read[:, None], kernel, 0)[..., kept, :][..., wanted]]

    def _computed(self, tensor: Any, kernels: list[np.ndarray], bias: np.ndarray) -> Any:
        (kernel,) = kernels
        size = {"units" if isinstance(self.layer, keras.layers.Dense) else "filters": len(bias)}
        return computed(type(self.layer), self._config(**size), tensor, kernel, bias, self.graph.sparse)

    def _config(self, **changes: Any) -> dict[str, Any]:
        return {**self.layer.get_config(), "name": self.step.name, **_WITHOUT_TRAINING, **changes}


class SeparableMixer(Mixer):
    """SeparableConv1D and 2D: a kernel `(..., inputs, multiplier)`, then one `(1, ..., inputs * multiplier, outputs)`.

    They become a depthwise convolution and one of width 1, which compute the same.
    """

    def _kernels(self):
        return [array(self.layer.depthwise_kernel), array(self.layer.pointwise_kernel)]

    def _reads(self):
        return self._through(*((kernel != 0).reshape(-1, *kernel.shape[-2:]).any(0) for kernel in self.kernels)) > 0

    def _gain(self):
        sums = [kernel.astype("float64").reshape(-1, *kernel.shape[-2:]).sum(0) for kernel in self.kernels]
        return self._through(*sums)

    def _through(self, depthwise: np.ndarray, pointwise: np.ndarray) -> np.ndarray:
        inputs, multiplier = depthwise.shape
        return np.einsum("im,imo->io", depthwise * 1.0, pointwise.reshape(inputs, multiplier, -1) * 1.0)

    def _cut(self, kept, read, wanted):
        depthwise, pointwise = self.kernels
        multiplier = depthwise.shape[-1]
        depthwise = np.where(read[:, None], depthwise, 0)[..., kept, :]
        return [depthwise, pointwise[..., np.repeat(kept, multiplier), :][..., wanted]]

    def _computed(self, tensor, kernels, bias):
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
        return computed(second, {**config, "name": self.step.name}, tensor, pointwise, bias, self.graph.sparse)


class Depthwise(Channelwise):
    """DepthwiseConv1D and 2D of multiplier 1: every channel by itself."""

    def known(self, inputs):
        kernel, own = array(self.layer.kernel), 0.0 if self.layer.bias is None else array(self.layer.bias)
        sums = kernel.astype("float64").reshape(-1, kernel.shape[-2]).sum(0)
        unread = (kernel == 0).reshape(-1, kernel.shape[-2]).all(0)
        constant = unread | (inputs[0] == 0) | (~np.isnan(inputs[0]) & (self.layer.padding == "valid"))
        value = own + np.where(constant & ~unread, inputs[0], 0.0) * sums
        return [applied(self.layer.activation, np.where(constant, value, np.nan), 2, self.layer.compute_dtype)]

    def smaller(self, inputs, needed, values):
        layer, kept = self.made(), values[0].kept
        tensor = layer(values[0].tensor)
        layer.kernel.assign(array(self.layer.kernel)[..., kept, :])
        if layer.bias is not None:
            layer.bias.assign(array(self.layer.bias)[kept])
        return [Value(tensor, kept)]


def computed(
    kind: type, config: dict[str, Any], tensor: Any, kernel: np.ndarray, bias: np.ndarray, sparse: bool
) -> Any:
    """What a new layer with this kernel, `sparse` if it may be and that is smaller, and bias makes of `tensor`."""
    config = {**config, "use_bias": bool(bias.any())}
    packed = storage.packed_if_smaller(kernel) if sparse else None
    if packed is None:
        layer = kind.from_config(config)
        output = layer(tensor)
        layer.kernel.assign(kernel)
    else:
        stored = {"entries": len(packed.values), "gap_dtype": packed.gaps.dtype.name}
        layer = SPARSE_TWINS[kind].from_config({**config, **stored})
        output = layer(tensor)
        layer.assign_entries(packed)
    if layer.bias is not None:
        layer.bias.assign(bias)
    return output


_WITHOUT_TRAINING = dict.fromkeys(
    ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint", "activity_regularizer")
)


def _selecting_pays(kept: int, read: int, outputs: int) -> bool:
    return 0 < read < kept and (kept - read) * outputs > SELECTING * read
