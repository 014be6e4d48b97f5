"""PackNet with iterative pruning on a time budget (Algorithm 1 of the paper)."""

import keras
import numpy as np

from tf_packnet.approaches.base import Approach
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler, TaskMaskSnapshot
from tf_packnet.tasks import Task


class PackNet(Approach):
    """Trains each task on the free weights, prunes and retrains in rounds, and freezes the weights that are kept."""

    def begin(self, task: Task) -> None:
        self.packed.begin_task(task.name, task.num_classes)

    def pruning_callbacks(self, task: Task) -> list[keras.callbacks.Callback]:
        return [
            PruneRoundScheduler(self.schedule, scope=self.prune_scope),
            GradientMask(),
            TaskMaskSnapshot(self.masks_dir),
        ]

    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        self.packed.select_task(task.name)
        return self.logits(x)
