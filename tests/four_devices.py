"""Checks of distribution strategies on four logical CPU devices; `test_mirrored.py` runs them in a separate process."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import make_mlp
from tf_packnet.errors import ReplicaError
from tf_packnet.training import acceleration, replicas

CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 4)

layers, optimizers = keras.layers, keras.optimizers
INPUTS = {"vectors": (12,), "images": (8, 8, 2), "ids": (7,)}
acceleration.WORTH_COMPILING = 0  # as if the convolutional models here were large


@keras.saving.register_keras_serializable(package="tests")
class Centered(layers.Layer):
    """Subtracts a moving mean, and counts examples."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="mean")
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        self.count.assign_add(keras.ops.shape(x)[0])
        return x - self.mean


@keras.saving.register_keras_serializable(package="tests")
class Penalty(layers.Layer):
    def call(self, x):
        self.add_loss(0.01 * keras.ops.mean(x**2))
        return x


@keras.saving.register_keras_serializable(package="tests")
class Bounded(layers.Layer):
    """Fails in every step."""

    def call(self, x):
        tf.debugging.assert_less(x, -100.0, message="too large")
        return x


def dense(*between):
    return [layers.Dense(16, "relu"), *between, layers.Dense(3)]


def conv(*between):
    return [layers.Conv2D(6, 3), *between, layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3)]


def text(*between):
    return [layers.Embedding(30, 8), *between, layers.Dense(3)]


