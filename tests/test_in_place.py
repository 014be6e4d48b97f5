"""Kernels that lie in their trainable variables for a call come to what they come to when chosen in every step."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, make_convnet, make_mlp
from tests.test_fast_paths import batches, fresh, learn
from tf_packnet import lifecycle
from tf_packnet.tasks import ResidentBatches
from tf_packnet.training import acceleration, in_place, kernels

ADAMS_OWN = keras.optimizers.Adam


class MyAdam(keras.optimizers.Adam):
    """What a user wrote: it may look at whole weights."""


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw, clipped": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.3, global_clipnorm=1.0),
    "momentum, accumulating": lambda: keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2),
    "lion": lambda: keras.optimizers.Lion(0.001),
}


def convnet(**kwargs):
    return make_convnet(dropout=0.0, **kwargs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("make_model", "shape", "xla"), [(make_mlp, (6,), acceleration.STEP), (convnet, (8, 8, 1), acceleration.UPDATE)]
)
def test_the_same_bits_as_choosing_in_every_step(optimizer, make_model, shape, xla, monkeypatch):
    outcomes = []
    for possible in (in_place.possible, lambda model: False):
        monkeypatch.setattr(in_place, "possible", possible)
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


def test_between_calls_the_trainable_variable_holds_the_candidates_alone():
    seen = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for weight in lifecycle.masked_weights(self.model).values():
                outside = weight.values()[weight.owner_map() != 255]
                seen.append(outside.size)
                assert not outside.any()
                assert not weight.in_place

    packed = fresh(make_mlp, OPTIMIZERS["adam"])
    learn(packed, lambda task, n: batches(ResidentBatches, task, n), tasks=1)
    packed.begin_task()
    packed.fit(batches(ResidentBatches, 2, steps_per_call=2), epochs=2, verbose=0, callbacks=[Looks()])
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
    assert in_place.possible(packed)
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
        lambda: keras.optimizers.LossScaleOptimizer(ADAMS_OWN()),
    ],
)
def test_optimizers_that_may_look_at_whole_weights_find_the_candidates_alone(optimizer):
    packed = fresh(make_mlp, optimizer)
    packed.begin_task()
    assert not in_place.possible(packed)


def test_so_do_constraints():
    packed = fresh(lambda: make_mlp(kernel_constraint="max_norm"), ADAMS_OWN)
    packed.begin_task()
    assert not in_place.possible(packed)


def test_without_xla_nothing_is_gained():
    packed = fresh(make_mlp, ADAMS_OWN, jit_compile=False)
    packed.begin_task()
    assert not in_place.possible(packed)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("make_model", "shape"), [(make_mlp, (6,)), (convnet, (8, 8, 1))])
def test_kernels_chosen_in_one_pass_answer_with_the_same_bits(make_model, shape, precision, monkeypatch):
    keras.config.set_dtype_policy(precision)
    packed = fresh(make_model, OPTIMIZERS["adam"])
    learn(packed, lambda task, n: batches(ResidentBatches, task, n, shape), tasks=2)
    x, y = blobs(5, shape)
    answers = {}
    for chosen in (True, False):
        monkeypatch.setattr(kernels, "MANY", 0 if chosen else np.inf)
        assert bool(kernels.worth_choosing(packed)) == chosen
        lifecycle.drop_compiled_functions(packed)
        for task in (1, 2):
            packed.select_task(task)
            answers[chosen, task] = (packed.predict(x, verbose=0), packed.evaluate(x, y, verbose=0))
    for task in (1, 2):
        np.testing.assert_array_equal(answers[True, task][0], answers[False, task][0])
        assert answers[True, task][1] == answers[False, task][1]


def test_kernels_are_put_back_when_a_step_fails():
    class Breaks(keras.losses.Loss):
        def call(self, y_true, y_pred):
            raise RuntimeError("no loss")

    keras.utils.set_random_seed(1)
    packed = tp.pack(make_mlp())
    packed.compile("adam", Breaks())
    packed.begin_task()
    with pytest.raises(RuntimeError, match="no loss"):
        packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    assert not any(weight.in_place for weight in lifecycle.masked_weights(packed).values())
