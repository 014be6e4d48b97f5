"""Keras layers with masked kernels. Arguments, shapes and dtypes are those of the Keras layers."""

from typing import Any

import keras
from keras import ops

from tf_packnet.layers.base import Routed, TaskLayer, twin
from tf_packnet.layers.products import biased, product


@twin("tf_packnet")
class MaskedDense(TaskLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel `(inputs, units)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = product(inputs, self.kernel)
        if self.bias is not None:
            x = ops.add(x, self.bias)
        return x if self.activation is None else self.activation(x)


@twin("tf_packnet")
class MaskedEinsumDense(TaskLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedConv1D(TaskLayer, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel `(width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedConv2D(TaskLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel `(height, width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()

    def call(self, inputs: Any) -> Any:
        if not self.use_bias or self.data_format != "channels_last" or self.compute_dtype != "float32":
            return super().call(inputs)
        x = biased(self.convolution_op(inputs, self.kernel), self.bias)
        return x if self.activation is None else self.activation(x)


@twin("tf_packnet")
class MaskedConv3D(TaskLayer, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose kernel `(depth, height, width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedConv1DTranspose(TaskLayer, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` whose kernel `(width, filters, inputs)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedConv2DTranspose(TaskLayer, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose kernel `(height, width, filters, inputs)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedConv3DTranspose(TaskLayer, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` whose kernel `(depth, height, width, filters, inputs)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedDepthwiseConv1D(TaskLayer, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` whose kernel `(width, inputs, multiplier)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedDepthwiseConv2D(TaskLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose kernel `(height, width, inputs, multiplier)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


class _Separable(TaskLayer):
    """Mixin for separable convolutions: two kernels, each with its own owner map."""

    masked = ("depthwise_kernel", "pointwise_kernel")
    depthwise_kernel = Routed()
    pointwise_kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedSeparableConv1D(_Separable, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` whose two kernels are owned by tasks."""


@twin("tf_packnet")
class MaskedSeparableConv2D(_Separable, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` whose two kernels are owned by tasks."""


@twin("tf_packnet")
class MaskedEmbedding(TaskLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` whose table `(entries, features)` is owned by tasks."""

    masked = ("embeddings",)
    per_task = ()
    embeddings = Routed()


class _Recurrent(TaskLayer):
    """Mixin for recurrent cells: two kernels, each with its own owner map."""

    masked = ("kernel", "recurrent_kernel")
    kernel = Routed()
    recurrent_kernel = Routed()
    bias = Routed()


@twin("tf_packnet")
class MaskedSimpleRNNCell(_Recurrent, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell`, the cell of SimpleRNN, whose kernels are owned by tasks."""


@twin("tf_packnet")
class MaskedGRUCell(_Recurrent, keras.layers.GRUCell):
    """`keras.layers.GRUCell`, the cell of GRU, whose kernels are owned by tasks."""


@twin("tf_packnet")
class MaskedLSTMCell(_Recurrent, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell`, the cell of LSTM, whose kernels are owned by tasks."""
