"""Predicts batches of all sizes with one traced function."""

import contextlib
from typing import Any

import keras
import tensorflow as tf


def trace_once(model: keras.Model) -> None:
    """Make `model.predict_function` trace once for batches of all sizes.

    Keras traces it for the size of the first batch, and again for any size when another size occurs, such as that of
    the last batch. Tracing a deep network takes seconds.
    """
    has_sizes = any(each.shape[:1] != (None,) for each in keras.tree.flatten(model.inputs))
    if not has_sizes and hasattr(model.predict_function, "get_concrete_function"):  # not eager, and not wrapped yet
        model.predict_function = _AnyBatchSize(model.predict_function)


class _AnyBatchSize:
    def __init__(self, function: Any) -> None:
        self._function = function
        self._specs: list[Any] = []

    def __call__(self, data: Any) -> Any:
        tensors = keras.tree.flatten(data)
        if all(isinstance(each, tf.Tensor) and each.shape.rank for each in tensors):
            specs = keras.tree.map_structure(lambda each: tf.TensorSpec((None, *each.shape[1:]), each.dtype), data)
            if specs not in self._specs:
                self._specs.append(specs)
                # Fails if a layer needs to know the size. Keras then traces the function for each size.
                with contextlib.suppress(Exception):
                    self._function.get_concrete_function(specs)
        return self._function(data)
