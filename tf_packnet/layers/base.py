"""`TaskLayer`, the mixin that makes a Keras layer task-aware, and `Routed`, the descriptor that masks its weights.

Keras layers compute with `self.kernel` and `self.bias`. A `Routed` attribute stores the variable that the Keras layer
assigns to it, and returns the value that the selected task uses. The `call` of the Keras layer is therefore reused.
"""

import contextvars
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import RECORDS, TaskRecords
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import view
from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.pruning.policies import BIAS_POLICIES, HEAD, PRETRAINED
from tf_packnet.system.collectives import support_all_types
from tf_packnet.system.keras_internals import own_trainable_variables, own_variables, untrack_variable
from tf_packnet.system.keras_layer import KerasLayer

support_all_types()  # owner maps are uint8

# Prefix of the names of `TaskLayer.variables_of_no_task` in saved weights.
_STATE = "state."
# Whether the caller that loads weights then compares the tasks of the whole model, and restores it on failure.
CALLER_COMPARES_TASKS = contextvars.ContextVar("caller_compares_tasks", default=False)

# Keras's initializer for weights that are added without one.
KERAS_DEFAULT = "glorot_uniform"


class Routed:
    """Descriptor that returns the masked or per-task value of a weight, and stores the variable as `_<name>`."""

    def __set_name__(self, owner: type, name: str) -> None:
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


Route: TypeAlias = MaskedWeight | TaskWeight


