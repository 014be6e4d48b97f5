"""`TaskWeight`, a weight that is not pruned: a bias, a scale, the kernel of a head.

Committed values are stored outside the trainable variable, so that no optimizer changes them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.records import same_bits
from tf_packnet.layers.weights import Store, fresh_values, non_trainable, view, without_task


class TaskWeight:
    """A weight that is not pruned. Each task has its own value, or all tasks share the value of task 1.

    Attributes:
        name: Name of the weight in its layer, such as `bias`.
        policy: `first_task` (trained by task 1, then frozen) or `per_task` (one value per task).
        variable: Trainable Keras variable of the open task.
        regularizer: Regularizer of the variable, or None.
        frozen: Non-trainable variable of the same shape: the value of the selected committed task.
        learning: Non-trainable `bool` scalar: whether the layer reads `variable` (True) or `frozen`.
        kept: Committed values as NumPy arrays, by task number (1-based).
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
        self._substitute: Any = None

    def value(self) -> Any:
        """Return the value that the selected task computes with, or the substituted value if there is one."""
        if self._substitute is not None:
            return self._substitute
        return ops.where(self.learning, self.variable, self.frozen)

    def value_of(self, task: int) -> np.ndarray:
        """Return the value of the committed `task` (1-based), whichever task is selected."""
        kept = self.kept.get(1 if self.policy == "first_task" else task)
        return view(self.frozen) if kept is None else kept

    @contextlib.contextmanager
    def substitute(self, value: Any) -> Iterator[None]:
        """Make the layer compute with `value`, a tensor with the content of `value()`, inside the block."""
        before, self._substitute = self._substitute, value
        try:
            yield
        finally:
            self._substitute = before

    def own_value(self) -> Any:
        """Return `value()`. For the interface of `MaskedWeight`."""
        return self.value()

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """All variables of this weight except the trainable one."""
        return [self.frozen, self.learning]

    def begin(self, task: int, seed: int) -> None:
        """Begin `task`.

        Heads get new random values; other per-task weights start from the value of the previous task.
        """
        if task > 1 and self.policy == "per_task":
            if self._fresh_initializer is None:
                start = self.kept[task - 1]
            else:
                start = fresh_values(self._fresh_initializer, tuple(self.variable.shape), self.variable.dtype, seed)
            self.variable.assign(start)
        self.select(task, learning=True)

    def commit(self, task: int) -> None:
        """Store the current value as the committed value of `task`."""
        if task == 1 or self.policy == "per_task":
            self.kept[task] = np.array(ops.convert_to_numpy(self.variable))
        self.select(task, learning=False)

    def forget(self, task: int) -> None:
        """Remove the committed value of `task`. A value of task 1 that all tasks share stays."""
        if self.policy == "per_task":
            self.kept = without_task(self.kept, task)

    def select(self, task: int, learning: bool) -> None:
        """Make the layer read the value of `task`.

        Args:
            task: Task number (1-based).
            learning: Whether it is the open task.
        """
        source = 1 if self.policy == "first_task" else task
        self.learning.assign(learning and source == task)
        if source in self.kept:
            self.frozen.assign(self.kept[source])

    def computes_as(self, task: int) -> bool:
        """Return whether the layer computes with the value of the committed `task` (1-based)."""
        kept = self.kept.get(1 if self.policy == "first_task" else task)
        return kept is None or (not bool(view(self.learning)) and same_bits(view(self.frozen), kept))

    def save(self, store: Store) -> None:
        """Write all variables and the values of all tasks into a Keras weights store."""
        for part in ("variable", "frozen", "learning"):
            store[f"{self.name}.{part}"] = view(getattr(self, part))
        for task, value in self.kept.items():
            store[f"{self.name}.task_{task}"] = value

    def load(self, store: Store, tasks: Iterable[int]) -> None:
        """Load what `save` has written, with the values of the committed `tasks` (1-based numbers)."""
        for part in ("variable", "frozen", "learning"):
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))
        tasks = [task for task in tasks if task == 1 or self.policy == "per_task"]
        self.kept = {task: np.array(store[f"{self.name}.task_{task}"]) for task in tasks}
