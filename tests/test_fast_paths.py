"""Fast training gives the same results as the reference: Keras's own step on single batches, without XLA."""

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
    """Learn tasks of different sizes; return steps, losses and accuracies of each, owner maps, and variables."""
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
    """A pack with the same initial weights every time."""
    keras.utils.set_random_seed(1)
    return compile_model(tp.pack(make_model()), optimizer(), jit_compile)


def reference(optimizer, make_model=make_mlp, shape=(6,)):
    """The reference: no XLA, one step per call."""
    packed = fresh(make_model, optimizer, jit_compile=False)

    def make_batches(task, examples):
        return batches(StreamedBatches, task, examples, shape, steps_per_call=1)

    return learn(packed, make_batches)


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
@pytest.mark.parametrize("steps_per_call", [2, 100])
def test_resident_and_streamed_examples_give_the_same_bits(kind, steps_per_call):
    expected = reference(keras.optimizers.Adam)
    packed = fresh(make_mlp, keras.optimizers.Adam, jit_compile=False)
    actual = learn(packed, lambda task, n: batches(kind, task, n, steps_per_call=steps_per_call))
    assert actual[0] == expected[0]
    for one, other in zip(actual[2], expected[2], strict=True):
        np.testing.assert_array_equal(one, other)


def make_convnet_without_dropout():
    return make_convnet(dropout=0.0)  # XLA draws other dropout masks than TensorFlow


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
@pytest.mark.parametrize("xla", [acceleration.STEP, acceleration.UPDATE])
@pytest.mark.parametrize(("make_model", "shape"), [(make_mlp, (6,)), (make_convnet_without_dropout, (8, 8, 1))])
def test_xla_changes_only_the_rounding(kind, xla, make_model, shape):
    expected = reference(sgd, make_model, shape)
    packed = fresh(make_model, sgd, jit_compile=xla == acceleration.STEP)
    packed.xla = xla
    actual = learn(packed, lambda task, n: batches(kind, task, n, shape))
    for (steps, loss, accuracy), (expected_steps, expected_loss, expected_accuracy) in zip(
        actual[0], expected[0], strict=True
    ):
        assert steps == expected_steps
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
        assert accuracy == expected_accuracy
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
def test_the_gradient_step_does_what_keras_does(name):
    x, y = blobs(1, examples=16)
    data = tuple(map(tf.constant, (x, y, np.linspace(0.1, 2, 16, dtype="float32"))))
    packs = []
    for step in (keras.Model.train_step, gradient_step):
        packed = fresh(lambda: make_mlp(kernel_regularizer="l2"), OPTIMIZERS[name], jit_compile=False)
        packed.begin_task()
        retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(x, y, epochs=1, batch_size=16, verbose=0, callbacks=retrain_callbacks)
        packed.begin_task()  # kernels with owned, free and candidate weights
        compiled = tf.function(lambda packed=packed, step=step: step(packed, data))
        packs.append((packed, [float(compiled()["loss"]) for _ in range(4)]))
    (expected, expected_losses), (actual, losses) = packs
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for one, other in zip(actual.variables, expected.variables, strict=True):
        np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-4, atol=1e-6, err_msg=one.path)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_gradient_step_in_mixed_precision_freezes_to_the_bit(precision):
    keras.config.set_dtype_policy(precision)
    packed = compile_model(tp.pack(make_convnet()), "adamw")
    packed.xla = acceleration.UPDATE
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
        for earlier, logits in committed.items():
            packed.select_task(earlier)
            np.testing.assert_array_equal(packed.predict(x, verbose=0), logits)


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


def test_auto_compiles_dense_models_and_leaves_convolutions_to_onednn(monkeypatch):
    assert compile_model(tp.pack(make_mlp()), jit_compile="auto").xla == acceleration.STEP
    assert compile_model(tp.pack(make_convnet()), jit_compile="auto").xla == acceleration.OFF
    assert compile_model(tp.pack(make_convnet()), jit_compile=True).xla == acceleration.STEP
    assert compile_model(tp.pack(make_convnet()), jit_compile=False).xla == acceleration.OFF
    assert compile_model(tp.pack(make_mlp()), jit_compile="auto", run_eagerly=True).xla == acceleration.OFF
    packed = tp.pack(make_convnet())
    kernels = sum(owners.size for owners in packed.owner_maps().values())
    for worth_compiling, expected in ((kernels, acceleration.UPDATE), (kernels + 1, acceleration.OFF)):
        monkeypatch.setattr(acceleration, "WORTH_COMPILING", worth_compiling)
        assert compile_model(packed, jit_compile="auto").xla == expected


@pytest.mark.parametrize("value", ["yes", "AUTO", 2, []])
def test_an_unknown_jit_compile_is_refused(value):
    with pytest.raises(ArgumentError, match="Invalid `jit_compile`: expected True, False or 'auto'"):
        compile_model(tp.pack(make_mlp()), jit_compile=value)


def test_no_jit_compile_compiles_nothing():
    """Keras, too, takes None for False."""
    assert compile_model(tp.pack(make_mlp()), jit_compile=None).xla == acceleration.OFF