class Block(layers.Layer):
    """A transformer block with attention to itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.attention.build(shape, shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x + self.attention(x, x))


# Kinds of models whose gradients are sums over the examples. So a strategy computes what one device does, but for
# rounding.
ADDITIVE = {
    "sgd": ("vectors", dense, lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
    "nadam": ("vectors", dense, lambda: optimizers.Nadam(1e-2)),
    "adamw": ("vectors", dense, lambda: optimizers.AdamW(1e-2, weight_decay=0.01)),
    "lamb": ("vectors", dense, lambda: optimizers.Lamb(1e-2)),
    "adafactor": ("vectors", dense, lambda: optimizers.Adafactor(1e-2)),
    "global_clipnorm": ("vectors", dense, lambda: optimizers.Adam(1e-2, global_clipnorm=0.1)),
    "clipnorm": ("vectors", dense, lambda: optimizers.SGD(1e-2, clipnorm=0.1)),
    "average": ("vectors", dense, lambda: optimizers.SGD(1e-2, use_ema=True, ema_overwrite_frequency=3)),
    "accumulation": ("vectors", dense, lambda: optimizers.Adam(1e-2, gradient_accumulation_steps=3)),
    "loss_scale": ("vectors", dense, lambda: optimizers.LossScaleOptimizer(optimizers.Adam(1e-2))),
    "schedule": ("vectors", dense, lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(1e-2, 5, 0.9))),
    "regularizers": (
        "vectors",
        lambda: [layers.Dense(16, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2"), *dense()],
        lambda: optimizers.Adam(1e-2),
    ),
    "constraint": (
        "vectors",
        lambda: [layers.Dense(16, kernel_constraint="max_norm"), *dense()],
        lambda: optimizers.Adam(1e-2),
    ),
    "added_loss": ("vectors", lambda: dense(Penalty()), lambda: optimizers.Adam(1e-2)),
    "synchronized": (
        "vectors",
        lambda: dense(layers.BatchNormalization(synchronized=True)),
        lambda: optimizers.Adam(1e-2),
    ),
    "layer_norm": ("vectors", lambda: dense(layers.LayerNormalization()), lambda: optimizers.Adam(1e-2)),
    "conv": ("images", conv, lambda: optimizers.Adam(1e-2)),
    "depthwise": ("images", lambda: conv(layers.DepthwiseConv2D(3)), lambda: optimizers.Adam(1e-2)),
    "transposed": ("images", lambda: conv(layers.Conv2DTranspose(4, 3)), lambda: optimizers.Adam(1e-2)),
    "lstm": ("ids", lambda: text(layers.LSTM(6)), lambda: optimizers.Adam(1e-2)),
    "bidirectional": ("ids", lambda: text(layers.Bidirectional(layers.GRU(4))), lambda: optimizers.Adam(1e-2)),
    "pooled": ("ids", lambda: text(layers.GlobalAveragePooling1D()), lambda: optimizers.Adam(1e-2)),
    "attention": ("ids", lambda: text(Block(), layers.GlobalMaxPooling1D()), lambda: optimizers.Adam(1e-2)),
}

# Kinds of models in which an example also depends on the others of its batch, or on random numbers.
OTHERS = {
    "dropout": ("vectors", lambda: dense(layers.Dropout(0.3, seed=1)), lambda: optimizers.Adam(1e-2)),
    "noise": ("vectors", lambda: dense(layers.GaussianNoise(0.3)), lambda: optimizers.Adam(1e-2)),
    "batch_norm": ("vectors", lambda: dense(layers.BatchNormalization()), lambda: optimizers.Adam(1e-2)),
    "centered": ("vectors", lambda: dense(Centered()), lambda: optimizers.Adam(1e-2)),
    "conv_batch_norm": (
        "images",
        lambda: conv(layers.BatchNormalization(), layers.SpatialDropout2D(0.2)),
        lambda: optimizers.Adam(1e-2),
    ),
    "recurrent_dropout": ("ids", lambda: text(layers.GRU(6, recurrent_dropout=0.2)), lambda: optimizers.Adam(1e-2)),
}
KINDS = ADDITIVE | OTHERS
FAST = ("adamw", "conv_batch_norm")


def mirrored(count):
    # Collectives, the default on CPU, fail at times if a process has had other strategies.
    operations = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(count)], operations)


def examples(kind, count, seed):
    rng, shape = np.random.default_rng(seed), INPUTS[kind]
    x = rng.integers(0, 30, (count, *shape)) if kind == "ids" else rng.normal(size=(count, *shape))
    return x.astype("int32" if kind == "ids" else "float32"), rng.integers(0, 3, count).astype("int32")


def build(name, strategy, jit_compile="auto", precision="float32"):
    kind, make_layers, make_optimizer = KINDS[name]
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(precision)
    with strategy.scope() if strategy else contextlib.nullcontext():
        inputs = keras.Input(INPUTS[kind], dtype="int32" if kind == "ids" else None)
        packed = tp.pack(keras.Sequential([inputs, *make_layers()]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        packed.compile(make_optimizer(), loss, metrics=["accuracy"], jit_compile=jit_compile)
    return packed


def fit_arguments(data, x, y, batch_size, seed):
    if data == "arrays":
        return {"x": x, "y": y, "batch_size": batch_size, "shuffle": False}
    batches = {"resident": tp.tasks.ResidentBatches, "streamed": tp.tasks.StreamedBatches}[data]
    return {"x": batches(x, y, 1.0, batch_size=batch_size, seed=seed)}


def learn(name, strategy, data, batch_size, **options):
    """Learn two tasks, and check that the first stays the same to the bit and that all replicas are equal."""
    packed, losses = build(name, strategy, **options), []
    for number in (1, 2):
        x, y = examples(KINDS[name][0], 50, number)
        arguments = fit_arguments(data, x, y, batch_size, number)
        packed.begin_task()
        losses += packed.fit(**arguments, epochs=1, verbose=0).history["loss"]
        callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        losses += packed.fit(**arguments, epochs=2, verbose=0, callbacks=callbacks).history["loss"]
        if number == 1:
            first, before = x, packed.predict(x, verbose=0)
    packed.select_task(1)
    assert np.array_equal(packed.predict(first, verbose=0), before)
    replicas.check_equal(packed)
    return packed, np.array(losses), packed.evaluate(first, y, batch_size=7, verbose=0, return_dict=True)


def kinds_to_test(names):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "replicas_and_data",
    [
        (2, "resident", 16),
        pytest.param((3, "arrays", 16), marks=pytest.mark.slow),
        pytest.param((4, "streamed", 6), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", kinds_to_test(ADDITIVE))
def test_a_strategy_computes_what_one_device_does(name, replicas_and_data):
    count, data, batch_size = replicas_and_data
    if (name, data) == ("synchronized", "arrays"):
        batch_size = 17  # without a replica that has no rows: it would normalize with a row of another one
    _, losses, metrics = learn(name, None, data, batch_size)
    packed, *others = learn(name, mirrored(count), data, batch_size)
    assert packed.xla == ("update" if KINDS[name][0] == "images" or name == "synchronized" else "step")
    np.testing.assert_allclose(others[0], losses, atol=2e-5)
    assert others[1] == pytest.approx(metrics, abs=2e-5)


@pytest.mark.parametrize("name", kinds_to_test(OTHERS))
def test_replicas_stay_equal(name):
    _, losses, _ = learn(name, mirrored(3), "resident", 16)
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("name", ["adamw", "conv", "lstm", "dropout", "average", "accumulation"])
def test_with_and_without_xla(name, jit_compile):
    learn(name, mirrored(2), "arrays", 10, jit_compile=jit_compile)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(precision):
    learn("adamw", mirrored(2), "resident", 16, precision=precision)


def test_batches_that_do_not_divide_weigh_all_examples_alike():
    """Even a last batch with fewer examples than replicas."""
    x, y = examples("vectors", 17 + 2, 0)
    logs = []
    for strategy in (None, mirrored(4)):
        packed = build("sgd", strategy)
        logs += [packed.fit(x, y, batch_size=17, epochs=3, shuffle=False, verbose=0, validation_data=(x, y)).history]
        logs += [packed.predict(x, batch_size=3, verbose=0)]
    assert logs[2].keys() == logs[0].keys()
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[2][name], values, rtol=1e-5)
    np.testing.assert_allclose(logs[3], logs[1], rtol=1e-4, atol=1e-6)


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy
ROADS = {
    "sample_weight": ({}, {"sample_weight": np.linspace(0, 1, 22)}),
    "class_weight": ({}, {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}),
    "sum": ({"loss": CROSSENTROPY(from_logits=True, reduction="sum")}, {}),
    "weighted_metrics": ({"weighted_metrics": ["accuracy"]}, {"sample_weight": np.linspace(0, 1, 22)}),
    "steps_per_execution": ({"steps_per_execution": 2}, {}),
    "run_eagerly": ({"run_eagerly": True}, {}),
    "validation_split": ({}, {"validation_split": 0.3}),
    "learning_rates": ({}, {"callbacks": [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)]}),
}


def compiled(strategy, make_model, **options):
    keras.utils.set_random_seed(1)
    with strategy.scope() if strategy else contextlib.nullcontext():
        packed = tp.pack(make_model())
        packed.compile(
            **{"optimizer": "adam", "loss": CROSSENTROPY(from_logits=True), "metrics": ["accuracy"], **options}
        )
    return packed


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
def test_arguments_of_keras(road):
    options, arguments = ROADS[road]
    x, y = examples("vectors", 22, 0)  # the last of the batches has one example, for three replicas
    logs = []
    for strategy in (None, mirrored(3)):
        packed = compiled(strategy, lambda: keras.Sequential([keras.Input((12,)), *dense()]), **options)
        logs.append(packed.fit(x, y, batch_size=7, epochs=3, shuffle=False, verbose=0, **arguments).history)
    assert logs[1].keys() == logs[0].keys()
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_several_inputs_and_outputs():
    def model():
        one, other = keras.Input((12,), name="one"), keras.Input((12,), name="other")
        hidden = layers.Dense(16, "relu")(layers.Concatenate()([one, other]))
        outputs = {"kind": layers.Dense(3, name="kind")(hidden), "size": layers.Dense(1, name="size")(hidden)}
        return keras.Model({"one": one, "other": other}, outputs)

    (x, y), logs = examples("vectors", 22, 0), []
    for strategy in (None, mirrored(3)):
        losses = {"kind": CROSSENTROPY(from_logits=True), "size": "mse"}
        metrics = {"kind": ["accuracy"], "size": ["mae"]}
        packed = compiled(strategy, model, loss=losses, metrics=metrics)
        data = {"one": x, "other": -x}, {"kind": y, "size": x[:, :1]}
        logs.append(packed.fit(*data, batch_size=11, epochs=3, shuffle=False, verbose=0).history)
    assert logs[1].keys() == logs[0].keys()
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_single_batches():
    x, y = examples("vectors", 10, 0)
    results = []
    for strategy in (None, mirrored(3)):
        packed = compiled(strategy, lambda: keras.Sequential([keras.Input((12,)), *dense()]))
        results.append([*(packed.train_on_batch(x, y) for _ in range(3)), packed.test_on_batch(x, y)])
        results[-1].append(packed.predict_on_batch(x))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_fit_resumes_with_the_same_bits(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    x, y = examples("vectors", 22, 0)
    weights = []
    for callbacks in ([], [Stop()]):
        packed = build("dropout", mirrored(3))
        data = tp.tasks.ResidentBatches(x, y, 1.0, batch_size=5, seed=1)
        backup = tmp_path / str(len(callbacks))
        with pytest.raises(KeyboardInterrupt) if callbacks else contextlib.nullcontext():
            packed.fit(data, epochs=4, verbose=0, callbacks=[*callbacks, tp.EpochBackup(backup)])
        if callbacks:
            packed = build("dropout", mirrored(3))
            packed.fit(data, epochs=4, verbose=0, callbacks=[tp.EpochBackup(backup)])
        replicas.check_equal(packed)
        weights.append([np.array(variable) for variable in packed.trainable_variables])
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.slow
def test_a_pack_leaves_the_strategy(tmp_path):
    """It is saved in the scope, and continues on one device."""
    x, y = examples("vectors", 22, 0)
    packed = build("adamw", mirrored(3))
    callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.TaskMaskSnapshot()]
    packed.fit(x, y, batch_size=7, epochs=2, verbose=0, callbacks=callbacks)
    expected = packed.predict(x, verbose=0)
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    for loaded in (keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "pack.packnet")):
        before = loaded.predict(x, verbose=0)
        np.testing.assert_allclose(before, expected, rtol=1e-4, atol=1e-6)
        loaded.begin_task()
        loaded.compile("adam", CROSSENTROPY(from_logits=True))
        loaded.fit(x, y, epochs=2, verbose=0)
        loaded.select_task(1)
        assert np.array_equal(loaded.predict(x, verbose=0), before)


@pytest.mark.filterwarnings("error:the outputs of task")
def test_a_task_is_witnessed_as_it_is_checked():
    """In a `fit`, predictions are divided between the replicas; the witness that it records must not be."""
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(64, size)).astype("float32") for name, size in {"a": 6, "b": 4}.items()}
    with mirrored(2).scope():
        joined = layers.Concatenate()([layers.Dense(8, "relu")(a), layers.Dense(5, "tanh")(b)])
        joined = layers.Dense(9, "relu")(joined)
        packed = tp.pack(keras.Model({"a": a, "b": b}, layers.Dense(3)(joined)))
        packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    packed.begin_task()
    packed.fit(x, rng.integers(0, 3, 64), verbose=0, callbacks=[tp.TaskMaskSnapshot()])
    tp.lifecycle.records(packed).functions.clear()  # as in another process
    tp.lifecycle.check_tasks(packed)


def test_moving_statistics_are_means_over_the_replicas():
    """An independent computation, in NumPy, for batches of different sizes on the replicas."""
    x, y = examples("vectors", 10, 0)
    packed = build("batch_norm", mirrored(3))
    norm = next(layer for layer in packed.layers if isinstance(layer, layers.BatchNormalization))
    inputs = keras.Model(packed.inputs[0], norm.input)(x).numpy()
    packed.fit(x, y, batch_size=10, epochs=1, shuffle=False, verbose=0)
    rows = [inputs[0:3], inputs[3:6], inputs[6:10]]
    mean = sum(len(part) / 10 * part.mean(axis=0) for part in rows)
    variance = sum(len(part) / 10 * part.var(axis=0) for part in rows)
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * variance, rtol=1e-6)


def test_replicas_draw_different_random_numbers():
    """With the same example in all rows, only dropout makes the outputs of a batch different."""
    seen = []

    @keras.saving.register_keras_serializable(package="tests")
    class Watched(layers.Layer):
        def call(self, x):
            tf.py_function(lambda value: seen.append(value.numpy()), [x], [])
            return x

    strategy = mirrored(2)
    with strategy.scope():
        inputs = keras.Input((64,))
        outputs = layers.Dense(2)(layers.Dense(4)(Watched()(layers.Dropout(0.5, seed=1)(inputs))))
        packed = tp.pack(keras.Model(inputs, outputs))
        packed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    packed.fit(np.ones((4, 64), "float32"), np.zeros(4, "int32"), batch_size=4, epochs=2, verbose=0)
    assert len({part.tobytes() for part in seen}) == len(seen) == 4  # two replicas, two steps


def test_a_bad_batch_on_one_replica_changes_nothing_on_all():
    x, y = examples("vectors", 8, 0)
    packed = build("adamw", mirrored(2))
    packed.fit(x, y, batch_size=8, verbose=0)
    before = [np.array(variable) for variable in (*packed.variables, *packed.optimizer.variables)]
    y[7] = 99  # in the rows of the second replica
    with pytest.raises(tp.DivergedError, match="labels outside the range"):
        packed.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)
    after = [np.array(variable) for variable in (*packed.variables, *packed.optimizer.variables)]
    metrics = {id(variable) for metric in packed.metrics for variable in metric.variables}
    for variable, old, new in zip((*packed.variables, *packed.optimizer.variables), before, after, strict=True):
        assert id(variable) in metrics or np.array_equal(old, new), variable.path
    replicas.check_equal(packed)


@pytest.mark.slow
def test_a_small_convolutional_model_on_replicas(monkeypatch):
    monkeypatch.setattr(acceleration, "WORTH_COMPILING", 2**15)
    _, losses, metrics = learn("conv", None, "resident", 16)
    packed, *others = learn("conv", mirrored(2), "resident", 16)
    assert packed.xla == acceleration.OFF
    np.testing.assert_allclose(others[0], losses, atol=2e-5)
    assert others[1] == pytest.approx(metrics, rel=2e-5)


def test_an_error_on_all_replicas_is_reported_once():
    strategy = mirrored(2)
    with strategy.scope():
        inputs = keras.Input((12,))
        checked = Bounded()(inputs)
        packed = tp.pack(keras.Model(inputs, layers.Dense(3)(layers.Dense(4)(checked))))
        packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(tp.StepError, match=r"fit: epoch 1: assertion failed: \[too large\]"):
        packed.fit(*examples("vectors", 8, 0), verbose=0)


def test_unequal_replicas_are_noticed():
    packed = build("sgd", mirrored(2))
    kernel = packed.trainable_variables[0]
    kernel.value.values[1].assign_add(tf.ones(kernel.shape))
    with pytest.raises(ReplicaError, match=f"different values of {kernel.path}"):
        replicas.check_equal(packed)


def test_the_strategy_is_hidden_only_inside_fit():
    strategy, seen = mirrored(2), []
    packed = build("sgd", strategy)
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(packed.distribute_strategy))
    x, y = examples("vectors", 8, 0)
    packed.fit(x, y, callbacks=[callback], verbose=0)
    assert packed.distribute_strategy is strategy
    assert seen[0].num_replicas_in_sync == 2


def test_more_replicas_than_examples_in_a_batch_are_refused():
    packed = build("sgd", mirrored(4))
    x, y = examples("vectors", 8, 0)
    with pytest.raises(tp.ArgumentError, match="`batch_size`: expected at least the 4 replicas"):
        packed.fit(tp.tasks.StreamedBatches(x, y, 1.0, batch_size=3), verbose=0)


@pytest.mark.slow
def test_a_train_step_of_the_user_runs_as_in_keras():
    """In each replica, with gradients that the optimizer sums."""

    class Own(keras.Model):
        def train_step(self, data):
            assert tf.distribute.get_replica_context() is not None
            return super().train_step(data)

    x, y = examples("vectors", 32, 0)
    x = x[:, :6]
    strategy = mirrored(2)
    with strategy.scope():
        plain = make_mlp()
        packed = tp.pack(Own(plain.inputs, plain.outputs))
        packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert packed.xla == "off"
    history = packed.fit(x, y % 2, epochs=2, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    with pytest.raises(tp.ArgumentError, match="expected StreamedBatches in a distribution strategy with a train_step"):
        packed.fit(tp.tasks.ResidentBatches(x, y % 2, 1.0, batch_size=16), verbose=0)
    assert packed.evaluate(x, y % 2, verbose=0) > 0
    replicas.check_equal(packed)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_rates_and_rankings_of_retraining_are_those_of_one_device(criterion):
    x, y = examples("vectors", 32, 0)
    found = []
    for strategy in (None, mirrored(2)):
        packed = build("sgd", strategy)
        packed.begin_task()
        scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2), criterion=criterion, data=(x, y))
        retraining = [scheduler, tp.GradientMask(), tp.RetrainingRate("adaptive", 5)]
        logs = packed.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=retraining).history
        found.append((logs["learning_rate"], packed.owner_maps()))
    (rates, maps), (rates_of_two, maps_of_two) = found
    assert rates_of_two == pytest.approx(rates, rel=1e-4)
    assert len(set(rates)) == 4
    for owners, owners_of_two in zip(maps.values(), maps_of_two.values(), strict=True):
        np.testing.assert_array_equal(owners, owners_of_two)
