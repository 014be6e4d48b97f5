"""Chooses how much of a gradient step XLA compiles, and checks which precisions the hardware supports."""

import math
from pathlib import Path

import keras
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.system import xla
from tf_packnet.system.keras_internals import (
    all_layers,
    as_function,
    clear_losses,
    distribution_strategy,
    graph_ends,
)

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

# Operations that are slow in XLA on CPU, above all their gradients: measured 1.7 to 90 times as slow as TensorFlow.
_SLOW_OPERATIONS = {
    *("Conv2D", "Conv2DBackpropInput", "Conv3D", "Conv3DBackpropInputV2", "DepthwiseConv2dNative"),
    *("MaxPool", "MaxPool3D", "ResizeBicubic", "ResizeBilinear"),
}
# The layers are also faster in TensorFlow if an operation of `_READ_WEIGHTS` reads a weight with more entries than this
# (1.3 times with 4096x4096 weights) and the model has no loops. Recurrent layers are faster in XLA.
_LARGE = 3 * 2**20
# Products of two activations are slower in XLA if a matrix has more entries: 1.3 times in attention over 512 positions.
_LARGE_MATRIX = 2**17
# With fewer weights in masked kernels, a call of the compiled masks and optimizer takes longer than it saves.
WORTH_COMPILING = 2**15
_LOOPS = {"StatelessWhile", "While"}
_PRODUCTS = {"BatchMatMulV2", "Einsum"}
_READ_WEIGHTS = {*_PRODUCTS, "GatherV2", "MatMul", "ResourceGather"}

CPUINFO = Path("/proc/cpuinfo")
# CPU flags in Linux, on x86 and ARM. Without them oneDNN and XLA convert each number to float32 and back.
_CPU_FLAGS = {
    "mixed_bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "mixed_float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def gpus() -> list[tf.config.PhysicalDevice]:
    """Return the GPUs that TensorFlow uses, without those that the program has hidden."""
    return tf.config.get_visible_devices("GPU")


def fastest(model: keras.Model) -> str:
    """Return the compilation level that should give a packed model the fastest gradient steps, by fixed rules."""
    if gpus() or not is_slow_in_xla(model):
        return STEP
    kernels = lifecycle.masked_weights(model).values()
    return UPDATE if sum(math.prod(kernel.owner.shape) for kernel in kernels) >= WORTH_COMPILING else OFF


def computes_in(precision: str) -> bool:
    """Whether the hardware has instructions for a Keras dtype policy; True if this is unknown."""
    if precision not in _CPU_FLAGS or gpus() or not CPUINFO.exists():
        return True
    return not _CPU_FLAGS[precision].isdisjoint(CPUINFO.read_text().split())


def is_distributed(model: keras.Model) -> bool:
    """Whether `model` was created in the scope of a distribution strategy, even one with a single replica."""
    return distribution_strategy(model) is not None


def can_compile_replicas(model: keras.Model) -> bool:
    """Whether XLA can compile the forward pass of a replica. It cannot if a layer waits for other replicas."""
    return not (is_distributed(model) and any(getattr(layer, "synchronized", False) for layer in all_layers(model)))


def is_convolutional(model: keras.Model) -> bool:
    """Whether `model` has a convolution layer, at any depth."""
    return any(isinstance(layer, _CONVOLUTIONS) for layer in all_layers(model))


def is_slow_in_xla(model: keras.Model) -> bool:
    """Whether XLA on CPU computes the layers of `model` more slowly than TensorFlow, or cannot compile them.

    Decided by the operations of a forward pass, whichever layers they come from.
    """
    if is_convolutional(model):  # known without tracing, which takes seconds for large models
        return True
    graph = _forward_pass(model)
    types = xla.operation_types(graph)
    operations = graph.get_operations()
    large_weights = types.isdisjoint(_LOOPS) and any(map(_reads_large_weight, operations))
    large = large_weights or any(map(_multiplies_large_activations, operations))
    return large or not types.isdisjoint(_SLOW_OPERATIONS) or not xla.compiles(types)


def draws_with_threefry(model: keras.Model, level: str) -> bool:
    """Whether compiled steps of `model` draw random numbers with another algorithm than uncompiled ones, see `xla`."""
    return level == STEP and not gpus() and xla.RANDOM_KEY in xla.operation_types(_forward_pass(model))


def _forward_pass(model: keras.Model) -> tf.Graph:
    """Trace a forward pass in training mode. If it fails, return an empty graph: `fit` will report the error."""
    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), graph_ends(as_function(model))[0])
    forward = tf.function(lambda inputs: model(inputs, training=True), autograph=False)
    try:
        return forward.get_concrete_function(inputs).graph
    except Exception:  # raised by Keras or by the code of a layer
        return tf.Graph()
    finally:
        clear_losses(model)


def _reads_large_weight(operation: tf.Operation) -> bool:
    # Activations have no static size.
    sizes = [tensor.shape.num_elements() for tensor in operation.inputs]
    return operation.type in _READ_WEIGHTS and any(size and size > _LARGE for size in sizes)


def _multiplies_large_activations(operation: tf.Operation) -> bool:
    if operation.type not in _PRODUCTS or any(tensor.shape.is_fully_defined() for tensor in operation.inputs):
        return False
    matrices = [tensor.shape[-2:].num_elements() for tensor in (*operation.inputs, *operation.outputs)]
    return any(size and size > _LARGE_MATRIX for size in matrices)
