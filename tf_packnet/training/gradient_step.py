"""One gradient step of a model with masked layers on one device.

XLA compiles the whole step (`acceleration.STEP`), nothing (`OFF`), or only PackNet's own work (`UPDATE`). With `UPDATE`
the layers run uncompiled, because convolutions on CPU are fastest in oneDNN. The work around the layers passes over
every weight many times: it selects the kernels by owner, masks their gradients, and updates moments and weights.
Compiled, that is one pass before the layers and one after them.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.system.keras_internals import compute_loss, loss_tracker
from tf_packnet.training import acceleration, optimizers
from tf_packnet.training.kernels import compiled, only_candidates_change, selected, substituted, trained_weights
from tf_packnet.training.step_check import StepCheck


def gradient_step(model: keras.Model, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
    """Take one gradient step, as Keras's own `train_step` does, with a `StepCheck`.

    Args:
        model: A compiled `PackedTrainer` with task-aware layers.
        data: A batch `(x, y)` or `(x, y, sample_weight)`.
        inputs_finite: Whether the inputs of the batch are finite, a `bool` scalar. A step that fails the check then
            changes nothing but metrics. None in a call of many steps, whose inputs have already been checked. If XLA
            then compiles whole steps, the caller must undo a step that fails.

    Returns:
        The metrics so far, by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    check = StepCheck()
    if inputs_finite is not None:
        check.inputs(inputs_finite)
    weights = trained_weights(model)
    kernels = selected(weights, model.xla)
    layer_state = assigned_in_forward_pass(model)
    layer_state_before = [tf.convert_to_tensor(variable) for variable in layer_state]
    both = forward_backward(model, data, weights, kernels, check)
    loss_tracker(model).update_state(both.loss, sample_weight=tf.shape(tf.nest.flatten(x)[0])[0])
    passed = model.step_record.add(both.problem)
    select_in_update = model.xla == acceleration.STEP and inputs_finite is not None
    if select_in_update:
        pairs = zip(layer_state, layer_state_before, strict=True)
        assign_all(layer_state, [tf.where(passed, variable, before) for variable, before in pairs])
    elif model.xla != acceleration.STEP and layer_state:
        tf.cond(passed, lambda: True, lambda: assign_all(layer_state, layer_state_before))
    _update(model, weights, both, passed, select_in_update)
    return model.compute_metrics(x, both.y, both.y_pred, sample_weight=sample_weight)


@dataclasses.dataclass(frozen=True)
class ForwardBackward:
    """Results of a forward and a backward pass.

    Attributes:
        loss: The loss, a scalar. In a replica of a distribution strategy it is divided by the number of replicas.
        y: Labels in any structure, with 0 in place of labels out of range.
        y_pred: Outputs in any structure.
        kernel_gradients: Gradients of the kernels that the layers computed with; None without any.
        variable_gradients: Gradients of the trainable variables, from heads, biases and regularizers; None without any.
        problem: The first `Problem`, an `int64` scalar.
    """

    loss: tf.Tensor
    y: Any
    y_pred: Any
    kernel_gradients: Sequence[Any]
    variable_gradients: Sequence[Any]
    problem: tf.Tensor


def forward_backward(
    model: keras.Model,
    data: Any,
    weights: Sequence[tuple[TaskLayer, MaskedWeight]],
    kernels: Sequence[tf.Tensor],
    check: StepCheck,
    loss_weight: Any = None,
) -> ForwardBackward:
    """Compute the loss of a batch and its gradients. Only the forward pass of layers may assign to variables.

    Args:
        model: A compiled `PackedTrainer`.
        data: A batch `(x, y)` or `(x, y, sample_weight)`.
        weights: The trained masked kernels, with their layers.
        kernels: The tensors with which the layers compute instead of `weights`.
        check: Checks the batch, the loss and the gradients.
        loss_weight: Multiplies the gradients, a scalar; None for 1.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape, check.ids(model), substituted(weights, kernels):
        tape.watch((kernels, variables))
        y_pred = model(x, training=True)
        y = check.labels(model.loss, y, y_pred)
        loss = compute_loss(model, x, y, y_pred, sample_weight)
        scaled_loss = loss if loss_weight is None else loss * tf.cast(loss_weight, loss.dtype)
        scaled_loss = scaled_loss if model.optimizer is None else model.optimizer.scale_loss(scaled_loss)
    kernel_gradients, variable_gradients = tape.gradient(scaled_loss, (kernels, variables))
    gradients = [] if _has_loss_scale(model) else _values((*kernel_gradients, *variable_gradients))
    problem = check.problem(loss, gradients)
    return ForwardBackward(loss, y, y_pred, kernel_gradients, variable_gradients, problem)


def assigned_in_forward_pass(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that a forward pass may assign, such as moving statistics and seeds; not frozen values."""
    fixed = {id(variable) for layer in lifecycle.task_layers(model) for variable in layer.bookkeeping}
    return [variable for variable in model.non_trainable_variables if id(variable) not in fixed]


