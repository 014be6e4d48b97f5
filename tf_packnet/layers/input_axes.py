"""The input axes of a kernel: those whose weights are summed into one output."""

import keras

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def input_axes(layer: keras.Layer, name: str, rank: int) -> tuple[int, ...] | None:
    """Return the axes of a kernel whose weights are summed into one output, at one position of a convolution.

    Args:
        layer: A layer.
        name: Name of the kernel in the layer.
        rank: Number of axes of the kernel.

    Returns:
        The axes; for convolutions the axis of input channels. None if there are none or they are unknown, as in
        embeddings and depthwise convolutions.
    """
    if isinstance(layer, keras.layers.EinsumDense):
        inputs_and_kernel, outputs = layer.equation.replace(" ", "").split("->")
        letters = inputs_and_kernel.split(",")[1]
        return tuple(axis for axis, letter in enumerate(letters) if letter not in outputs) or None
    if isinstance(layer, _TRANSPOSED):
        return (rank - 1,)
    if isinstance(layer, _CONVOLUTIONS) or (isinstance(layer, _SEPARABLE) and name == "pointwise_kernel"):
        return (rank - 2,)
    is_table = isinstance(layer, keras.layers.Embedding)
    return (0,) if rank == 2 and not is_table else None
