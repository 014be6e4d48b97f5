"""Products with custom gradients compute the same sums as TensorFlow's gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_packnet.layers import MaskedConv2D, MaskedDense, masked, products


def small_integers(*shape):
    """Draw small integers, whose sums are exact in float32 in any order."""
    return np.random.default_rng(len(shape) + shape[0]).integers(-8, 9, shape).astype("float32")


def values_and_gradients(function, x, kernel, weights):
    x, kernel = tf.constant(x), tf.constant(kernel)
    with tf.GradientTape() as tape:
        tape.watch((x, kernel))
        y = function(x, kernel)
        loss = tf.reduce_sum(y * weights)
    return [y, *tape.gradient(loss, (x, kernel))]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("function", [products.large_product, products.narrow_product, products.product])
def test_gradients_equal_those_of_tensorflow(function, mode, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)
    arguments = small_integers(5, 7), small_integers(7, 3), small_integers(5, 3)
    compile_ = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[mode]
    expected = values_and_gradients(tf.matmul, *arguments)
    actual = compile_(lambda: values_and_gradients(function, *arguments))()
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("x_shape", "large"), [((4, 7), True), ((4, 6), False), ((2, 3, 7), False)], ids=["large", "small", "sequence"]
)
def test_only_large_kernels_use_custom_gradients(x_shape, large, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 7 * 5)
    taken = []
    monkeypatch.setattr(products, "large_product", lambda x, kernel: taken.append(x) or tf.matmul(x, kernel))
    x, kernel = small_integers(*x_shape), small_integers(x_shape[-1], 5)
    np.testing.assert_array_equal(products.product(tf.constant(x), tf.constant(kernel)), x @ kernel)
    assert bool(taken) == large


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_large_masked_layer_has_the_gradients_of_the_keras_layer(policy, activation, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)
    arguments = {"units": 3, "activation": activation, "dtype": policy, "kernel_initializer": "ones"}
    x = small_integers(6, 7) / 8
    gradients = []
    for layer in (MaskedDense(**arguments), keras.layers.Dense(**arguments)):
        layer.build(x.shape)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(x), "float32") ** 2)
        gradients.append(tape.gradient(loss, layer.trainable_variables))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 3), (2, 4, 4, 3)], ids=["dense", "sequence", "image"])
def test_the_gradient_of_a_bias_is_the_sum_over_positions(shape, mode):
    arguments = small_integers(*shape), small_integers(3), small_integers(*shape)
    compile_ = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[mode]
    actual = compile_(lambda: values_and_gradients(products.biased, *arguments))()
    x, bias, weights = arguments
    expected = x + bias, weights, weights.reshape(-1, 3).sum(axis=0)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "separate"),
    [({}, True), ({"dtype": "mixed_bfloat16"}, False), ({"data_format": "channels_first"}, False)],
)
def test_only_where_it_is_faster_has_a_bias_a_gradient_of_its_own(arguments, separate, monkeypatch):
    taken = []
    monkeypatch.setattr(masked, "biased", lambda x, bias: taken.append(1) or x + bias)
    tf.function(MaskedConv2D(3, 3, **arguments)).get_concrete_function(tf.TensorSpec((2, 6, 6, 6)))
    assert bool(taken) == separate


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation": "relu"}, {"use_bias": False}, {"strides": 2, "padding": "same"}, {"dilation_rate": 2}],
    ids=lambda arguments: "-".join(map(str, arguments)) or "plain",
)
def test_a_masked_convolution_has_the_gradients_of_the_keras_layer(policy, arguments):
    arguments = {"filters": 3, "kernel_size": 3, "dtype": policy, "kernel_initializer": "ones", **arguments}
    x = small_integers(2, 6, 6, 2) / 8
    outputs, gradients = [], []
    for layer in (MaskedConv2D(**arguments), keras.layers.Conv2D(**arguments)):
        layer.build(x.shape)
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(tf.cast(y, "float32") ** 2)
        outputs.append(y)
        gradients.append(tape.gradient(loss, layer.trainable_variables))
    np.testing.assert_array_equal(*outputs)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)
