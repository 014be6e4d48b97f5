"""Unpruned output layers with separate weights for each task, as in Mallya & Lazebnik 2018.

`Head` is a mixin for any Keras layer whose config has its number of outputs. `TaskHead` is the head for `Dense`;
`tf_packnet.structure.generated` makes those for other classes.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.layers.base import Routed, TaskLayer
from tf_packnet.layers.products import NARROW, narrow_product
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import Prefixed, replaced, without_task
from tf_packnet.pruning.policies import HEAD
from tf_packnet.system.keras_internals import (
    initializer_of,
    own_trainable_variables,
    sublayers,
    unlocked,
    without_memory,
)
from tf_packnet.system.limits import Bound

# Config keys for the number of outputs of a layer. Of `output_shape`, the last entry counts.
_OUTPUT_KEYS = ("units", "filters", "output_shape", "num_classes")
_DATA = (bool, int, float, str, type(None))


def outputs_in(config: Mapping[str, Any]) -> int | None:
    """Return the number of outputs in the config of a layer; None if the config does not have it."""
    for value in (config[key] for key in _OUTPUT_KEYS if key in config):
        last = value[-1] if isinstance(value, (list, tuple)) and value else value
        if isinstance(last, int) and not isinstance(last, bool):
            return last
    return None


def number_of_outputs(layer: keras.Layer) -> int | None:
    """Return the number of outputs of a layer that can be a `Head`; None for another layer.

    A head has weights of its own, none in inner layers, and its config has its number of outputs.
    """
    if not isinstance(layer, keras.Layer) or not own_trainable_variables(layer):
        return None
    if any(inner.variables for inner in sublayers(layer)):
        return None
    try:
        outputs = outputs_in(layer.get_config())
    except Exception:  # raised by the layer's own code
        return None
    return outputs if outputs is not None and _has_outputs(layer, outputs) else None


def class_axis(head: keras.Layer) -> int:
    """Return the axis of the output of a head with one entry per class: the channels."""
    return 1 if getattr(head, "data_format", None) == "channels_first" else -1


def _has_outputs(layer: keras.Layer, outputs: int) -> bool:
    """Return whether the output of a built layer has `outputs` entries per position; True if this is unknown."""
    try:
        shape = layer.compute_output_shape((layer.get_build_config() or {})["input_shape"])
        return shape[class_axis(layer)] == outputs
    except Exception:  # raised by the layer's own code, or the layer takes several inputs
        return True


def with_outputs(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """Return a config with another number of outputs, see `outputs_in`."""
    key = next(key for key in _OUTPUT_KEYS if key in config)
    value = config[key]
    return {**config, key: type(value)([*value[:-1], outputs]) if isinstance(value, (list, tuple)) else outputs}


def fresh_copy(cls: type[keras.Layer], config: dict[str, Any], build_config: dict[str, Any] | None) -> keras.Layer:
    """Return a layer whose variables have shapes and initializers, but no memory."""
    seeds = random.getstate()  # Keras draws the seeds of initializers from it
    try:
        with without_memory():
            layer = cls.from_config(config)
            if build_config:
                layer.build_from_config(build_config)
            return layer
    finally:
        random.setstate(seeds)


@dataclass(frozen=True, eq=False)
class Slot:
    """The weights of a head for one number of outputs.

    Attributes:
        routes: The weights by name.
        held: The layer's attributes that hold their variables.
        settings: The layer's attributes whose values differ from those for its first number of outputs.
    """

    routes: Mapping[str, TaskWeight]
    held: Mapping[str, Any]
    settings: Mapping[str, Any]


class Head(TaskLayer):
    """Mixin for an output layer with separate weights for each task. Put it before the Keras layer in the bases.

    Each task starts from new random values; its head never changes after the commit. Tasks may have different numbers
    of outputs and activations. Tasks with the same number of outputs share their Keras variables, so that they also
    share compiled training steps. The variables for another number of outputs have the shapes that a plain layer with
    that number in its config has.
    """

    masked = ()
    plain_class: type[keras.Layer]
    num_outputs: int  # of the selected task
    activation: Callable[[Any], Any]
    _routes: Mapping[str, TaskWeight]
    _outputs_of: dict[int, int]  # by task
    _activation_of: dict[int, str]  # by task, unless it is the layer's own
    _own_activation: Callable[[Any], Any] | None
    _slots: dict[int, Slot]  # by number of outputs
    _first_settings: dict[str, Any]

    def set_up_head(self, held: Mapping[str, Any] | None = None) -> None:
        """Set the attributes of a new head.

        Args:
            held: The attributes that hold the variables of a built layer.
        """
        outputs = outputs_in(self.plain_config())
        values = {
            "num_outputs": outputs,
            "_outputs_of": {},
            "_activation_of": {},
            "_own_activation": vars(self).get("activation"),
            "_slots": {} if held is None else {outputs: Slot(self._routes, held, {})},
            "_first_settings": {},
        }
        vars(self).update(values)  # bypasses Keras's tracking

    def plain_config(self) -> dict[str, Any]:
        """Return the config of the plain Keras layer, with the current number of outputs and activation."""
        raise NotImplementedError

    def plain_weights(self, plain: keras.Layer) -> dict[str, keras.Variable]:
        """Return the trainable variables of a plain layer by the names of the weights."""
        raise NotImplementedError

    def config_with(self, outputs: int, activation: str | None = None) -> dict[str, Any]:
        """Return the config of the plain Keras layer.

        Args:
            outputs: Its number of outputs.
            activation: Name of its activation. Default: the layer's own.
        """
        config = with_outputs(self.plain_config(), outputs)
        if self.own_activation is not None:
            own = keras.activations.serialize(self.own_activation)
            config["activation"] = own if activation is None else activation
        return config

    def config_of(self, task: int) -> dict[str, Any]:
        """Return the config of the plain Keras layer that computes as `task` (1-based, committed or open)."""
        return self.config_with(self.outputs_of(task), self.activation_of(task))

    @property
    def last_outputs(self) -> int:
        """Number of outputs of the last task."""
        return self.outputs_of(max(self._outputs_of, default=1))

    def last_config(self) -> dict[str, Any]:
        """Return the config of the plain Keras layer, with the outputs of the last task and the layer's own activation.

        The selected task does not matter: the saved optimizer slots belong to the last task.
        """
        return self.config_with(self.last_outputs)

    def plain_with(self, outputs: int) -> keras.Layer:
        """Return the plain Keras layer with another number of outputs, built without memory.

        Raises:
            Exception: Any error of the layer's own code; ValueError if it then has other weights.
        """
        plain = fresh_copy(self.plain_class, self.config_with(outputs), self.get_build_config())  # type: ignore[attr-defined]
        names = list(self.plain_weights(plain))
        if names != list(self._routes):
            raise ValueError(f"its weights are then {', '.join(names)}, not {', '.join(self._routes)}")
        return plain

    def shapes_with(self, outputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights, by name, for a number of outputs."""
        if outputs in self._slots:
            return {name: tuple(weight.variable.shape) for name, weight in self._slots[outputs].routes.items()}
        return {name: tuple(each.shape) for name, each in self.plain_weights(self.plain_with(outputs)).items()}

    @staticmethod
    def first_outputs_of(layer: Any) -> int | None:
        """Return the number of outputs with which a head was built; None for another layer."""
        return next(iter(layer._slots), None) if isinstance(layer, Head) else None

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The weights for each number of outputs."""
        return self._slots

    @property
    def own_activation(self) -> Any:
        """Activation of tasks that were begun without one; None if the layer has no attribute `activation`."""
        return self._own_activation

    @property
    def all_task_weights(self) -> list[TaskWeight]:
        return [weight for slot in self._slots.values() for weight in slot.routes.values()]

    def use(self, outputs: int, activation: str | None = None) -> None:
        """Switch to a number of outputs and an activation.

        Args:
            outputs: Number of outputs.
            activation: Name of the activation. Default: the layer's own.
        """
        if self._own_activation is not None:
            self.activation = self._own_activation if activation is None else keras.activations.get(activation)
        self._use_outputs(outputs)

    def _use_outputs(self, outputs: int) -> None:
        """Switch to the variables of tasks with this number of outputs."""
        if outputs == self.num_outputs:
            return
        slot = self._slots.get(outputs) or self._new_slot(outputs)
        for weight in self._routes.values():
            weight.variable.trainable = False  # optimizers get only the variables in use
        self._slots[outputs] = slot
        self._set_routes(slot.routes)
        vars(self).update({**self._first_settings, **slot.settings, **slot.held, "num_outputs": outputs})
        for weight in self._routes.values():
            weight.variable.trainable = True

    def _new_slot(self, outputs: int) -> Slot:
        plain, first = self.plain_with(outputs), self.plain_with(next(iter(self._slots)))
        settings = {
            name: value
            for name, value in vars(plain).items()
            if _is_data(value) and name in vars(first) and vars(first)[name] != value
        }
        for name in settings:
            self._first_settings.setdefault(name, vars(self)[name])
        routes, variables = {}, {}
        with unlocked(self):
            for name, new in self.plain_weights(plain).items():
                variable = self.add_weight(
                    name=f"{name}_{outputs}",
                    shape=tuple(new.shape),
                    dtype=new.dtype,
                    initializer=initializer_of(new),
                    regularizer=new.regularizer,
                    constraint=new.constraint,
                )
                variables[id(self._routes[name].variable)] = variable
                routes[name] = TaskWeight(self, name, variable, "per_task", initializer_of(new))
        held = replaced(
            dict(self._slots[self.num_outputs].held), lambda variable: variables.get(id(variable), variable)
        )
        return Slot(routes, held, settings)

    def begin_task(self, freed_weights: str, seed: int) -> None:
        super().begin_task(freed_weights, seed)
        task = self.committed_tasks + 1
        self._outputs_of[task] = self.num_outputs
        if self._own_activation is not None and self.activation is not self._own_activation:
            self._activation_of[task] = keras.activations.serialize(self.activation)

    def snapshot(self) -> Callable[[], None]:
        names = ("_outputs_of", "_activation_of", "_first_settings")
        restore_values, slots, outputs = super().snapshot(), list(self._slots), self.num_outputs
        copies = {name: dict(vars(self)[name]) for name in names} | {"activation": vars(self).get("activation")}

        def restore() -> None:
            self._use_outputs(outputs)
            vars(self).update({name: copy for name, copy in copies.items() if name in vars(self)})
            self.drop_slots(slots)
            restore_values()

        return restore

    def drop_slots(self, keep: Collection[int] = ()) -> None:
        """Remove the variables for numbers of outputs that no task has, except for those in `keep`."""
        used = {next(iter(self._slots)), self.num_outputs, *self._outputs_of.values(), *keep}
        for number in self._slots.keys() - used:
            for weight in self._slots.pop(number).routes.values():
                for variable in (weight.variable, *weight.bookkeeping):
                    self.forget_weight(variable)

    def forget_task(self, task: int) -> None:
        super().forget_task(task)
        remaining = {
            "_outputs_of": without_task(self._outputs_of, task),
            "_activation_of": without_task(self._activation_of, task),
        }
        vars(self).update(remaining)  # bypasses Keras's tracking

    def commit_task(self) -> None:
        self._outputs_of.setdefault(self.committed_tasks + 1, self.num_outputs)  # task 1 needs no `begin_task`
        super().commit_task()

    def outputs_of(self, task: int) -> int:
        """Return the number of outputs of `task` (1-based, committed or open)."""
        return self._outputs_of.get(task, self.num_outputs)

    def weights_of(self, task: int) -> list[TaskWeight]:
        """Return the weights that `task` (1-based, committed or open) uses."""
        return list(self._slots[self.outputs_of(task)].routes.values())

    def activation_of(self, task: int) -> str | None:
        """Return the activation with which `task` (1-based, committed or open) was begun; None: the layer's own."""
        return self._activation_of.get(task)

    def use_task(self, task: int) -> None:
        """Switch to the outputs and activation of `task` (1-based, committed or open), see `use`."""
        self.use(self.outputs_of(task), self.activation_of(task))

    # The keys say "units" for every kind of head, as in the files of the first versions.
    def save_own_variables(self, store: dict) -> None:
        self.save_progress(store)
        store["units_of"] = np.array(list(self._outputs_of.items()), int).reshape(-1, 2)
        store["activation_of"] = np.frombuffer(json.dumps(self._activation_of).encode(), np.uint8)
        for outputs, slot in self._slots.items():
            for weight in slot.routes.values():
                weight.save(Prefixed(store, f"units_{outputs}."))
        self.save_state(store)

    def restore_own_variables(self, store: dict) -> None:
        self.load_progress(store)
        self._outputs_of.clear()
        self._activation_of.clear()
        self._outputs_of.update((int(task), int(outputs)) for task, outputs in store["units_of"][()])
        if "activation_of" in store:  # files of earlier versions do not have it
            activations = Bound().parsed(np.asarray(store["activation_of"][()], np.uint8).tobytes(), "activation_of")
            self._activation_of.update((int(task), name) for task, name in activations.items())
        for outputs in sorted({self.num_outputs, *self._outputs_of.values()}):
            for name, shape in self.shapes_with(outputs).items():  # checked before variables of this size are created
                if tuple(store[f"units_{outputs}.{name}.variable"].shape) != shape:
                    raise ValueError(f"{name} of a head with {outputs} outputs has another size")
            self._use_outputs(outputs)
            for weight in self._routes.values():
                weight.load(Prefixed(store, f"units_{outputs}."), self._tasks_of(outputs))
        self.load_state(store)
        self.use_task(self.selected_task)

    def _tasks_of(self, outputs: int) -> list[int]:
        return [task for task in range(1, self.committed_tasks + 1) if self.outputs_of(task) == outputs]


