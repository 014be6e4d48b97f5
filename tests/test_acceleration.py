"""Levels of XLA compilation for each kind of model, and the random numbers of compiled steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from launch.benchmarks.kinds import kinds
from tests.conftest import blobs, compile_model
from tf_packnet.runs import learning, setup
from tf_packnet.runs.config import Config
from tf_packnet.system.xla import threefry
from tf_packnet.tasks import ResidentBatches
from tf_packnet.training import acceleration
from tf_packnet.training.kernels import compiled

L = keras.layers
register = keras.saving.register_keras_serializable("acceleration")


@register
class Convolution(L.Layer):
    """Calls `keras.ops.conv`, in a conditional if `nested`."""

    def __init__(self, nested=False, **kwargs):
        super().__init__(**kwargs)
        self.nested = nested

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, 3, input_shape[-1], 2))

    def call(self, x):
        if self.nested:
            return keras.ops.cond(keras.ops.sum(x) > 0, lambda: self.convolve(x), lambda: self.convolve(-x))
        return self.convolve(x)

    def convolve(self, x):
        return keras.ops.conv(x, self.kernel)


@register
class Noise(L.Layer):
    """Adds random numbers of any kind, in training and in inference."""

    def __init__(self, kind="uniform", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.seed_generator = keras.random.SeedGenerator(5)

    def call(self, x):
        shape = keras.ops.shape(x)
        parameters = {"gamma": {"alpha": 2.0}}.get(self.kind, {})
        return x + getattr(keras.random, self.kind)(shape, seed=self.seed_generator, **parameters)


@register
class Broken(L.Layer):
    def call(self, x, training=False):
        if training:
            raise RuntimeError("no training")
        return x


def model(*layers, shape=(8,), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers, L.Flatten(), L.Dense(2)])


def attention(positions, others=None):
    queries = keras.Input((positions, 4))
    others = others and keras.Input((others, 4))
    x = L.MultiHeadAttention(2, 2)(queries, queries if others is None else others)
    inputs = queries if others is None else [queries, others]
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


IMAGE, WORDS = {"shape": (8, 8, 2)}, {"shape": (5,), "dtype": "int32"}
COMPILED_WHOLE = {
    *("dense", "dense, dropout", "dense, noise", "dense, BatchNorm", "LSTM", "GRU", "embedding, pooling"),
    *("attention", "transformer block", "transformer block, dropout"),
}
UPDATE_COMPILED = {"dense, 2048 units", "large convolutions"}
NOT_SLOW = {
    "max pooling over time": lambda: model(L.GlobalMaxPooling1D(), shape=(8, 2)),
    "large weights in a loop": lambda: model(L.LSTM(1024), shape=(3, 8)),
    "an embedding of 3 million weights": lambda: model(L.Embedding(49152, 64), **WORDS),
    "attention over 256 positions": lambda: attention(256),
    "a dense layer at many positions": lambda: model(L.EinsumDense("abc,cd->abd", (4096, 8)), shape=(4096, 64)),
    "an error, which `fit` reports": lambda: model(Broken()),
}
SLOW = {
    "a layer of one's own": lambda: model(Convolution(), **IMAGE),
    "in a conditional": lambda: model(Convolution(nested=True), **IMAGE),
    "in a nested model": lambda: model(model(Convolution(), **IMAGE), **IMAGE),
    "in a loop": lambda: model(L.ConvLSTM2D(2, 3), shape=(3, 8, 8, 2)),
    "an operation of a functional model": lambda: keras.Model(
        x := keras.Input((8, 8, 2)), L.Dense(2)(L.Flatten()(keras.ops.max_pool(x, 2)))
    ),
    "resizing": lambda: model(L.Resizing(6, 6), **IMAGE),
    "a large embedding": lambda: model(L.Embedding(49153, 64), **WORDS),
    "attention over many positions": lambda: attention(512),
    "attention between many positions": lambda: attention(2048, 65),
    "without a kernel of XLA": lambda: model(L.RandomRotation(0.1), **IMAGE),
    "without a kernel of XLA, of one's own": lambda: model(Noise("gamma")),
}


@pytest.mark.parametrize("name", kinds())
def test_the_choice_for_each_kind_of_the_benchmark(name):
    expected = "step" if name in COMPILED_WHOLE else "update" if name in UPDATE_COMPILED else "off"
    assert acceleration.fastest(tp.pack(kinds()[name]())) == expected


@pytest.mark.parametrize("name", NOT_SLOW | SLOW)
def test_operations_decide_whichever_layers_they_come_from(name):
    assert acceleration.is_slow_in_xla((NOT_SLOW | SLOW)[name]()) is (name in SLOW)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], False),
        ([L.Dropout(0)], False),
        ([L.Dropout(0.5)], True),
        ([L.GaussianNoise(0.5)], True),
        ([L.Reshape((4, 2)), L.LSTM(2, recurrent_dropout=0.5)], True),
        ([L.Reshape((4, 2)), L.MultiHeadAttention(1, 2, dropout=0.5)], True),
        ([Noise()], True),
        ([model(Noise())], True),
    ],
)
def test_a_model_that_draws_random_numbers(layers, expected):
    x = inputs = keras.Input((8,))
    for layer in layers:
        x = layer(x, x) if isinstance(layer, L.MultiHeadAttention) else layer(x)
    network = keras.Model(inputs, x)
    assert acceleration.draws_with_threefry(network, acceleration.STEP) is expected
    assert not acceleration.draws_with_threefry(network, acceleration.UPDATE)


NETWORK = """
from keras import Input, Sequential, layers as L

