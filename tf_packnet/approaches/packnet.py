"""PackNet with iterative pruning on a time budget: the paper's Algorithm 1, a task at a time."""

import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import acceleration, lifecycle
from tf_packnet.approaches.base import Approach
from tf_packnet.callbacks import EqualShare, GradientMask, PruneRoundScheduler, TaskMaskSnapshot
from tf_packnet.packed_model import PackedModel
from tf_packnet.tasks import Task
from tf_packnet.tasks.batches import untuned

TRAIN, PRUNE_RETRAIN = "train", "prune+retrain"
STAGES = (TRAIN, PRUNE_RETRAIN)
Observers = Callable[[Task, str], Sequence[keras.callbacks.Callback]]


class PackNet(Approach):
    """Trains on the free weights, prunes and retrains in rounds, freezes what is kept.

    Args:
        packed: A compiled `PackedModel`.
        schedule: Algorithm 2 for this stream.
        train_epochs: `E`, the day.
        retrain_epochs: `B`, the budget of the night.
        prune_scope: `layer`, `global` or `erk`.
        seed: Fixes the order of the examples and the dropout masks of every stage.
        masks_dir: Where the owner maps are written after each task; None writes none.
        resident: Whether the training examples lie on the device, or stream.
        observers: Called with the task and the stage's name; gives further Keras callbacks for its `fit`.
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

    def learn(self, task: Task) -> None:
        self.packed.begin_task(task.name, task.num_classes)
        self._fit(task, TRAIN, self.train_epochs)
        self._fit(
            task,
            PRUNE_RETRAIN,
            self.retrain_epochs,
            PruneRoundScheduler(self.schedule, scope=self.prune_scope),
            GradientMask(),
            TaskMaskSnapshot(self.masks_dir),
        )

    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        self.packed.select_task(task.name)
        examples = untuned(tf.data.Dataset.from_tensor_slices(x).batch(PREDICTION_BATCH))
        return self.packed.predict(examples, verbose=0)

    @property
    def steps_per_call(self) -> int | None:
        """Gradient steps between two looks of Keras: about a second's worth. None for as many as pays."""
        return SLOW_STEPS_PER_CALL if acceleration.is_convolutional(self.packed) else None

    def _fit(self, task: Task, stage: str, epochs: int, *callbacks: keras.callbacks.Callback) -> None:
        seed = lifecycle.derived_seed(self.seed, task.number, STAGES.index(stage))
        replicas = self.packed.distribute_strategy.num_replicas_in_sync
        reseed(self.packed, seed)
        self.packed.fit(
            task.training_batches(seed, self.resident, self.steps_per_call),
            epochs=epochs,
            validation_data=task.evaluation_batches("validation", replicas) if len(task.splits["validation"]) else None,
            # The snapshot commits the task: whoever observes the end of the stage comes before it.
            callbacks=[*callbacks[:-1], *self.observers(task, stage), *callbacks[-1:]],
            verbose=0,
        )


PREDICTION_BATCH = 1024
SLOW_STEPS_PER_CALL = 16


def reseed(model: keras.Model, seed: int) -> None:
    """Starts every random generator inside `model` (dropout) from `seed`, so that a stage depends on nothing before."""
    with lifecycle.strategy_scope(model):
        for position, layer in enumerate(model._flatten_layers()):
            for generator in layer._seed_generators:
                generator.state.assign([lifecycle.derived_seed(seed, position), 0])
