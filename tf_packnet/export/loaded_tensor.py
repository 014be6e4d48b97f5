"""Tensors that a SavedModel computes when it is loaded."""

import hashlib
from collections.abc import Callable

import tensorflow as tf

from tf_packnet.export.compaction.storage import SparseArray


class LoadedTensor(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed once, when a SavedModel is loaded, and then stays in memory.

    Args:
        compute: Computes the tensor from saved variables.
        dtype: Its dtype.
        shape: Its shape.
        name: A name for this content. SavedModels with the same name share the tensor.
    """

    def __init__(self, compute: Callable[[], tf.Tensor], dtype: tf.DType, shape: tuple[int, ...], name: str):
        super().__init__()
        self._compute, self._dtype, self._shape, self._name = compute, dtype, shape, name
        self._handle = self.resource_handle  # created now, so that functions traced later capture it

    def read(self) -> tf.Tensor:
        """Return the tensor."""
        tensor = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        tensor.set_shape(self._shape)
        return tensor

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=self._shape, shared_name=self._name)

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._compute())


class SparseVariable(tf.Module):
    """A weight that a SavedModel stores without zeros and expands when it is loaded.

    Args:
        stored: The weight.
    """

    def __init__(self, stored: SparseArray):
        super().__init__()
        self._stored = stored
        self.data = tf.Variable(stored.data, name="data", trainable=False)
        name = hashlib.sha256(stored.to_bytes().tobytes()).hexdigest()
        self._tensor = LoadedTensor(self._expanded, tf.as_dtype(stored.dtype), stored.shape, name)

    def read(self) -> tf.Tensor:
        """Return the dense weight."""
        return self._tensor.read()

    def _expanded(self) -> tf.Tensor:
        stored, dtype = self._stored, tf.as_dtype(self._stored.dtype)
        count, size = (tf.constant(number, tf.int64) for number in (stored.count, stored.size))
        bits = _dense_bits(self.data, count, size, tf.as_dtype(stored.gap_dtype).size, dtype.size)
        return tf.reshape(tf.bitcast(bits, dtype), stored.shape)


@tf.function(autograph=False)  # so that a file contains it once, and not for each weight
def _dense_bits(data: tf.Tensor, count: tf.Tensor, size: tf.Tensor, gap_bytes: int, value_bytes: int) -> tf.Tensor:
    """Return the bits of a dense array as integers `(size,)`, see `SparseArray`."""
    raw = tf.io.decode_raw(tf.io.decode_compressed(data, "ZLIB"), tf.uint8)
    gaps = tf.cast(_from_planes(raw[: count * gap_bytes], gap_bytes), tf.int64)
    values = _from_planes(raw[count * gap_bytes :], value_bytes)
    return tf.scatter_nd(tf.cumsum(gaps + 1)[:, None] - 1, values, size[None])


def _from_planes(planes: tf.Tensor, item_bytes: int) -> tf.Tensor:
    if item_bytes == 1:
        return planes
    dtype = {2: tf.uint16, 4: tf.uint32, 8: tf.uint64}[item_bytes]
    return tf.bitcast(tf.transpose(tf.reshape(planes, [item_bytes, -1])), dtype)
