"""Keras layers whose weights are owned by tasks."""

from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import TaskHead
from tf_packnet.layers.masked import (
    MASKED_TWINS,
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
from tf_packnet.layers.normalization import (
    NORMALIZATION_TWINS,
    TaskBatchNormalization,
    TaskGroupNormalization,
    TaskLayerNormalization,
    TaskRMSNormalization,
)

# The task-aware twin of each Keras layer that `pack` knows.
TWINS = {**MASKED_TWINS, **NORMALIZATION_TWINS}

__all__ = [
    "TWINS",
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
    "TaskBatchNormalization",
    "TaskGroupNormalization",
    "TaskHead",
    "TaskLayer",
    "TaskLayerNormalization",
    "TaskRMSNormalization",
]
