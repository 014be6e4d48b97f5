"""Compact exports of any network store no zeros, and compute the same outputs as dense exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.test_formats import lite, pack_of, size
from tf_packnet.export import compact_model, dense_model, saved_model, tflite
from tf_packnet.export.compaction import storage
from tf_packnet.export.compaction.sparse import SparseLayer, make_plain
from tf_packnet.export.endpoint import Endpoint

L = keras.layers
own = keras.saving.register_keras_serializable("test_small_exports")


@own
class Position(L.Layer):
    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, x):
        return x + self.table


@own
class InDict(L.Layer):
    """Matrices in a dict, with equal names, read by TensorFlow's own functions; a layer inside, and a seed."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(96, name="inner")
        self.seed = keras.random.SeedGenerator(1)

    def build(self, input_shape):
        first = self.add_weight(shape=(input_shape[-1], 96), name="w")
        self.parts = {"first": first, "others": [{"second": self.add_weight(shape=(96, 96), name="w")}]}
        self.inner.build((None, 96))

    def call(self, x):
        return self.inner(tf.matmul(x, self.parts["first"]) @ self.parts["others"][0]["second"])


@own
class Subclassed(keras.Model):
    """A model with its own call, which holds a model that is a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(4, 16, name="attention")
        inputs = keras.Input((8, 64))
        self.graph = keras.Model(inputs, L.Dense(64, name="inside")(L.Dense(128, name="outside")(inputs)), name="graph")

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.graph(self.attention(x, x))


def classifier(inputs, x):
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def vision_transformer():
    inputs = keras.Input((32, 32, 3), name="x")
    x = Position(name="position")(L.Reshape((16, 64))(L.Conv2D(64, 8, 8, name="patches")(inputs)))
    h = L.LayerNormalization()(x)
    x = x + L.MultiHeadAttention(4, 16, name="attention")(h, h)
    x = x + L.Dense(64, name="down")(L.Dense(256, activation="gelu", name="up")(L.LayerNormalization()(x)))
    return classifier(inputs, L.GlobalAveragePooling1D()(x))


def recurrent():
    inputs = keras.Input((12,), dtype="int32", name="x")
    x = L.Embedding(500, 48, mask_zero=True, name="words")(inputs)
    x = L.Bidirectional(L.LSTM(40, return_sequences=True), name="both")(x)
    x = L.GRU(64, return_sequences=True, name="gru")(x)
    x = L.RNN(L.StackedRNNCells([L.LSTMCell(48), L.SimpleRNNCell(48)]), name="stacked")(x)
    return classifier(inputs, x)


def decoder():
    inputs = keras.Input((12,), dtype="int32", name="x")
    x = L.Embedding(500, 64, name="words")(inputs)
    h = L.RMSNormalization()(x)
    x = x + L.GroupQueryAttention(16, 8, 2, name="attention")(h, h, use_causal_mask=True)
    x = L.EinsumDense("abc,cd->abd", (None, 64), bias_axes="d", name="einsum")(x)
    return classifier(inputs, L.GlobalAveragePooling1D()(x))


def video():
    inputs = keras.Input((4, 10, 10, 4), name="x")
    x = L.ConvLSTM2D(24, 3, name="lstm")(inputs)
    return classifier(inputs, L.GlobalAveragePooling2D()(L.Conv2DTranspose(48, 3, name="up")(x)))


def depthwise():
    inputs = keras.Input((12, 12, 8), name="x")
    x = L.Conv2D(128, 1, activation="relu6", name="expand")(inputs)
    x = L.DepthwiseConv2D(5, padding="same", activation="relu6", name="depthwise")(x)
    x = L.SeparableConv2D(96, 3, depth_multiplier=2, name="separable")(L.Conv2D(64, 3, groups=4, name="grouped")(x))
    return classifier(inputs, L.GlobalAveragePooling2D()(x))


def of_a_user():
    inputs = keras.Input((64,), name="x")
    x = L.Reshape((4, 24))(InDict(name="own")(inputs))
    return classifier(inputs, L.Flatten()(L.TimeDistributed(L.Dense(128, activation="relu"), name="each")(x)))


def subclassed():
    inputs = keras.Input((8, 64), name="x")
    return classifier(inputs, L.GlobalAveragePooling1D()(Subclassed(name="inner")(inputs)))


NETWORKS = (vision_transformer, recurrent, of_a_user, subclassed)
SLOW_NETWORKS = (decoder, video, depthwise)


def examples(model, count=3):
    rng = np.random.default_rng(7)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 500, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def part_bytes(model):
    """The size of a task's weights in a pack: masked ones as gaps and values, compressed; others as they are."""
    arrays = [np.asarray(variable) for variable in model.weights]
    return sum(min(array.nbytes, len(storage.to_sparse(array).data)) for array in arrays)


@pytest.fixture(
    scope="module",
    params=[*NETWORKS, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW_NETWORKS)],
    ids=lambda make: make.__name__,
)
def task(request):
    """A pack whose second task uses 6% of the weights, and the dense model of this task."""
    keras.utils.set_random_seed(0)
    packed = pack_of(request.param(), density=0.06, bias_policy="per_task")
    return packed, dense_model(packed, 2)


