"""The output layer of which every task has its own: unpruned, as in Mallya & Lazebnik 2018."""

import json
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.base import Routed, TaskLayer
from tf_packnet.layers.products import NARROW, narrow_product
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import unlocked


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskHead(TaskLayer, keras.layers.Dense):
    """A `Dense` output layer of which every task has its own kernel `(inputs, units)` and bias.

    Each task starts from a fresh draw and keeps its head untouched for ever. Tasks may differ in units and activation:
    those with as many units share one pair of variables, so that a compiled training step serves them all.
    """

    masked = ()
    per_task = ("kernel", "bias")
    kernel = Routed()
    bias = Routed()

    def __init__(self, units: int, *args, **kwargs):
        super().__init__(units, *args, **kwargs)
        # Past Keras's tracking, as the routes are.
        object.__setattr__(self, "_units_of", {})  # task -> units, of the tasks that were begun
        object.__setattr__(self, "_activation_of", {})  # task -> name, of those that were begun with another one
        object.__setattr__(self, "_own_activation", self.activation)
        object.__setattr__(self, "_slots", {})  # units -> routes

    def build(self, input_shape):
        super().build(input_shape)
        self._slots[self.units] = self._routes

    def _route(self, name):
        return TaskWeight(self, name, self._raw(name), "per_task", getattr(self, f"{name}_initializer"))

    def call(self, inputs, training=None):
        if self.units > NARROW or len(inputs.shape) != 2 or self.bias is None:
            return super().call(inputs, training=training)
        return self.activation(ops.add(narrow_product(inputs, self.kernel), self.bias))

    @property
    def own_activation(self) -> Any:
        """The activation of tasks that were begun without one."""
        return self._own_activation

    @property
    def all_task_weights(self) -> list[TaskWeight]:
        return [weight for slot in self._slots.values() for weight in slot.values()]

    def use(self, units: int, activation: str | None = None) -> bool:
        """Switches to `units` outputs and an activation, None for the layer's own; True if compiled steps are void."""
        wanted = self._own_activation if activation is None else keras.activations.get(activation)
        changed = wanted is not self.activation
        self.activation = wanted
        return self._use_units(units) or changed

    def _use_units(self, units: int) -> bool:
        """Switches to the variables of tasks with `units` outputs; True if that changed the layer's shape."""
        if units == self.units:
            return False
        for weight in self._routes.values():
            weight.variable.trainable = False  # the optimizer shall only meet the variables in use
        self.units = units
        if units not in self._slots:
            self._slots[units] = self._new_slot(units)
        self._set_routes(self._slots[units])
        for name, weight in self._routes.items():
            weight.variable.trainable = True
            self._swap_raw(name, weight.variable)
        return True

    def _new_slot(self, units: int) -> dict[str, TaskWeight]:
        shapes = {"kernel": (self._kernel.shape[0], units), "bias": (units,)}
        slot = {}
        with unlocked(self):
            for name in self._routes:
                initializer = getattr(self, f"{name}_initializer")
                variable = self.add_weight(
                    name=f"{name}_{units}",
                    shape=shapes[name],
                    initializer=initializer,
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                )
                slot[name] = TaskWeight(self, name, variable, "per_task", initializer)
        return slot

    def _swap_raw(self, name: str, variable: keras.Variable) -> None:
        with unlocked(self):
            setattr(self, f"_{name}", variable)

    def begin_task(self, freed_weights: str, seed: int) -> None:
        super().begin_task(freed_weights, seed)
        task = self.committed_tasks + 1
        self._units_of[task] = self.units
        if self.activation is not self._own_activation:
            self._activation_of[task] = keras.activations.serialize(self.activation)

    def commit_task(self) -> None:
        self._units_of.setdefault(self.committed_tasks + 1, self.units)  # the first task need not have been begun
        super().commit_task()

    def units_of(self, task: int) -> int:
        """How many outputs `task` (1-based, committed or open) has."""
        return self._units_of.get(task, self.units)

    def weights_of(self, task: int) -> list[TaskWeight]:
        """The weights that `task` (1-based, committed or open) uses, among the slots of all sizes."""
        return list(self._slots[self.units_of(task)].values())

    def activation_of(self, task: int) -> str | None:
        """The activation that `task` (1-based, committed or open) was begun with; None for the layer's own."""
        return self._activation_of.get(task)

    def use_task(self, task: int) -> bool:
        """`use` of what `task` (1-based, committed or open) has."""
        return self.use(self.units_of(task), self.activation_of(task))

    def save_own_variables(self, store: dict) -> None:
        self.save_life(store)
        store["units_of"] = np.array(list(self._units_of.items()), int).reshape(-1, 2)
        store["activation_of"] = np.frombuffer(json.dumps(self._activation_of).encode(), np.uint8)
        for units, slot in self._slots.items():
            for weight in slot.values():
                weight.save(_Prefixed(store, f"units_{units}."))

    def restore_own_variables(self, store: dict) -> None:
        self.load_life(store)
        self._units_of.update((int(task), int(units)) for task, units in store["units_of"][()])
        named = (
            json.loads(np.asarray(store["activation_of"][()], np.uint8).tobytes()) if "activation_of" in store else {}
        )
        self._activation_of.update((int(task), name) for task, name in named.items())
        for units in sorted({self.units, *self._units_of.values()}):
            self._use_units(units)
            for weight in self._routes.values():
                weight.load(_Prefixed(store, f"units_{units}."), self._tasks_of(units))
        self.use_task(self.selected_task)

    def _tasks_of(self, units: int) -> list[int]:
        return [task for task in range(1, self.committed_tasks + 1) if self.units_of(task) == units]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["bias_policy"]  # a head has no choice: it is per task
        config.pop("pretrained", None)
        # Those of the task that is or was trained last, whichever is selected: the optimizer saved its slots for them.
        config["units"] = self.units_of(max(self._units_of, default=1))
        config["activation"] = keras.activations.serialize(self._own_activation)
        return config


class _Prefixed:
    """A view of a weights store whose keys all begin with a prefix."""

    def __init__(self, store: dict, prefix: str):
        self._store, self._prefix = store, prefix

    def __getitem__(self, key: str) -> Any:
        return self._store[self._prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store[self._prefix + key] = value
