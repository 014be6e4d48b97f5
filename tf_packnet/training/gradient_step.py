"""One gradient step of a model with masked layers on one device, and what XLA compiles of it.

XLA compiles whole steps (`acceleration.STEP`), nothing (`OFF`), or what belongs to PackNet (`UPDATE`) and leaves the
layers' own work to TensorFlow: convolutions on CPU are fastest uncompiled, in oneDNN. Around them a step passes over
every weight many times: to choose the kernels by owner, to mask their gradients, to update moments and weights.
Compiled, that is one pass before the layers and one after them.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.training import acceleration, in_place, optimizers
from tf_packnet.training.kernels import chosen, compiled, lent, trained_weights
from tf_packnet.training.step_check import StepCheck


def gradient_step(model: keras.Model, data: Any, inputs_finite: tf.Tensor | None = None) -> dict[str, Any]:
    """What Keras's own `train_step` does, with a `StepCheck`.

    Args:
        model: A compiled `PackedTrainer` with task-aware layers.
        data: A batch `(x, y)` or `(x, y, sample_weight)`.
        inputs_finite: Whether the inputs of the batch are finite, a `bool` scalar. A step that does not pass the check
            then changes nothing but metrics. None if that is known, for one of many steps in a call: where XLA compiles
            whole steps, the caller undoes the one that does not pass.

    Returns:
        The metrics so far, by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    check = StepCheck(model.step_record.problem)
    if inputs_finite is not None:
        check.inputs(inputs_finite)
    weights = trained_weights(model)
    kernels = chosen(weights, model.xla)
    moving = moving_state(model)
    before = [tf.convert_to_tensor(variable) for variable in moving]
    with tf.GradientTape() as tape, check.ids(model), lent(weights, kernels):
        tape.watch(kernels)
        y_pred = model(x, training=True)
        y = check.labels(model.loss, y, y_pred)
        loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        scaled_loss = loss if model.optimizer is None else model.optimizer.scale_loss(loss)
    model._loss_tracker.update_state(loss, sample_weight=tf.shape(tf.nest.flatten(x)[0])[0])
    by_kernel, by_variable = tape.gradient(scaled_loss, (kernels, model.trainable_variables))
    passed = check.result(loss, [] if _skips_steps(model) else _values((*by_kernel, *by_variable)))
    compiled_alone = model.xla == acceleration.STEP and inputs_finite is not None
    if compiled_alone:
        assign_all(moving, [tf.where(passed, variable, kept) for variable, kept in zip(moving, before, strict=True)])
    elif model.xla != acceleration.STEP and moving:
        tf.cond(passed, lambda: True, lambda: assign_all(moving, before))
    _update(model, weights, by_kernel, by_variable, passed, compiled_alone)
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def moving_state(model: keras.Model) -> list[keras.Variable]:
    """Variables that the forward pass may assign to: moving statistics, seeds and other state, not frozen weights."""
    fixed = {id(variable) for layer in lifecycle.task_layers(model) for variable in layer.bookkeeping}
    return [variable for variable in model.non_trainable_variables if id(variable) not in fixed]


def assign_all(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> bool:
    """Assigns each of `values` to its variable."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return True


def _skips_steps(model: keras.Model) -> bool:
    """Whether the optimizer itself leaves out steps whose gradients are not finite, to find its loss scale."""
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def _values(gradients: Sequence[Any]) -> list[tf.Tensor]:
    given = [each for each in gradients if each is not None]
    return [each.values if isinstance(each, tf.IndexedSlices) else each for each in given]


def _update(model, weights, by_kernel, by_variable, passed, compiled_alone) -> None:
    """Applies the optimizer: gradients reach a masked kernel at its candidates and are 0 elsewhere."""
    variables = model.trainable_variables
    if not variables:
        return
    optimizer = model.optimizer
    if not optimizer.built:  # inside XLA's function it would be too late
        optimizer.build(variables)
    place = {id(variable): index for index, variable in enumerate(variables)}

    def update(by_kernel, by_variable):
        gradients = list(by_variable)  # of heads, biases and regularisers; None where there is none
        for (_, weight), gradient in zip(weights, by_kernel, strict=True):
            gradient = tf.convert_to_tensor(gradient)  # of an embedding, the rows that the batch looked up
            masked = tf.where(weight.trained(), tf.cast(gradient, weight.variable.dtype), 0)
            index = place[id(weight.variable)]
            gradients[index] = masked if gradients[index] is None else gradients[index] + masked
        chosen_by = optimizers.applied_if(passed, optimizer, variables) if compiled_alone else contextlib.nullcontext()
        with chosen_by, in_place.kept(model):
            optimizer.apply(gradients, variables)
        return tf.constant(0)  # XLA's functions must return something

    if model.xla == acceleration.STEP:
        update(by_kernel, by_variable)
        return
    if model.xla == acceleration.UPDATE:
        apply = compiled(update)
    else:  # a function of its own: inside `tf.cond` Keras's optimizers take gradients of the same graph only
        apply = update if tf.executing_eagerly() else tf.function(update, autograph=False)
    tf.cond(passed, lambda: apply(by_kernel, by_variable), lambda: tf.constant(0))
