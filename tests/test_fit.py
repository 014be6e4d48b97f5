"""`fit` with other features of Keras: callbacks, sample and class weights, learning rate schedules, `summary()`."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import lifecycle


class TestFitChecks:
    def retrain_callbacks(self):
        return [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, rounds=2)), tp.GradientMask(), tp.TaskMaskSnapshot()]

    def packed(self):
        return compile_model(tp.pack(make_mlp()), "adam")

    def test_early_stopping_that_would_restore_pruned_weights(self):
        packed = self.packed()
        stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
        with pytest.raises(tp.ArgumentError, match="at least 2, .* in EarlyStopping.*Received: start_from_epoch=0"):
            packed.fit(*blobs(0), epochs=4, verbose=0, callbacks=[stop, *self.retrain_callbacks()])
        assert lifecycle.has_open_task(packed)

    def test_early_stopping_after_the_last_round(self):
        packed = self.packed()
        stop = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True, start_from_epoch=4)
        history = packed.fit(*blobs(0), epochs=8, verbose=0, callbacks=[stop, *self.retrain_callbacks()])
        assert len(history.epoch) < 8
        assert packed.committed_tasks == 1
        assert packed.free_fraction()["overall"] == pytest.approx(0.5**0.5, abs=0.01)

    def test_early_stopping_after_the_snapshot(self):
        stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True, start_from_epoch=4)
        with pytest.raises(tp.ArgumentError, match="TaskMaskSnapshot last: EarlyStopping"):
            self.packed().fit(*blobs(0), epochs=8, verbose=0, callbacks=[*self.retrain_callbacks(), stop])

    def test_more_tasks_than_in_the_schedule(self):
        packed = self.packed()
        packed.begin_task()
        retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 1)), tp.TaskMaskSnapshot()]
        packed.fit(*blobs(0), epochs=1, verbose=0, callbacks=retrain_callbacks)
        packed.begin_task()
        with pytest.raises(tp.ArgumentError, match="more than the 1 tasks that are already committed.*num_tasks=1"):
            packed.fit(*blobs(0), epochs=1, verbose=0, callbacks=retrain_callbacks)

    def test_class_weights_with_batches(self):
        images, labels = blobs(0)
        batches = tp.tasks.StreamedBatches(images, labels, 1.0, 16)
        with pytest.raises(tp.ArgumentError, match="`class_weight`: expected None"):
            self.packed().fit(batches, class_weight={0: 1.0, 1: 2.0})


def test_class_and_sample_weights_as_in_keras():
    """A class weight of 0 has the same effect as sample weights of 0."""
    x, y = blobs(0)
    weights = {}
    for kind, arguments in {"class": {"class_weight": {0: 1.0, 1: 0.0}}, "sample": {"sample_weight": 1.0 - y}}.items():
        keras.utils.set_random_seed(0)
        packed = compile_model(tp.pack(make_mlp()), "sgd")
        packed.fit(x, y, epochs=2, shuffle=False, verbose=0, **arguments)
        weights[kind] = packed.get_layer("dense_1").kernel
    np.testing.assert_array_equal(weights["class"], weights["sample"])


def test_the_summary_shows_the_owners():
    packed = compile_model(tp.pack(make_mlp()), "adam")
    retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 1)), tp.TaskMaskSnapshot()]
    packed.begin_task("cats")
    packed.fit(*blobs(0), epochs=1, verbose=0, callbacks=retrain_callbacks)
    lines = []
    packed.summary(print_fn=lines.append)
    text = "\n".join(lines)
    for expected in ("MaskedDense", "dense_1/kernel", "cats", "free", "36 (50.0%)"):
        assert expected in text


def test_plateaus_and_schedules_start_again_in_each_fit():
    x, y = blobs(0)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.SGD(schedule))
    packed.fit(x, y, epochs=2, verbose=0)
    assert float(packed.optimizer.learning_rate) < 0.1
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: rates.append(float(packed.optimizer.learning_rate))
    )
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 1)), record])
    assert rates == [np.float32(0.1)]
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.SGD(0.1))
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=100.0)
    history = packed.fit(x, y, epochs=4, verbose=0, callbacks=[plateau]).history
    assert history["learning_rate"][-1] < 0.1
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 1))])
    assert float(packed.optimizer.learning_rate) == np.float32(0.1)
