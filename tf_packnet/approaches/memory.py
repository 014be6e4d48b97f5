"""The second baseline: a network that is trained on the data of all tasks so far, and freezes nothing."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.approaches.joint import Joint, steps_per_epoch
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler
from tf_packnet.pruning.schedules import GrowingShare
from tf_packnet.tasks import Task, TaskStream

# Names in the saved state: do not change them.
_JOINED, _CURRENT = "joined/", "present"


class Memory(Joint):
    """Learns task `i` on the data of tasks 1 to `i`. Its lead over PackNet in accuracy is the cost of freezing.

    One mask, shared by all tasks, grows to the fraction `1 - r^i` of the weights, as many as PackNet uses after task
    `i`. Weights in the mask stay in it and are trained further. The largest of the other weights are added.

    Attributes:
        joined: By weight path, a `uint8` map of the task (1-based) with which each weight joined the mask. It is 0 for
            weights that have not joined, or that join with the current task.
        current: Number of the current task.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.joined: dict[str, np.ndarray] = {}
        self.current = 0

    def training_task(self, stream: TaskStream, number: int) -> Task:
        return self.union(stream, stream[:number], epoch_steps=steps_per_epoch(stream[number - 1]))

    def begin(self, task: Task) -> None:
        if task.number == 1:
            self.packed.begin_task()
        else:
            self.joined = self.owner_maps()
            self.packed.reopen_task(lifecycle.derived_seed(self.seed, task.number))
        self.current = task.number

    def pruning_callbacks(self, task: Task) -> list[keras.callbacks.Callback]:
        growing = GrowingShare(**self.schedule.get_config(), task=task.number)
        members = {path: joined > 0 for path, joined in self.joined.items()}
        return [_KeepMembers(members, growing, **self.ranking(task)), GradientMask()]

    def owner_maps(self) -> dict[str, np.ndarray]:
        current = np.uint8(self.current)
        used = self.used()
        earlier = {path: self.joined.get(path, np.uint8(0)) for path in used}
        return {path: np.where(earlier[path] > 0, earlier[path], current) * used[path] for path in used}

    def state(self) -> dict[str, np.ndarray]:
        own = {_JOINED + path: joined for path, joined in self.joined.items()}
        return super().state() | own | {_CURRENT: np.array(self.current)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        self.joined = {name.removeprefix(_JOINED): state[name] for name in state if name.startswith(_JOINED)}
        self.current = int(state[_CURRENT])


class _KeepMembers(PruneRoundScheduler):
    """Ranks the weights in the mask above all others."""

    def __init__(self, members: dict[str, np.ndarray], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._members = members

    def score(self, path: str, values: np.ndarray) -> np.ndarray:
        magnitudes = super().score(path, values)
        return np.where(self._members[path], np.inf, magnitudes) if path in self._members else magnitudes
