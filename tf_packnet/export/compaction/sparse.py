"""Keras layers that store their kernel without its zeros and compute with the dense kernel.

The dense kernel is computed once, by core TensorFlow operations, when the layer or the SavedModel is loaded. At these
sizes dense products are faster than sparse ones for more than a few examples (measured in docs/compaction.md).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_packnet.export.compaction import storage
from tf_packnet.system.keras_layer import KerasLayer


class DenseKernel(tf.saved_model.experimental.TrackableResource):
    """The dense kernel in memory, a resource that a SavedModel computes from the entries on loading. It is not saved.

    Args:
        values: The kernel's entries, see `storage.SparseEntries`.
        gaps: The distances between their positions.
        shape: The kernel's shape.
    """

    def __init__(self, values: keras.Variable, gaps: keras.Variable, shape: tuple[int, ...]):
        super().__init__()
        self.values, self.gaps, self.shape = values, gaps, shape
        self.dtype = tf.as_dtype(values.dtype)
        self.digest = ""
        with tf.init_scope():
            self.memory = tf.Variable(tf.zeros(shape, self.dtype), trainable=False)
            self._resource_handle = self.memory.handle
        for variable in (values, gaps):  # any assignment counts, such as by loading or set_weights
            variable.assign = self._refreshing(variable.assign)

    def _refreshing(self, assign: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def assign_and_refresh(value: Any) -> Any:
            result = assign(value)
            self.refresh()
            return result

        return assign_and_refresh

    def refresh(self) -> None:
        """Recompute the dense kernel from the present entries."""
        self.memory.assign(self._dense())
        content = [np.asarray(ops.convert_to_numpy(part)).tobytes() for part in (self.values, self.gaps)]
        self.digest = hashlib.sha256(repr(self.shape).encode() + b"".join(content)).hexdigest()[:16]

    def read(self) -> tf.Tensor:
        """Return the dense kernel."""
        kernel = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self.dtype)
        kernel.set_shape(self.shape)
        return kernel

    def _create_resource(self) -> tf.Tensor:
        # Called while a SavedModel is written. The name depends on the content, so that SavedModels loaded in one
        # process share a kernel only if it is the same.
        return tf.raw_ops.VarHandleOp(dtype=self.dtype, shape=self.shape, shared_name=f"kernel_{self.digest}")

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._dense())

    def _dense(self) -> tf.Tensor:
        positions = tf.cumsum(tf.cast(tf.convert_to_tensor(self.gaps.value), tf.int64))
        values = tf.convert_to_tensor(self.values.value)
        flat = tf.scatter_nd(positions[:, None], values, [int(np.prod(self.shape))])
        return tf.reshape(flat, self.shape)


class SparseKernel(KerasLayer):
    """Mixin for Keras layers that compute with `self.kernel`; it precedes the Keras layer in the bases.

    Args:
        entries: Number of entries of the stored kernel.
        gap_dtype: Unsigned integer dtype of the gaps between them.
    """

    _kernel: keras.Variable

    def __init__(self, *args: Any, entries: int, gap_dtype: str = "uint16", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.entries = entries
        self.gap_dtype = gap_dtype

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        """Override Keras's hook: `build` asks for the kernel and receives its entries."""
        if name != "kernel":
            return super().add_weight(*args, name=name, **kwargs)
        shape = tuple(kwargs.pop("shape"))
        arguments = {"shape": (self.entries,), "initializer": "zeros", "trainable": False}
        values = super().add_weight(name="values", **arguments)
        self.gaps = super().add_weight(name="gaps", dtype=self.gap_dtype, autocast=False, **arguments)
        self._dense_kernel = DenseKernel(values, self.gaps, shape)
        return values

    @property
    def kernel(self) -> Any:
        """The dense kernel in the layer's compute dtype. Use `assign_entries` to change it."""
        return ops.cast(self._dense_kernel.read(), self.compute_dtype)

    def assign_entries(self, entries: storage.SparseEntries) -> None:
        """Assign other entries, of the same number."""
        self._kernel.assign(entries.values)
        self.gaps.assign(entries.gaps)

    def save_own_variables(self, store: dict) -> None:
        """Override Keras's hook: saves the entries, not the dense kernel."""
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: dict) -> None:
        """Override Keras's hook: loads the entries."""
        keras.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "entries": self.entries, "gap_dtype": self.gap_dtype}


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseDense(SparseKernel, keras.layers.Dense):
    """A `Dense` layer whose kernel `(inputs, units)` is stored without its zeros."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv1D(SparseKernel, keras.layers.Conv1D):
    """A `Conv1D` layer whose kernel `(width, inputs, filters)` is stored without its zeros."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv2D(SparseKernel, keras.layers.Conv2D):
    """A `Conv2D` layer whose kernel `(height, width, inputs, filters)` is stored without its zeros."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv3D(SparseKernel, keras.layers.Conv3D):
    """A `Conv3D` layer whose kernel `(depth, height, width, inputs, filters)` is stored without its zeros."""


SPARSE_TWINS: dict[type[keras.Layer], type[SparseKernel]] = {
    keras.layers.Dense: SparseDense,
    keras.layers.Conv1D: SparseConv1D,
    keras.layers.Conv2D: SparseConv2D,
    keras.layers.Conv3D: SparseConv3D,
}


@keras.saving.register_keras_serializable(package="tf_packnet")
class Select(keras.layers.Layer):
    """Selects features of the last axis.

    Args:
        features: Indices of the features, ascending.
    """

    def __init__(self, features: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.features = [int(feature) for feature in features]
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, np.array(self.features, "int32"), axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], len(self.features))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "features": self.features}
