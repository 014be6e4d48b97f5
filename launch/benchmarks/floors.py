"""Floors: the time of the matrix products and convolutions of a gradient step alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from launch.benchmarks import median_seconds

MLP = (784, 256, 256, 2)
BATCH = 128
CONVOLUTIONS = ((32, 3, 32), (32, 32, 64), (16, 64, 128), (16, 128, 128))  # size, channels in and out
CONV_DENSE = ((8192, 1024), (1024, 2))
CONV_BATCH = 32


def dense_products(every_product: bool) -> Callable[[], float]:
    """Return a function that measures the matrix products of one MLP step, in seconds: the faster of NumPy and XLA.

    Args:
        every_product: Whether to include the input gradient of the first layer, which training does not need. The
            forward product and both gradients of all other layers are always included.
    """
    steps = 100
    numpy_step = numpy_products(every_product)
    compiled, arguments = xla_products(every_product, steps)

    def measure() -> float:
        numpy_seconds = median_seconds(numpy_step, repeats=5, calls=steps)
        return min(numpy_seconds, median_seconds(lambda: compiled(*arguments).numpy(), repeats=5) / steps)

    return measure


def numpy_products(every_product: bool) -> Callable[[], None]:
    """Return a function that computes the products of one step in NumPy."""
    x, w, g = _draw_mlp()

    def step():
        for layer in range(len(w)):
            x[layer] @ w[layer]
            x[layer].T @ g[layer]
            if layer or every_product:
                g[layer] @ w[layer].T

    return step


def xla_products(every_product: bool, steps: int) -> tuple[Any, list]:
    """Return a compiled function that computes the products of `steps` steps, and its arguments."""

    @tf.function(jit_compile=True)
    def compute_products(x, w, g):
        def step(number, total):
            for layer in range(len(w)):
                # Every product depends on the running total, so that XLA cannot remove any or move it out of the loop.
                x_now, g_now = x[layer] + total * 1e-30, g[layer] + total * 1e-30
                products = [x_now @ w[layer], tf.matmul(x_now, g[layer], transpose_a=True)]
                if layer or every_product:
                    products.append(tf.matmul(g_now, w[layer], transpose_b=True))
                total = total + sum(product[0, 0] for product in products)
            return number + 1, total

        return tf.while_loop(lambda number, _: number < steps, step, (0, 0.0))[1]

    return compute_products, [[tf.constant(array) for array in arrays] for arrays in _draw_mlp()]


def _draw_mlp() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Draw inputs, kernels and output gradients of every layer."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(BATCH, inputs)).astype("float32") for inputs in MLP[:-1]]
    w = [0.01 * rng.normal(size=shape).astype("float32") for shape in zip(MLP, MLP[1:], strict=False)]
    g = [rng.normal(size=(BATCH, units)).astype("float32") for units in MLP[1:]]
    return x, w, g


def convolution_products(dtype: str) -> Callable[[], float]:
    """Return a function that measures the convolutions and products of one step, in seconds, in oneDNN."""
    step, arguments = convolution_step(dtype)
    return lambda: median_seconds(lambda: step(*arguments)[-1].numpy(), calls=5)


def convolution_step(dtype: str) -> tuple[Any, list]:
    """Return a function that computes the convolutions and products of one step, and its arguments."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return tf.constant(rng.normal(size=shape), dtype)

    images = [
        (draw(CONV_BATCH, size, size, inputs), draw(3, 3, inputs, filters), draw(CONV_BATCH, size, size, filters))
        for size, inputs, filters in CONVOLUTIONS
    ]
    features = [
        (draw(CONV_BATCH, inputs), draw(inputs, units), draw(CONV_BATCH, units)) for inputs, units in CONV_DENSE
    ]

    @tf.function
    def step(images, features):
        products = []
        for layer, (x, w, g) in enumerate(images):
            options = {"strides": [1, 1, 1, 1], "padding": "SAME"}
            products.append(tf.nn.conv2d(x, w, **options))
            products.append(
                tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=tf.shape(w), out_backprop=g, **options)
            )
            if layer:
                products.append(
                    tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(x), filter=w, out_backprop=g, **options)
                )
        for x, w, g in features:
            # The input gradient in the order that is fastest in oneDNN, see `tf_packnet.layers.products.large_product`.
            input_gradient = tf.transpose(tf.matmul(w, g, transpose_b=True))
            products += [x @ w, tf.matmul(x, g, transpose_a=True), input_gradient]
        return products

    return step, [images, features]
