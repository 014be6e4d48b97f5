"""Task-aware Keras layers without prunable weights: normalization, PReLU, attention.

With `bias_policy="first_task"`, later tasks use the scales, offsets and statistics of task 1, even in training. With
`per_task`, every task has its own, initialized from those of the previous task.
"""

from typing import Any

import keras
from keras import ops

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.base import Routed, TaskLayer, twin


class _Unpruned(TaskLayer):
    """Mixin for layers without prunable weights: all their weights follow `bias_policy`."""

    masked = ()
    per_task: tuple[str, ...] = ("gamma", "beta")


@twin("tf_packnet")
class TaskLayerNormalization(_Unpruned, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` whose scale and offset belong to tasks."""

    gamma = Routed()
    beta = Routed()


@twin("tf_packnet")
class TaskGroupNormalization(_Unpruned, keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` whose scale and offset belong to tasks."""

    gamma = Routed()
    beta = Routed()


@twin("tf_packnet")
class TaskRMSNormalization(_Unpruned, keras.layers.RMSNormalization):
    """`keras.layers.RMSNormalization` whose scale belongs to tasks."""

    per_task = ("scale",)
    scale = Routed()


@twin("tf_packnet")
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
        if vars(self).get("renorm"):  # Keras 3.12 has no `renorm`
            raise ArgumentError("renorm", "False: task-aware layers do not support batch renormalization", True)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize like Keras's layer; batch statistics are used only while the open task trains them."""
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        mean, variance = ops.cast(self.moving_mean, x.dtype), ops.cast(self.moving_variance, x.dtype)
        if training and self.trainable:
            # A variable rather than a Python condition, so that all tasks share one compiled step.
            learning = self._routes["moving_mean"].learning
            batch_mean, batch_variance = self._moments(x, mask)
            self._update_moving("moving_mean", batch_mean, learning)
            self._update_moving("moving_variance", batch_variance, learning)
            mean = ops.where(learning, batch_mean, mean)
            variance = ops.where(learning, batch_variance, variance)
        normalized = ops.batch_normalization(
            x=x,
            mean=mean,
            variance=variance,
            axis=self.axis,
            offset=ops.cast(self.beta, x.dtype) if self.center else None,
            scale=ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return ops.cast(normalized, self.compute_dtype)

    def _update_moving(self, name: str, batch_value: Any, learning: Any) -> None:
        variable = self._routes[name].variable
        updated = variable * self.momentum + ops.cast(batch_value, variable.dtype) * (1.0 - self.momentum)
        variable.assign(ops.where(learning, updated, variable))


@twin("tf_packnet")
class TaskPReLU(_Unpruned, keras.layers.PReLU):
    """`keras.layers.PReLU` whose slopes belong to tasks."""

    per_task = ("alpha",)
    alpha = Routed()


@twin("tf_packnet")
class TaskAttention(_Unpruned, keras.layers.Attention):
    """`keras.layers.Attention` whose scales, if it has any, belong to tasks."""

    per_task = ("scale", "concat_score_weight")
    scale = Routed()
    concat_score_weight = Routed()


@twin("tf_packnet")
class TaskAdditiveAttention(_Unpruned, keras.layers.AdditiveAttention):
    """`keras.layers.AdditiveAttention` whose scale, if it has one, belongs to tasks."""

    per_task = ("scale",)
    scale = Routed()
