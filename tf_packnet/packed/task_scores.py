"""Scores the outputs of a task by how certain its head is. The task of an example should get the highest score.

The functions take NumPy arrays and tensors.
"""

import math
from typing import Any

import keras
from keras import ops

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.head import number_of_outputs
from tf_packnet.structure.output_heads import last_operation, output_heads

# `entropy`: 1 minus the entropy of the class probabilities relative to its maximum. `energy`: logarithm of the mean of
# the exponentials of the logits (the negative energy of Liu et al. 2020, normalized by the number of classes). `logit`:
# the largest logit.
ENTROPY, ENERGY, LOGIT = METHODS = ("entropy", "energy", "logit")

LOGITS, PROBABILITIES, SIGMOID = "logits", "probabilities", "sigmoid"
_SMALLEST = 1e-7  # probabilities below it are rounding errors


def output_kind(model: keras.Model) -> str:
    """Return whether the only output of a model, as the selected task, consists of logits, probabilities or sigmoids.

    Raises:
        ArgumentError: If the model has several outputs, or a single unit without a sigmoid.
    """
    if len(model.outputs) != 1 or len(model.outputs[0].shape) < 2:
        raise ArgumentError("model", "a model with one output of class scores", model.name)
    last = last_operation(model.outputs[0])
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation is keras.activations.softmax:
        return PROBABILITIES
    if activation is keras.activations.sigmoid:
        return SIGMOID
    if _outputs(last, model) == 1:
        expected = "tasks of classification: a single output without sigmoid may be a regression"
        raise ArgumentError("model", expected, model.name)
    return LOGITS


def class_axis(model: keras.Model) -> int:
    """Return the axis of the classes in the only output of a model."""
    head = output_heads(model, trace=False)[0]
    return len(model.outputs[0].shape) - 1 if head.layer is None else head.axis


def check_method(method: str, kind: str) -> None:
    """Raise ArgumentError if the method is unknown, or needs logits and the outputs are probabilities."""
    check_choice("method", method, METHODS)
    if kind == PROBABILITIES and method != ENTROPY:
        raise ArgumentError("method", "entropy, because the outputs of some task are probabilities, not logits", method)


def _outputs(last: Any, model: keras.Model) -> int | None:
    outputs = getattr(last, "num_outputs", None)  # of a head, as the selected task
    outputs = number_of_outputs(last) if outputs is None else outputs
    return model.outputs[0].shape[-1] if outputs is None else outputs


def scores(outputs: Any, kind: str, axis: int, method: str) -> Any:
    """Return one score per example: the higher it is, the more likely the example belongs to the task.

    Args:
        outputs: Outputs of a task, `(examples, classes)`, with positions between or after these axes.
        kind: Result of `output_kind`.
        axis: Result of `class_axis`.
        method: One of `METHODS`.

    Returns:
        `float32`, shape `(examples,)`: the mean over positions, if there are any.

    Raises:
        ArgumentError: If `method` is unknown, or needs logits and there are only probabilities.
    """
    check_method(method, kind)
    logits = ops.moveaxis(ops.cast(outputs, "float32"), axis, -1)
    if kind != LOGITS:
        probabilities = ops.clip(logits, _SMALLEST, 1.0)
        rest = ops.log(ops.clip(1.0 - logits, _SMALLEST, 1.0)) if kind == SIGMOID else 0.0
        logits = ops.log(probabilities) - rest
    if logits.shape[-1] == 1:
        logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
    classes = logits.shape[-1]
    if method == ENTROPY:
        logarithms = ops.log_softmax(logits, axis=-1)
        score = 1.0 + ops.sum(ops.exp(logarithms) * logarithms, axis=-1) / math.log(classes)
    elif method == ENERGY:
        score = ops.logsumexp(logits, axis=-1) - math.log(classes)
    else:
        score = ops.max(logits, axis=-1)
    return ops.mean(ops.reshape(score, (ops.shape(score)[0], -1)), axis=-1)
