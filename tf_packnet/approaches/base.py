"""What every approach can do: learn a stream lesson by lesson, a stage at a time, and answer for every task.

A lesson is what an approach is taught at once: a `Task`, whose examples may be those of several tasks of the stream.
"""

import abc
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.callbacks import EpochBackup, EqualShare, StopWhenDiverged, TaskMaskSnapshot
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.policies import PRUNE_RETRAIN, STAGES, TRAIN
from tf_packnet.system.keras_internals import all_layers, seed_generators
from tf_packnet.tasks import Task, TaskStream
from tf_packnet.tasks.batches import untuned
from tf_packnet.training import acceleration, optimizers

Observers = Callable[[Task, str], Sequence[keras.callbacks.Callback]]


class Approach(abc.ABC):
    """A way to learn a stream of tasks in one network.

    Args:
        packed: A compiled `PackedModel`.
        schedule: Algorithm 2 for this stream.
        train_epochs: `E`, the day.
        retrain_epochs: `B`, the budget of the night.
        prune_scope: `layer`, `global` or `erk`.
        seed: Fixes the order of the examples and the dropout masks of every stage.
        masks_dir: Where the owner maps are written after each task; None writes none.
        resident: Whether the training examples lie on the device, or stream.
        observers: Called with the lesson and the stage's name; gives further Keras callbacks for its `fit`.
    """

    def __init__(
        self,
        packed: PackedModel,
        schedule: EqualShare,
        train_epochs: int,
        retrain_epochs: int,
        prune_scope: str = "layer",
        seed: int = 0,
        masks_dir: str | os.PathLike | None = None,
        resident: bool = True,
        observers: Observers = lambda task, stage: (),
    ):
        self.packed = packed
        self.schedule = schedule
        self.train_epochs = train_epochs
        self.retrain_epochs = retrain_epochs
        self.prune_scope = prune_scope
        self.seed = seed
        self.masks_dir = masks_dir
        self.resident = resident
        self.observers = observers

    @staticmethod
    def lesson_numbers(num_tasks: int) -> Sequence[int]:
        """The lessons of a stream, each by the number (1-based) of the last task in it."""
        return range(1, num_tasks + 1)

    def lesson(self, stream: TaskStream, number: int) -> Task:
        """What is learned at once when task `number` (1-based) arrives."""
        return stream[number - 1]

    @abc.abstractmethod
    def begin(self, lesson: Task) -> None:
        """Opens what the lesson may train."""

    @abc.abstractmethod
    def night(self, lesson: Task) -> list[keras.callbacks.Callback]:
        """The callbacks that prune, and what else happens in the night."""

    @abc.abstractmethod
    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        """Logits `(examples, classes)` of a task that was learned, for inputs `(examples, *shape)`."""

    def learn(self, lesson: Task) -> None:
        """Learns the next lesson: trains, then prunes and retrains."""
        for stage in STAGES:
            self.run_stage(lesson, stage)

    def run_stage(self, lesson: Task, stage: str, backup: EpochBackup | None = None) -> dict[str, list[float]]:
        """Does one stage of a lesson, or the rest of it.

        Args:
            lesson: The lesson.
            stage: `train` or `prune+retrain`.
            backup: Keeps what every epoch comes to, and knows how many were done before.

        Returns:
            The logs of all epochs of the stage, by name.

        Raises:
            DivergedError: If the loss or a weight is not finite after an epoch; the backup is that of the epoch before.
        """
        if stage == TRAIN:
            self.begin(lesson)
            return self._fit(lesson, TRAIN, self.train_epochs, [], backup)
        return self._fit(lesson, PRUNE_RETRAIN, self.retrain_epochs, self.night(lesson), backup)

    def accuracy(self, task: Task, split: str = "test") -> float:
        """Share of the split's examples whose largest logit is at their label."""
        examples = task.splits[split]
        return float(np.mean(self.predict(task, examples.x).argmax(axis=-1) == examples.y))

    def owner_maps(self) -> dict[str, np.ndarray]:
        """A `uint8` map a kernel, by path: 0 is free, `k` has been in use since lesson `k`."""
        return self.packed.owner_maps()

    def state(self) -> dict[str, np.ndarray]:
        """All that the next stage builds on: every stage starts its optimizer and its random draws afresh."""
        return lifecycle.state(self.packed) | {TASKS: np.array(self.packed.task_names, dtype=np.str_)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`, on a network of the same shape."""
        self.packed.restore(state, state[TASKS].tolist())

    def rest(self) -> None:
        """Puts back what every stage starts afresh, optimizer and random generators: what is saved depends on no more
        than `state`."""
        with lifecycle.strategy_scope(self.packed):
            if not self.packed.optimizer.built:
                self.packed.optimizer.build(self.packed.trainable_variables)
            for optimizer in optimizers.all_of(self.packed):
                optimizers.reset(optimizer)
        reseed(self.packed, self.seed)

    @property
    def steps_per_call(self) -> int | None:
        """Gradient steps between two looks of Keras: about a second's worth. None for as many as pays."""
        return SLOW_STEPS_PER_CALL if acceleration.is_convolutional(self.packed) else None

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Outputs of the network, as the task that is selected."""
        examples = untuned(tf.data.Dataset.from_tensor_slices(x).batch(PREDICTION_BATCH))
        return self.packed.predict(examples, verbose=0)

    def _fit(
        self, lesson: Task, stage: str, epochs: int, callbacks: list[Any], backup: EpochBackup | None
    ) -> dict[str, list[float]]:
        seed = lifecycle.derived_seed(self.seed, lesson.number, STAGES.index(stage))
        replicas = self.packed.distribute_strategy.num_replicas_in_sync
        validation = lesson.splits["validation"]
        reseed(self.packed, seed)
        history = self.packed.fit(
            lesson.training_batches(seed, self.resident, self.steps_per_call),
            epochs=epochs,
            validation_data=lesson.evaluation_batches("validation", replicas) if len(validation) else None,
            callbacks=[
                *(each for each in callbacks if not isinstance(each, TaskMaskSnapshot)),
                *self.observers(lesson, stage),
                StopWhenDiverged(f"task {lesson.number}, {stage}"),
                *([backup] if backup else []),
                *(each for each in callbacks if isinstance(each, TaskMaskSnapshot)),  # commits: all others come before
            ],
            verbose=0,
        )
        return {name: [float(value) for value in values] for name, values in history.history.items()}


PREDICTION_BATCH = 1024
SLOW_STEPS_PER_CALL = 16
TASKS = "tasks"


def reseed(model: keras.Model, seed: int) -> None:
    """Starts every random generator inside `model` (dropout) from `seed`, so that a stage depends on nothing before."""
    with lifecycle.strategy_scope(model):
        for position, layer in enumerate(all_layers(model)):
            for generator in seed_generators(layer):
                generator.state.assign([lifecycle.derived_seed(seed, position), 0])
