"""Keras layers whose weights are owned by tasks."""

from tf_packnet.layers.augmentation import Augmentation
from tf_packnet.layers.base import TWINS, Routed, TaskLayer, twin
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
    MaskedGRUCell,
    MaskedLSTMCell,
    MaskedSeparableConv1D,
    MaskedSeparableConv2D,
    MaskedSimpleRNNCell,
)
from tf_packnet.layers.unpruned import (
    TaskAdditiveAttention,
    TaskAttention,
    TaskBatchNormalization,
    TaskGroupNormalization,
    TaskLayerNormalization,
    TaskPReLU,
    TaskRMSNormalization,
)

__all__ = [
    "TWINS",
    "Augmentation",
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
    "MaskedGRUCell",
    "MaskedLSTMCell",
    "MaskedSeparableConv1D",
    "MaskedSeparableConv2D",
    "MaskedSimpleRNNCell",
    "Routed",
    "TaskAdditiveAttention",
    "TaskAttention",
    "TaskBatchNormalization",
    "TaskGroupNormalization",
    "TaskHead",
    "TaskLayer",
    "TaskLayerNormalization",
    "TaskPReLU",
    "TaskRMSNormalization",
    "twin",
]
