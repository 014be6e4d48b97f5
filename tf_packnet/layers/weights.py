"""Functions that `MaskedWeight` and `TaskWeight` share."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import keras
import numpy as np
from keras import ops

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.pruning import ownership
from tf_packnet.pruning.policies import FREED_WEIGHTS
from tf_packnet.system.keras_internals import autocasts

Value = TypeVar("Value")


class Store(Protocol):
    """A Keras weights store, or a part of one."""

    def __getitem__(self, key: str) -> Any: ...

    def __setitem__(self, key: str, value: Any) -> None: ...


def fresh_values(initializer: Any, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Draw values from a Keras initializer. The result depends only on the arguments, not on earlier draws.

    An initializer that is a plain function cannot be seeded: it is called without a seed.
    """
    initializer = keras.initializers.get(initializer)
    config: dict[str, Any] = getattr(initializer, "get_config", dict)()
    if "seed" in config:
        initializer = type(initializer).from_config({**config, "seed": seed})
    return np.asarray(ops.convert_to_numpy(initializer(shape, dtype=dtype)))


def view(variable: keras.Variable) -> np.ndarray:
    """Return the current value of a variable as a read-only array, without a copy on CPU.

    Later assignments to the variable do not change the array.
    """
    # Converting the variable itself would copy. Reading through `keras.ops` takes four times as long.
    values = np.asarray(variable.value.value()).view()
    values.flags.writeable = False
    return values


def check_freed_weights(value: str) -> None:
    """Raise ArgumentError unless `value` is one of `policies.FREED_WEIGHTS`."""
    check_choice("freed_weights", value, FREED_WEIGHTS)


def check_task_number(task: int) -> None:
    """Raise ArgumentError unless `task` is a number that an owner map can hold."""
    if not 1 <= task <= ownership.MAX_TASKS:
        raise ArgumentError("task", f"a number from 1 to {ownership.MAX_TASKS} (owner maps are uint8)", task)


def without_task(by_task: Mapping[int, Value], task: int) -> dict[int, Value]:
    """Return values by task number without the value of `task`. The numbers of later tasks decrease by one."""
    return {number - (number > task): value for number, value in by_task.items() if number != task}


class Prefixed:
    """View of a weights store that adds a prefix to all keys."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __getitem__(self, key: str) -> Any:
        return self._store[self._prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store[self._prefix + key] = value


def replaced(held: Any, value_of: Callable[[keras.Variable], Any]) -> Any:
    """Return `held` with each variable in it, also in lists, tuples and dicts, replaced by `value_of(variable)`."""
    if isinstance(held, keras.Variable):
        return value_of(held)
    if isinstance(held, dict):
        return {key: replaced(part, value_of) for key, part in held.items()}
    if isinstance(held, tuple):
        parts = [replaced(part, value_of) for part in held]
        return held._make(parts) if hasattr(held, "_make") else tuple(parts)
    if isinstance(held, list):
        return [replaced(part, value_of) for part in held]
    return held


def non_trainable(layer: keras.Layer, variable: keras.Variable) -> Callable[..., keras.Variable]:
    """Return a function that adds non-trainable weights to `layer`, cast like `variable` in mixed precision."""

    def add(name: str, shape: tuple[int, ...], dtype: str, initializer: Any) -> keras.Variable:
        return layer.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            trainable=False,
            autocast=autocasts(variable),  # Keras casts only float variables
        )

    return add