def assign_all(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> bool:
    """Assign each of `values` to its variable. Return True, because branches of `tf.cond` must return something."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return True


def _has_loss_scale(model: keras.Model) -> bool:
    """Whether the optimizer itself skips steps with non-finite gradients, to find its loss scale."""
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def _values(gradients: Sequence[Any]) -> list[tf.Tensor]:
    known = [gradient for gradient in gradients if gradient is not None]
    return [gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient for gradient in known]


def _update(
    model: keras.Model,
    weights: Sequence[tuple[TaskLayer, MaskedWeight]],
    both: ForwardBackward,
    passed: tf.Tensor,
    select_in_update: bool,
) -> None:
    """Mask the gradients and apply the optimizer, unless the step failed its check.

    Args:
        model: The model.
        weights: The trained masked kernels, with their layers.
        both: Results of the forward and backward pass.
        passed: Whether the step passed its check, a `bool` scalar.
        select_in_update: Whether to use `optimizers.applied_if`, because XLA compiles this single step.
    """
    variables = model.trainable_variables
    if not variables:
        return
    optimizer = model.optimizer
    if not optimizer.built:  # variables cannot be created inside the function that XLA compiles
        optimizer.build(variables)

    def update(kernel_gradients: Sequence[Any], variable_gradients: Sequence[Any]) -> tf.Tensor:
        gradients = masked_gradients(model, weights, kernel_gradients, variable_gradients)
        conditional = optimizers.applied_if(passed, optimizer, variables) if select_in_update else None
        with conditional or contextlib.nullcontext(), only_candidates_change(model):
            optimizer.apply(gradients, variables)
        return tf.constant(0)  # a function that XLA compiles must return something

    gradients = both.kernel_gradients, both.variable_gradients
    if model.xla == acceleration.STEP:
        update(*gradients)
        return
    if model.xla == acceleration.UPDATE:
        apply = compiled(update)
    else:  # a separate function: inside `tf.cond` Keras's optimizers accept only gradients of the same graph
        apply = update if tf.executing_eagerly() else tf.function(update, autograph=False)
    tf.cond(passed, lambda: apply(*gradients), lambda: tf.constant(0))


def masked_gradients(
    model: keras.Model,
    weights: Sequence[tuple[TaskLayer, MaskedWeight]],
    kernel_gradients: Sequence[Any],
    variable_gradients: Sequence[Any],
) -> list[Any]:
    """Return the gradients of the trainable variables; those of kernels are 0 outside the candidates.

    Args:
        model: The model.
        weights: The trained masked kernels, with their layers.
        kernel_gradients: As in `ForwardBackward`.
        variable_gradients: As in `ForwardBackward`.
    """
    position = {id(variable): index for index, variable in enumerate(model.trainable_variables)}
    gradients = list(variable_gradients)
    for (_, weight), gradient in zip(weights, kernel_gradients, strict=True):
        if gradient is None:  # the loss does not depend on the kernel; the optimizer warns about it
            continue
        gradient = tf.convert_to_tensor(gradient)  # that of an embedding is sparse: the looked-up rows
        masked = tf.where(weight.trained(), tf.cast(gradient, weight.variable.dtype), 0)
        index = position[id(weight.variable)]
        gradients[index] = masked if gradients[index] is None else gradients[index] + masked
    return gradients
