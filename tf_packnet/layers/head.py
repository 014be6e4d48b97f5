"""`TaskHead`, an unpruned output layer with separate weights for each task, as in Mallya & Lazebnik 2018."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.base import Routed, TaskLayer
from tf_packnet.layers.products import NARROW, narrow_product
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import Store
from tf_packnet.system.keras_internals import unlocked
from tf_packnet.system.limits import Bound


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskHead(TaskLayer, keras.layers.Dense):
    """A `Dense` output layer with a separate kernel `(inputs, units)` and bias for each task.

    Each task starts from new random values; its head never changes after the commit. Tasks may have different numbers
    of units and activations. Tasks with the same number of units share one pair of Keras variables, so that they also
    share compiled training steps.
    """

    masked = ()
    per_task = ("kernel", "bias")
    kernel = Routed()
    bias = Routed()
    units: int
    activation: Callable[[Any], Any]
    _routes: Mapping[str, TaskWeight]
    _units_of: dict[int, int]  # by task
    _activation_of: dict[int, str]  # by task, for activations other than the layer's own
    _own_activation: Callable[[Any], Any]
    _slots: dict[int, Mapping[str, TaskWeight]]  # routes by number of units

    def __init__(self, units: int, *args: Any, **kwargs: Any):
        super().__init__(units, *args, **kwargs)
        # `object.__setattr__` bypasses Keras's tracking.
        object.__setattr__(self, "_units_of", {})
        object.__setattr__(self, "_activation_of", {})
        object.__setattr__(self, "_own_activation", self.activation)
        object.__setattr__(self, "_slots", {})

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._slots[self.units] = self._routes

    def _route(self, name: str) -> TaskWeight:
        return TaskWeight(self, name, self._raw(name), "per_task", getattr(self, f"{name}_initializer"))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.units > NARROW or len(inputs.shape) != 2 or self.bias is None:
            return super().call(inputs, training=training)
        return self.activation(ops.add(narrow_product(inputs, self.kernel), self.bias))

    @property
    def own_activation(self) -> Any:
        """Activation of the tasks that were begun without one."""
        return self._own_activation

    @property
    def all_task_weights(self) -> list[TaskWeight]:
        return [weight for slot in self._slots.values() for weight in slot.values()]

    def use(self, units: int, activation: str | None = None) -> bool:
        """Switch to a number of outputs and an activation.

        Args:
            units: Number of outputs.
            activation: Name of the activation. Default: the layer's own.

        Returns:
            Whether anything changed, so that compiled steps must be traced again.
        """
        new_activation = self._own_activation if activation is None else keras.activations.get(activation)
        changed = new_activation is not self.activation
        self.activation = new_activation
        return self._use_units(units) or changed

    def _use_units(self, units: int) -> bool:
        """Switch to the variables of tasks with `units` outputs; return whether the layer's shape changed."""
        if units == self.units:
            return False
        for weight in self._routes.values():
            weight.variable.trainable = False  # optimizers get only the variables in use
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
        self._units_of.setdefault(self.committed_tasks + 1, self.units)  # task 1 needs no `begin_task`
        super().commit_task()

    def units_of(self, task: int) -> int:
        """Return the number of outputs of `task` (1-based, committed or open)."""
        return self._units_of.get(task, self.units)

    def weights_of(self, task: int) -> list[TaskWeight]:
        """Return the kernel and bias that `task` (1-based, committed or open) uses."""
        return list(self._slots[self.units_of(task)].values())

    def activation_of(self, task: int) -> str | None:
        """Return the activation with which `task` (1-based, committed or open) was begun; None: the layer's own."""
        return self._activation_of.get(task)

    def use_task(self, task: int) -> bool:
        """Switch to the units and activation of `task` (1-based, committed or open), see `use`."""
        return self.use(self.units_of(task), self.activation_of(task))

    def save_own_variables(self, store: dict) -> None:
        self.save_progress(store)
        store["units_of"] = np.array(list(self._units_of.items()), int).reshape(-1, 2)
        store["activation_of"] = np.frombuffer(json.dumps(self._activation_of).encode(), np.uint8)
        for units, slot in self._slots.items():
            for weight in slot.values():
                weight.save(_Prefixed(store, f"units_{units}."))

    def restore_own_variables(self, store: dict) -> None:
        self.load_progress(store)
        self._units_of.update((int(task), int(units)) for task, units in store["units_of"][()])
        if "activation_of" in store:  # files of earlier versions do not have it
            activations = Bound().parsed(np.asarray(store["activation_of"][()], np.uint8).tobytes(), "activation_of")
            self._activation_of.update((int(task), name) for task, name in activations.items())
        for units in sorted({self.units, *self._units_of.values()}):
            for name in self._routes:  # before variables of that size are created
                if store[f"units_{units}.{name}.variable"].shape[-1:] != (units,):
                    raise ValueError(f"{name} of a head with {units} units has another size")
            self._use_units(units)
            for weight in self._routes.values():
                weight.load(_Prefixed(store, f"units_{units}."), self._tasks_of(units))
        self.use_task(self.selected_task)

    def _tasks_of(self, units: int) -> list[int]:
        return [task for task in range(1, self.committed_tasks + 1) if self.units_of(task) == units]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["bias_policy"]  # heads are always per task
        config.pop("pretrained", None)
        # The units of the last task, not of the selected one: the saved slots of the optimizer belong to them.
        config["units"] = self.units_of(max(self._units_of, default=1))
        config["activation"] = keras.activations.serialize(self._own_activation)
        return config


class _Prefixed:
    """View of a weights store that adds a prefix to all keys."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __getitem__(self, key: str) -> Any:
        return self._store[self._prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store[self._prefix + key] = value
