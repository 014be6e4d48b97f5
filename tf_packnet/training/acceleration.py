"""Chooses how much of a gradient step XLA compiles, and tells which precisions the hardware supports."""

from pathlib import Path

import keras
import tensorflow as tf

from tf_packnet.system.keras_internals import all_layers, distribution_strategy

# What XLA compiles: the whole step; masks and optimizer only (see `gradient_step`); nothing.
STEP, UPDATE, OFF = "step", "update", "off"

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)

CPUINFO = Path("/proc/cpuinfo")
# CPU flags in Linux, on x86 and ARM. Without them oneDNN and XLA convert each number to float32 and back.
_CPU_FLAGS = {
    "mixed_bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "mixed_float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def gpus() -> list[tf.config.PhysicalDevice]:
    """Return the GPUs that TensorFlow uses, without those that the program has hidden from it."""
    return tf.config.get_visible_devices("GPU")


def choose(convolutional: bool) -> str:
    """Return the fastest setting: `STEP` or `UPDATE`. On CPU oneDNN's convolutions are faster than XLA's.

    Args:
        convolutional: Whether the model has convolutions, see `is_convolutional`.
    """
    return UPDATE if convolutional and not gpus() else STEP


def computes_in(precision: str) -> bool:
    """Whether the hardware has instructions for a Keras dtype policy; True if this is unknown."""
    if precision not in _CPU_FLAGS or gpus() or not CPUINFO.exists():
        return True
    return not _CPU_FLAGS[precision].isdisjoint(CPUINFO.read_text().split())


def is_distributed(model: keras.Model) -> bool:
    """Whether `model` was created in the scope of a distribution strategy, even one with a single replica."""
    return distribution_strategy(model) is not None


def can_compile_replicas(model: keras.Model) -> bool:
    """Whether XLA can compile the forward pass of a replica: not if a layer waits for other replicas in it."""
    return not (is_distributed(model) and any(getattr(layer, "synchronized", False) for layer in all_layers(model)))


def is_convolutional(model: keras.Model) -> bool:
    """Whether `model` has a convolution layer, at any depth."""
    return any(isinstance(layer, _CONVOLUTIONS) for layer in all_layers(model))
