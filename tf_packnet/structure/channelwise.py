"""Lists the Keras activations and layers that compute each channel (a position of the last axis) from itself alone."""

from typing import Any

import keras
from keras import layers

# Activations that are computed for each value separately.
POINTWISE = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "tanh", "sigmoid", "softplus"),
    *("softsign", "exponential", "hard_sigmoid", "hard_silu", "hard_tanh", "mish", "log_sigmoid", "squareplus"),
}
# Layers without weights, by what they do to a channel: apply a function to each value; nothing, in prediction; combine
# positions; add positions that are 0; combine tensors.
FUNCTIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
IDLE = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout),
    *(layers.ActivityRegularization, layers.Identity),
)
POSITIONS = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    layers.RepeatVector,
)
PADDING = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
# Operators such as `x + y`.
OPERATORS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def is_pointwise(activation: Any) -> bool:
    """Return whether an activation is known to be computed for each value separately."""
    name = getattr(activation, "__name__", "")
    return name in POINTWISE and keras.activations.get(name) is activation


def is_operator(layer: Any) -> bool:
    """Return whether a step of a graph is one of `OPERATORS`, rather than a layer."""
    return type(layer).__module__ == "keras.src.ops.numpy" and type(layer).__name__ in OPERATORS


def is_channels_last(layer: Any) -> bool:
    """Return whether the last axis of a layer's inputs and outputs is that of the channels."""
    return getattr(layer, "data_format", None) in (None, "channels_last")


def keeps_units_apart(layer: Any) -> bool:
    """Return whether the units of a recurrent layer depend on each other only through its kernels."""
    activations = (layer.activation, getattr(layer, "recurrent_activation", layer.activation))
    return not layer.stateful and not layer.return_state and all(map(is_pointwise, activations))