def test_files_hold_no_zeros_and_compute_the_same(task, tmp_path):
    packed, dense = task
    x = examples(dense)
    tp.export_task(packed, 2, tmp_path / "compact", compact=True)
    tp.export_task(packed, 2, tmp_path / "compact.keras", format="keras", compact=True)
    dense.save(tmp_path / "dense.keras")
    same_kernels = compact_model(dense, sparse=False)
    assert not any(isinstance(layer, SparseLayer) for layer in same_kernels._flatten_layers())
    saved_model.write_saved_model(same_kernels, tmp_path / "same")

    compact, same = (tf.saved_model.load(str(tmp_path / name)) for name in ("compact", "same"))
    np.testing.assert_array_equal(compact.serve(x), same.serve(x))
    loaded = keras.models.load_model(tmp_path / "compact.keras")
    outputs, expected = loaded(x), dense(x).numpy()
    np.testing.assert_array_equal(outputs, same_kernels(x))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    part = part_bytes(dense)
    few = storage.OVERHEAD * len(dense.weights)  # weights that are too small to be stored without zeros
    assert size(tmp_path / "compact/variables") < 1.1 * part + few
    assert size(tmp_path / "compact/saved_model.pb") < size(tmp_path / "same/saved_model.pb") + 2**14
    graph = size(tmp_path / "dense.keras") - sum(np.asarray(variable).nbytes for variable in dense.weights)
    assert size(tmp_path / "compact.keras") < 1.1 * part + 1.3 * graph + few

    loaded.save(tmp_path / "again.keras")
    assert abs(size(tmp_path / "again.keras") - size(tmp_path / "compact.keras")) < 2000
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "again.keras")(x), outputs)
    make_plain(loaded)
    loaded.save(tmp_path / "plain.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "plain.keras")(x), outputs)


LITE = {
    (make, format): make is decoder and format == "tflite_float16" or make is depthwise and format == "tflite"
    for make in (vision_transformer, decoder, depthwise, of_a_user)
    for format in ("tflite", "tflite_float16", "tflite_int8")
}


@pytest.mark.parametrize(
    ("make", "format"),
    [pytest.param(*case, marks=() if is_fast else pytest.mark.slow) for case, is_fast in LITE.items()],
)
def test_lite_files_hold_no_zeros_and_compute_the_same(make, format, tmp_path):
    packed = pack_of(make(), density=0.06)
    dense = dense_model(packed, 2)
    x = examples(dense, 40)
    calibration = x if format == "tflite_int8" else None
    tp.export_task(packed, 2, tmp_path / "a.tflite", format=format, compact=True, calibration=calibration)
    endpoint = Endpoint(compact_model(dense, sparse=False))
    if calibration is not None:
        calibration = tflite.check_calibration(endpoint, calibration)
    tflite.write(endpoint, tmp_path / "same.tflite", format, calibration)
    for count in (1, 5, 2):
        np.testing.assert_array_equal(
            *(lite(tmp_path / f"{name}.tflite", x=x[:count])["head"] for name in ("a", "same"))
        )
    # At most 2 bytes per position, a count of 4 bytes per row; and the graph, which has ranges of channels for int8.
    counts = [np.count_nonzero(variable) for variable in endpoint.model.weights if len(variable.shape) > 1]
    rows = [np.prod(variable.shape[:-1]) for variable in endpoint.model.weights if len(variable.shape) > 1]
    value, graph = {"tflite": (4, 30_000), "tflite_float16": (4, 30_000), "tflite_int8": (1, 40_000)}[format]
    assert size(tmp_path / "a.tflite") < sum(counts) * (value + 2) + 4 * sum(rows) + graph


def test_a_layer_that_is_used_in_another_model_is_saved_with_it(tmp_path):
    dense = dense_model(pack_of(vision_transformer(), density=0.06), 2)
    compact = compact_model(dense)
    inputs = keras.Input((16, 64))
    other = keras.Model(inputs, compact.get_layer("attention")(inputs, inputs))
    other.save(tmp_path / "other.keras")
    x = np.random.default_rng(0).normal(size=(2, 16, 64)).astype("float32")
    loaded = keras.models.load_model(tmp_path / "other.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), other.predict(x, verbose=0))


def test_state_that_a_call_changes_is_changed_in_a_compact_file_too(tmp_path):
    @keras.saving.register_keras_serializable("test_small_exports")
    class Counts(L.Layer):
        def build(self, input_shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
            self.kernel = self.add_weight(shape=(96, 96), name="kernel")

        def call(self, x):
            self.calls.assign(self.calls + 1)
            return x @ self.kernel + self.calls

    model = keras.Sequential([keras.Input((96,)), Counts()])
    model.layers[0].kernel.assign(np.eye(96))
    model.layers[0].calls.assign(0)
    saved_model.write_saved_model(compact_model(model), tmp_path / "compact")
    loaded = tf.saved_model.load(str(tmp_path / "compact"))
    x = np.zeros((1, 96), "float32")
    assert [float(loaded.serve(x)[0, 0]) for _ in range(3)] == [1, 2, 3]
    assert len(loaded.sparse_weights) == 1
