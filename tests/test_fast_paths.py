"""The fast ways to train agree with the plain one: Keras's own step on single batches, nothing compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.tasks import ResidentBatches, StreamedBatches
from tf_packnet.training import acceleration
from tf_packnet.training.gradient_step import gradient_step


def batches(kind, task=1, examples=70, shape=(6,), **kwargs):
    x, y = blobs(task, shape, examples)
    return kind(x, y, 1.0, batch_size=16, seed=task, room=80, **kwargs)


def learn(packed, make_batches, tasks=3):
    """Three tasks of different sizes; what was learned, kept and seen on the way."""
    trace = []
    for task, examples in zip(range(1, tasks + 1), (70, 64, 80), strict=False):
        packed.begin_task()
        data = make_batches(task, examples)
        packed.fit(data, epochs=3, verbose=0)
        callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        history = packed.fit(data, epochs=4, verbose=0, callbacks=callbacks).history
        trace.append((int(packed.optimizer.iterations), history["loss"], history["accuracy"]))
    return trace, packed.owner_maps(), [np.array(v) for v in packed.variables]


def fresh(make_model, optimizer, jit_compile="auto"):
    """The same pack every time."""
    keras.utils.set_random_seed(1)
    return compile_model(tp.pack(make_model()), optimizer(), jit_compile)


def plain(optimizer, make_model=make_mlp, shape=(6,)):
    """The reference: no XLA, Keras's train step, a batch at a time."""
    packed = fresh(make_model, optimizer, jit_compile=False)

    def make_batches(task, examples):
        return batches(StreamedBatches, task, examples, shape, steps_per_call=1)

    return learn(packed, make_batches)


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
@pytest.mark.parametrize("steps_per_call", [2, 100])
def test_where_the_data_lie_changes_no_bit(kind, steps_per_call):
    expected = plain(keras.optimizers.Adam)
    packed = fresh(make_mlp, keras.optimizers.Adam, jit_compile=False)
    actual = learn(packed, lambda task, n: batches(kind, task, n, steps_per_call=steps_per_call))
    assert actual[0] == expected[0]
    for one, other in zip(actual[2], expected[2], strict=True):
        np.testing.assert_array_equal(one, other)


def make_convnet_without_dropout():
    return make_convnet(dropout=0.0)  # XLA draws other masks than TensorFlow


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
@pytest.mark.parametrize("xla", [acceleration.STEP, acceleration.UPDATE])
@pytest.mark.parametrize(("make_model", "shape"), [(make_mlp, (6,)), (make_convnet_without_dropout, (8, 8, 1))])
def test_what_xla_compiles_changes_only_the_rounding(kind, xla, make_model, shape):
    expected = plain(sgd, make_model, shape)
    packed = fresh(make_model, sgd, jit_compile=xla == acceleration.STEP)
    packed.xla = xla
    actual = learn(packed, lambda task, n: batches(kind, task, n, shape))
    for (steps, loss, accuracy), (steps_there, loss_there, accuracy_there) in zip(actual[0], expected[0], strict=True):
        assert steps == steps_there
        np.testing.assert_allclose(loss, loss_there, rtol=1e-4)
        assert accuracy == accuracy_there
    for path, owner in expected[1].items():
        np.testing.assert_array_equal(actual[1][path], owner)
    for one, other in zip(actual[2], expected[2], strict=True):
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=1e-3, atol=1e-5)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw, clipped, averaged": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, global_clipnorm=1.0, use_ema=True
    ),
    "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "scheduled": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "loss scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_step_is_keras_own(name):
    x, y = blobs(1, examples=16)
    data = tuple(map(tf.constant, (x, y, np.linspace(0.1, 2, 16, dtype="float32"))))
    packs = []
    for step in (keras.Model.train_step, gradient_step):
        packed = fresh(lambda: make_mlp(kernel_regularizer="l2"), OPTIMIZERS[name], jit_compile=False)
        packed.begin_task()
        night = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(x, y, epochs=1, batch_size=16, verbose=0, callbacks=night)
        packed.begin_task()  # kernels with owned, free and candidate weights
        compiled = tf.function(lambda packed=packed, step=step: step(packed, data))
        packs.append((packed, [float(compiled()["loss"]) for _ in range(4)]))
    (expected, losses_there), (actual, losses) = packs
    np.testing.assert_allclose(losses, losses_there, rtol=1e-5)
    for one, other in zip(actual.variables, expected.variables, strict=True):
        np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-4, atol=1e-6, err_msg=one.path)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_gradient_step_in_mixed_precision_freezes_to_the_bit(precision):
    keras.config.set_dtype_policy(precision)
    packed = compile_model(tp.pack(make_convnet()), "adamw", "auto")
    assert packed.xla == acceleration.UPDATE
    x = blobs(9, (8, 8, 1))[0]
    committed = {}
    for task in (1, 2, 3):
        packed.begin_task()
        data = batches(ResidentBatches, task, shape=(8, 8, 1))
        packed.fit(data, epochs=2, verbose=0)
        callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.4, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(data, epochs=2, verbose=0, callbacks=callbacks)
        committed[task] = packed.predict(x, verbose=0)
        assert np.isfinite(committed[task]).all()
        for earlier, then in committed.items():
            packed.select_task(earlier)
            np.testing.assert_array_equal(packed.predict(x, verbose=0), then)