class TaskLayer(KerasLayer):
    """Mixin that gives a Keras layer weights owned by tasks. Put it before the Keras layer in the bases.

    Subclasses list their weights by attribute name: those in `masked` are pruned and owned by tasks; those in
    `per_task` follow `bias_policy`.

    Args:
        bias_policy: `first_task` (biases are trained by task 1, then frozen), `per_task` (each task has its own) or
            `head` (each task has its own copy of all weights, which starts from new random values; no weight is
            pruned).
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
        prune: Whether to prune a weight, by its name, such as `{"bias": True}`. Default: the weights in `masked`.
    """

    masked: tuple[str, ...] = ("kernel",)
    per_task: tuple[str, ...] = ("bias",)
    # Set on the first task-aware layer of a model only, see `lifecycle.records`.
    records: TaskRecords | None
    prune: Mapping[str, bool]
    _routes: Mapping[str, Route]

    def __init__(
        self,
        *args: Any,
        bias_policy: str = "first_task",
        pretrained: str | None = None,
        prune: Mapping[str, bool] = MappingProxyType({}),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.set_up_tasks(bias_policy, pretrained, prune)

    def set_up_tasks(self, bias_policy: str, pretrained: str | None, prune: Mapping[str, bool]) -> None:
        """Set the attributes of a new layer, see the arguments of the class."""
        if bias_policy != HEAD:
            check_choice("bias_policy", bias_policy, BIAS_POLICIES)
        if pretrained is not None:
            check_choice("pretrained", pretrained, PRETRAINED)
        lora_rank = getattr(self, "lora_rank", None)
        if lora_rank:
            raise ArgumentError("lora_rank", "None: task-aware layers do not support LoRA", lora_rank)
        self.bias_policy = bias_policy
        self.pretrained = pretrained
        self.committed_tasks = 0
        self.selected_task = 1
        self.open = True  # a new layer is open for task 1
        self.was_loaded = False  # reset by `safe_loading.TaskCheck`
        # `object.__setattr__` bypasses Keras's tracking.
        object.__setattr__(self, "prune", dict(prune))
        object.__setattr__(self, "records", None)
        self._set_routes({})

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Add a weight as Keras does, and remember its initializer for `reinit`."""
        variable = super().add_weight(*args, **kwargs)
        initializer = kwargs.get("initializer", args[1] if len(args) > 1 else None)
        if initializer is not None:
            # In `__dict__`, because Keras would track an attribute, and layers may add weights before `__init__`
            # returns.
            self.__dict__.setdefault("_initializers", {})[id(variable)] = initializer
        return variable

    def forget_weight(self, variable: keras.Variable) -> None:
        """Undo `add_weight`."""
        self.__dict__.get("_initializers", {}).pop(id(variable), None)
        untrack_variable(self, variable)

    def build(self, input_shape: Any) -> None:
        """Build the layer, then route its weights.

        Raises:
            ArgumentError: If a trainable weight of the layer is in neither `masked` nor `per_task`, or not `Routed`.
        """
        super().build(input_shape)
        listed = {id(self._raw(name)) for name in self.masked + self.per_task}
        lost = [variable.name for variable in own_trainable_variables(self) if id(variable) not in listed]
        if lost:
            expected = (
                f"all trainable weights of {type(self).__name__}, here or in `per_task`, each with a class attribute "
                f"`name = tp.layers.Routed()` ({', '.join(lost)} would belong to no task)"
            )
            raise ArgumentError("masked", expected, self.masked)
        self._set_routes(
            {name: self._route(name) for name in self.masked + self.per_task if self._raw(name) is not None}
        )

    def _get_own_losses(self) -> list[Any]:
        """Override Keras's hook: regularizers get the kernel that the selected task computes with.

        Keras would give them the trainable variable, which later tasks change.
        """
        losses = super()._get_own_losses()
        if self.trainable:
            losses += [w.regularizer(w.own_value()) for w in self._routes.values() if w.regularizer is not None]
        return losses

    def _set_routes(self, routes: Mapping[str, Route]) -> None:
        # Bypasses Keras's tracking: the variables inside were all added by `add_weight`.
        object.__setattr__(self, "_routes", routes)

    def _route(self, name: str) -> Route:
        variable = self._raw(name)
        initializer = self.__dict__.get("_initializers", {}).get(id(variable), KERAS_DEFAULT)
        return self._new_route(name, variable, initializer, name in self.masked)

    def _new_route(self, name: str, variable: Any, initializer: Any, is_masked: bool) -> Route:
        """Create the weight of a variable; `is_masked` says whether it is pruned unless `prune` says otherwise."""
        if self.bias_policy == HEAD:
            return TaskWeight(self, name, variable, "per_task", initializer)
        if self.prune.get(name, is_masked):
            return MaskedWeight(self, name, variable, initializer, self.pretrained)
        return TaskWeight(self, name, variable, self.bias_policy)

    def _raw(self, name: str) -> keras.Variable | None:
        return getattr(self, f"_{name}", None)

    @property
    def routed_weights(self) -> list[Route]:
        """`masked_weights` and `task_weights`."""
        return list(self._routes.values())

    @property
    def masked_weights(self) -> list[MaskedWeight]:
        """The pruned and owned weights of this layer."""
        return [w for w in self._routes.values() if isinstance(w, MaskedWeight)]

    @property
    def task_weights(self) -> list[TaskWeight]:
        """The weights of this layer that are not pruned: biases, scales, statistics, heads."""
        return [w for w in self._routes.values() if isinstance(w, TaskWeight)]

    @property
    def all_task_weights(self) -> list[TaskWeight]:
        """`task_weights`, and the weights that other tasks use instead: heads with other numbers of outputs."""
        return self.task_weights

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """The variables that training changes."""
        return [weight.variable for weight in self._all_weights]

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """The variables that this library adds to those of the Keras layer, such as owner maps and frozen values."""
        return [variable for weight in self._all_weights for variable in weight.bookkeeping]

    @property
    def _all_weights(self) -> list[Route]:
        return [*self.masked_weights, *self.all_task_weights]

    @property
    def variables_of_no_task(self) -> list[keras.Variable]:
        """The layer's own variables that are not in a routed weight, such as running means of a user's layer."""
        of_tasks = {id(variable) for variable in (*self.trained_variables, *self.bookkeeping)}
        return [variable for variable in own_variables(self) if id(variable) not in of_tasks]

    def get_prunable_weights(self) -> list[keras.Variable]:
        """Return the variables that are pruned (TF-MOT's `PrunableLayer` interface)."""
        return [w.variable for w in self.masked_weights]

    def begin_task(self, freed_weights: str, seed: int) -> None:
        """Make the free weights candidates of the next task, see `lifecycle.begin_task`.

        Args:
            freed_weights: Start values of the free weights: `zero`, `keep` or `reinit`.
            seed: Seeds new random values.
        """
        task = self.committed_tasks + 1
        self.open = True
        self.selected_task = task
        for position, weight in enumerate(self._routes.values()):
            if isinstance(weight, MaskedWeight):
                weight.begin(task, freed_weights, seed + position)
            else:
                weight.begin(task, seed + position)

    def commit_task(self) -> None:
        """Freeze the weights that the open task keeps."""
        task = self.committed_tasks + 1
        for weight in self._routes.values():
            weight.commit(task)
        self.committed_tasks = task
        self.open = False
        self.selected_task = task

    def forget_task(self, task: int) -> None:
        """Remove the committed `task` (1-based).

        The numbers of later tasks decrease by one. Select a task afterwards.
        """
        for weight in self.masked_weights:
            weight.forget(task, self.committed_tasks)
        for own in self.all_task_weights:
            own.forget(task)
        self.committed_tasks -= 1
        self.selected_task = min(self.selected_task, self.committed_tasks)

    def select_task(self, task: int) -> None:
        """Make the layer compute as `task` (1-based); the open task is `committed_tasks + 1`."""
        for weight in self._routes.values():
            weight.select(task, learning=task > self.committed_tasks)
        self.selected_task = task

    def snapshot(self) -> Callable[[], None]:
        """Return a function that undoes `begin_task`: it restores all values, and the open and the selected task."""
        tasks = self.open, self.selected_task
        values = [(variable, variable.value.value()) for variable in (*self.trained_variables, *self.bookkeeping)]
        kept = [(weight, weight.has_free_values, weight.fresh) for weight in self.masked_weights]

        def restore() -> None:
            self.open, self.selected_task = tasks
            for variable, value in values:
                variable.assign(value)
            for weight, has_free_values, fresh in kept:
                weight.has_free_values, weight.fresh = has_free_values, fresh

        return restore

    def save_progress(self, store: dict) -> None:
        """Write the number of committed tasks, the open and the selected task, and the records of the model."""
        store["committed_tasks"] = np.array(self.committed_tasks)
        store["open"] = np.array(self.open)
        store["selected_task"] = np.array(self.selected_task)
        if self.records is not None:
            self.records.save(store)

    def load_progress(self, store: dict) -> None:
        """Load what `save_progress` has written."""
        committed, selected = int(store["committed_tasks"][()]), int(store["selected_task"][()])
        if not (0 <= committed <= MAX_TASKS and 0 <= selected <= committed + 1):
            raise ValueError(f"task {selected} of {committed} committed tasks is selected; at most {MAX_TASKS} exist")
        self.committed_tasks = committed
        self.open = bool(store["open"][()])
        self.selected_task = selected
        if RECORDS in store:
            object.__setattr__(self, "records", self.records or TaskRecords())
        if self.records is not None:
            self.records.load(store)
            self.records.forget_before(unless=committed + 1 if self.open else None)

    def save_own_variables(self, store: dict) -> None:
        """Save the layer with its owner maps and the values of every task (Keras's hook)."""
        self.save_progress(store)
        for weight in self._routes.values():
            weight.save(store)
        self.save_state(store)

    def save_state(self, store: dict) -> None:
        """Write the layer's own variables that are not in a routed weight."""
        for number, variable in enumerate(self.variables_of_no_task):
            store[f"{_STATE}{number}"] = view(variable)

    def load_own_variables(self, store: dict) -> None:
        """Load what `save_own_variables` has written (Keras's hook).

        Raises:
            ArgumentError: If `store` has fewer committed tasks than the layer.
        """
        committed = int(store["committed_tasks"][()])
        if committed < self.committed_tasks and not CALLER_COMPARES_TASKS.get():
            expected = f"weights with at least the {self.committed_tasks} committed tasks of layer {self.name!r}"
            raise ArgumentError("weights", expected, committed)
        self.restore_own_variables(store)
        self.was_loaded = True

    def restore_own_variables(self, store: dict) -> None:
        """Load like `load_own_variables`, even if the layer then has fewer committed tasks."""
        self.load_progress(store)
        for weight in self._routes.values():
            if isinstance(weight, MaskedWeight):
                weight.load(store)
            else:
                weight.load(store, range(1, self.committed_tasks + 1))
        self.load_state(store)

    def load_state(self, store: dict) -> None:
        """Load what `save_state` has written."""
        for number, variable in enumerate(self.variables_of_no_task):
            if f"{_STATE}{number}" in store:  # other file formats save them elsewhere
                variable.assign(np.asarray(store[f"{_STATE}{number}"]))

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raise NotImplementedError: a low-rank update would change committed weights."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r}: task-aware layers do not support LoRA")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raise NotImplementedError: export a task and quantize the exported model instead."""
        raise NotImplementedError(f"{type(self).__name__} {self.name!r}: export a task, then quantize that model")

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "bias_policy": self.bias_policy}
        optional = {"pretrained": self.pretrained, "prune": self.prune}
        return {**config, **{name: value for name, value in optional.items() if value}}


# The task-aware twin of each Keras layer that `pack` supports.
TWINS: dict[type[keras.layers.Layer], type[Any]] = {}

_Twin = TypeVar("_Twin", bound=type[TaskLayer])


def twin(package: str) -> Callable[[_Twin], _Twin]:
    """Make the decorated `class MaskedMyLayer(TaskLayer, MyLayer)` the twin of `MyLayer` in packs.

    It registers the class with Keras, so that saved packs can be loaded, and adds it to `TWINS`.

    Args:
        package: Package name in Keras's registry.

    Raises:
        ArgumentError: If the bases of the class are not `TaskLayer`, or a subclass of it, and then a Keras layer.
    """

    def register(cls: _Twin) -> _Twin:
        first, last = cls.__bases__[0], cls.__bases__[-1]
        if not issubclass(first, TaskLayer) or not issubclass(last, keras.Layer) or issubclass(last, TaskLayer):
            expected = f"class {cls.__name__}(TaskLayer, MyLayer), with the Keras layer MyLayer last"
            raise ArgumentError("bases", expected, ", ".join(base.__name__ for base in cls.__bases__))
        TWINS[last] = cls
        return keras.saving.register_keras_serializable(package)(cls)

    return register
