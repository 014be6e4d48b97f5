import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tf_packnet.system.arrays import content

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [
        MATRIX,
        MATRIX.T,
        MATRIX[:, ::2],
        MATRIX[:0],
        np.float32(3),
        np.array(True),
        MATRIX.astype(tf.bfloat16.as_numpy_dtype),
        np.array(["a", "bcd"]),
        np.broadcast_to(np.int64(7), (2, 3)),
    ],
    ids=["matrix", "transposed", "strided", "empty", "scalar", "bool", "bfloat16", "text", "read_only"],
)
def test_content_is_the_bytes_in_c_order(array):
    assert bytes(content(array)) == array.tobytes()
    assert hashlib.sha256(content(array)).digest() == hashlib.sha256(array.tobytes()).digest()


def test_a_contiguous_array_is_not_copied():
    assert np.shares_memory(np.frombuffer(content(MATRIX), np.uint8), MATRIX)
