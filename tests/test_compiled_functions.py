"""Prediction and evaluation are traced as rarely as possible."""

import collections

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.packs import commit
from tf_packnet import lifecycle
from tf_packnet.packed.preview import preview_task
from tf_packnet.tasks import ResidentBatches

L = keras.layers
X, Y = blobs(0)
SIZES = {1: 2, 2: 3, 3: 2}


@pytest.fixture(autouse=True)
def traces(monkeypatch):
    """How often each step was traced."""
    counts = collections.Counter()
    for name in ("train_step", "test_step", "predict_step"):
        original = getattr(tp.PackedModel, name)

        def counted(self, data, name=name, original=original):
            counts[name] += 1
            return original(self, data)

        monkeypatch.setattr(tp.PackedModel, name, counted)
    return counts


@keras.saving.register_keras_serializable("compiled_functions")
class KnowsItsSize(L.Layer):
    """Fails in a graph without a batch size."""

    def call(self, inputs):
        if inputs.shape[0] is None and not isinstance(inputs, keras.KerasTensor):
            raise ValueError("which size?")
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def learned(sizes=SIZES):
    packed = compile_model(tp.pack(make_mlp(), seed=3))
    for number, size in sizes.items():
        commit(packed, number, num_classes=size)
    return packed


def all_predictions(packed, **kwargs):
    return [packed.predict(X, task=task, verbose=0, **kwargs) for task in packed.task_names]


def test_batches_of_all_sizes_share_a_trace(traces):
    packed = tp.pack(make_mlp())
    first = packed.predict(X, batch_size=7, verbose=0)
    for size in (1, 5, len(X)):
        np.testing.assert_allclose(packed.predict(X, batch_size=size, verbose=0), first, rtol=1e-5, atol=1e-6)
    assert len(X) % 7
    assert traces["predict_step"] == 1


@pytest.mark.parametrize("batch_size", [4, None])
def test_models_that_need_a_size(batch_size):
    inputs = keras.Input((6,), batch_size=batch_size)
    model = keras.Model(inputs, L.Dense(2, name="head")(KnowsItsSize()(L.Dense(4, name="hidden")(inputs))))
    packed = tp.pack(model)
    expected = np.asarray(model(X[:4]))
    np.testing.assert_allclose(packed.predict(X[:8], batch_size=4, verbose=0)[:4], expected, rtol=1e-5, atol=1e-6)


def test_models_that_need_a_dtype_and_a_structure():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), dtype="int32", name="b")}
    joined = L.Concatenate()([inputs["a"], L.Flatten()(L.Embedding(5, 2)(inputs["b"]))])
    packed = tp.pack(keras.Model(inputs, L.Dense(2)(L.Dense(4)(joined))))
    x = {"a": X[:5], "b": np.arange(15, dtype="int32").reshape(5, 3) % 5}
    expected = np.asarray(packed(x))
    np.testing.assert_allclose(packed.predict(x, batch_size=2, verbose=0), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(packed.predict_on_batch(x), expected, rtol=1e-5, atol=1e-6)


def test_each_kind_of_head_is_traced_once(traces):
    packed = learned()
    packed.evaluate(X, Y % 2, verbose=0)  # builds the metrics
    lifecycle.drop_compiled_functions(packed)
    traces.clear()
    first = all_predictions(packed)
    for _ in range(2):
        for task, expected in zip(packed.task_names, first, strict=True):
            np.testing.assert_array_equal(packed.predict(X, task=task, verbose=0), expected)
            packed.select_task(task)
            loss = packed.evaluate(X, Y % 2, verbose=0)
            assert np.isfinite(loss).all()
    assert traces["predict_step"] == 2
    assert traces["test_step"] == 2
    lifecycle.drop_compiled_functions(packed)
    for ours, theirs in zip(all_predictions(packed), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_training_does_not_trace_predictions_again(traces):
    packed = compile_model(tp.pack(make_mlp(), seed=3))
    for number, size in SIZES.items():
        packed.begin_task(num_classes=size)
        x, y = blobs(number, classes=2)
        batches = ResidentBatches(x, y, 1.0, 16)
        packed.fit(batches, epochs=1, verbose=0)
        schedule = tp.EqualShare(0.4, num_tasks=3, rounds=1)
        callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot(None)]
        packed.fit(batches, epochs=1, verbose=0, callbacks=callbacks)
        all_predictions(packed)
    traces.clear()
    all_predictions(packed)
    assert traces["predict_step"] == 0


def test_a_preview_keeps_what_was_traced(traces):
    packed = learned()
    before = all_predictions(packed)
    traces.clear()
    step = packed.train_function = object()
    for outputs in (3, 2, 3):  # heads that tasks have
        with preview_task(packed, outputs):
            packed.predict(X, batch_size=5, verbose=0)
    assert traces["predict_step"] == 0
    for outputs in (4, 5):
        with preview_task(packed, outputs):
            assert packed.predict(X, batch_size=5, verbose=0).shape[1] == outputs
    assert traces["predict_step"] == 2
    assert packed.train_function is step
    for ours, theirs in zip(all_predictions(packed), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert traces["predict_step"] == 2
    assert len(lifecycle.records(packed).compiled) == 1  # not those of heads that exist no more


@pytest.mark.parametrize("change", ["compile", "force", "forget_task", "restore"])
def test_all_are_traced_again_after_a_change(change, traces):
    packed = learned()
    all_predictions(packed)
    if change == "compile":
        compile_model(packed)
        packed.predict_function = None
    elif change == "force":
        packed.make_predict_function(force=True)
    elif change == "forget_task":
        packed.forget_task("task 3")
    else:
        packed.restore(lifecycle.state(packed), packed.task_names)
    traces.clear()
    all_predictions(packed)
    assert traces["predict_step"] == 2


def test_few_are_kept(monkeypatch):
    monkeypatch.setattr("tf_packnet.lifecycle.model_state._MOST_COMPILED", 2)
    packed = learned({number: number for number in range(2, 7)})
    predictions = all_predictions(packed)
    assert len(lifecycle.records(packed).compiled) == 2
    assert [each.shape[1] for each in predictions] == [2, 3, 4, 5, 6]
