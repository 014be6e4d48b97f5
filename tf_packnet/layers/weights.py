"""What the two kinds of weight of a task-aware layer have in common."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.pruning import ownership
from tf_packnet.pruning.policies import FREED_WEIGHTS


def fresh_values(initializer: Any, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """A new draw from a Keras initializer, the same for the same `seed` whatever was drawn before."""
    initializer = keras.initializers.get(initializer)
    config = initializer.get_config()
    if "seed" in config:
        initializer = type(initializer).from_config({**config, "seed": seed})
    return np.asarray(ops.convert_to_numpy(initializer(shape, dtype=dtype)))


def view(variable: keras.Variable) -> np.ndarray:
    """What a variable holds now, on CPU without a copy; it stays as it is when the variable changes."""
    # Of the tensor, not the variable, which would copy. A read through `keras.ops` takes four times as long.
    values = np.asarray(variable.value.value()).view()
    values.flags.writeable = False
    return values


@contextlib.contextmanager
def unlocked(layer: keras.Layer) -> Iterator[None]:
    """While it lasts a built layer takes new variables and layers."""
    was_locked, layer._tracker.locked = layer._tracker.locked, False
    try:
        yield
    finally:
        layer._tracker.locked = was_locked


def check_freed_weights(value: str) -> None:
    """Raises ArgumentError unless `value` is a policy for freed weights."""
    check_choice("freed_weights", value, FREED_WEIGHTS)


def check_task_number(task: int) -> None:
    """Raises ArgumentError if an owner map has no number left for `task`."""
    if not 1 <= task <= ownership.MAX_TASKS:
        raise ArgumentError("task", f"a number from 1 to {ownership.MAX_TASKS} (owner maps are uint8)", task)


def non_trainable(layer: keras.Layer, variable: keras.Variable) -> Callable[..., keras.Variable]:
    """A function that adds a weight to `layer` which no optimizer sees, as `variable` is cast in computations."""

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