def test_the_requested_jit_compile_is_saved(tmp_path):
    packed = compile_model(tp.pack(make_mlp()), jit_compile="auto")
    packed.save(tmp_path / "pack.keras")
    assert keras.models.load_model(tmp_path / "pack.keras").xla == packed.xla != acceleration.OFF


def test_a_later_initial_epoch():
    """Epochs 2 and 3 in a second `fit` have the same order as in one `fit` of four epochs."""
    packs = [compile_model(tp.pack(make_mlp()), sgd()) for _ in range(2)]
    packs[1].set_weights(packs[0].get_weights())
    data = batches(ResidentBatches)
    packs[0].fit(data, epochs=4, verbose=0)
    packs[1].fit(data, epochs=2, verbose=0)
    packs[1].fit(data, epochs=4, initial_epoch=2, verbose=0)
    for one, other in zip(packs[0].get_weights(), packs[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_examples_of_another_dtype_replace_the_first():
    packed = compile_model(tp.pack(make_mlp()), sgd())
    packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    x, y = blobs(2)
    whole = np.round(x * 10).astype("int8")
    packed.fit(ResidentBatches(whole, y, 0.1, batch_size=16), epochs=1, verbose=0)
    twin = compile_model(tp.pack(make_mlp()), sgd())
    twin.set_weights(packed.get_weights())
    x, scale = whole.astype("float32") * np.float32(0.1), 1.0
    twin.optimizer.build(twin.trainable_variables)
    for variable, source in zip(twin.optimizer.variables, packed.optimizer.variables, strict=True):
        variable.assign(source)
    for model, data in ((packed, (whole, 0.1)), (twin, (x, scale))):
        model.fit(ResidentBatches(data[0], y, data[1], batch_size=16), epochs=1, verbose=0)
    for one, other in zip(packed.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_more_examples_than_the_first_task():
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    for examples in (32, 200, 48):
        x, y = blobs(examples, examples=examples)
        packed.fit(ResidentBatches(x, y, 1.0, batch_size=16), epochs=1, verbose=0)
        assert packed.device_examples.labels.numpy()[:examples].tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
def test_resident_examples_are_not_int32(dtype):
    """TensorFlow keeps int32 variables in host memory, where a step that XLA compiles cannot read them."""
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    x, y = blobs(1)
    packed.fit(ResidentBatches((10 * x).astype(dtype), y, 0.1, batch_size=16), epochs=1, verbose=0)
    resident = packed.device_examples
    assert tf.int32 not in (resident.images.dtype, resident.labels.dtype)
    images, labels = resident.batch(tf.constant([3, 1]), 1.0)
    assert (images.dtype, labels.dtype) == (tf.float32, tf.int32)
    assert np.array_equal(images, (10 * x).astype(dtype)[[3, 1]].astype("float32"))
    assert np.array_equal(labels, y[[3, 1]])


def test_equal_examples_are_not_copied_to_the_device_again():
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    x, y = blobs(1, examples=80)

    def fit_and_get_addresses():
        packed.fit(ResidentBatches(x, y, 1.0, batch_size=16), epochs=1, verbose=0)
        resident = packed.device_examples
        images, labels = np.asarray(resident.images.value()), np.asarray(resident.labels.value())
        assert np.array_equal(images, x.reshape(80, -1))
        assert np.array_equal(labels, y)
        return images.ctypes.data, labels.ctypes.data

    first = fit_and_get_addresses()
    assert fit_and_get_addresses() == first
    x[79, -1] += 1  # the last value
    assert fit_and_get_addresses() != first
    second = fit_and_get_addresses()
    y[79] = 1 - y[79]
    assert fit_and_get_addresses() != second


def test_steps_per_execution_is_refused():
    packed = compile_model(tp.pack(make_mlp()), steps_per_execution=4)
    with pytest.raises(ArgumentError, match="expected 1, because .* Received: steps_per_execution=4"):
        packed.fit(batches(ResidentBatches), epochs=1, verbose=0)


def test_resident_examples_are_no_part_of_the_model(tmp_path):
    packed = compile_model(tp.pack(make_mlp()), sgd(), "auto")
    before = len(packed.variables)
    packed.fit(batches(ResidentBatches), epochs=1, verbose=0)
    assert len(packed.variables) == before
    packed.save(tmp_path / "pack.keras")
    again = keras.models.load_model(tmp_path / "pack.keras")
    assert lifecycle.has_open_task(again)
    again.fit(batches(ResidentBatches), epochs=1, verbose=0)


@pytest.mark.parametrize("kind", [None, StreamedBatches, ResidentBatches])
def test_the_logs_of_an_epoch_are_its_metrics(kind):
    recorded = []

    class RecordMetrics(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            recorded.append((logs, {name: float(value) for name, value in self.model.get_metrics_result().items()}))

    packed = compile_model(tp.pack(make_mlp()))
    data = (*blobs(1), 16) if kind is None else (batches(kind, steps_per_call=2),)
    packed.fit(*data, epochs=3, verbose=0, callbacks=[RecordMetrics()])
    assert len(recorded) == 3
    for logs, metrics in recorded:
        assert logs == metrics
        assert logs.keys() == {"loss", "accuracy"}
