"""Compact models with random architectures and masks compute the same outputs as the original models."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keras import layers

from tf_packnet.export.compaction import compact_model, storage
from tf_packnet.export.loaded_tensor import SparseWeights

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "gelu", "softmax", "leaky_relu")
BLOCKS = ("conv", "bn", "pool", "residual", "concat", "depthwise", "separable", "pad", "norm", "nested", "again", "op")
BLOCKS += ("transposed", "einsum")
SEQUENCE_BLOCKS = ("rnn", "gru", "lstm", "heads", "grouped heads", "each", "norm")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in float64, which reveals errors beyond rounding; store every kernel with a zero sparse."""
    keras.config.set_dtype_policy("float64")
    monkeypatch.setattr(storage, "OVERHEAD", 0)


def convolution(draw, filters, activation):
    padding = draw(st.sampled_from(["same", "valid"]))
    return layers.Conv2D(filters, 2, padding=padding, activation=activation, use_bias=draw(st.booleans()))


def block(draw, x, activation):
    """Add a block of a random kind to the images `x`."""
    kind, filters = draw(st.sampled_from(BLOCKS)), x.shape[-1]
    if kind == "bn":
        return layers.Activation(activation)(layers.BatchNormalization()(x))
    if kind == "pool" and min(x.shape[1:3]) > 1:
        return draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))(2, padding="same")(x)
    if kind == "residual":
        return layers.Add()([x, layers.Conv2D(filters, 3, padding="same", activation=activation)(x)])
    if kind == "op":
        return x * layers.Conv2D(filters, 1, activation=activation)(x) + x
    if kind == "concat":
        other = layers.Conv2D(2, 1, activation=activation)(x)
        return layers.Concatenate(axis=draw(st.sampled_from([-1, 3])))([x, other])
    if kind == "depthwise":
        return layers.DepthwiseConv2D(2, padding="same", activation=activation)(x)
    if kind == "separable":
        return layers.SeparableConv2D(3, 2, padding="same", depth_multiplier=2, activation=activation)(x)
    if kind == "transposed":
        padding = draw(st.sampled_from(["same", "valid"]))
        return layers.Conv2DTranspose(3, 2, strides=2, padding=padding, activation=activation)(x)
    if kind == "einsum":
        return layers.EinsumDense("abcd,de->abce", (*x.shape[1:3], 4), bias_axes="e", activation=activation)(x)
    if kind == "pad":
        return layers.ZeroPadding2D(1)(x)
    if kind == "norm":
        return layers.LayerNormalization()(x)
    if kind == "nested":
        inputs = keras.Input(x.shape[1:], dtype=x.dtype)
        return keras.Model(inputs, layers.Conv2D(3, 1, activation=activation)(inputs))(x)
    if kind == "again":
        shared = layers.Conv2D(filters, 1, activation=activation)
        return shared(shared(x))
    if min(x.shape[1:3]) < 2:
        return x
    return convolution(draw, draw(st.integers(1, 5)), activation)(x)


def sequence_block(draw, x, activation):
    """Add a block of a random kind to the sequences `x`."""
    kind, units = draw(st.sampled_from(SEQUENCE_BLOCKS)), draw(st.integers(1, 5))
    recurrent = {"rnn": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}
    if kind in recurrent:
        return recurrent[kind](units, return_sequences=True, go_backwards=draw(st.booleans()))(x)
    if kind == "heads":
        return layers.MultiHeadAttention(units, 3, use_bias=draw(st.booleans()))(x, x) + x
    if kind == "grouped heads":
        return layers.GroupQueryAttention(2, 2 * units, units)(x, x, use_causal_mask=True)
    if kind == "each":
        return layers.TimeDistributed(layers.Dense(units, activation=activation))(x)
    return layers.LayerNormalization()(x)


@st.composite
def networks(draw):
    """Draw a convolutional, recurrent or dense network and the seed of its weights."""
    activation = draw(st.sampled_from(ACTIVATIONS))
    kind = draw(st.sampled_from(["images", "sequences", "vectors"]))
    if kind == "sequences":
        inputs = keras.Input((4,), dtype="int32")
        x = layers.Embedding(9, 5, mask_zero=draw(st.booleans()))(inputs)
        for _ in range(draw(st.integers(1, 3))):
            x = sequence_block(draw, x, activation)
        x = layers.GlobalAveragePooling1D()(x)
    elif kind == "images":
        x = inputs = keras.Input((5, 4, 2))
        for _ in range(draw(st.integers(1, 4))):
            x = block(draw, x, activation)
        x = draw(st.sampled_from([layers.Flatten, layers.GlobalAveragePooling2D]))()(x)
    else:
        x = inputs = keras.Input((7,))
    for _ in range(draw(st.integers(0, 3))):
        x = layers.Dropout(0.5)(layers.Dense(draw(st.integers(1, 9)), activation=activation)(x))
    outputs = layers.Dense(2)(x)
    several = draw(st.booleans())
    return keras.Model(inputs, {"logits": outputs, "features": x} if several else outputs)


def prune(model, rng, density):
    """Assign random weights of which `density` are not 0, biases that disable some units, and random statistics."""
    for weight in model.weights:
        value = rng.normal(size=weight.shape)
        if "kernel" in weight.name or "embeddings" in weight.name:
            value = value * (rng.random(weight.shape) < density)
        elif "variance" in weight.name:
            value = np.abs(value) + 0.1
        elif rng.random() < 0.3:
            value = np.zeros(weight.shape)
        weight.assign(value)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.1, 0.3, 0.7]))
def test_outputs_agree(model, seed, density):
    rng = np.random.default_rng(seed)
    prune(model, rng, density)
    compact = compact_model(model)
    x = rng.normal(size=(5, *model.input_shape[1:]))
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 9, x.shape)
    for ours, theirs in zip(keras.tree.flatten(compact(x)), keras.tree.flatten(model(x)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    assert compact.count_params() <= 2 * model.count_params() + 9


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
    shape=st.lists(st.integers(0, 90), max_size=3),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64", "int8", "int32"]),
)
@example(0, 0.0, [], "float32")
@example(0, 0.0, [90, 90, 90], "float32")
@example(0, 0.00001, [90, 90, 90], "float32")
def test_an_array_without_zeros_gives_the_array_back(seed, density, shape, dtype):
    rng = np.random.default_rng(seed)
    array = (100 * rng.normal(size=shape) * (rng.random(shape) < density)).astype(dtype)
    stored = storage.to_sparse(array)
    assert stored.count == np.count_nonzero(array)
    loaded = storage.to_dense(storage.SparseArray.from_bytes(stored.to_bytes()))
    weights = SparseWeights({0: stored})
    weights._list._initialize()
    for dense in (loaded, weights.readers()[0]().numpy()):
        assert dense.dtype == array.dtype
        np.testing.assert_array_equal(dense, array)
