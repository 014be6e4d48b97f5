"""Keras layers whose weights are owned by tasks."""

from tf_packnet.layers.base import Routed, TaskLayer
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
    MaskedGRUCell,
    MaskedLSTMCell,
    MaskedSeparableConv1D,
    MaskedSeparableConv2D,
    MaskedSimpleRNNCell,
)
from tf_packnet.layers.unpruned import (
    UNPRUNED_TWINS,
    TaskAdditiveAttention,
    TaskAttention,
    TaskBatchNormalization,
    TaskGroupNormalization,
    TaskLayerNormalization,
    TaskPReLU,
    TaskRMSNormalization,
)

# The task-aware twin of each Keras layer that `pack` supports. To support your own layer, define and register
# `class MaskedMyLayer(TaskLayer, MyLayer)` and add `TWINS[MyLayer] = MaskedMyLayer`.
TWINS = {**MASKED_TWINS, **UNPRUNED_TWINS}

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
]
