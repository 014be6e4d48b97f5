"""What the two idealised approaches share: one network whose tasks are learned together, each through its own head.

The heads of all tasks lie side by side in one output layer. An example's loss, and its accuracy, count the logits of
its own task alone, so that the heads are as separate as PackNet's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet import lifecycle
from tf_packnet.approaches.base import Approach
from tf_packnet.pruning import ownership
from tf_packnet.tasks import Split, Task, TaskStream


class Joint(Approach):
    """An approach that sees the data of several tasks at once, and freezes nothing.

    Args:
        *args: As for `Approach`.
        num_classes: Classes of each task.
        own_heads: Whether each task has a head of its own; else all share one.
        budget: `steps` takes as many gradient steps as PackNet does, `epochs` as many epochs.
        **kwargs: As for `Approach`.
    """

    def __init__(self, *args: Any, num_classes: int, own_heads: bool = True, budget: str = "steps", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes
        self.own_heads = own_heads
        self.budget = budget

    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        self.packed.select_task(1)  # the one task of the network, which all tasks of the stream make up
        logits = self.logits(x)
        return logits[:, self._labels_of(task)] if self.own_heads else logits

    def used(self) -> dict[str, np.ndarray]:
        """Boolean mask of the weights in use, by path. Nothing is committed, so they are what may still be trained."""
        weights = lifecycle.masked_weights(self.packed)
        return {path: ownership.candidates(weight.owner_map()) for path, weight in weights.items()}

    def union(self, stream: TaskStream, tasks: Sequence[Task], epoch_steps: int) -> Task:
        """The examples of several tasks as one; an epoch takes `epoch_steps` gradient steps under `budget=steps`."""
        return dataclasses.replace(
            tasks[-1],
            name=f"tasks 1-{len(tasks)}" if len(tasks) > 1 else tasks[0].name,
            class_names=tuple(name for task in tasks for name in task.class_names),
            splits={name: self._joined(tasks, name) for name in tasks[0].splits},
            room=sum(len(task.splits["train"]) for task in stream),
            epoch_steps=epoch_steps if self.budget == "steps" else None,
        )

    def _joined(self, tasks: Sequence[Task], name: str) -> Split:
        splits = [task.splits[name] for task in tasks]
        first_label = [self._labels_of(task).start if self.own_heads else 0 for task in tasks]
        return Split(
            np.concatenate([split.images for split in splits]),
            np.concatenate([split.labels + first for split, first in zip(splits, first_label, strict=True)]),
            splits[0].scale,
        )

    def _labels_of(self, task: Task) -> slice:
        return slice((task.number - 1) * self.num_classes, task.number * self.num_classes)


def steps_an_epoch(task: Task) -> int:
    """Gradient steps that PackNet takes in an epoch of `task`."""
    return len(task.splits["train"]) // task.batch_size


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskwiseCrossentropy(keras.losses.Loss):
    """Cross-entropy over the logits of an example's own task.

    Args:
        num_classes: Classes of each task; label `l` belongs to task `l // num_classes`.
        name: Name of the loss.
    """

    def __init__(self, num_classes: int, name: str = "taskwise_crossentropy"):
        super().__init__(name=name)
        self.num_classes = num_classes

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses `(batch,)` of logits `(batch, tasks * num_classes)` for integer labels `(batch,)`."""
        label, logits = own_task(y_true, y_pred, self.num_classes)
        return keras.losses.sparse_categorical_crossentropy(label, logits, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "name": self.name}


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskwiseAccuracy(keras.metrics.Mean):
    """Share of the examples whose largest logit among those of their own task is at their label.

    Args:
        num_classes: Classes of each task.
        name: Name of the metric.
    """

    def __init__(self, num_classes: int, name: str = "accuracy"):
        super().__init__(name=name)
        self.num_classes = num_classes

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch; shapes as for `TaskwiseCrossentropy`."""
        label, logits = own_task(y_true, y_pred, self.num_classes)
        right = ops.equal(ops.cast(label, "int32"), ops.cast(ops.argmax(logits, axis=-1), "int32"))
        super().update_state(ops.cast(right, self.dtype), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "name": self.name}


def own_task(labels: Any, logits: Any, num_classes: int) -> tuple[Any, Any]:
    """Each example's label within its own task, `(batch,)`, and that task's logits, `(batch, num_classes)`."""
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    by_task = ops.reshape(logits, (-1, logits.shape[-1] // num_classes, num_classes))
    # A product with ones and zeros, since XLA on CPU is slow to gather and slower to scatter the gradients back.
    own = ops.one_hot(labels // num_classes, by_task.shape[1], dtype=by_task.dtype)
    return labels % num_classes, ops.sum(by_task * ops.expand_dims(own, -1), axis=1)
