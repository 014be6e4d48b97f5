"""Keras layers whose weights are owned by tasks."""

from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import TaskHead
from tf_packnet.layers.masked import (
    MaskedConv1D,
    MaskedConv1DTranspose,
    MaskedConv2D,
    MaskedConv2DTranspose,
    MaskedConv3D,
    MaskedConv3DTranspose,
    MaskedDense,
    MaskedDepthwiseConv1D,
    MaskedDepthwiseConv2D,
    MaskedEinsumDense,
    MaskedEmbedding,
    MaskedSeparableConv1D,
    MaskedSeparableConv2D,
)

__all__ = [
    "MaskedConv1D",
    "MaskedConv1DTranspose",
    "MaskedConv2D",
    "MaskedConv2DTranspose",
    "MaskedConv3D",
    "MaskedConv3DTranspose",
    "MaskedDense",
    "MaskedDepthwiseConv1D",
    "MaskedDepthwiseConv2D",
    "MaskedEinsumDense",
    "MaskedEmbedding",
    "MaskedSeparableConv1D",
    "MaskedSeparableConv2D",
    "TaskHead",
    "TaskLayer",
]
