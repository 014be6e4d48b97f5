"""Tensors that a SavedModel computes when it is loaded."""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from tf_packnet.export.compaction.storage import GAP_BYTES, SparseArray


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


class SparseWeights(tf.Module):
    """Weights that a SavedModel stores without zeros. When it is loaded, they are expanded into a list in memory.

    Args:
        weights: The weights, by any key. All must have the same dtype.
    """

    def __init__(self, weights: Mapping[int, SparseArray]):
        super().__init__()
        stored = list(weights.values())
        self.data = tf.Variable([each.data for each in stored], name="data", trainable=False)
        # Wrapped in a function, because TensorFlow would save the weights as parts of this module.
        self._stored = lambda: weights
        self._dtype = tf.as_dtype(stored[0].dtype)
        content = b"".join(each.to_bytes().tobytes() for each in stored)
        self._list = LoadedTensor(self._expanded, tf.variant, (), hashlib.sha256(content).hexdigest())

    def readers(self) -> dict[int, Callable[[], tf.Tensor]]:
        """Return, by key, a function for each weight that returns the dense weight."""
        return {
            key: functools.partial(self._read, index, array.shape)
            for index, (key, array) in enumerate(self._stored().items())
        }

    def _read(self, index: int, shape: tuple[int, ...]) -> tf.Tensor:
        size = math.prod(shape)
        flat = tf.raw_ops.TensorListGetItem(
            input_handle=self._list.read(), index=index, element_shape=[size], element_dtype=self._dtype
        )
        return tf.reshape(flat, shape)

    def _expanded(self) -> tf.Tensor:
        """Return the flat dense weights as a list."""
        stored = self._stored().values()
        counts, sizes = ([getattr(each, name) for each in stored] for name in ("count", "size"))
        counts, sizes = (tf.constant(numbers, tf.int64) for numbers in (counts, sizes))
        empty = tf.raw_ops.TensorListReserve(element_shape=[-1], num_elements=len(stored), element_dtype=self._dtype)

        def add(index: tf.Tensor, tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            item = _dense(self.data[index], counts[index], sizes[index], self._dtype)
            return index + 1, tf.raw_ops.TensorListSetItem(input_handle=tensors, index=index, item=item)

        return tf.while_loop(lambda index, _: index < len(stored), add, (0, empty))[1]


def _dense(data: tf.Tensor, count: tf.Tensor, size: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return a dense array, flat; see `SparseArray`."""
    raw = tf.io.decode_raw(tf.io.decode_compressed(data, "ZLIB"), tf.uint8)
    gaps = tf.cast(_from_planes(raw[: count * GAP_BYTES], GAP_BYTES), tf.int64)
    values = _from_planes(raw[count * GAP_BYTES :], dtype.size)
    # Scattered as integers, because scatter_nd does not take every float type.
    return tf.bitcast(tf.scatter_nd(tf.cumsum(gaps + 1)[:, None] - 1, values, size[None]), dtype)


def _from_planes(planes: tf.Tensor, item_bytes: int) -> tf.Tensor:
    """Return integers from their byte planes: the lowest byte of each number first, then the next bytes."""
    if item_bytes == 1:
        return planes
    dtype = {2: tf.uint16, 4: tf.uint32, 8: tf.uint64}[item_bytes]
    # Not a transpose of bytes: oneDNN prints messages about it on CPUs without AVX-512.
    rows = tf.unstack(tf.reshape(planes, [item_bytes, -1]))
    shifted = [tf.bitwise.left_shift(tf.cast(row, dtype), tf.cast(8 * place, dtype)) for place, row in enumerate(rows)]
    return functools.reduce(tf.bitwise.bitwise_or, shifted)
