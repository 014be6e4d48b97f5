"""Matrix products whose gradients are taken another way than Keras's, where that was measured to be faster.

They are the same sums; only the order in which their terms are added may differ.
"""

import math
from typing import Any

from keras import ops

# Heads up to this wide take the gradients of `narrow_product`.
NARROW = 8
# Kernels from this many weights on take the gradients of `large_product`.
LARGE = 2**20


def product(x: Any, kernel: Any) -> Any:
    """`x @ kernel`, by what is fastest for the kernel's shape.

    Args:
        x: `(..., inputs)`.
        kernel: `(inputs, units)`.

    Returns:
        `(..., units)`.
    """
    large = len(x.shape) == 2 and math.prod(kernel.shape) >= LARGE
    return large_product(x, kernel) if large else ops.matmul(x, kernel)


@ops.custom_gradient
def large_product(x: Any, kernel: Any) -> Any:
    """`x @ kernel` for a large kernel and few rows, whose gradient by `x` leaves the kernel as it lies in memory.

    oneDNN transposes the second factor of a product before it begins: for `upstream @ kernel.T` that is a pass over the
    whole kernel, 10 ms for the 8192x1024 of the paper's convolutional network at batch 32, and an eighth of its
    gradient step. In `(kernel @ upstream.T).T` what is transposed is small.

    Args:
        x: `(batch, inputs)`.
        kernel: `(inputs, units)`.

    Returns:
        `(batch, units)`.
    """

    def gradients(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        by_x = ops.transpose(ops.matmul(kernel, ops.transpose(upstream)))
        return by_x, ops.matmul(ops.transpose(x), upstream)

    return ops.matmul(x, kernel), gradients


@ops.custom_gradient
def biased(x: Any, bias: Any) -> Any:
    """`x + bias`, whose gradient by `bias` is a sum of its own.

    TensorFlow takes that of a bias after a convolution together with the gradient of its kernel, where oneDNN goes
    through the images in a plain loop in float32: 0.4 to 1 ms a layer of the paper's convolutional network, and 4% of
    its gradient step. In bfloat16 oneDNN's is as fast.

    Args:
        x: `(batch, ..., channels)`.
        bias: `(channels,)`.

    Returns:
        `(batch, ..., channels)`.
    """

    def gradients(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        return upstream, ops.sum(upstream, axis=tuple(range(len(x.shape) - 1)))

    return ops.add(x, bias), gradients


@ops.custom_gradient
def narrow_product(x: Any, kernel: Any) -> Any:
    """`x @ kernel` for a few columns, with gradients taken column by column.

    XLA's matrix products on CPU take 0.04 ms for either gradient of a head of two units, whatever its size; this
    takes 0.005 ms, and 7% off a step of the paper's MLP.

    Args:
        x: `(batch, inputs)`.
        kernel: `(inputs, units)`.

    Returns:
        `(batch, units)`.
    """

    def gradients(*args, upstream=None):
        columns = ops.unstack(args[0] if upstream is None else upstream, axis=1)
        rows = ops.unstack(kernel, axis=1)
        by_x = sum(ops.expand_dims(column, 1) * row for column, row in zip(columns, rows, strict=True))
        by_kernel = ops.stack([ops.sum(x * ops.expand_dims(column, 1), axis=0) for column in columns], axis=1)
        return by_x, by_kernel

    return ops.matmul(x, kernel), gradients
