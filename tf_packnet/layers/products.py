"""Matrix products and bias additions with custom gradients that measure faster than those of Keras.

The gradients are the same sums; only the order of the additions may differ.
"""

import math
from typing import Any

from keras import ops

# Largest number of units of a head that uses `narrow_product`.
NARROW = 8
# Smallest number of weights of a kernel that uses `large_product`.
LARGE = 2**20


def product(x: Any, kernel: Any) -> Any:
    """Compute `x @ kernel` with the fastest implementation for the kernel's shape.

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
    """Compute `x @ kernel` for a large kernel and few rows, with a gradient of `x` that does not transpose the kernel.

    oneDNN first transposes the second factor of a product. In `upstream @ kernel.T` this is a pass over the whole
    kernel: 10 ms for the 8192x1024 kernel of the paper's convolutional network at batch size 32, an eighth of a
    gradient step. `(kernel @ upstream.T).T` transposes only small matrices.

    Args:
        x: `(batch, inputs)`.
        kernel: `(inputs, units)`.

    Returns:
        `(batch, units)`.
    """

    def gradients(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        (upstream,) = args or (upstream,)
        by_x = ops.transpose(ops.matmul(kernel, ops.transpose(upstream)))
        return by_x, ops.matmul(ops.transpose(x), upstream)

    return ops.matmul(x, kernel), gradients


@ops.custom_gradient
def biased(x: Any, bias: Any) -> Any:
    """Compute `x + bias` with a separately computed gradient of `bias`.

    After a convolution, TensorFlow computes the gradient of the bias together with that of the kernel. In float32
    oneDNN uses a plain loop over the images for this: 0.4 to 1 ms per layer of the paper's convolutional network, 4% of
    a gradient step. In bfloat16 oneDNN is as fast as this function.

    Args:
        x: `(batch, ..., channels)`.
        bias: `(channels,)`.

    Returns:
        `(batch, ..., channels)`.
    """

    def gradients(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        (upstream,) = args or (upstream,)
        return upstream, ops.sum(upstream, axis=tuple(range(len(x.shape) - 1)))

    return ops.add(x, bias), gradients


@ops.custom_gradient
def narrow_product(x: Any, kernel: Any) -> Any:
    """Compute `x @ kernel` for a kernel with few columns, with gradients computed column by column.

    On CPU, XLA's matrix products take 0.04 ms for each gradient of a head with two units; this function takes
    0.005 ms, which makes a step of the paper's MLP 7% faster.

    Args:
        x: `(batch, inputs)`.
        kernel: `(inputs, units)`.

    Returns:
        `(batch, units)`.
    """

    def gradients(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        (upstream,) = args or (upstream,)
        columns = ops.unstack(upstream, axis=1)
        rows = ops.unstack(kernel, axis=1)
        by_x = sum(ops.expand_dims(column, 1) * row for column, row in zip(columns, rows, strict=True))
        by_kernel = ops.stack([ops.sum(x * ops.expand_dims(column, 1), axis=0) for column in columns], axis=1)
        return by_x, by_kernel

    return ops.matmul(x, kernel), gradients
