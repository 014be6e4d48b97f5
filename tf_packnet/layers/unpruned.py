"""Keras layers in which nothing is pruned: their scales, offsets and statistics belong to tasks.

Under `bias_policy="first_task"` they are what the first task made of them: a later task normalises with its statistics,
in training too. Under `per_task` every task has its own, from those of the task before.
"""

from typing import Any

import keras
from keras import ops

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.base import Routed, TaskLayer

_register = keras.saving.register_keras_serializable(package="tf_packnet")


class _Unpruned(TaskLayer):
    """Nothing is pruned; everything follows the policy of the biases."""

    masked = ()
    per_task = ("gamma", "beta")


@_register
class TaskLayerNormalization(_Unpruned, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` whose scale and offset belong to tasks."""

    gamma = Routed()
    beta = Routed()


@_register
class TaskGroupNormalization(_Unpruned, keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` whose scale and offset belong to tasks."""

    gamma = Routed()
    beta = Routed()


@_register
class TaskRMSNormalization(_Unpruned, keras.layers.RMSNormalization):
    """`keras.layers.RMSNormalization` whose scale belongs to tasks."""

    per_task = ("scale",)
    scale = Routed()


@_register
class TaskBatchNormalization(_Unpruned, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose scale, offset and moving statistics belong to tasks.

    Raises:
        ArgumentError: On construction, with `renorm=True`.
    """

    per_task = ("gamma", "beta", "moving_mean", "moving_variance")
    gamma = Routed()
    beta = Routed()
    moving_mean = Routed()
    moving_variance = Routed()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if getattr(self, "renorm", False):  # which Keras 3.12 has not
            raise ArgumentError("renorm", "False: tasks and batch renormalisation do not go together", True)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As Keras's; a batch is normalised by its own statistics only while they are being learned."""
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        mean, variance = ops.cast(self.moving_mean, x.dtype), ops.cast(self.moving_variance, x.dtype)
        if training and self.trainable:
            # Chosen by a variable, not by Python: one compiled step serves all tasks.
            learning = self._routes["moving_mean"].learning
            of_batch = self._moments(x, mask)
            self._move("moving_mean", of_batch[0], learning)
            self._move("moving_variance", of_batch[1], learning)
            mean = ops.where(learning, of_batch[0], mean)
            variance = ops.where(learning, of_batch[1], variance)
        normalised = ops.batch_normalization(
            x=x,
            mean=mean,
            variance=variance,
            axis=self.axis,
            offset=ops.cast(self.beta, x.dtype) if self.center else None,
            scale=ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return ops.cast(normalised, self.compute_dtype)

    def _move(self, name: str, of_batch: Any, learning: Any) -> None:
        variable = self._routes[name].variable
        moved = variable * self.momentum + ops.cast(of_batch, variable.dtype) * (1.0 - self.momentum)
        variable.assign(ops.where(learning, moved, variable))


@_register
class TaskPReLU(_Unpruned, keras.layers.PReLU):
    """`keras.layers.PReLU` whose slopes belong to tasks."""

    per_task = ("alpha",)
    alpha = Routed()


@_register
class TaskAttention(_Unpruned, keras.layers.Attention):
    """`keras.layers.Attention` whose scales, if it has any, belong to tasks."""

    per_task = ("scale", "concat_score_weight")
    scale = Routed()
    concat_score_weight = Routed()


@_register
class TaskAdditiveAttention(_Unpruned, keras.layers.AdditiveAttention):
    """`keras.layers.AdditiveAttention` whose scale, if it has one, belongs to tasks."""

    per_task = ("scale",)
    scale = Routed()


_UNPRUNED = (
    TaskBatchNormalization,
    TaskLayerNormalization,
    TaskGroupNormalization,
    TaskRMSNormalization,
    TaskPReLU,
    TaskAttention,
    TaskAdditiveAttention,
)
# The twin of each Keras layer that `pack` knows.
UNPRUNED_TWINS = {twin.__bases__[-1]: twin for twin in _UNPRUNED}
