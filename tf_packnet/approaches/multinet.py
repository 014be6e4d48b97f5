"""The first baseline: a network that is trained on all tasks at once, then pruned."""

from collections.abc import Sequence

import keras
import numpy as np

from tf_packnet.approaches.joint import Joint, steps_per_epoch
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.tasks import Task, TaskStream


class Multinet(Joint):
    """Trains on all tasks together, then prunes and retrains in rounds: pruning without continual learning.

    At the end, the fraction of free weights is the same as for PackNet after its last task.
    """

    @staticmethod
    def training_task_numbers(num_tasks: int) -> Sequence[int]:
        return [num_tasks]

    def training_task(self, stream: TaskStream, number: int) -> Task:
        tasks = stream[:number]
        return self.union(stream, tasks, epoch_steps=sum(steps_per_epoch(task) for task in tasks))

    def begin(self, task: Task) -> None:
        self.packed.begin_task()

    def owner_maps(self) -> dict[str, np.ndarray]:
        return {path: used * np.uint8(self.schedule.num_tasks) for path, used in self.used().items()}

    def pruning_callbacks(self, task: Task) -> list[keras.callbacks.Callback]:
        schedule = EqualShare(**{**self.schedule.get_config(), "num_tasks": 1})
        return [PruneRoundScheduler(schedule, **self.ranking(task)), GradientMask()]
