"""Keras's own layers with masked kernels: every argument, shape and dtype is the Keras layer's."""

import keras

from tf_packnet.layers.base import Routed, TaskLayer

_register = keras.saving.register_keras_serializable(package="tf_packnet")


@_register
class MaskedDense(TaskLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel `(inputs, units)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@_register
class MaskedEinsumDense(TaskLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@_register
class MaskedConv1D(TaskLayer, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel `(width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@_register
class MaskedConv2D(TaskLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel `(height, width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


@_register
class MaskedConv3D(TaskLayer, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose kernel `(depth, height, width, inputs, filters)` is owned by tasks."""

    kernel = Routed()
    bias = Routed()


# The masked twin of each Keras layer that `pack` knows.
TWINS = {
    keras.layers.Dense: MaskedDense,
    keras.layers.EinsumDense: MaskedEinsumDense,
    keras.layers.Conv1D: MaskedConv1D,
    keras.layers.Conv2D: MaskedConv2D,
    keras.layers.Conv3D: MaskedConv3D,
}