@pytest.mark.parametrize("xla", [acceleration.STEP, acceleration.UPDATE])
def test_one_trace_serves_all_tasks_rounds_and_sizes(xla, monkeypatch):
    traces = []
    original = tp.PackedModel.train_step

    def counted(self, data):
        traces.append(data)
        return original(self, data)

    monkeypatch.setattr(tp.PackedModel, "train_step", counted)
    packed = compile_model(tp.pack(make_mlp()), "adam", jit_compile=xla == acceleration.STEP)
    packed.xla = xla
    learn(packed, lambda task, n: batches(ResidentBatches, task, n))
    assert len(traces) == 1


def test_auto_compiles_dense_models_and_leaves_convolutions_to_onednn():
    assert compile_model(tp.pack(make_mlp()), jit_compile="auto").xla == acceleration.STEP
    assert compile_model(tp.pack(make_convnet()), jit_compile="auto").xla == acceleration.UPDATE
    assert compile_model(tp.pack(make_convnet()), jit_compile=True).xla == acceleration.STEP
    assert compile_model(tp.pack(make_convnet()), jit_compile=False).xla == acceleration.OFF
    assert compile_model(tp.pack(make_mlp()), jit_compile="auto", run_eagerly=True).xla == acceleration.OFF


def test_what_was_asked_for_is_saved_not_what_it_came_to(tmp_path):
    packed = compile_model(tp.pack(make_convnet()), jit_compile="auto")
    packed.save(tmp_path / "pack.keras")
    assert keras.models.load_model(tmp_path / "pack.keras").xla == acceleration.UPDATE


