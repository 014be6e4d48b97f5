"""What every approach can do: learn a task, and answer for it ever after."""

import abc

import numpy as np

from tf_packnet.tasks import Task


class Approach(abc.ABC):
    """A way to learn a stream of tasks."""

    @abc.abstractmethod
    def learn(self, task: Task) -> None:
        """Learns the next task of the stream."""

    @abc.abstractmethod
    def predict(self, task: Task, x: np.ndarray) -> np.ndarray:
        """Logits `(examples, classes)` of a task that was learned, for inputs `(examples, *shape)`."""

    def accuracy(self, task: Task, split: str = "test") -> float:
        """Share of the split's examples whose largest logit is at their label."""
        examples = task.splits[split]
        return float(np.mean(self.predict(task, examples.x).argmax(axis=-1) == examples.y))