@keras.saving.register_keras_serializable(package="tf_packnet")
class TaskHead(Head, keras.layers.Dense):
    """A `Dense` output layer with a separate kernel `(inputs, units)` and bias for each task, see `Head`."""

    per_task = ("kernel", "bias")
    kernel = Routed()
    bias = Routed()
    plain_class = keras.layers.Dense
    units: int

    def __init__(self, units: int, *args: Any, **kwargs: Any):
        super().__init__(units, *args, bias_policy=HEAD, **kwargs)
        self.set_up_head()

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.set_up_head({f"_{name}": self._raw(name) for name in self.per_task})

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.units > NARROW or len(inputs.shape) != 2 or self.bias is None:
            return super().call(inputs, training=training)
        return self.activation(ops.add(narrow_product(inputs, self.kernel), self.bias))

    def plain_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {name: value for name, value in config.items() if name not in ("bias_policy", "pretrained", "prune")}

    def plain_weights(self, plain: keras.Layer) -> dict[str, keras.Variable]:
        weights = {"kernel": plain.kernel, "bias": plain.bias}
        return {name: variable for name, variable in weights.items() if variable is not None}

    def get_config(self) -> dict[str, Any]:
        return self.last_config()


def _is_data(value: Any) -> bool:
    return isinstance(value, _DATA) or (isinstance(value, (list, tuple)) and all(map(_is_data, value)))
