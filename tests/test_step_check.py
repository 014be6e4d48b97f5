"""A step with bad data, a non-finite loss or non-finite gradients changes nothing, and the fit ends with an error."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model
from tests.stateful import prune_and_commit
from tf_packnet import lifecycle
from tf_packnet.training.step_check import is_finite

L = keras.layers
X, Y = blobs(0, (20,), examples=256)
BAD = 167  # in the sixth batch of 32
BATCHES_BEFORE = 5


def with_bad_value(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = X.copy(), Y.copy()
    if name in ("nan", "inf"):
        x[BAD, 3] = {"nan": np.nan, "inf": np.inf}[name]
    else:
        y[BAD] = {"too large": 2, "negative": -1}[name]
    return x, y


class PyData(keras.utils.PyDataset):
    def __init__(self, x, y, batches):
        super().__init__()
        self.x, self.y, self.batches = x, y, batches

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        rows = slice(index * 32, (index + 1) * 32)
        return self.x[rows], self.y[rows]


def data_of(kind: str, x: np.ndarray, y: np.ndarray, batches: int = 8) -> dict:
    """Arguments of `fit` for the first `batches` batches of an epoch."""
    if kind == "tf.data":
        return {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(32).take(batches)}
    if kind == "generator":
        parts = ((x[i * 32 : i * 32 + 32], y[i * 32 : i * 32 + 32]) for _ in range(9) for i in range(batches))
        return {"x": parts, "steps_per_epoch": batches}
    if kind == "PyDataset":
        return {"x": PyData(x, y, batches), "shuffle": False}
    rows = slice(0, batches * 32)
    return {"x": tf.constant(x[rows]), "y": tf.constant(y[rows]), "batch_size": 32, "shuffle": False}


def make_model() -> keras.Model:
    inner = [L.Dense(64, "relu"), L.BatchNormalization(), L.Dropout(0.1), L.Dense(2)]
    return keras.Sequential([keras.Input((20,)), *inner])


def stateful_model(jit, model=None, optimizer="adam", **kwargs) -> tp.PackedModel:
    """A pack with all kinds of state that a step changes: weights, slots, moving statistics, dropout seeds."""
    keras.utils.set_random_seed(1)
    packed = tp.pack((model or make_model)(), bias_policy="per_task")
    compile_model(packed, optimizer, jit_compile=jit, **kwargs)
    packed.begin_task("a")
    return packed


def state_of(packed: tp.PackedModel) -> list[np.ndarray]:
    return [np.array(lifecycle.view_of(variable)) for variable in variables_of(packed)]


def variables_of(packed: tp.PackedModel) -> list[keras.Variable]:
    if not packed.optimizer.built:
        packed.optimizer.build(packed.trainable_variables)
    return [*packed.variables, *packed.optimizer.variables]


def assert_only_steps_before_changed(packed, start, train) -> None:
    """Assert that `packed` is as after `train` from the state `start`, with the same compiled step."""
    actual = state_of(packed)
    for variable, value in zip(variables_of(packed), start, strict=True):
        variable.assign(value)
    train(packed)
    for ours, expected in zip(actual, state_of(packed), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert not all(np.array_equal(*each) for each in zip(actual, start, strict=True))


MESSAGES = {
    "nan": "the inputs of a batch contain NaN or infinity in epoch 1",
    "inf": "the inputs of a batch contain NaN or infinity in epoch 1",
    "too large": "labels outside the range of the loss.* in epoch 1",
    "negative": "labels outside the range of the loss.* in epoch 1",
}


@pytest.mark.parametrize("kind", ["tf.data", "generator", "PyDataset", "tensors"])
@pytest.mark.parametrize("name", ["nan", "too large"])
def test_all_kinds_of_data(kind, name):
    assert_refused(kind, name, jit=False)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("jit", ["auto", False])
def test_with_and_without_xla(name, jit):
    assert_refused("tf.data", name, jit)


def assert_refused(kind, name, jit):
    x, y = with_bad_value(name)
    packed = stateful_model(jit)
    start = state_of(packed)
    with pytest.raises(tp.DivergedError, match=MESSAGES[name]) as caught:
        packed.fit(**data_of(kind, x, y), epochs=2, verbose=0, callbacks=prune_and_commit())
    assert "\n" not in str(caught.value)
    assert packed.committed_tasks == 0
    assert lifecycle.has_open_task(packed)
    callbacks = prune_and_commit()[:2]
    assert_only_steps_before_changed(
        packed, start, lambda same: same.fit(**data_of(kind, x, y, BATCHES_BEFORE), verbose=0, callbacks=callbacks)
    )
    packed.fit(X, Y, verbose=0, callbacks=prune_and_commit())  # training can continue with good data
    assert packed.committed_tasks == 1


class DirectMomentum(keras.optimizers.SGD):
    """Assigns to variables directly, while Keras's optimizers call `self.assign`."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        variable.assign(variable * 0.999)


