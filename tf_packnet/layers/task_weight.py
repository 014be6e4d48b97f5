"""A weight that is not pruned: a bias, a scale, a head. Committed values lie where no optimizer sees them."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.records import same
from tf_packnet.layers.weights import fresh_values, non_trainable, view


class TaskWeight:
    """A weight that is not pruned, of which each task has its own value, or all have the first task's.

    Attributes:
        name: Name of the weight in its layer.
        policy: `first_task` (trained by task 1, then frozen for all) or `per_task` (one value a task).
        variable: The trainable Keras variable of the task being learned.
        regularizer: That of the variable, None without one.
        frozen: Non-trainable, same shape: the value of the selected committed task.
        learning: Non-trainable `bool` scalar: read `variable` rather than `frozen`.
        kept: The committed value of each task that has one, NumPy, by task number (1-based).
    """

    def __init__(
        self, layer: keras.Layer, name: str, variable: keras.Variable, policy: str, fresh_initializer: Any = None
    ):
        self.name = name
        self.policy = policy
        self.variable = variable
        self.regularizer, variable.regularizer = variable.regularizer, None  # see TaskLayer._get_own_losses
        self.kept: dict[int, np.ndarray] = {}
        self._fresh_initializer = fresh_initializer
        add = non_trainable(layer, variable)
        self.frozen = add(f"{name}_frozen", tuple(variable.shape), variable.dtype, "zeros")
        self.learning = add(f"{name}_learning", (), "bool", "ones")

    def value(self) -> Any:
        """The value that the selected task computes with."""
        return ops.where(self.learning, self.variable, self.frozen)

    def whole_value(self) -> Any:
        """The same."""
        return self.value()

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """The variables besides the trainable one."""
        return [self.frozen, self.learning]

    def begin(self, task: int, seed: int) -> None:
        """Starts `task`: a head from a fresh draw, any other weight from the value of the task before."""
        if task > 1 and self.policy == "per_task":
            if self._fresh_initializer is None:
                start = self.kept[task - 1]
            else:
                start = fresh_values(self._fresh_initializer, tuple(self.variable.shape), self.variable.dtype, seed)
            self.variable.assign(start)
        self.select(task, learning=True)

    def commit(self, task: int) -> None:
        """Keeps the present value for `task`, for ever."""
        if task == 1 or self.policy == "per_task":
            self.kept[task] = np.array(ops.convert_to_numpy(self.variable))
        self.select(task, learning=False)

    def select(self, task: int, learning: bool) -> None:
        """Shows the value of `task`; `learning` says whether it is the open task."""
        source = 1 if self.policy == "first_task" else task
        self.learning.assign(learning and source == task)
        if source in self.kept:
            self.frozen.assign(self.kept[source])

    def shows(self, task: int) -> bool:
        """Whether the layer computes with what the committed `task` (1-based) has kept."""
        kept = self.kept.get(1 if self.policy == "first_task" else task)
        return kept is None or (not bool(view(self.learning)) and same(view(self.frozen), kept))

    def save(self, store: dict) -> None:
        """Writes the whole state, every task's value included, into a Keras weights store."""
        for part in ("variable", "frozen", "learning"):
            store[f"{self.name}.{part}"] = view(getattr(self, part))
        for task, value in self.kept.items():
            store[f"{self.name}.task_{task}"] = value

    def load(self, store: dict, tasks: Iterable[int]) -> None:
        """Reads the whole state back, with the values of the committed `tasks` (1-based numbers)."""
        for part in ("variable", "frozen", "learning"):
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))
        tasks = [task for task in tasks if task == 1 or self.policy == "per_task"]
        self.kept = {task: np.array(store[f"{self.name}.task_{task}"]) for task in tasks}
