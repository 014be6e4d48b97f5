"""Lets a `MultiWorkerMirroredStrategy` create variables of every numeric type.

When a variable is created, the first worker sends its initial value to the others. TensorFlow's operations for this
support few types, and not the `uint8` of owner maps. Values of other types are sent as a type of the same size, with
the same bits; single bytes are sent as integers.
"""

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import collective_ops

_SUPPORTED = (tf.bool, tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_BY_SIZE = {1: tf.uint8, 2: tf.float16, 4: tf.int32, 8: tf.int64, 16: tf.int64}  # 16: two of them per value


def support_all_types() -> None:
    """Make TensorFlow's broadcasts between workers support every numeric type. Others are as before."""
    if not hasattr(collective_ops.broadcast_send, "__wrapped__"):
        collective_ops.broadcast_send = _sending(collective_ops.broadcast_send)
        collective_ops.broadcast_recv = _receiving(collective_ops.broadcast_recv)


def _sending(send: Any) -> Any:
    @functools.wraps(send)
    def send_any(t: Any, shape: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = _encoded(tf.convert_to_tensor(t, dtype))
        return _decoded(send(encoded, encoded.shape, encoded.dtype, *args, **kwargs), tf.as_dtype(dtype))

    return send_any


def _receiving(receive: Any) -> Any:
    @functools.wraps(receive)
    def receive_any(shape: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        template = _encoded(tf.zeros(shape, dtype))
        return _decoded(receive(template.shape, template.dtype, *args, **kwargs), tf.as_dtype(dtype))

    return receive_any


def _encoded(value: tf.Tensor) -> tf.Tensor:
    if value.dtype in _SUPPORTED or value.dtype.size not in _BY_SIZE:
        return value
    bits = tf.bitcast(value, _BY_SIZE[value.dtype.size])
    return tf.cast(bits, tf.int32) if bits.dtype == tf.uint8 else bits


def _decoded(value: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if value.dtype == dtype:
        return value
    return tf.bitcast(tf.cast(value, tf.uint8) if dtype.size == 1 else value, dtype)
