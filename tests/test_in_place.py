"""Kernels masked in place, or by XLA in one pass, are bit-identical to kernels that are masked in every step."""

import keras
import numpy as np
import pytest
from tensorflow.python.framework import config

import tf_packnet as tp
from tests.conftest import blobs, make_convnet, make_mlp
from tests.test_fast_paths import batches, fresh, learn
from tf_packnet import lifecycle
from tf_packnet.tasks import ResidentBatches
from tf_packnet.training import acceleration, kernels

ADAM = keras.optimizers.Adam


class MyAdam(keras.optimizers.Adam):
    """An optimizer of the user's, which may use norms of whole weights."""


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw, clipped": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.3, global_clipnorm=1.0),
    "momentum, accumulating": lambda: keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2),
    "lion": lambda: keras.optimizers.Lion(0.001),
}


@pytest.fixture(autouse=True)
def models_are_large_enough_to_compile(monkeypatch):
    monkeypatch.setattr(acceleration, "WORTH_COMPILING", 0)
    if config.is_op_determinism_enabled():  # by a test before: Keras would not compile the models
        config.disable_op_determinism()


def convnet(**kwargs):
    return make_convnet(dropout=0.0, **kwargs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("make_model", "shape", "xla"), [(make_mlp, (6,), acceleration.STEP), (convnet, (8, 8, 1), acceleration.UPDATE)]
)
def test_the_same_bits_as_selecting_in_every_step(optimizer, make_model, shape, xla, monkeypatch):
    outcomes = []
    for can_compute_in_place in (kernels.can_compute_in_place, lambda model: False):
        monkeypatch.setattr(kernels, "can_compute_in_place", can_compute_in_place)
        packed = fresh(make_model, OPTIMIZERS[optimizer])
        assert packed.xla == xla
        trace, owners, values = learn(packed, lambda task, n: batches(ResidentBatches, task, n, shape))
        slots = [np.array(variable) for variable in packed.optimizer.variables]
        outcomes.append((trace, list(owners.values()), values, slots))
    (trace, *arrays), (trace_there, *arrays_there) = outcomes
    assert trace == trace_there
    for some, some_there in zip(arrays, arrays_there, strict=True):
        for one, other in zip(some, some_there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_between_calls_the_trainable_variable_holds_only_the_candidates():
    seen = []

    class CheckVariables(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for weight in lifecycle.masked_weights(self.model).values():
                outside = weight.values()[weight.owner_map() != 255]
                seen.append(outside.size)
                assert not outside.any()
                assert not weight.in_place

    packed = fresh(make_mlp, OPTIMIZERS["adam"])
    learn(packed, lambda task, n: batches(ResidentBatches, task, n), tasks=1)
    packed.begin_task()
    packed.fit(batches(ResidentBatches, 2, steps_per_call=2), epochs=2, verbose=0, callbacks=[CheckVariables()])
    assert any(seen)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("make_model", "shape"), [(make_mlp, (6,)), (convnet, (8, 8, 1))])
def test_a_committed_task_is_frozen_to_the_bit_while_another_is_learned_in_place(make_model, shape, precision):
    keras.config.set_dtype_policy(precision)
    packed = fresh(make_model, OPTIMIZERS["adamw, clipped"])
    learn(packed, lambda task, n: batches(ResidentBatches, task, n, shape), tasks=1)
    x = np.random.default_rng(0).normal(size=(20, *shape)).astype("float32")
    then = packed.predict(x, verbose=0)
    packed.begin_task()
    assert kernels.can_compute_in_place(packed)
    packed.fit(batches(ResidentBatches, 2, shape=shape), epochs=3, verbose=0)
    packed.select_task(1)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), then)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Lamb,
        keras.optimizers.Adafactor,
        MyAdam,
        lambda: keras.optimizers.SGD(0.1, use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(ADAM()),
    ],
)
def test_not_with_optimizers_that_may_use_norms_of_whole_weights(optimizer):
    packed = fresh(make_mlp, optimizer)
    packed.begin_task()
    assert not kernels.can_compute_in_place(packed)


def test_not_with_constraints():
    packed = fresh(lambda: make_mlp(kernel_constraint="max_norm"), ADAM)
    packed.begin_task()
    assert not kernels.can_compute_in_place(packed)


def test_not_without_xla():
    packed = fresh(make_mlp, ADAM, jit_compile=False)
    packed.begin_task()
    assert not kernels.can_compute_in_place(packed)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("make_model", "shape"), [(make_mlp, (6,)), (convnet, (8, 8, 1))])
def test_kernels_selected_in_one_pass_predict_the_same_bits(make_model, shape, precision, monkeypatch):
    keras.config.set_dtype_policy(precision)
    packed = fresh(make_model, OPTIMIZERS["adam"])
    learn(packed, lambda task, n: batches(ResidentBatches, task, n, shape), tasks=2)
    x, y = blobs(5, shape)
    answers = {}
    for compiled in (True, False):
        monkeypatch.setattr(kernels, "MIN_WEIGHTS_TO_SELECT_FIRST", 0 if compiled else np.inf)
        assert bool(kernels.worth_selecting_first(packed)) == compiled
        lifecycle.drop_compiled_functions(packed)
        for task in (1, 2):
            packed.select_task(task)
            answers[compiled, task] = (packed.predict(x, verbose=0), packed.evaluate(x, y, verbose=0))
    for task in (1, 2):
        np.testing.assert_array_equal(answers[True, task][0], answers[False, task][0])
        assert answers[True, task][1] == answers[False, task][1]


def residual_network():
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(64, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(128, 3, strides=2, use_bias=False)(x))
    shortcut = keras.layers.Conv2D(128, 1, strides=2, use_bias=False)(keras.layers.Cropping2D(((1, 0), (1, 0)))(inputs))
    x = keras.layers.ReLU()(keras.layers.Add()([keras.layers.BatchNormalization()(shortcut[:, :3, :3]), x]))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def test_predictions_have_the_same_bits_with_and_without_xla(tmp_path):
    """Whatever TensorFlow fuses around the kernels, also in a pack that was loaded without its compilation."""
    packed = fresh(residual_network, ADAM, jit_compile="auto")
    learn(packed, lambda task, n: batches(ResidentBatches, task, n, (8, 8, 16)), tasks=1)
    assert kernels.worth_selecting_first(packed)
    assert packed.xla == acceleration.UPDATE
    x, _ = blobs(5, (8, 8, 16))
    expected = packed.predict(x, verbose=0)
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "tasks.packnet")
    loaded = keras.models.load_model(tmp_path / "pack.keras", compile=False)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    loaded = tp.load_pack(tmp_path / "tasks.packnet")
    loaded.select_task("task_1")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    packed.compile("adam", "mse", jit_compile=False)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), expected)


def test_kernels_are_restored_after_an_exception_in_a_step():
    class FailingLoss(keras.losses.Loss):
        def call(self, y_true, y_pred):
            raise RuntimeError("no loss")

    keras.utils.set_random_seed(1)
    packed = tp.pack(make_mlp())
    packed.compile("adam", FailingLoss())
    packed.begin_task()
    with pytest.raises(RuntimeError, match="no loss"):
        packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    assert not any(weight.in_place for weight in lifecycle.masked_weights(packed).values())
