"""Importance scores computed from data, and prune rounds that rank weights by them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import lifecycle
from tf_packnet.runs import learning
from tf_packnet.runs.config import Config
from tf_packnet.training import importance

L = keras.layers
BOUNDS = ("memory", "multinet")
IMAGE, SERIES, VOLUME = (6, 6, 2), (7, 2), (4, 4, 4, 1)
LAYERS = {
    "dense": (lambda: L.Dense(3, "relu"), SERIES),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (7, 2, 3), bias_axes="de"), SERIES),
    "conv1d": (lambda: L.Conv1D(3, 3, strides=2, activation="relu"), SERIES),
    "conv2d": (lambda: L.Conv2D(3, 3, padding="same", activation="tanh"), IMAGE),
    "conv2d, groups": (lambda: L.Conv2D(4, 3, groups=2), IMAGE),
    "conv3d": (lambda: L.Conv3D(2, 2), VOLUME),
    "depthwise": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), IMAGE),
    "transposed": (lambda: L.Conv2DTranspose(3, 3, strides=2), IMAGE),
}


def packed_with(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer, L.Flatten(), L.Dense(2)])
    packed = compile_model(tp.pack(model))
    packed.begin_task()
    return packed


@pytest.mark.parametrize("kind", LAYERS)
def test_activation_is_the_norm_of_all_inputs_of_a_weight(kind):
    """Oracle: with a kernel that is 1 at one weight and 0 elsewhere, a layer outputs the inputs of that weight."""
    make, shape = LAYERS[kind]
    packed = packed_with(make(), shape)
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("float32")
    plain = make()
    plain.activation = None
    plain.build((None, *shape))
    kernel = plain.trainable_variables[0]
    squares = np.zeros(kernel.shape)
    for index in np.ndindex(*kernel.shape):
        one = np.zeros(kernel.shape, "float32")
        one[index] = 1
        kernel.assign(one)
        squares[index] = np.square(plain(x)).sum()
    (path, weight), *_ = lifecycle.masked_weights(packed).items()
    before = [np.array(variable) for variable in packed.variables]
    found = importance.scores(packed, "activation", [(x[:3], None), (x[3:], None)])
    np.testing.assert_allclose(found[path], np.abs(weight.values()) * np.sqrt(squares), rtol=1e-4, atol=1e-6)
    for variable, value in zip(packed.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert packed.layers[0].call.__func__ is type(packed.layers[0]).call


def test_a_layer_that_is_called_twice_counts_both_inputs():
    inputs = keras.Input((4,))
    shared = L.Dense(4, activation="relu", name="shared")
    packed = compile_model(tp.pack(keras.Model(inputs, L.Dense(2)(shared(shared(inputs))))))
    packed.begin_task()
    x = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    kernel = np.array(lifecycle.masked_weights(packed)["shared/kernel"].values())
    hidden = np.maximum(x @ kernel, 0)
    norms = np.sqrt(np.square(x).sum(0) + np.square(hidden).sum(0))
    found = importance.scores(packed, "activation", [(x, None)])["shared/kernel"]
    np.testing.assert_allclose(found, np.abs(kernel) * norms[:, None], rtol=1e-5)


def test_taylor_is_the_squared_product_of_weight_and_gradient():
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task()
    x, y = blobs(1)
    plain = compile_model(make_mlp())
    plain.set_weights([np.array(variable) for variable in packed.trainable_variables])
    batches = [(x[:20], y[:20]), (x[20:30], y[20:30])]
    expected = []
    for some_x, some_y in batches:
        with tf.GradientTape() as tape:
            loss = plain.loss(some_y, plain(some_x))
        kernels = [plain.trainable_variables[index] for index in (0, 2)]
        gradients = tape.gradient(loss, [kernel.value for kernel in kernels])
        expected.append([np.square(np.array(k) * g) for k, g in zip(kernels, gradients, strict=True)])
    found = importance.scores(packed, "taylor", batches)
    for scores, kernel in zip(found.values(), np.mean(np.array(expected, object), axis=0), strict=True):
        np.testing.assert_allclose(scores, kernel.astype("float32"), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_a_round_keeps_the_largest_scores(criterion):
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task()
    x, y = blobs(1)
    packed.fit(x, y, epochs=2, verbose=0)
    expected = importance.scores(packed, criterion, [(x[:64], y[:64]), (x[64:], y[64:])])
    data = (x, y) if criterion == "taylor" else tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), criterion=criterion, data=data)
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[scheduler, tp.GradientMask()])
    for path, weight in lifecycle.masked_weights(packed).items():
        kept = weight.owner_map() == 255
        assert kept.sum() == round(kept.size * 0.5)
        assert expected[path][kept].min() >= expected[path][~kept].max()
    magnitude = np.abs(weight.values())
    assert magnitude[kept].min() < np.abs(expected[path]).max()


def test_a_subclass_refines_a_score_that_sees_data():
    class Twice(tp.PruneRoundScheduler):
        def score(self, path, values):
            return -super().score(path, values)

    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task()
    x, y = blobs(1)
    expected = importance.scores(packed, "taylor", [(x[:64], y[:64]), (x[64:], y[64:])])
    scheduler = Twice(tp.EqualShare(0.5, 1), criterion="taylor", data=(x, y))
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[scheduler, tp.GradientMask()])
    for path, weight in lifecycle.masked_weights(packed).items():
        kept = weight.owner_map() == 255
        assert expected[path][kept].max() <= expected[path][~kept].min()


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(tp.ArgumentError, match="`criterion`: expected one of magnitude, activation, taylor"):
        tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), criterion="movement")
    x, y = blobs(1)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for bad in (None, x, (x,), (x, y[1:]), (x[:0], y[:0]), dataset.repeat(), dataset.take(0)):
        with pytest.raises(tp.ArgumentError, match="`data`: expected examples"):
            tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), criterion="taylor", data=bad)
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task()
    for bad in ((x[:, :3], y), (x, y + 9), (x * np.nan, y), dataset.map(lambda x, y: (x[:, :3], y))):
        with pytest.raises(tp.ArgumentError, match="`data`: expected"):
            packed.fit(x, y, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), criterion="taylor", data=bad)])
    with pytest.raises(tp.ArgumentError, match="`data`: expected no data with the criterion magnitude"):
        tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), data=blobs(1))
    packed = packed_with(L.LSTM(3, return_sequences=True), SERIES)
    data = np.zeros((8, *SERIES), "float32"), np.zeros(8, "int32")
    activation = tp.PruneRoundScheduler(tp.EqualShare(0.5, 1), criterion="activation", data=data)
    with pytest.raises(tp.ArgumentError, match="not for lstm"):
        packed.fit(*data, verbose=0, callbacks=[activation])
    assert all((scores == 0).all() for scores in importance.scores(packed, "taylor", [data]).values())


@pytest.mark.parametrize("approach", ["packnet", *(pytest.param(n, marks=pytest.mark.slow) for n in BOUNDS)])
def test_runs(approach):
    fields = {"num_tasks": 2, "hidden_units": (4,), "train_epochs": 1, "retrain_epochs": 1, "prune_rounds": 1}
    maps = []
    for criterion in ("activation", "taylor", "taylor"):
        run = learning.Run.prepare(Config(dataset="digits", approach=approach, prune_criterion=criterion, **fields))
        trained = run.build_approach(None, lambda task, stage: ())
        for number in trained.training_task_numbers(2):
            trained.learn(trained.training_task(run.stream, number))
        maps.append(trained.owner_maps())
    activation, taylor, again = (np.concatenate([each.ravel() for each in owners.values()]) for owners in maps)
    np.testing.assert_array_equal(taylor, again)
    assert (activation != taylor).any()
    assert np.count_nonzero(activation) == np.count_nonzero(taylor)
