"""What makes a gradient step fast on a machine: how much of it XLA compiles, and in which precision it pays."""

from pathlib import Path

import keras
import tensorflow as tf

# The whole step; masks and optimizer only (see `gradient_step`); nothing.
STEP, UPDATE, OFF = "step", "update", "off"

CONVOLUTIONS = (
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
# What Linux calls them on x86 and ARM. Without them oneDNN and XLA convert to float32 and back, number by number.
INSTRUCTIONS = {
    "mixed_bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "mixed_float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def gpus() -> list[tf.config.PhysicalDevice]:
    """The GPUs that TensorFlow computes on: those that a program hid from it are left out."""
    return tf.config.get_visible_devices("GPU")


def choose(convolutional: bool, distributed: bool = False) -> str:
    """What pays: on CPU oneDNN's convolutions are faster than XLA's; in a strategy TensorFlow cannot compile at all."""
    if distributed:
        return OFF
    return UPDATE if convolutional and not gpus() else STEP


def computes_in(precision: str) -> bool:
    """Whether the devices have instructions for a dtype policy; True where that cannot be known."""
    if precision not in INSTRUCTIONS or gpus() or not CPUINFO.exists():
        return True
    return not INSTRUCTIONS[precision].isdisjoint(CPUINFO.read_text().split())


def is_distributed(model: keras.Model) -> bool:
    """Whether `model` was made in the scope of a strategy, where steps can be neither compiled nor made a loop of.

    One replica is enough for that: it could wait for others, too.
    """
    return model._distribute_strategy is not None


def is_convolutional(model: keras.Model) -> bool:
    """Whether a layer of `model`, at any depth, convolves."""
    return any(isinstance(layer, CONVOLUTIONS) for layer in model._flatten_layers())