def network(shape, classes):
    return Sequential([Input(shape), L.Flatten(), L.Dense(8), L.Dropout(0.1), L.Dense(classes)])
"""


def test_stage_keys_contain_the_algorithm_only_where_it_differs(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)

    def execution(**fields):
        return learning.Run.prepare(Config(dataset="digits", num_tasks=2, **fields)).execution

    assert execution(jit="on").keys() == {"xla", "data_residency", "device", "replicas", "threads"}
    assert execution(model="own.py:network", jit="on")["random_numbers"] == "threefry"
    monkeypatch.setattr(setup, "make_deterministic", lambda xla: None)  # it would last
    assert "random_numbers" not in execution(model="own.py:network", jit="off")


def draws(function, steps=40, seed=1):
    """Draw in a loop of a function that XLA compiles, as gradient steps do."""
    generator = keras.random.SeedGenerator(seed)

    def loop():
        array = tf.TensorArray(tf.float32, steps, element_shape=(64, 64))
        _, array = tf.while_loop(
            lambda step, _: step < steps,
            lambda step, array: (step + 1, array.write(step, tf.cast(function((64, 64), generator), tf.float32))),
            (tf.constant(0), array),
        )
        return array.stack()

    return compiled(loop)().numpy()


KINDS = {
    "uniform": (lambda shape, seed: keras.random.uniform(shape, seed=seed), 1 / 2, 1 / 12),
    "normal": (lambda shape, seed: keras.random.normal(shape, seed=seed), 0, 1),
    "half precision": (lambda shape, seed: keras.random.normal(shape, dtype="bfloat16", seed=seed), 0, 1),
    "integers": (lambda shape, seed: keras.random.randint(shape, 0, 6, seed=seed), 2.5, 35 / 12),
    "dropout": (lambda shape, seed: keras.random.dropout(tf.ones(shape), 0.2, seed=seed), 1, 0.25),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_statistics_of_compiled_draws(kind):
    function, mean, variance = KINDS[kind]
    values = draws(function)
    count, deviation = values.size, np.sqrt(variance)
    assert abs(values.mean() - mean) < 5 * deviation / np.sqrt(count)
    assert values.var() == pytest.approx(variance, rel=0.02)
    flat = (values.reshape(40, -1) - mean) / deviation
    other = (draws(function, seed=2).reshape(40, -1) - mean) / deviation
    for one, two in (
        (flat[1:], flat[:-1]),  # from step to step
        (flat[:, 1:], flat[:, :-1]),  # from number to number
        (flat, other),  # from layer to layer
    ):
        assert abs((one * two).mean()) < 5 / np.sqrt(one.size)
    assert len({step.tobytes() for step in [*values, *draws(function, seed=2)]}) == 80
    np.testing.assert_array_equal(draws(function), values)


def test_only_the_compiled_function_itself_uses_threefry():
    def draw(**algorithm):
        return tf.random.stateless_uniform((4,), (1, 2), **algorithm)

    inner = tf.function(draw, autograph=False)
    drawn, inside, named = compiled(lambda: (draw(), inner(), draw(alg="philox")))()
    expected = tf.function(lambda: draw(alg="threefry"), jit_compile=True, autograph=False)()
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(inside, named)
    assert inner().shape == draw().shape == (4,)  # uncompiled code does not have Threefry

    with pytest.raises(KeyError), tf.Graph().as_default(), threefry():
        raise KeyError
    np.testing.assert_array_equal(tf.function(draw, autograph=False)(), draw())


def test_a_model_with_random_layers_freezes_and_repeats_to_the_bit():
    def learn():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        x = L.Dropout(0.3)(L.Dense(12, activation="relu")(inputs))
        x = L.GaussianNoise(0.1)(L.AlphaDropout(0.1)(L.Dense(8, activation="relu")(x)))
        packed = compile_model(tp.pack(keras.Model(inputs, L.Dense(2)(x))), "adamw", "auto")
        assert packed.xla == acceleration.STEP
        probe, committed, losses = blobs(9)[0], {}, []
        for task in (1, 2):
            packed.begin_task()
            data = ResidentBatches(*blobs(task), 1.0, batch_size=16, seed=task)
            losses += packed.fit(data, epochs=2, verbose=0).history["loss"]
            rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
            losses += packed.fit(data, epochs=2, verbose=0, callbacks=rounds).history["loss"]
            committed[task] = packed.predict(probe, verbose=0)
            packed.select_task(1)
            np.testing.assert_array_equal(packed.predict(probe, verbose=0), committed[1])
        return losses, [np.array(variable) for variable in packed.variables]

    (losses, variables), (losses_again, variables_again) = learn(), learn()
    assert losses == losses_again
    assert len(set(losses)) == len(losses) == 8
    for one, other in zip(variables, variables_again, strict=True):
        np.testing.assert_array_equal(one, other)
