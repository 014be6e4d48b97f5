"""The first bound: a network that sees the data of all tasks at once, and is pruned once."""

from collections.abc import Sequence

import keras
import numpy as np

from tf_packnet.approaches.joint import Joint, steps_an_epoch
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.tasks import Task, TaskStream


class Multinet(Joint):
    """Trains on all tasks together, prunes to `p` in rounds, retrains: pruning without any continual learning.

    One lesson, the whole stream; the free share at its end is that of PackNet after its last task.
    """

    @staticmethod
    def lesson_numbers(num_tasks: int) -> Sequence[int]:
        return [num_tasks]

    def lesson(self, stream: TaskStream, number: int) -> Task:
        tasks = stream[:number]
        return self.union(stream, tasks, epoch_steps=sum(steps_an_epoch(task) for task in tasks))

    def begin(self, lesson: Task) -> None:
        self.packed.begin_task()

    def owner_maps(self) -> dict[str, np.ndarray]:
        return {path: used * np.uint8(self.schedule.num_tasks) for path, used in self.used().items()}

    def night(self, lesson: Task) -> list[keras.callbacks.Callback]:
        at_once = EqualShare(self.schedule.final_prune, num_tasks=1, rounds=self.schedule.rounds)
        return [PruneRoundScheduler(at_once, scope=self.prune_scope), GradientMask()]
