"""The learning rate stays the same between fits and tasks, and is restored after callbacks have changed it."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet.training import optimizers

C = keras.callbacks


def retrain_callbacks():
    return [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]


def packed_with(optimizer="sgd"):
    return compile_model(tp.pack(make_mlp()), optimizer)


def rate(packed):
    return float(keras.ops.convert_to_numpy(packed.optimizer.learning_rate))


def record_rates(packed, rates):
    return C.LambdaCallback(on_epoch_begin=lambda *_: rates.append(rate(packed)))


MAKERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.1),
    "accumulating": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "loss scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_rate_set_between_two_fits_is_kept_in_later_fits_and_tasks(name):
    packed, rates = packed_with(MAKERS[name]()), []
    packed.begin_task()
    packed.fit(*blobs(0), epochs=1, verbose=0)
    packed.optimizer.learning_rate = 0.025
    packed.fit(*blobs(0), epochs=2, verbose=0, callbacks=[*retrain_callbacks(), record_rates(packed, rates)])
    packed.begin_task()
    assert int(packed.optimizer.iterations) == 0
    packed.fit(*blobs(1), epochs=1, verbose=0, callbacks=[record_rates(packed, rates)])
    packed.fit(*blobs(1), epochs=2, verbose=0, callbacks=[*retrain_callbacks(), record_rates(packed, rates)])
    packed.begin_task(num_classes=5)  # a head of another size: creates a new optimizer
    packed.fit(*blobs(1), epochs=1, verbose=0, callbacks=[record_rates(packed, rates)])
    assert set(rates) == {np.float32(0.025)}
    assert len(rates) == 6


def test_reset_keeps_only_the_rate():
    packed = packed_with(keras.optimizers.Adam(0.1))
    packed.begin_task()
    packed.fit(*blobs(0), epochs=1, verbose=0)
    packed.optimizer.learning_rate = 0.025
    optimizers.reset(packed.optimizer)
    assert rate(packed) == np.float32(0.025)
    assert all(not np.any(v) for v in packed.optimizer.variables if v is not packed.optimizer.learning_rate)


CHANGING = {
    "plateau": lambda: C.ReduceLROnPlateau("loss", patience=1, min_delta=100.0),
    "scheduler": lambda: C.LearningRateScheduler(lambda epoch, now: now / 2),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("callback", ["plateau", "scheduler"])
def test_the_rate_is_restored_after_a_callback_has_changed_it(name, callback):
    packed, rates = packed_with(MAKERS[name]()), []
    packed.begin_task()
    packed.fit(*blobs(0), epochs=4, verbose=0, callbacks=[CHANGING[callback](), record_rates(packed, rates)])
    assert rates[-1] < np.float32(0.1)
    assert rate(packed) == np.float32(0.1)
    packed.optimizer.learning_rate = 0.5
    packed.fit(*blobs(0), epochs=4, verbose=0, callbacks=[CHANGING[callback](), *retrain_callbacks()])
    assert rate(packed) == np.float32(0.5)


class InterruptInThirdEpoch(C.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_the_rate_is_restored_after_an_exception():
    packed = packed_with(MAKERS["sgd"]())
    packed.begin_task()
    with pytest.raises(KeyboardInterrupt):
        packed.fit(*blobs(0), epochs=4, verbose=0, callbacks=[CHANGING["scheduler"](), InterruptInThirdEpoch()])
    assert rate(packed) == np.float32(0.1)
    with pytest.raises(ValueError, match="float"):
        packed.fit(*blobs(0), epochs=4, verbose=0, callbacks=[C.LearningRateScheduler(lambda epoch: "fast")])
    assert rate(packed) == np.float32(0.1)


def test_a_schedule_stays_and_starts_again():
    packed = packed_with(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)))
    for task in (1, 2):
        rates = []
        packed.begin_task()
        packed.fit(*blobs(task), epochs=2, verbose=0, callbacks=[record_rates(packed, rates)])
        packed.fit(*blobs(task), epochs=2, verbose=0, callbacks=[*retrain_callbacks(), record_rates(packed, rates)])
        assert rates[0] == rates[2] == np.float32(0.1)
        assert rates[1] == rates[3] < np.float32(0.1)
    packed.begin_task(num_classes=3)
    assert rate(packed) == np.float32(0.1)


def test_a_schedule_set_by_a_callback_lasts_for_its_fit():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)
    packed, twin = packed_with(MAKERS["sgd"]()), packed_with(MAKERS["sgd"]())
    twin.set_weights(packed.get_weights())

    def set_rate(model):
        return C.LambdaCallback(on_train_begin=lambda logs: setattr(model.optimizer, "learning_rate", schedule))

    packed.fit(*blobs(0), epochs=1, verbose=0, shuffle=False, callbacks=[set_rate(packed)])
    before = [v.path for v in twin.optimizer.variables]
    assert rate(packed) == np.float32(0.1)
    twin.set_weights(packed.get_weights())
    for model in (packed, twin):
        model.begin_task() if model.committed_tasks else optimizers.reset(model.optimizer)
        model.fit(*blobs(0), epochs=1, verbose=0, shuffle=False)
    assert len(before) <= len(packed.optimizer.variables)
    for one, other in zip(packed.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replaced_optimizer_trains_and_is_reset():
    packed = packed_with(keras.optimizers.SGD(0.1))
    packed.begin_task()
    packed.fit(*blobs(0), epochs=1, verbose=0)
    packed.optimizer = keras.optimizers.Adam(0.02)
    packed.fit(*blobs(0), epochs=2, verbose=0, callbacks=retrain_callbacks())
    assert int(packed.optimizer.iterations) == 4  # two batches per epoch of this fit
    packed.begin_task()
    assert type(packed.optimizer) is keras.optimizers.Adam
    assert int(packed.optimizer.iterations) == 0
    packed.fit(*blobs(1), epochs=1, verbose=0)
    assert rate(packed) == np.float32(0.02)


def test_a_replaced_optimizer_is_saved(tmp_path):
    packed = packed_with(keras.optimizers.SGD(0.1))
    packed.begin_task()
    packed.fit(*blobs(0), epochs=1, verbose=0)
    packed.optimizer = keras.optimizers.Adam(0.02)
    packed.fit(*blobs(0), epochs=1, verbose=0)
    packed.optimizer.learning_rate = 0.01
    packed.save(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras")
    assert type(again.optimizer) is keras.optimizers.Adam
    assert rate(again) == np.float32(0.01)
    for one, other in zip(again.optimizer.variables, packed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_fit_continues_with_its_rate(tmp_path):
    def fit(packed, *callbacks, path):
        halve = C.LearningRateScheduler(lambda epoch, now: now / 2)
        packed.begin_task()
        backup = tp.EpochBackup(tmp_path / path)
        packed.fit(*blobs(0), epochs=5, verbose=0, shuffle=False, callbacks=[halve, *callbacks, backup])

    packs = [packed_with(MAKERS["sgd"]()) for _ in range(3)]
    for other in packs[1:]:
        other.set_weights(packs[0].get_weights())
    rates = []
    fit(packs[0], record_rates(packs[0], rates), path="whole")
    with pytest.raises(KeyboardInterrupt):
        fit(packs[1], record_rates(packs[1], []), InterruptInThirdEpoch(), path="half")
    packs[2].optimizer.build(packs[2].trainable_variables)
    resumed = []
    fit(packs[2], record_rates(packs[2], resumed), path="half")
    assert resumed == rates[-len(resumed) :]
    assert 0 < len(resumed) < 5
    for one, other in zip(packs[0].get_weights(), packs[2].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {rate(packed) for packed in packs} == {np.float32(0.1)}
