"""One gradient step in which XLA compiles what belongs to PackNet, and leaves the layers' own work to TensorFlow.

Convolutions on CPU are fastest uncompiled, in oneDNN. Around them a step passes over every weight many times: to choose
the kernels by owner, to mask their gradients, to update moments and weights. Compiled, that is one pass before the
layers and one after them.
"""

from typing import Any

import keras
import tensorflow as tf

from tf_packnet import in_place
from tf_packnet.kernels import chosen, compiled, lent, trained_weights


def gradient_step(model: keras.Model, data: Any) -> dict[str, Any]:
    """What Keras's own `train_step` does, for a model with masked layers on one device.

    Args:
        model: A compiled model with task-aware layers.
        data: A batch `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The metrics so far, by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    weights = trained_weights(model)
    kernels = chosen(weights)
    with tf.GradientTape() as tape:
        tape.watch(kernels)
        with lent(weights, kernels):
            y_pred = model(x, training=True)
            loss = model._compute_loss(x, y, y_pred, sample_weight, training=True)
        scaled_loss = model.optimizer.scale_loss(loss)
    by_kernel, by_variable = tape.gradient(scaled_loss, (kernels, model.trainable_variables))
    _update(model, weights, by_kernel, by_variable)
    model._loss_tracker.update_state(loss, sample_weight=tf.shape(tf.nest.flatten(x)[0])[0])
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _update(model, weights, by_kernel, by_variable) -> None:
    """Applies the optimizer: gradients reach a masked kernel at its candidates and are 0 elsewhere."""
    variables = model.trainable_variables
    if not model.optimizer.built:  # inside XLA's function it would be too late
        model.optimizer.build(variables)
    place = {id(variable): index for index, variable in enumerate(variables)}

    def update(by_kernel, by_variable):
        gradients = list(by_variable)  # of heads, biases and regularisers; None where there is none
        for (_, weight), gradient in zip(weights, by_kernel, strict=True):
            gradient = tf.convert_to_tensor(gradient)  # of an embedding, the rows that the batch looked up
            masked = tf.where(weight.trained(), tf.cast(gradient, weight.variable.dtype), 0)
            index = place[id(weight.variable)]
            gradients[index] = masked if gradients[index] is None else gradients[index] + masked
        with in_place.kept(model):
            model.optimizer.apply(gradients, variables)
        return tf.constant(0)  # XLA's functions must return something

    compiled(update)(by_kernel, by_variable)
