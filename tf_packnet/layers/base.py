"""What makes a Keras layer task-aware: its weights are routed, its state follows the life of a task.

Keras layers compute with `self.kernel` and `self.bias`. A `Routed` attribute stores the variable that the Keras layer
assigns to it and hands out the value that the selected task sees, so that no `call` of Keras is written again.
"""

import contextvars
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import RECORDS, TaskRecords
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import check_task_number
from tf_packnet.pruning.policies import BIAS_POLICIES, PRETRAINED

# Whether whoever loads compares the tasks of the whole model afterwards, and puts back what was there.
COMPARES_AFTERWARDS = contextvars.ContextVar("compares_afterwards", default=False)


class Routed:
    """A layer attribute whose reads give a masked or per-task value, and whose variable is `_<name>`."""

    def __set_name__(self, owner: type, name: str):
        self.name = name
        self.raw = f"_{name}"

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        route = layer._routes.get(self.name)
        if route is not None:
            return route.value()
        return getattr(layer, self.raw)

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer, self.raw, value)


class TaskLayer:
    """Mixin, before the Keras layer in the bases: owns the routed weights and walks them through a task's life.

    Subclasses name their weights: `masked` are pruned and owned, `per_task` follow `bias_policy`.

    Args:
        bias_policy: What later tasks do to the biases: `first_task` or `per_task`.
        pretrained: None, or whether pretrained kernels are `prunable` or `visible`, see `tf_packnet.pruning.policies`.
    """

    masked: tuple[str, ...] = ("kernel",)
    per_task: tuple[str, ...] = ("bias",)
    # Where the Keras layer keeps a weight's initializer, if not under `<name>_initializer`.
    initializers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *args, bias_policy: str = "first_task", pretrained: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        check_choice("bias_policy", bias_policy, BIAS_POLICIES)
        if pretrained is not None:
            check_choice("pretrained", pretrained, PRETRAINED)
        if getattr(self, "lora_rank", None):
            raise ArgumentError("lora_rank", "None: masks and LoRA do not go together", self.lora_rank)
        self.bias_policy = bias_policy
        self.pretrained = pretrained
        self.committed_tasks = 0
        self.selected_task = 1
        self.open = True  # a fresh layer can be trained at once, as its first task
        self.was_loaded = False  # since somebody looked, see `safe_loading.TaskCheck`
        # Past Keras's tracking. Only the first task-aware layer of a model has any, see `lifecycle.records`.
        object.__setattr__(self, "records", None)
        self._set_routes({})

    def build(self, input_shape):
        super().build(input_shape)
        self._set_routes(
            {name: self._route(name) for name in self.masked + self.per_task if self._raw(name) is not None}
        )

    def _get_own_losses(self) -> list[Any]:
        """Keras's hook: regularisers see the kernel that the selected task computes with.

        Keras itself would give them the trainable variable, which later tasks change.
        """
        losses = super()._get_own_losses()
        if self.trainable:
            losses += [w.regularizer(w.whole_value()) for w in self._routes.values() if w.regularizer is not None]
        return losses

    def _set_routes(self, routes: dict[str, MaskedWeight | TaskWeight]) -> None:
        # Set past Keras's tracking: the variables inside were all added by `add_weight`.
        object.__setattr__(self, "_routes", routes)

    def _route(self, name: str) -> "MaskedWeight | TaskWeight":
        if name in self.masked:
            initializer = getattr(self, self.initializers.get(name, f"{name}_initializer"))
            return MaskedWeight(self, name, self._raw(name), initializer, self.pretrained)
        return TaskWeight(self, name, self._raw(name), self.bias_policy)

    def _raw(self, name: str) -> keras.Variable | None:
        return getattr(self, f"_{name}", None)

    @property
    def masked_weights(self) -> list[MaskedWeight]:
        """The pruned and owned weights of this layer."""
        return [w for w in self._routes.values() if isinstance(w, MaskedWeight)]

    @property
    def task_weights(self) -> list[TaskWeight]:
        """The weights of this layer of which tasks have their own value."""
        return [w for w in self._routes.values() if isinstance(w, TaskWeight)]

    @property
    def all_task_weights(self) -> list[TaskWeight]:
        """Those in use, and those of tasks that have other ones."""
        return self.task_weights

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """The variables that training may change: those of the open task."""
        return [weight.variable for weight in (*self.masked_weights, *self.all_task_weights)]

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """The variables that the library adds to the layer's own, which only the life of tasks changes."""
        weights = [*self.masked_weights, *self.all_task_weights]
        return [variable for weight in weights for variable in weight.bookkeeping]

    def get_prunable_weights(self) -> list[keras.Variable]:
        """The variables that pruning ranks: TF-MOT's `PrunableLayer` interface."""
        return [w.variable for w in self.masked_weights]

    def begin_task(self, freed_weights: str, seed: int) -> None:
        """Opens the free weights for the next task."""
        task = self.committed_tasks + 1
        check_task_number(task)
        self.open = True
        self.selected_task = task
        for position, weight in enumerate(self._routes.values()):
            if isinstance(weight, MaskedWeight):
                weight.begin(task, freed_weights, seed + position)
            else:
                weight.begin(task, seed + position)

    def commit_task(self) -> None:
        """Freezes what the open task keeps."""
        task = self.committed_tasks + 1
        for weight in self._routes.values():
            weight.commit(task)
        self.committed_tasks = task
        self.open = False
        self.selected_task = task

    def select_task(self, task: int) -> None:
        """Shows what `task` (1-based) sees; the open one is `committed_tasks + 1`."""
        for weight in self._routes.values():
            weight.select(task, learning=task > self.committed_tasks)
        self.selected_task = task

    def save_life(self, store: dict) -> None:
        """Writes how far the layer is in the life of its tasks."""
        store["committed_tasks"] = np.array(self.committed_tasks)
        store["open"] = np.array(self.open)
        store["selected_task"] = np.array(self.selected_task)
        if self.records is not None:
            self.records.save(store)

    def load_life(self, store: dict) -> None:
        """Reads it back."""
        self.committed_tasks = int(store["committed_tasks"][()])
        self.open = bool(store["open"][()])
        self.selected_task = int(store["selected_task"][()])
        if RECORDS in store:
            object.__setattr__(self, "records", self.records or TaskRecords())
        if self.records is not None:
            self.records.load(store)

    def save_own_variables(self, store: dict) -> None:
        """Keras's hook: owner maps and every task's values are saved with the layer."""
        self.save_life(store)
        for weight in self._routes.values():
            weight.save(store)

    def load_own_variables(self, store: dict) -> None:
        """Keras's hook, the inverse of `save_own_variables`.

        Raises:
            ArgumentError: If it would lower the number of committed tasks.
        """
        committed = int(store["committed_tasks"][()])
        if committed < self.committed_tasks and not COMPARES_AFTERWARDS.get():
            expected = f"of a model with at least the {self.committed_tasks} committed tasks that {self.name!r} has"
            raise ArgumentError("weights", expected, committed)
        self.restore_own_variables(store)
        self.was_loaded = True

    def restore_own_variables(self, store: dict) -> None:
        """As `load_own_variables`, whatever the layer held before."""
        self.load_life(store)
        for weight in self._routes.values():
            if isinstance(weight, MaskedWeight):
                weight.load(store)
            else:
                weight.load(store, range(1, self.committed_tasks + 1))

    def enable_lora(self, *args, **kwargs) -> None:
        """Not for masked layers: a low-rank update would move committed weights."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r}: masks and LoRA do not go together")

    def quantize(self, *args, **kwargs) -> None:
        """Not for masked layers: export a task, and quantize the plain model."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r}: export a task first, then quantize that model")

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "bias_policy": self.bias_policy}
        return config if self.pretrained is None else {**config, "pretrained": self.pretrained}
