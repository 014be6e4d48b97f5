"""Normalization: later tasks change neither the outputs nor the statistics of earlier tasks."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model
from tests.test_freeze import learn, logits
from tf_packnet.errors import ArgumentError
from tf_packnet.export import dense_model
from tf_packnet.layers import (
    TaskBatchNormalization,
    TaskGroupNormalization,
    TaskLayerNormalization,
    TaskRMSNormalization,
)

KINDS = {
    "batch": (TaskBatchNormalization, keras.layers.BatchNormalization, {}),
    "batch-no-scale": (
        TaskBatchNormalization, keras.layers.BatchNormalization, {"scale": False, "center": False, "momentum": 0.5},
    ),
    "layer": (TaskLayerNormalization, keras.layers.LayerNormalization, {}),
    "group": (TaskGroupNormalization, keras.layers.GroupNormalization, {"groups": 2}),
    "rms": (TaskRMSNormalization, keras.layers.RMSNormalization, {}),
}  # fmt: skip


def network(kind):
    layers = keras.layers
    _, plain, arguments = KINDS[kind]
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(8, 3),
            plain(**arguments, name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
            plain(**arguments),
            layers.Dense(2),
        ]
    )


def images(seed, examples=32):
    return np.random.default_rng(seed).normal(1.0, 3.0, size=(examples, 4, 4, 6)).astype("float32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_fresh_layer_computes_and_updates_like_keras(kind, dtype):
    ours_class, plain_class, arguments = KINDS[kind]
    ours, plain = ours_class(**arguments, dtype=dtype), plain_class(**arguments, dtype=dtype)
    for seed in range(3):
        for training in (False, True, False):
            np.testing.assert_array_equal(
                np.asarray(ours(images(seed), training=training), "float32"),
                np.asarray(plain(images(seed), training=training), "float32"),
            )
    for name in ("moving_mean", "moving_variance"):
        if hasattr(plain, name):
            np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))


def test_masked_batches_are_normalised_as_by_keras():
    ours, plain = TaskBatchNormalization(), keras.layers.BatchNormalization()
    x = images(0)[:, 0]
    mask = np.random.default_rng(1).random(x.shape[:-1]) < 0.5
    for training in (True, False):
        np.testing.assert_array_equal(ours(x, training=training, mask=mask), plain(x, training=training, mask=mask))


@pytest.mark.parametrize(
    ("kind", "policy", "dtype"),
    [
        ("batch", "per_task", "float32"),
        pytest.param("layer", "per_task", "float32", marks=pytest.mark.slow),
        pytest.param("rms", "per_task", "float32", marks=pytest.mark.slow),
        ("batch", "first_task", "float32"),
        pytest.param("batch", "per_task", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("group", "per_task", "float32", marks=pytest.mark.slow),
        pytest.param("layer", "first_task", "float32", marks=pytest.mark.slow),
        pytest.param("batch", "first_task", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_later_tasks_do_not_change_the_outputs_of_earlier_ones(kind, policy, dtype, tmp_path):
    keras.config.set_dtype_policy(dtype)
    packed = tp.pack(network(kind), bias_policy=policy)
    compile_model(packed, keras.optimizers.AdamW(0.01, weight_decay=0.1))
    probe = np.random.default_rng(9).normal(size=(32, 6, 6, 2)).astype("float32")
    committed, statistics = {}, {}
    for number in (1, 2, 3):
        learn(packed, number, blobs(number, (6, 6, 2)))
        committed[number] = logits(packed, number, probe)
        packed.save(tmp_path / "pack.keras")
        packed = keras.models.load_model(tmp_path / "pack.keras")
        for earlier, then in committed.items():
            np.testing.assert_array_equal(logits(packed, earlier, probe), then)
        packed.select_task(number)
        norm = packed.get_layer("norm")
        statistics[number] = [
            np.array(getattr(norm, name)) for name in norm.per_task if getattr(norm, name) is not None
        ]
    for first, second in zip(statistics[1], statistics[2], strict=True):
        assert np.array_equal(first, second) == (policy == "first_task")
    for number, then in committed.items():
        plain = dense_model(packed, number)
        assert type(plain.get_layer("norm")) is KINDS[kind][1]
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.05}
        np.testing.assert_allclose(plain.predict(probe, verbose=0), then, **tolerance)


def test_a_later_task_trains_with_the_first_ones_statistics():
    layer = TaskBatchNormalization()
    layer(images(0), training=True)
    layer.commit_task()
    before = [np.array(layer.moving_mean), np.array(layer.moving_variance)]
    layer.begin_task("zero", seed=0)
    x = images(1)
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, before[0])
    np.testing.assert_array_equal(layer.moving_variance, before[1])


def test_selecting_an_earlier_task_in_between_changes_nothing():
    layer = TaskBatchNormalization(bias_policy="per_task")
    layer(images(0), training=True)
    layer.commit_task()
    layer.begin_task("zero", seed=0)
    layer(images(1), training=True)
    open_mean = np.array(layer.moving_mean)
    layer.select_task(1)
    first = np.array(layer(images(2), training=False))
    layer(images(3), training=True)  # no error
    layer.select_task(2)
    np.testing.assert_array_equal(layer.moving_mean, open_mean)
    layer.select_task(1)
    np.testing.assert_array_equal(layer(images(2), training=False), first)


@pytest.mark.skipif(
    not hasattr(keras.layers.BatchNormalization(), "renorm"), reason="this version of Keras has no renorm"
)
def test_batch_renormalization_is_refused():
    with pytest.raises(ArgumentError, match="do not support batch renormalization. Received: renorm=True"):
        TaskBatchNormalization(renorm=True)
