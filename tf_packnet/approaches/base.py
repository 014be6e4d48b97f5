"""The interface of all approaches: learn a stream of tasks stage by stage, and predict for every task.

When a task of the stream arrives, an approach trains on a *training task*. For PackNet, this is the task itself. For
the baselines, it joins the examples of several tasks, see `Approach.training_task`.
"""

import abc
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.callbacks import EpochBackup, RetrainingRate, StopWhenDiverged, TaskMaskSnapshot, TimeBudget
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.policies import CONSTANT, MAGNITUDE, PRUNE_RETRAIN, STAGES, TRAIN
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.system.keras_internals import all_layers, seed_generators
from tf_packnet.tasks import Split, Task, TaskStream
from tf_packnet.tasks.batches import decoded_in_batches, evaluation_batches, untuned
from tf_packnet.training import acceleration, optimizers

# Returns further callbacks for the `fit` of a stage, given the training task and the name of the stage.
Observers = Callable[[Task, str], Sequence[keras.callbacks.Callback]]


class Approach(abc.ABC):
    """Learns a stream of tasks in one network.

    Args:
        packed: A compiled `PackedModel`.
        schedule: The pruning schedule of Algorithm 2 for this stream.
        train_epochs: `E`, epochs of training.
        retrain_epochs: `B`, epochs of pruning and retraining.
        prune_scope: `layer`, `global` or `erk`.
        prune_criterion: How prune rounds rank the weights: `magnitude`, `activation` or `taylor`.
        retrain_rate: Learning rate schedule of the `prune+retrain` stage, see `RetrainingRate`.
        seed: Seeds the order of the examples and the dropout masks of every stage.
        masks_dir: Directory for the owner maps after each task; None writes none.
        resident: Whether to keep the training examples in device memory. If not, they are streamed.
        observers: Called with the training task and the name of the stage; returns further callbacks for its `fit`.
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
        prune_criterion: str = MAGNITUDE,
        retrain_rate: str = CONSTANT,
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
        self.prune_criterion = prune_criterion
        self.retrain_rate = retrain_rate

    @staticmethod
    def training_task_numbers(num_tasks: int) -> Sequence[int]:
        """Return the numbers (1-based) of the tasks at whose arrival this approach trains."""
        return range(1, num_tasks + 1)

    def training_task(self, stream: TaskStream, number: int) -> Task:
        """Return the task to train on when task `number` (1-based) of the stream arrives."""
        return stream[number - 1]

    def training_name(self, stream: TaskStream, number: int) -> str:
        """Return the name of `training_task(stream, number)`, without its data."""
        return stream[number - 1].name

    @abc.abstractmethod
    def begin(self, task: Task) -> None:
        """Begin a training task: open the weights that it may train."""

    @abc.abstractmethod
    def pruning_callbacks(self, task: Task) -> list[keras.callbacks.Callback]:
        """Return the callbacks of the `prune+retrain` stage."""

    @abc.abstractmethod
    def predict(self, task: Task, x: np.ndarray | Split) -> np.ndarray:
        """Return the logits `(examples, classes)` of a learned task of the stream.

        Args:
            task: The task.
            x: Inputs of the network, `(examples, *shape)`, or a split of examples.
        """

    def learn(self, task: Task) -> None:
        """Learn the next training task: train, then prune and retrain."""
        for stage in STAGES:
            self.run_stage(task, stage)

    def run_stage(
        self,
        task: Task,
        stage: str,
        backup: EpochBackup | None = None,
        round_epochs: str | Sequence[int] | None = None,
        budget: TimeBudget | None = None,
    ) -> dict[str, list[float]]:
        """Run one stage of a training task, or the rest of it after a backup.

        Args:
            task: The training task.
            stage: `train` or `prune+retrain`.
            backup: Saves the state after every epoch. If it has a backup of this stage, the stage resumes from it.
            round_epochs: The epochs after each prune round, as for `EqualShare`. Default: those of `schedule`.
            budget: The time budget for pruning and retraining, instead of a number of epochs.

        Returns:
            The logs of all epochs of the stage, by name.

        Raises:
            DivergedError: If the loss or a weight is not finite. The backup is then that of the epoch before.
        """
        if stage == TRAIN:
            self.begin(task)
            lifecycle.records(self.packed).before = None  # no task is abandoned here, and stored states do not have it
            return self._fit(task, TRAIN, self.train_epochs, [], backup)
        epochs = self.retrain_epochs
        if round_epochs is not None:
            settings = {**self.schedule.get_config(), "epochs": None, "round_epochs": round_epochs}
            self.schedule = type(self.schedule)(**settings)
            epochs = self.schedule.epochs or epochs
        callbacks = self.pruning_callbacks(task)
        if budget is not None:
            callbacks, epochs = [budget, *callbacks], _NO_LIMIT
        if self.retrain_rate != CONSTANT:
            callbacks.append(RetrainingRate(self.retrain_rate, self.train_epochs))
        return self._fit(task, PRUNE_RETRAIN, epochs, callbacks, backup)

    def accuracy(self, task: Task, split: str = "test") -> float:
        """Return the fraction of the examples in a split whose largest logit is that of their label."""
        return share_correct(self.predict(task, task.splits[split]), task.splits[split].y)

    def unseen_accuracy(self, tasks: Sequence[Task]) -> list[float]:
        """Return the test accuracy of tasks of the stream that are not learned yet; changes nothing."""
        return [self.accuracy(task) for task in tasks]

    def owner_maps(self) -> dict[str, np.ndarray]:
        """Return a `uint8` map of each kernel by path: 0 for free weights, `k` if used since training task `k`."""
        return self.packed.owner_maps()

    def state(self) -> dict[str, np.ndarray]:
        """Return the state on which the next stage depends.

        It excludes optimizer and random generators: a stage resets them.
        """
        return lifecycle.state(self.packed) | {_TASKS: np.array(self.packed.task_names, dtype=np.str_)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` returned, on a network with the same architecture."""
        self.packed.restore(state, state[_TASKS].tolist())

    def reset_for_saving(self) -> None:
        """Reset optimizers and random generators, so that the saved pack depends only on `state`."""
        with lifecycle.strategy_scope(self.packed):
            if not self.packed.optimizer.built:
                self.packed.optimizer.build(self.packed.trainable_variables)
            for optimizer in optimizers.all_of(self.packed):
                optimizers.reset(optimizer)
        reseed(self.packed, self.seed)

    def ranking(self, task: Task) -> dict[str, Any]:
        """Return the arguments of `PruneRoundScheduler` that determine how it ranks weights."""
        if self.prune_criterion == MAGNITUDE:
            return {"scope": self.prune_scope}
        train = task.splits["train"]
        rng = np.random.default_rng(lifecycle.derived_seed(self.seed, task.number, len(STAGES)))
        sample = train.take(np.sort(rng.permutation(len(train))[:_RANKING_EXAMPLES]))
        return {"scope": self.prune_scope, "criterion": self.prune_criterion, "data": (sample.x, sample.y)}

    @property
    def steps_per_call(self) -> int | None:
        """Maximum number of gradient steps per compiled call, about one second of work; None for the default."""
        return _SLOW_STEPS_PER_CALL if acceleration.is_convolutional(self.packed) else None

    def logits(self, x: np.ndarray | Split) -> np.ndarray:
        """Return the logits `(examples, outputs)` of the selected task, for `x` as in `predict`."""
        if isinstance(x, Split) and decoded_in_batches(x.images):
            size = max(1, min(_PREDICTION_BATCH, _PREDICTION_BYTES // (4 * math.prod(x.images.shape[1:]))))
            batches = evaluation_batches(x.images, x.y, x.scale, size)
            return self.packed.predict(batches.map(lambda x, y: x), verbose=0)
        inputs = x.x if isinstance(x, Split) else x
        examples = untuned(tf.data.Dataset.from_tensor_slices(inputs).batch(_PREDICTION_BATCH))
        return self.packed.predict(examples, verbose=0)

    def _fit(
        self, task: Task, stage: str, epochs: int, callbacks: list[Any], backup: EpochBackup | None
    ) -> dict[str, list[float]]:
        seed = lifecycle.derived_seed(self.seed, task.number, STAGES.index(stage))
        validation = task.splits["validation"]
        reseed(self.packed, seed)
        history = self.packed.fit(
            task.training_batches(seed, self.resident, self.steps_per_call),
            epochs=epochs,
            validation_data=task.evaluation_batches("validation") if len(validation) else None,
            callbacks=[
                *(each for each in callbacks if not isinstance(each, TaskMaskSnapshot)),
                *self.observers(task, stage),
                StopWhenDiverged(f"task {task.number}, {stage}"),
                *([backup] if backup else []),
                *(each for each in callbacks if isinstance(each, TaskMaskSnapshot)),  # last, as it commits the task
            ],
            verbose=0,
        )
        return {name: [float(value) for value in values] for name, values in history.history.items()}


_PREDICTION_BATCH = 1024
# Batch size for images on disk, in bytes of inputs.
_PREDICTION_BYTES = 2**25
# Number of training examples for the criteria that rank weights by data.
_RANKING_EXAMPLES = 512
_SLOW_STEPS_PER_CALL = 16
# Upper limit on the epochs of a `fit` with a time budget.
_NO_LIMIT = 1_000_000
_TASKS = "tasks"  # a name in the saved state: do not change it


def share_correct(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples whose largest logit is that of their label."""
    return float(np.mean(logits.argmax(axis=-1) == labels))


def reseed(model: keras.Model, seed: int) -> None:
    """Seed every random generator in `model`, such as those of dropout, so that stages are independent."""
    with lifecycle.strategy_scope(model):
        for position, layer in enumerate(all_layers(model)):
            for generator in seed_generators(layer):
                generator.state.assign([lifecycle.derived_seed(seed, position), 0])
