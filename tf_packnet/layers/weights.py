"""The two kinds of weight that a task-aware layer has: masked (a kernel) and per task (a bias, a head).

Both keep what is committed in places that no optimizer sees, and choose between it and the trainable variable inside
the forward pass. So the freeze needs no cooperation from the optimizer: momentum, weight decay, weight averaging and
clipping may do what they like to the trainable variable, it is not read where a committed value stands.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet import ownership
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.policies import FREED_WEIGHTS


def fresh_values(initializer: Any, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """A new draw from a Keras initializer, the same for the same `seed` whatever was drawn before."""
    initializer = keras.initializers.get(initializer)
    config = initializer.get_config()
    if "seed" in config:
        initializer = type(initializer).from_config({**config, "seed": seed})
    return np.asarray(ops.convert_to_numpy(initializer(shape, dtype=dtype)))


def _view(variable: keras.Variable) -> np.ndarray:
    """What a variable holds now, on CPU without a copy; it stays as it is when the variable changes."""
    values = np.asarray(ops.stop_gradient(variable)).view()  # of the tensor, not the variable, which would copy
    values.flags.writeable = False
    return values


class MaskedWeight:
    """A kernel whose every entry is owned by one task, free, or a candidate of the task being learned.

    Attributes:
        name: Name of the weight in its layer.
        variable: The trainable Keras variable. Only its candidates' entries are ever read.
        frozen: Values at rest, non-trainable, same shape: an owned entry's committed value, a freed entry's value at
            the moment it was pruned.
        owner: Non-trainable `uint8` map, see `tf_packnet.ownership`.
        shown: Non-trainable `uint8` scalar: the weights of tasks `1..shown` are visible.
        learning: Non-trainable `bool` scalar: the candidates are visible too.
        pretrained: None; or what becomes of pretrained values: `prunable` or `visible`, see `tf_packnet.policies`.
        base: Those values, non-trainable, same shape; None without them.
    """

    def __init__(
        self, layer: keras.Layer, name: str, variable: keras.Variable, initializer: Any, pretrained: str | None = None
    ):
        self.name = name
        self.variable = variable
        self.initializer = initializer
        shape = tuple(variable.shape)
        add = _non_trainable(layer, variable)
        self.frozen = add(f"{name}_frozen", shape, variable.dtype, "zeros")
        self.owner = add(f"{name}_owner", shape, "uint8", keras.initializers.Constant(ownership.CANDIDATE))
        self.shown = add(f"{name}_shown", (), "uint8", "zeros")
        self.learning = add(f"{name}_learning", (), "bool", "ones")
        self.pretrained = pretrained
        self.base = None if pretrained is None else add(f"{name}_base", shape, variable.dtype, "zeros")
        self._lent: Any = None

    def value(self) -> Any:
        """The kernel that the selected task computes with: what is hidden from it is 0, or `visible` pretrained values.

        Gradients reach the trainable variable at visible candidates and are exactly 0 elsewhere.
        """
        if self._lent is not None:
            return self._lent
        trained = self.trained()
        # FREE is 0, so `owner - 1` wraps to 255: one comparison hides the free entries and those of later tasks.
        owner = ops.convert_to_tensor(self.owner)
        committed = ops.less(ops.subtract(owner, ops.ones((), "uint8")), self.shown)
        unseen = self.base if self.pretrained == "visible" else ops.zeros((), self.frozen.dtype)
        at_rest = ops.where(committed, self.frozen, unseen)
        return ops.where(trained, self.variable, at_rest)

    def trained(self) -> Any:
        """Boolean mask of the entries that are read from the trainable variable, where gradients go."""
        owner = ops.convert_to_tensor(self.owner)
        # Of one dtype: with a Python number Keras would compare in int32, four times the memory.
        return ops.logical_and(ops.equal(owner, ops.full((), ownership.CANDIDATE, "uint8")), self.learning)

    @contextlib.contextmanager
    def lend(self, kernel: Any) -> Iterator[None]:
        """While it lasts the layer computes with `kernel`, a tensor with the content of `value()`."""
        self._lent = kernel
        try:
            yield
        finally:
            self._lent = None

    def owner_map(self) -> np.ndarray:
        """The owner map as it stands, open candidates (255) included; read-only."""
        return _view(self.owner)

    def values(self) -> np.ndarray:
        """The trainable variable as NumPy, read-only; only its candidates mean anything."""
        return _view(self.variable)

    def importance(self) -> np.ndarray:
        """What a prune round ranks by magnitude: the values, or how far they are from where they would go back to."""
        return self.values() - _view(self.base) if self.pretrained == "visible" else self.values()

    def take_as_pretrained(self) -> None:
        """Makes the present values the pretrained ones, where the weight has such."""
        if self.base is not None:
            self.base.assign(self.variable)

    def confine(self, candidates: np.ndarray) -> None:
        """Sets the trainable variable to 0 outside the boolean mask `candidates`."""
        self.variable.assign(ops.where(candidates, self.variable, ops.zeros((), self.variable.dtype)))

    def begin(self, task: int, freed_weights: str, seed: int) -> None:
        """Opens the free entries for `task`; from the second task on they start by the policy `freed_weights`."""
        if task > 1:
            owner = ownership.begin(self.owner_map())
            # What is not a candidate is not read. At 0, no regulariser or norm of the whole variable sees it either.
            self.variable.assign(np.where(ownership.candidates(owner), self._start(freed_weights, seed), 0))
            self.owner.assign(owner)
        self.select(task, learning=True)

    def reopen(self, freed_weights: str, seed: int) -> None:
        """Opens the free entries for the task that is open already; its candidates go on as they are."""
        owner = self.owner_map()
        self.variable.assign(np.where(owner == ownership.FREE, self._start(freed_weights, seed), self.values()))
        self.owner.assign(ownership.reopen(owner))

    def _start(self, freed_weights: str, seed: int) -> np.ndarray:
        """Where freed entries start from: the pretrained values, or by policy."""
        if self.base is not None:
            return _view(self.base)
        shape, dtype = tuple(self.variable.shape), self.variable.dtype
        return {
            "zero": lambda: np.zeros(shape, dtype),
            "keep": lambda: _view(self.frozen),
            "reinit": lambda: fresh_values(self.initializer, shape, dtype, seed),
        }[freed_weights]()

    def prune(self, keep: np.ndarray) -> None:
        """Frees the candidates outside the boolean mask `keep` and puts their present values to rest."""
        owner = self.owner_map()
        self._rest(ownership.pruned(owner, keep))
        self.owner.assign(ownership.prune(owner, keep))

    def commit(self, task: int) -> None:
        """Gives the remaining candidates to `task` and puts their present values to rest, for ever."""
        owner = self.owner_map()
        self._rest(ownership.candidates(owner))
        self.owner.assign(ownership.commit(owner, task))
        self.select(task, learning=False)

    def select(self, task: int, learning: bool) -> None:
        """Shows what `task` sees; `learning` says whether it is the open task, whose candidates are visible."""
        self.shown.assign(np.uint8(task))
        self.learning.assign(learning)

    def save(self, store: dict) -> None:
        """Writes the whole state into a Keras weights store."""
        for part in self._parts():
            store[f"{self.name}.{part}"] = np.asarray(ops.convert_to_numpy(getattr(self, part)))

    def load(self, store: dict) -> None:
        """Reads the whole state back."""
        for part in self._parts():
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))

    def _parts(self) -> tuple[str, ...]:
        parts = ("variable", "frozen", "owner", "shown", "learning")
        return parts if self.base is None else (*parts, "base")

    def _rest(self, where: np.ndarray) -> None:
        # On the device: the kernels may be large, and one copy of them is enough.
        self.frozen.assign(ops.where(where, self.variable, self.frozen))


class TaskWeight:
    """A weight that is not pruned, of which each task has its own value, or all have the first task's.

    Attributes:
        name: Name of the weight in its layer.
        policy: `first_task` (trained by task 1, then frozen for all) or `per_task` (one value a task).
        variable: The trainable Keras variable of the task being learned.
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
        self.kept: dict[int, np.ndarray] = {}
        self._fresh_initializer = fresh_initializer
        add = _non_trainable(layer, variable)
        self.frozen = add(f"{name}_frozen", tuple(variable.shape), variable.dtype, "zeros")
        self.learning = add(f"{name}_learning", (), "bool", "ones")

    def value(self) -> Any:
        """The value that the selected task computes with."""
        return ops.where(self.learning, self.variable, self.frozen)

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

    def save(self, store: dict) -> None:
        """Writes the whole state, every task's value included, into a Keras weights store."""
        for part in ("variable", "frozen", "learning"):
            store[f"{self.name}.{part}"] = np.asarray(ops.convert_to_numpy(getattr(self, part)))
        for task, value in self.kept.items():
            store[f"{self.name}.task_{task}"] = value

    def load(self, store: dict, tasks: Iterable[int]) -> None:
        """Reads the whole state back, with the values of the committed `tasks` (1-based numbers)."""
        for part in ("variable", "frozen", "learning"):
            getattr(self, part).assign(np.asarray(store[f"{self.name}.{part}"]))
        tasks = [task for task in tasks if task == 1 or self.policy == "per_task"]
        self.kept = {task: np.array(store[f"{self.name}.task_{task}"]) for task in tasks}


def check_freed_weights(value: str) -> None:
    """Raises ArgumentError unless `value` is a policy for freed weights."""
    check_choice("freed_weights", value, FREED_WEIGHTS)


def check_task_number(task: int) -> None:
    """Raises ArgumentError if an owner map has no number left for `task`."""
    if not 1 <= task <= ownership.MAX_TASKS:
        raise ArgumentError("task", f"a number from 1 to {ownership.MAX_TASKS} (owner maps are uint8)", task)


def _non_trainable(layer: keras.Layer, variable: keras.Variable):
    def add(name, shape, dtype, initializer):
        return layer.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            trainable=False,
            autocast=keras.backend.is_float_dtype(dtype) and variable._autocast,
        )

    return add
