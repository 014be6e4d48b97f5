"""Keras layers whose weights are owned by tasks."""

from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import TaskHead
from tf_packnet.layers.masked import MaskedConv1D, MaskedConv2D, MaskedConv3D, MaskedDense, MaskedEinsumDense

__all__ = [
    "MaskedConv1D",
    "MaskedConv2D",
    "MaskedConv3D",
    "MaskedDense",
    "MaskedEinsumDense",
    "TaskHead",
    "TaskLayer",
]