def optimizer_named(name: str) -> keras.optimizers.Optimizer:
    known = keras.optimizers
    return {
        "adamw, clipped": lambda: known.AdamW(weight_decay=0.01, global_clipnorm=1.0),
        "momentum, nesterov": lambda: known.SGD(0.1, momentum=0.9, nesterov=True),
        "scheduled": lambda: known.RMSprop(known.schedules.ExponentialDecay(0.01, 3, 0.5), centered=True),
        "amsgrad": lambda: known.Adam(amsgrad=True),
        "averaged": lambda: known.Adam(use_ema=True, ema_overwrite_frequency=2),
        "accumulated": lambda: known.Adam(gradient_accumulation_steps=3),
        "norms": lambda: known.Lamb(),
        "lion": lambda: known.Lion(),
        "ftrl": lambda: known.Ftrl(0.1),
        "loss scale": lambda: known.LossScaleOptimizer(known.Adam()),
        "direct": lambda: DirectMomentum(0.1, momentum=0.9),
    }[name]()


NAMES = ["adamw, clipped", "momentum, nesterov", "scheduled", "amsgrad", "averaged", "accumulated", "norms", "lion"]


@pytest.mark.parametrize("name", [*NAMES, "ftrl", "loss scale", "direct"])
def test_a_bad_step_changes_no_optimizer(name):
    x, y = with_bad_value("too large")
    packed = stateful_model("auto", optimizer=optimizer_named(name))
    start = state_of(packed)
    with pytest.raises(tp.DivergedError, match="labels outside the range"):
        packed.fit(**data_of("tf.data", x, y), verbose=0)
    packed.optimizer.finalize_variable_values(packed.trainable_variables)  # as at the end of a fit
    assert_only_steps_before_changed(
        packed, start, lambda same: same.fit(**data_of("tf.data", x, y, BATCHES_BEFORE), verbose=0)
    )


def test_a_bad_step_with_a_constraint_changes_nothing():
    def constrained():
        return keras.Sequential([keras.Input((20,)), L.Dense(64, kernel_constraint="max_norm"), L.Dense(2)])

    x, y = with_bad_value("nan")
    packed = stateful_model("auto", constrained)
    start = state_of(packed)
    with pytest.raises(tp.DivergedError, match="inputs of a batch"):
        packed.fit(**data_of("tf.data", x, y), verbose=0)
    assert_only_steps_before_changed(
        packed, start, lambda same: same.fit(**data_of("tf.data", x, y, BATCHES_BEFORE), verbose=0)
    )


@pytest.mark.parametrize("jit", ["auto", False])
def test_convolutions_with_only_the_update_compiled(jit):
    inner = [L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(2)]
    packed = stateful_model(jit, lambda: keras.Sequential([keras.Input((8, 8, 1)), *inner]))
    x, y = blobs(0, (8, 8, 1), examples=64)
    y[40] = 7
    start = state_of(packed)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    with pytest.raises(tp.DivergedError, match="labels outside the range"):
        packed.fit(data, verbose=0)
    assert_only_steps_before_changed(packed, start, lambda same: same.fit(data.take(2), verbose=0))


