"""The base class of both baselines: one network that learns several tasks together, each with its own head.

One output layer contains the heads of all tasks. The loss and the accuracy of an example use only the logits of its own
task, so the heads are as separate as PackNet's.
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
from tf_packnet.tasks.stored_images import concatenate


class Joint(Approach):
    """An approach that trains on the data of several tasks at once, and freezes nothing.

    Args:
        *args: As for `Approach`.
        num_classes: Number of classes of each task.
        own_heads: Whether each task has its own head. If not, all tasks share one.
        budget: `steps` for the same number of gradient steps as PackNet, `epochs` for the same number of epochs.
        **kwargs: As for `Approach`.
    """

    def __init__(self, *args: Any, num_classes: int, own_heads: bool = True, budget: str = "steps", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes
        self.own_heads = own_heads
        self.budget = budget

    def predict(self, task: Task, x: np.ndarray | Split) -> np.ndarray:
        self.packed.select_task(1)  # the network has one task, for all tasks of the stream
        logits = self.logits(x)
        return logits[:, self._labels_of(task)] if self.own_heads else logits

    def used(self) -> dict[str, np.ndarray]:
        """Return `bool` masks of the weights in use, by path: the candidates, since nothing is committed."""
        weights = lifecycle.masked_weights(self.packed)
        return {path: ownership.candidates(weight.owner_map()) for path, weight in weights.items()}

    def training_name(self, stream: TaskStream, number: int) -> str:
        return f"tasks 1-{number}" if number > 1 else stream[0].name

    def union(self, stream: TaskStream, tasks: Sequence[Task], epoch_steps: int) -> Task:
        """Return one task with the examples of several tasks.

        Args:
            stream: The stream.
            tasks: The tasks to join.
            epoch_steps: Gradient steps per epoch, if the budget is `steps`.
        """
        return dataclasses.replace(
            tasks[-1],
            name=self.training_name(stream, len(tasks)),
            class_names=tuple(name for task in tasks for name in task.class_names),
            splits={name: self._joined_split(tasks, name) for name in tasks[0].splits},
            room=sum(len(task.splits["train"]) for task in stream),
            epoch_steps=epoch_steps if self.budget == "steps" else None,
        )

    def _joined_split(self, tasks: Sequence[Task], name: str) -> Split:
        splits = [task.splits[name] for task in tasks]
        first_label = [self._labels_of(task).start if self.own_heads else 0 for task in tasks]
        return Split(
            concatenate([split.images for split in splits]),
            np.concatenate([split.labels + first for split, first in zip(splits, first_label, strict=True)]),
            splits[0].scale,
        )

    def _labels_of(self, task: Task) -> slice:
        return slice((task.number - 1) * self.num_classes, task.number * self.num_classes)


def steps_per_epoch(task: Task) -> int:
    """Return the number of gradient steps that PackNet takes in an epoch of `task`."""
    return len(task.splits["train"]) // task.batch_size


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskwiseCrossentropy(keras.losses.Loss):
    """Cross-entropy over the logits of each example's own task.

    Args:
        num_classes: Number of classes of each task; label `l` belongs to task `l // num_classes`.
        name: Name of the loss.
    """

    def __init__(self, num_classes: int, name: str = "taskwise_crossentropy"):
        super().__init__(name=name)
        self.num_classes = num_classes

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the losses `(batch,)`, for integer labels `(batch,)` and logits `(batch, tasks * num_classes)`."""
        label, logits = select_own_task(y_true, y_pred, self.num_classes)
        return keras.losses.sparse_categorical_crossentropy(label, logits, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "name": self.name}


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskwiseAccuracy(keras.metrics.Mean):
    """Accuracy, counting only the logits of each example's own task.

    Args:
        num_classes: Number of classes of each task.
        name: Name of the metric.
    """

    def __init__(self, num_classes: int, name: str = "accuracy"):
        super().__init__(name=name)
        self.num_classes = num_classes

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch, with shapes as for `TaskwiseCrossentropy`."""
        label, logits = select_own_task(y_true, y_pred, self.num_classes)
        correct = ops.equal(ops.cast(label, "int32"), ops.cast(ops.argmax(logits, axis=-1), "int32"))
        super().update_state(ops.cast(correct, self.dtype), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "name": self.name}


def select_own_task(labels: Any, logits: Any, num_classes: int) -> tuple[Any, Any]:
    """Select the part of labels and logits that belongs to each example's own task.

    Args:
        labels: Integers `(batch,)`; label `l` belongs to task `l // num_classes`.
        logits: Logits `(batch, tasks * num_classes)`.
        num_classes: Number of classes of each task.

    Returns:
        Labels within the own task, `(batch,)`, and logits of the own task, `(batch, num_classes)`.
    """
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    by_task = ops.reshape(logits, (-1, logits.shape[-1] // num_classes, num_classes))
    # A product with a one-hot matrix, because gathers are slow in XLA on CPU, and scattering their gradients even
    # slower.
    own = ops.one_hot(labels // num_classes, by_task.shape[1], dtype=by_task.dtype)
    return labels % num_classes, ops.sum(by_task * ops.expand_dims(own, -1), axis=1)
