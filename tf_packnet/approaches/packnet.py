"""PackNet with iterative pruning on a time budget: the paper's Algorithm 1, a task at a time."""

import keras
import numpy as np

from tf_packnet.approaches.base import Approach
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler, TaskMaskSnapshot
from tf_packnet.tasks import Task


class PackNet(Approach):
    """Trains on the free weights, prunes and retrains in rounds, freezes what is kept. A lesson is a task."""

    def begin(self, lesson: Task) -> None:
        self.packed.begin_task(lesson.name, lesson.num_classes)

    def night(self, lesson: Task) -> list[keras.callbacks.Callback]:
        return [
            PruneRoundScheduler(self.schedule, scope=self.prune_scope),
            GradientMask(),
            TaskMaskSnapshot(self.masks_dir),
        ]

    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        self.packed.select_task(task.name)
        return self.logits(x)