@pytest.mark.parametrize("jit", ["auto", False])
@pytest.mark.parametrize("kind", [tp.tasks.ResidentBatches, tp.tasks.StreamedBatches])
def test_earlier_steps_of_the_same_call_are_taken(jit, kind):
    """Of the steps of one call, those before the bad one are taken."""

    @keras.saving.register_keras_serializable("tests.step_check")
    class NaNAtStep(keras.layers.Layer):
        """Outputs NaN in the training step with a given number (0-based)."""

        def __init__(self, step, **kwargs):
            super().__init__(**kwargs)
            self.step = step

        def build(self, shape):
            self.done = self.add_weight(shape=(), initializer="zeros", trainable=False, name="done")

        def call(self, z, training=None):
            if not training:
                return z
            self.done.assign_add(1.0)
            return z * keras.ops.where(self.done > self.step, np.float32("nan"), np.float32(1.0))

        def get_config(self):
            return {**super().get_config(), "step": self.step}

    def learn(step, batches):
        def make():
            inner = [NaNAtStep(step), L.Dense(32, "relu"), L.Dropout(0.1), L.Dense(2)]
            return keras.Sequential([keras.Input((20,)), *inner])

        packed = stateful_model(jit, make)
        if batches == 8:
            with pytest.raises(tp.DivergedError, match="NaN or infinite in epoch 1, the training has diverged"):
                packed.fit(kind(X, Y, 1.0, 32, seed=3), epochs=2, verbose=0)
        else:
            packed.fit(kind(X, Y, 1.0, 32, seed=3, epoch_steps=batches), verbose=0)
        return state_of(packed)

    for actual, expected in zip(learn(5, 8), learn(99, 5), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("jit", ["auto", False])
def test_ids_outside_a_vocabulary(jit):
    ids = np.random.default_rng(0).integers(0, 5, (64, 6))
    for value in (7, -1):
        ids[40, 2] = value
        inputs = keras.Input((6,), dtype="int32")
        hidden = L.Flatten()(L.Embedding(5, 4)(inputs))
        packed = stateful_model(
            jit, lambda hidden=hidden, inputs=inputs: keras.Model(inputs, L.Dense(2)(L.Dense(4, "relu")(hidden)))
        )
        before = state_of(packed)
        with pytest.raises(tp.DivergedError, match="ids outside the vocabulary of an embedding layer in epoch 1"):
            packed.fit(tf.data.Dataset.from_tensor_slices((ids, Y[:64])).batch(64), verbose=0)
        for actual, expected in zip(state_of(packed)[: len(before)], before, strict=True):
            np.testing.assert_array_equal(actual, expected)


@keras.saving.register_keras_serializable("tests.step_check")
class Fails(L.Layer):
    """A layer in which TensorFlow raises an error in each step."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, z):
        return z + tf.reduce_sum(FAILING[self.how][0](z))

    def get_config(self):
        return {**super().get_config(), "how": self.how}


def seven(z):
    """The vector `[7]`, which TensorFlow does not know while it traces."""
    return tf.cast(z[0, :1] * 0, tf.int32) + 7


def in_python(function):
    return lambda z: tf.numpy_function(function, [z], tf.float32)


def asserts(z):
    tf.debugging.assert_less(tf.reduce_max(tf.abs(z)), -1.0, message="too large")
    return z


FAILING = {
    "ids": (lambda z: tf.gather(tf.eye(5), seven(z)), r"indices\[0\] = 7 is not in \[0, 5\)"),
    "shape": (
        lambda z: tf.reshape(z, seven(z)),
        "Input to reshape is a tensor with .* has 7",
    ),
    "shapes": (
        lambda z: z[:, 0] + tf.fill(seven(z), z[0, 0]),
        r".*shapes.*",
    ),
    "assertion": (asserts, r"assertion failed: \[too large\] .*"),
    "ValueError": (in_python(lambda z: z.reshape(7)), r"ValueError: cannot reshape array .* into shape \(7,\)"),
    "KeyError": (in_python(lambda z: {}["lost"]), "KeyError: 'lost'"),
    "parsing": (lambda z: tf.strings.to_number(tf.strings.as_string(z) + "x"), "StringToNumberOp could not .*x"),
}


def failing_model(how):
    return stateful_model(False, lambda: keras.Sequential([keras.Input((20,)), L.Dense(4), Fails(how), L.Dense(2)]))


@pytest.mark.parametrize("how", FAILING)
def test_errors_of_tensorflow_in_a_step(how):
    """They are of one line, and none of them says that the training has diverged."""
    packed = failing_model(how)
    x, y = X[:32], Y[:32]
    for method, arguments, title in (
        (packed.fit, {"x": x, "y": y, "verbose": 0}, "fit: epoch 1"),
        (packed.train_on_batch, {"x": x, "y": y}, "train_on_batch"),
        (packed.evaluate, {"x": x, "y": y, "verbose": 0}, "evaluate"),
        (packed.test_on_batch, {"x": x, "y": y}, "test_on_batch"),
        (packed.predict, {"x": x, "verbose": 0}, "predict"),
    ):
        after = r"\. The step may have been taken in part, and the task is still open" if method == packed.fit else ""
        with pytest.raises(tp.StepError, match=f"^{title}: {FAILING[how][1]}{after}$") as caught:
            method(**arguments)
        assert isinstance(caught.value.__cause__, tf.errors.OpError)
    assert lifecycle.has_open_task(packed)


def test_errors_of_tensorflow_about_nan_and_infinity(monkeypatch):
    monkeypatch.setitem(FAILING, "numerics", (lambda z: tf.debugging.check_numerics(z / 0.0, "here"), ""))
    with pytest.raises(tp.DivergedError, match="^fit: epoch 1: here : Tensor had .* values. The step may"):
        failing_model("numerics").fit(X[:32], Y[:32], verbose=0)


def test_errors_of_the_machine_stay_what_they_are(monkeypatch):
    """Whoever calls `fit` can try again with smaller batches. The fit can be repeated."""
    packed = stateful_model(False)

    def fails(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "fit", fails)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            packed.fit(X, Y, verbose=0)
    packed.fit(X, Y, verbose=0, callbacks=prune_and_commit())
    assert packed.committed_tasks == 1


@pytest.mark.parametrize("jit", ["auto", False])
@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(1e4), keras.optimizers.Adam(1e30)])
def test_training_that_diverges_leaves_finite_weights(jit, optimizer):
    packed = tp.pack(keras.Sequential([keras.Input((20,)), L.Dense(16, "relu"), L.Dense(1)]))
    packed.begin_task("bad")
    packed.compile(type(optimizer).from_config(optimizer.get_config()), "mse", jit_compile=jit)
    with pytest.raises(tp.DivergedError, match=r"fit: .* in epoch \d, the training has diverged"):
        packed.fit(X, X[:, :1], epochs=4, verbose=0, callbacks=prune_and_commit())
    assert packed.committed_tasks == 0
    assert all(np.isfinite(values).all() for _, values in lifecycle.trained_values(packed))


@pytest.mark.parametrize("jit", ["auto", False])
def test_non_finite_gradients_of_a_finite_loss(jit):
    """The gradient of a norm at 0 is NaN."""

    @keras.saving.register_keras_serializable("tests.step_check")
    class Norm(keras.layers.Layer):
        def call(self, z):
            return keras.ops.sqrt(keras.ops.sum(keras.ops.square(z), axis=-1, keepdims=True))

    inputs = keras.Input((20,))
    hidden = L.Dense(128, use_bias=False)(L.Dense(128, use_bias=False)(inputs))
    packed = stateful_model(jit, lambda: keras.Model(inputs, L.Dense(2)(Norm()(hidden))))
    before = state_of(packed)
    with pytest.raises(tp.DivergedError, match="gradients are NaN or infinite in epoch 1"):
        packed.fit(tf.data.Dataset.from_tensor_slices((X * 0, Y)).batch(32), verbose=0)
    for actual, expected in zip(state_of(packed)[: len(before)], before, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("jit", ["auto", False])
def test_a_train_step_of_the_user(jit):
    @keras.saving.register_keras_serializable("tests.step_check")
    class OwnStep(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    x, y = with_bad_value("nan")
    inputs = keras.Input((20,))
    packed = stateful_model(jit, lambda: OwnStep(inputs, L.Dense(2)(L.Dense(8, "relu")(inputs))))
    with pytest.raises(tp.DivergedError, match="the inputs of a batch contain NaN or infinity in epoch 1"):
        packed.fit(**data_of("tf.data", x, y), verbose=0, callbacks=prune_and_commit())
    assert packed.committed_tasks == 0
    assert all(np.isfinite(values).all() for _, values in lifecycle.trained_values(packed))


@pytest.mark.slow
def test_labels_of_two_kinds_and_an_ignored_class():
    packed = stateful_model(False)
    packed.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    hot = np.eye(2)[Y]
    packed.fit(tf.data.Dataset.from_tensor_slices((X, hot)).batch(32), verbose=0)
    with pytest.raises(tp.DivergedError, match="labels outside the range"):
        packed.fit(tf.data.Dataset.from_tensor_slices((X, hot * 2)).batch(32), verbose=0)
    packed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    packed.fit(tf.data.Dataset.from_tensor_slices((X, np.where(Y == 1, 255, 0))).batch(32), verbose=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 5)])
def test_is_finite(value, shape):
    values = np.full(shape, 3e38, np.float32)
    assert bool(is_finite(tf.constant(values)))
    values.reshape(-1)[-1] = value
    assert not bool(is_finite(tf.constant(values)))
    assert not bool(tf.function(is_finite, jit_compile=True)(tf.constant(values)))


@pytest.mark.parametrize("jit", ["auto", False])
def test_single_batches(jit):
    x, y = with_bad_value("nan")
    packed = stateful_model(jit)
    start = state_of(packed)

    def train(model, bad):
        model.train_on_batch(X[:32], Y[:32])
        if bad:
            with pytest.raises(tp.DivergedError, match="train_on_batch: the inputs of a batch contain NaN or infinity"):
                model.train_on_batch(x[160:192], y[160:192])
        model.train_on_batch(X[32:64], Y[32:64])

    train(packed, bad=True)
    assert_only_steps_before_changed(packed, start, lambda same: train(same, bad=False))
    packed.commit_task()
    with pytest.raises(RuntimeError, match="no task is open"):
        packed.train_on_batch(X[:32], Y[:32])
