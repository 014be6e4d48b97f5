"""PackNet with iterative pruning on a time budget (Algorithm 1 of the paper)."""

from collections.abc import Sequence

import keras
import numpy as np

from tf_packnet.approaches.base import Approach, share_correct
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler, TaskMaskSnapshot
from tf_packnet.packed.preview import preview_task
from tf_packnet.tasks import Split, Task


class PackNet(Approach):
    """Trains each task on the free weights, prunes and retrains in rounds, and freezes the weights that are kept."""

    def begin(self, task: Task) -> None:
        self.packed.begin_task(task.name, task.num_classes)

    def pruning_callbacks(self, task: Task) -> list[keras.callbacks.Callback]:
        return [
            PruneRoundScheduler(self.schedule, **self.ranking(task)),
            GradientMask(),
            TaskMaskSnapshot(self.masks_dir),
        ]

    def predict(self, task: Task, x: np.ndarray | Split) -> np.ndarray:
        self.packed.select_task(task.name)
        return self.logits(x)

    def unseen_accuracy(self, tasks: Sequence[Task]) -> list[float]:
        """Return the test accuracy on unseen tasks, computed with the committed weights and a new, untrained head."""
        accuracy: dict[int, float] = {}
        for num_classes in dict.fromkeys(task.num_classes for task in tasks):
            with preview_task(self.packed, num_classes):
                for task in tasks:
                    if task.num_classes == num_classes:
                        test = task.splits["test"]
                        accuracy[task.number] = share_correct(self.logits(test), test.y)
        return [accuracy[task.number] for task in tasks]
