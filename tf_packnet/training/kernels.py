"""The masked kernels of a model, and what its layers compute with, chosen by XLA in one pass.

Uncompiled, the choice by owner is some ten passes over every weight. XLA makes it one, around convolutions that it does
not compile and in evaluation, which it does not compile either.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.training import acceleration

# To choose fewer weights in one pass saves less than it takes to compile that.
MANY = 2**16


def trained_weights(model: keras.Model) -> list[tuple[TaskLayer, MaskedWeight]]:
    """The masked kernels that are trained now, each with its layer."""
    trainable = {id(variable) for variable in model.trainable_variables}
    return [(layer, weight) for layer, weight in _with_layers(model) if id(weight.variable) in trainable]


def worth_choosing(model: keras.Model) -> list[tuple[TaskLayer, MaskedWeight]]:
    """The masked kernels, if XLA may compile and they are large enough for `chosen` to pay when nothing is trained."""
    weights = _with_layers(model)
    many = sum(math.prod(weight.variable.shape) for _, weight in weights) >= MANY
    return weights if many and model.xla != acceleration.OFF else []


def chosen(weights: Sequence[tuple[TaskLayer, MaskedWeight]], xla: str) -> list[tf.Tensor]:
    """The kernels that the layers compute with, in their compute dtypes: in one pass, if XLA compiles anything."""
    if all(weight.in_place for _, weight in weights):
        return [tf.cast(tf.convert_to_tensor(weight.variable), layer.compute_dtype) for layer, weight in weights]

    def choose():
        return [tf.cast(weight.value(), layer.compute_dtype) for layer, weight in weights]

    return choose() if xla == acceleration.OFF else compiled(choose)()


@contextlib.contextmanager
def lent(weights: Sequence[tuple[TaskLayer, MaskedWeight]], kernels: Sequence[tf.Tensor]) -> Iterator[None]:
    """While it lasts the layers compute with `kernels`, see `chosen`."""
    with contextlib.ExitStack() as stack:
        for (_, weight), kernel in zip(weights, kernels, strict=True):
            stack.enter_context(weight.substitute(kernel))
        yield


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled by XLA, whatever calls it."""
    return tf.function(function, jit_compile=True, autograph=False)


def _with_layers(model) -> list[tuple[TaskLayer, MaskedWeight]]:
    return [(layer, weight) for layer in lifecycle.task_layers(model) for weight in layer.masked_weights]
