"""Extends `MultiWorkerMirroredStrategy`: variables of all numeric types, and sums of tensors of several types.

When a variable is created, the first worker broadcasts its initial value to the other workers. TensorFlow's operations
for this support few types; the `uint8` of owner maps is not among them. Values of other types are sent as a supported
type: types of one byte are cast to a larger type, all others are bitcast.
"""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import collective_ops

_SUPPORTED = (tf.bool, tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_BY_SIZE = {2: tf.float16, 4: tf.int32, 8: tf.int64, 16: tf.int64}  # 16: two of them per value


def support_all_types() -> None:
    """Make TensorFlow's broadcasts between workers support all numeric types. Supported types are sent as before."""
    if not hasattr(collective_ops.broadcast_send, "__wrapped__"):
        collective_ops.broadcast_send = _sending(collective_ops.broadcast_send)
        collective_ops.broadcast_recv = _receiving(collective_ops.broadcast_recv)


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether `strategy` trains one model in several processes."""
    is_collective = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return is_collective and bool(strategy.cluster_resolver.cluster_spec().as_dict())


def sums_by_type(strategy: tf.distribute.Strategy, summands: Sequence[Any], destination: tf.Variable) -> list[Any]:
    """Sum tensors over all replicas, with one call per type, because TensorFlow concatenates the tensors of a call.

    Args:
        strategy: The strategy.
        summands: Tensors with one value per replica.
        destination: A variable on the devices where the sums are needed.

    Returns:
        The sum of each tensor.
    """
    sums: dict[int, Any] = {}
    types = [strategy.experimental_local_results(each)[0].dtype for each in summands]
    for dtype in dict.fromkeys(types):
        group = [index for index, each in enumerate(types) if each == dtype]
        pairs = [(summands[index], destination) for index in group]
        results = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        sums.update(zip(group, results, strict=True))
    return [sums[index] for index in range(len(summands))]


def _sending(send: Any) -> Any:
    @functools.wraps(send)
    def send_any(t: Any, shape: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        value = _converted(tf.convert_to_tensor(t, dtype), _sent_as(dtype))
        return _converted(send(value, value.shape, value.dtype, *args, **kwargs), dtype)

    return send_any


def _receiving(receive: Any) -> Any:
    @functools.wraps(receive)
    def receive_any(shape: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        sent_as = _sent_as(dtype)
        in_two = tf.as_dtype(dtype).size > sent_as.size and sent_as == tf.int64
        sent_shape = tf.TensorShape(shape).concatenate([2] if in_two else [])
        return _converted(receive(sent_shape, sent_as, *args, **kwargs), dtype)

    return receive_any


def _sent_as(dtype: Any) -> tf.DType:
    dtype = tf.as_dtype(dtype)
    if dtype in _SUPPORTED:
        return dtype
    if dtype.size == 1:
        return tf.int32 if dtype.is_integer else tf.float32
    return _BY_SIZE.get(dtype.size, dtype)


def _converted(value: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Convert a value to the type in which it is sent, or back."""
    dtype = tf.as_dtype(dtype)
    if value.dtype == dtype:
        return value
    return tf.cast(value, dtype) if 1 in (value.dtype.size, dtype.size) else tf.bitcast(value, dtype)