def test_an_epoch_can_be_begun_later():
    """Epochs 2 and 3 after epochs 0 and 1 in another `fit`: the same order as in one."""
    packs = [compile_model(tp.pack(make_mlp()), sgd()) for _ in range(2)]
    packs[1].set_weights(packs[0].get_weights())
    data = batches(ResidentBatches)
    packs[0].fit(data, epochs=4, verbose=0)
    packs[1].fit(data, epochs=2, verbose=0)
    packs[1].fit(data, epochs=4, initial_epoch=2, verbose=0)
    for one, other in zip(packs[0].get_weights(), packs[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_examples_of_another_kind_take_the_place_of_the_first():
    packed = compile_model(tp.pack(make_mlp()), sgd())
    packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    x, y = blobs(2)
    whole = np.round(x * 10).astype("int8")
    packed.fit(ResidentBatches(whole, y, 0.1, batch_size=16), epochs=1, verbose=0)
    twin = compile_model(tp.pack(make_mlp()), sgd())
    twin.set_weights(packed.get_weights())
    x, scale = whole.astype("float32") * np.float32(0.1), 1.0
    twin.optimizer.build(twin.trainable_variables)
    for mine, theirs in zip(twin.optimizer.variables, packed.optimizer.variables, strict=True):
        mine.assign(theirs)
    for model, data in ((packed, (whole, 0.1)), (twin, (x, scale))):
        model.fit(ResidentBatches(data[0], y, data[1], batch_size=16), epochs=1, verbose=0)
    for one, other in zip(packed.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_more_room_than_the_first_task_reserved():
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    for examples in (32, 200, 48):
        x, y = blobs(examples, examples=examples)
        packed.fit(ResidentBatches(x, y, 1.0, batch_size=16), epochs=1, verbose=0)
        assert packed.device_examples.labels.numpy()[:examples].tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
def test_examples_lie_where_a_gpu_can_reach_them(dtype):
    """TensorFlow keeps int32 variables in the host's memory: XLA could not compile a step that reads them."""
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    x, y = blobs(1)
    packed.fit(ResidentBatches((10 * x).astype(dtype), y, 0.1, batch_size=16), epochs=1, verbose=0)
    lying = packed.device_examples
    assert tf.int32 not in (lying.images.dtype, lying.labels.dtype)
    images, labels = lying.batch(tf.constant([3, 1]), 1.0)
    assert (images.dtype, labels.dtype) == (tf.float32, tf.int32)
    assert np.array_equal(images, (10 * x).astype(dtype)[[3, 1]].astype("float32"))
    assert np.array_equal(labels, y[[3, 1]])


def test_examples_that_lie_on_the_device_are_not_brought_there_again():
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    x, y = blobs(1, examples=80)

    def fit_and_look():
        packed.fit(ResidentBatches(x, y, 1.0, batch_size=16), epochs=1, verbose=0)
        lying = packed.device_examples
        images, labels = np.asarray(lying.images.value()), np.asarray(lying.labels.value())
        assert np.array_equal(images, x.reshape(80, -1))
        assert np.array_equal(labels, y)
        return images.ctypes.data, labels.ctypes.data

    first = fit_and_look()
    assert fit_and_look() == first
    x[79, -1] += 1  # the last of all values
    assert fit_and_look() != first
    second = fit_and_look()
    y[79] = 1 - y[79]
    assert fit_and_look() != second


def test_steps_per_execution_would_run_past_the_epoch():
    packed = compile_model(tp.pack(make_mlp()), steps_per_execution=4)
    with pytest.raises(
        ArgumentError, match="`steps_per_execution`: expected 1, because .* Received: steps_per_execution=4"
    ):
        packed.fit(batches(ResidentBatches), epochs=1, verbose=0)


def test_the_examples_on_the_device_are_no_part_of_the_model(tmp_path):
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    before = len(packed.variables)
    packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    assert len(packed.variables) == before
    packed.save(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras")
    assert lifecycle.has_open_task(again)
    again.fit(batches(ResidentBatches), epochs=1, verbose=0)


@pytest.mark.parametrize("kind", [None, StreamedBatches, ResidentBatches])
def test_the_logs_of_an_epoch_are_what_its_metrics_say(kind):
    said = []

    class Asks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            said.append((logs, {name: float(value) for name, value in self.model.get_metrics_result().items()}))

    packed = compile_model(tp.pack(make_mlp()))
    data = (*blobs(1), 16) if kind is None else (batches(kind, steps_per_call=2),)
    packed.fit(*data, epochs=3, verbose=0, callbacks=[Asks()])
    assert len(said) == 3
    for logs, metrics in said:
        assert logs == metrics
        assert logs.keys() == {"loss", "accuracy"}
