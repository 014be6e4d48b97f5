"""The second bound: a network that remembers the data of every task, and freezes nothing."""

from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.approaches.joint import Joint, steps_an_epoch
from tf_packnet.callbacks import GradientMask, PruneRoundScheduler
from tf_packnet.pruning.schedules import GrowingShare
from tf_packnet.tasks import Task, TaskStream

JOINED, PRESENT = "joined/", "present"


class Memory(Joint):
    """Learns task `i` on the data of tasks 1 to `i`: what freezing costs, since nothing here is frozen.

    One mask, shared by all tasks, grows to the share `1 - r^i` of the weights that PackNet would have used by then: its
    members stay and go on training, and the best of the other weights join them.

    Attributes:
        joined: By weight path, a `uint8` map of the lessons in which the weights joined the mask; 0 for those that did
            not, or are about to in the present lesson.
        present: Number of the present lesson.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.joined: dict[str, np.ndarray] = {}
        self.present = 0

    def lesson(self, stream: TaskStream, number: int) -> Task:
        return self.union(stream, stream[:number], epoch_steps=steps_an_epoch(stream[number - 1]))

    def begin(self, lesson: Task) -> None:
        if lesson.number == 1:
            self.packed.begin_task()
        else:
            self.joined = self.owner_maps()
            self.packed.reopen_task(lifecycle.derived_seed(self.seed, lesson.number))
        self.present = lesson.number

    def night(self, lesson: Task) -> list[keras.callbacks.Callback]:
        share = self.schedule
        growing = GrowingShare(share.final_prune, share.num_tasks, share.rounds, task=lesson.number)
        members = {path: joined > 0 for path, joined in self.joined.items()}
        return [_KeepMembers(members, growing, scope=self.prune_scope), GradientMask()]

    def owner_maps(self) -> dict[str, np.ndarray]:
        now = np.uint8(self.present)
        used = self.used()
        earlier = {path: self.joined.get(path, np.uint8(0)) for path in used}
        return {path: np.where(earlier[path] > 0, earlier[path], now) * used[path] for path in used}

    def state(self) -> dict[str, np.ndarray]:
        mine = {JOINED + path: joined for path, joined in self.joined.items()}
        return super().state() | mine | {PRESENT: np.array(self.present)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        super().restore(state)
        self.joined = {name.removeprefix(JOINED): state[name] for name in state if name.startswith(JOINED)}
        self.present = int(state[PRESENT])


class _KeepMembers(PruneRoundScheduler):
    """Ranks the members of the mask above all others."""

    def __init__(self, members: dict[str, np.ndarray], *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._members = members

    def score(self, path: str, values: np.ndarray) -> np.ndarray:
        magnitudes = super().score(path, values)
        return np.where(self._members[path], np.inf, magnitudes) if path in self._members else magnitudes
