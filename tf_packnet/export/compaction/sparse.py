"""Keras layers whose kernel is stored without its zeros, and computed with as the dense kernel that it is.

The dense kernel is made once, when the layer or the SavedModel is loaded, by core TensorFlow operations: at these sizes
dense products beat sparse ones from a batch of a few examples on (docs/compaction.md has the measurements).
"""

import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_packnet.export.compaction import storage


class DenseKernel(tf.saved_model.experimental.TrackableResource):
    """The dense kernel in memory: a resource that a loaded SavedModel makes of the stored entries. It is never saved.

    Args:
        values: The kernel's entries, see `storage.Packed`.
        gaps: Where they stand.
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
        for variable in (values, gaps):  # whoever assigns them: loading, set_weights
            variable.assign = self._followed(variable.assign)

    def _followed(self, assign: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def assign_and_refresh(value: Any) -> Any:
            result = assign(value)
            self.refresh()
            return result

        return assign_and_refresh

    def refresh(self) -> None:
        """Makes the dense kernel of the entries as they are now."""
        self.memory.assign(self._dense())
        content = [np.asarray(ops.convert_to_numpy(part)).tobytes() for part in (self.values, self.gaps)]
        self.digest = hashlib.sha256(repr(self.shape).encode() + b"".join(content)).hexdigest()[:16]

    def read(self) -> tf.Tensor:
        """The dense kernel."""
        kernel = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self.dtype)
        kernel.set_shape(self.shape)
        return kernel

    def _create_resource(self) -> tf.Tensor:
        # Called while a SavedModel is written. The name follows from the content, so that SavedModels loaded side by
        # side share a kernel only if it is the same.
        return tf.raw_ops.VarHandleOp(dtype=self.dtype, shape=self.shape, shared_name=f"kernel_{self.digest}")

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._dense())

    def _dense(self) -> tf.Tensor:
        positions = tf.cumsum(tf.cast(tf.convert_to_tensor(self.gaps.value), tf.int64))
        values = tf.convert_to_tensor(self.values.value)
        flat = tf.scatter_nd(positions[:, None], values, [int(np.prod(self.shape))])
        return tf.reshape(flat, self.shape)


class SparseKernel:
    """Mixin, before a Keras layer that computes with `self.kernel`.

    Args:
        entries: How many entries the stored kernel has.
        gap_dtype: The unsigned integer type of the gaps between them.
    """

    def __init__(self, *args, entries: int, gap_dtype: str = "uint16", **kwargs):
        super().__init__(*args, **kwargs)
        self.entries = entries
        self.gap_dtype = gap_dtype

    def add_weight(self, *args, name: str | None = None, **kwargs) -> keras.Variable:
        """Keras's `build` asks for the kernel here, and gets its entries."""
        if name != "kernel":
            return super().add_weight(*args, name=name, **kwargs)
        shape = tuple(kwargs.pop("shape"))
        own = {"shape": (self.entries,), "initializer": "zeros", "trainable": False}
        values = super().add_weight(name="values", **own)
        self.gaps = super().add_weight(name="gaps", dtype=self.gap_dtype, autocast=False, **own)
        self._dense_kernel = DenseKernel(values, self.gaps, shape)
        return values

    @property
    def kernel(self) -> Any:
        """The dense kernel, in the layer's compute dtype. To change it, use `assign_entries`."""
        return ops.cast(self._dense_kernel.read(), self.compute_dtype)

    def assign_entries(self, packed: storage.Packed) -> None:
        """Stores other entries, as many as there are."""
        self._kernel.assign(packed.values)
        self.gaps.assign(packed.gaps)

    def save_own_variables(self, store: dict) -> None:
        """Keras's hook: the entries, not the dense kernel."""
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: dict) -> None:
        """Keras's hook, the inverse of `save_own_variables`."""
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


SPARSE_TWINS = {
    keras.layers.Dense: SparseDense,
    keras.layers.Conv1D: SparseConv1D,
    keras.layers.Conv2D: SparseConv2D,
    keras.layers.Conv3D: SparseConv3D,
}


@keras.saving.register_keras_serializable(package="tf_packnet")
class Select(keras.layers.Layer):
    """Keeps some features of the last axis.

    Args:
        features: Their positions, ascending.
    """

    def __init__(self, features: list[int], **kwargs):
        super().__init__(**kwargs)
        self.features = [int(feature) for feature in features]
        self.supports_masking = True

    def call(self, inputs):
        return ops.take(inputs, np.array(self.features, "int32"), axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.features))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "features": self.features}
