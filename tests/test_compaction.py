import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rich.console import Console

import tf_packnet as tp
from tests.conftest import blobs, make_convnet, make_mlp
from tests.test_export import LOAD_WITHOUT_THE_LIBRARY, pack_of
from tf_packnet.export import compact_model, dense_model, export_report
from tf_packnet.export.compaction import storage
from tf_packnet.export.compaction.sparse import SparseLayer
from tf_packnet.export.saved_model import write_saved_model
from tf_packnet.reporting import exports


@pytest.fixture
def always_sparse(monkeypatch):
    """Store kernels of any size sparse if that is smaller."""
    monkeypatch.setattr(storage, "OVERHEAD", 0)


def of(*stack, shape):
    return keras.Sequential([keras.Input(shape), *stack])


def agree(model, compact, x=None, rtol=1e-5):
    if x is None:
        x = np.random.default_rng(0).normal(size=(6, *model.input_shape[1:])).astype("float32")
    wanted = np.asarray(model(x))
    np.testing.assert_allclose(compact(x), wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def kernels(model):
    return [tuple(layer.kernel.shape) for layer in model.layers if hasattr(layer, "kernel")]


def test_unread_and_constant_units_are_removed():
    model = of(layers.Dense(3, activation="relu"), layers.Dense(1), shape=(2,))
    first, last = model.layers
    # Unit 0 is read, unit 1 reads nothing and is constantly 0.5, unit 2 is not read.
    first.set_weights([np.array([[1.0, 0, 1], [1, 0, 1]]), np.array([0.1, 0.5, 0.0])])
    last.set_weights([np.array([[2.0], [3], [0]]), np.array([1.0])])
    compact = compact_model(model)
    assert kernels(compact) == [(2, 1), (1, 1)]
    np.testing.assert_allclose(compact.layers[-1].bias, [1 + 3 * 0.5])
    agree(model, compact)


@pytest.mark.parametrize(("padding", "channels_left"), [("valid", 1), ("same", 2)])
def test_a_constant_channel_is_kept_if_padding_changes_it(padding, channels_left):
    model = of(layers.Conv2D(2, 1), layers.Conv2D(1, 3, padding=padding), shape=(4, 4, 1))
    first, last = model.layers
    first.set_weights([np.array([1.0, 0]).reshape(1, 1, 1, 2), np.array([0, 5.0])])
    last.set_weights([np.ones((3, 3, 2, 1)), np.zeros(1)])
    compact = compact_model(model)
    assert kernels(compact)[0] == (1, 1, 1, channels_left)
    agree(model, compact)


THROUGH = [
    layers.ZeroPadding2D(1),
    layers.Cropping2D(1),
    layers.UpSampling2D(interpolation="bilinear"),
    layers.MaxPooling2D(2, padding="same"),
    layers.AveragePooling2D(2, padding="same"),
    layers.BatchNormalization(),
    layers.LayerNormalization(),
    layers.Activation("sigmoid"),
    layers.Activation("softmax"),
    layers.LeakyReLU(),
    layers.SpatialDropout2D(0.5),
    layers.Reshape((3, 12, 3)),
    layers.Reshape((6, 3, 6)),
    layers.DepthwiseConv2D(2, padding="same", bias_initializer="ones"),
    layers.DepthwiseConv2D(2, depth_multiplier=2),
    layers.SeparableConv2D(3, 2, padding="same", bias_initializer="ones"),
    layers.Conv2D(4, 2, padding="same"),
    layers.Conv2D(3, 2, groups=3),
    layers.Conv2DTranspose(4, 2),
]


@pytest.mark.parametrize("layer", THROUGH, ids=lambda layer: layer.name)
def test_constants_are_propagated(layer):
    layer = type(layer).from_config(layer.get_config())
    model = of(layers.Conv2D(3, 1, activation="relu"), layer, layers.Conv2D(2, 3), layers.Flatten(), shape=(6, 6, 1))
    # Channel 0 varies, channel 1 is 0.7, channel 2 is 0.
    model.layers[0].set_weights([np.array([1.0, 0, 0]).reshape(1, 1, 1, 3), np.array([0.1, 0.7, -1])])
    agree(model, compact_model(model))


def test_a_dead_relu_channel_is_removed_with_any_padding():
    model = of(layers.Conv2D(2, 1, activation="relu"), layers.Conv2D(1, 3, padding="same"), shape=(4, 4, 1))
    first, last = model.layers
    first.set_weights([np.array([1.0, 0]).reshape(1, 1, 1, 2), np.array([0, -5.0])])
    last.set_weights([np.ones((3, 3, 2, 1)), np.zeros(1)])
    compact = compact_model(model)
    assert kernels(compact) == [(1, 1, 1, 1), (3, 3, 1, 1)]
    agree(model, compact)


def test_unknown_layers_are_unchanged():
    inputs = keras.Input((4, 6))
    x = layers.Dense(8, activation="relu")(inputs)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LSTM(5)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    kernel = model.layers[1].kernel
    kernel.assign(np.where(np.arange(8) < 3, kernel, 0))
    compact = compact_model(model)
    assert kernels(compact)[0] == (6, 8)  # attention may read them all
    agree(model, compact)


def with_zeros(variable, zeros):
    """Assign random values, and 0 where `zeros` says."""
    value = np.random.default_rng(0).normal(size=variable.shape)
    value[zeros] = 0
    variable.assign(value)


@pytest.mark.parametrize("layer_class", [layers.SimpleRNN, layers.GRU, layers.LSTM])
def test_recurrent_units_and_embedded_features_that_nothing_reads_are_removed(layer_class):
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True, name="words")(inputs)
    x = layer_class(7, return_sequences=True, name="first", bias_initializer="normal")(x)
    x = layer_class(4, name="second", bias_initializer="normal")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    first, second = (model.get_layer(name).cell for name in ("first", "second"))
    gates = first.kernel.shape[1] // 7
    # The second layer reads units 0 and 1 of the first one. Unit 1 reads unit 2, which reads 3. Unit 4 reads itself.
    with_zeros(second.kernel, np.s_[2:])
    recurrent = np.zeros((7, gates, 7))
    recurrent[[2, 3, 4, 1], :, [1, 2, 4, 5]] = 0.5
    first.recurrent_kernel.assign(recurrent.reshape(7, -1))
    # Features 0 and 1 are read by units that are kept, feature 2 by others, the rest by none.
    kernel = np.zeros((6, gates, 7))
    kernel[0, :, [0, 1]], kernel[1, :, 2:4], kernel[2, :, 4:] = 0.7, -0.3, 1.0
    first.kernel.assign(kernel.reshape(6, -1))
    compact = compact_model(model)
    assert compact.get_layer("words").embeddings.shape == (20, 2)
    assert compact.get_layer("first").cell.recurrent_kernel.shape == (4, gates * 4)
    assert compact.get_layer("second").cell.kernel.shape[0] == 4
    words = np.array([[3, 4, 5, 0], [7, 0, 0, 0], [19, 1, 2, 3]])
    agree(model, compact, words)


@pytest.mark.parametrize("use_bias", [False, True])
def test_heads_that_add_only_zeros_are_removed(use_bias):
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(4, 3, value_dim=2, use_bias=use_bias, name="mha")(inputs, inputs)
    grouped = layers.GroupQueryAttention(3, 6, 3, use_bias=use_bias, use_gate=True, name="gqa")
    x = grouped(x, inputs, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(2)(x))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    weights = {variable.path: variable for variable in model.weights}
    with_zeros(weights["mha/attention_output/kernel"], np.s_[1])
    with_zeros(weights["mha/value/kernel"], np.s_[:, 2])
    with_zeros(weights["gqa/attention_output/kernel"], np.s_[1:4])  # queries 2 and 3 are those of the second key
    if use_bias:
        with_zeros(weights["mha/value/bias"], np.s_[2])
        with_zeros(weights["gqa/value/bias"], np.s_[:1])
    compact = compact_model(model)
    assert compact.get_layer("mha").num_heads == 2
    sizes = compact.get_layer("gqa").get_config()
    assert (sizes["num_query_heads"], sizes["num_key_value_heads"]) == (4, 2)
    agree(model, compact)


def test_all_but_one_head_can_be_removed():
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.Dense(2)(layers.MultiHeadAttention(4, 3, name="mha")(inputs, inputs)))
    for variable in model.get_layer("mha").weights:
        variable.assign(np.full(variable.shape, 0.5) * (variable.name == "bias"))
    compact = compact_model(model)
    assert compact.get_layer("mha").num_heads == 1
    agree(model, compact)


def test_einsum_dense_and_dense_at_each_position_are_compacted_as_dense():
    inputs = keras.Input((4, 6))
    x = layers.EinsumDense("abc,bcd->abd", (4, 6))(inputs)
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", activation="relu")(x)
    x = layers.TimeDistributed(layers.Dense(7, activation="relu"))(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.EinsumDense("...x,xy->...y", 5)(x)))
    second, third = model.layers[3].layer, model.layers[4]
    with_zeros(second.kernel, np.s_[7:])  # the last feature of the first layer is not read
    with_zeros(third.kernel, np.s_[3:])
    compact = compact_model(model)
    assert kernels(compact) == [(4, 6, 6), (6, 7), (7, 3), (3, 5), (5, 2)]  # the first one is unchanged
    agree(model, compact)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_filters_of_transposed_convolutions_that_nothing_reads_are_removed(padding):
    up = layers.Conv2DTranspose(6, 3, strides=2, padding=padding, activation="relu", bias_initializer="normal")
    model = of(layers.Conv2D(5, 1, activation="relu"), up, layers.Conv2D(2, 2), shape=(4, 4, 3))
    first, up, last = model.layers
    with_zeros(last.kernel, np.s_[:, :, 4:])
    with_zeros(up.kernel, np.s_[:, :, :, 3:])  # the kernel is (height, width, filters, inputs)
    compact = compact_model(model)
    assert [shape[2:] for shape in kernels(compact)] == [(3, 3), (4, 3), (4, 2)]
    agree(model, compact)


def test_softmax_mixes_its_units():
    model = of(layers.Dense(3, activation="softmax"), layers.Dense(2), shape=(4,))
    model.layers[1].kernel.assign([[1.0, 1], [0, 0], [0, 0]])
    assert kernels(compact_model(model)) == [(4, 3), (3, 2)]
    agree(model, compact_model(model))


def test_a_call_with_training_true_is_unchanged():
    inputs = keras.Input((4,))
    outputs = layers.Dense(2)(layers.BatchNormalization()(inputs, training=True))
    model = keras.Model(inputs, outputs)
    agree(model, compact_model(model), np.random.default_rng(1).normal(3, 2, (8, 4)).astype("float32"))


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    hidden = layers.Dense(4, activation="relu")(layers.Concatenate()([a, b]))
    model = keras.Model(
        {"a": a, "b": b}, {"y": layers.Dense(2, name="y")(hidden), "z": layers.Add()([a, hidden[:, :3]])}
    )
    x = {"a": np.ones((2, 3), "float32"), "b": np.full((2, 3), 2, "float32")}
    compact = compact_model(model)
    assert compact(x).keys() == {"y", "z"}
    write_saved_model(compact, tmp_path / "compact")
    loaded = tf.saved_model.load(str(tmp_path / "compact"))
    for name, wanted in model(x).items():
        np.testing.assert_allclose(compact(x)[name], wanted, rtol=1e-6)
        np.testing.assert_allclose(loaded.serve(x)[name], wanted, rtol=1e-6)


def test_nested_models_with_several_inputs_are_expanded():
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    inside = layers.Dense(5, activation="relu", name="inside")
    inner = keras.Model({"b": b, "a": a}, [inside(layers.Concatenate()([a, b])), b], name="inner")
    x, y = keras.Input((3,)), keras.Input((4,))
    joined, same = inner({"b": layers.Dense(4, name="outside")(y), "a": x})
    model = keras.Model([x, y], layers.Dense(2, name="last")(layers.Concatenate()([joined, same])))
    kernel = np.asarray(model.get_layer("last").kernel)
    model.get_layer("last").kernel.assign(np.where((np.arange(9) % 3 == 0)[:, None], kernel, 0))
    compact = compact_model(model)
    assert kernels(compact) == [(4, 4), (7, 2), (6, 2)]
    agree(model, compact, [np.random.default_rng(0).normal(size=(6, size)).astype("float32") for size in (3, 4)])


def test_kernels_can_be_kept_dense(always_sparse):
    model = sparse_net()
    compact = compact_model(model, sparse=False)
    assert not any(isinstance(layer, SparseLayer) for layer in compact.layers)
    agree(model, compact)


def test_lookup_tables_are_served_too(tmp_path):
    words = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="multi_hot")
    model = keras.Sequential([keras.Input((2,), dtype="string"), words, layers.Dense(2)])
    x = tf.constant([["a", "c"], ["b", "?"]])
    write_saved_model(compact_model(model), tmp_path / "compact")
    loaded = tf.saved_model.load(str(tmp_path / "compact"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6)


def test_layers_called_twice_and_operators():
    shared, act = layers.Dense(6), layers.ReLU()
    inputs = keras.Input((6,))
    x = act(shared(act(shared(inputs)))) + inputs * 2.0
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.concatenate([x, x], axis=-1)))
    shared.kernel.assign(np.where(np.arange(6) < 2, shared.kernel, 0))
    agree(model, compact_model(model))


def test_few_of_many_features_are_selected():
    model = of(layers.Dense(64, activation="relu"), layers.Dense(64), shape=(600,))
    kernel = np.where(np.arange(600)[:, None] % 60 == 7, model.layers[0].kernel, 0)
    model.layers[0].kernel.assign(kernel)
    compact = compact_model(model)
    assert compact.layers[1].features == list(range(7, 600, 60))
    assert kernels(compact)[0] == (10, 64)
    agree(model, compact)


def test_the_original_model_is_unchanged():
    model = make_mlp()
    before = model.get_weights()
    compact_model(model).set_weights([np.zeros_like(w) for w in compact_model(model).get_weights()])
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("make", [make_mlp, make_convnet])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_compact_tasks_agree_with_their_dense_models(make, policy):
    keras.config.set_dtype_policy(policy)
    packed = pack_of(make)
    x = blobs(5, packed.input_shape[1:])[0]
    for task in (1, 2):
        dense = dense_model(packed, task)
        compact = compact_model(dense)
        agree(dense, compact, x, rtol=1e-5 if policy == "float32" else 2e-2)
        assert compact.count_params() <= dense.count_params()


def sparse_net():
    rng = np.random.default_rng(0)
    stack = [
        layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(9, activation="relu"),
    ]
    model = of(*stack, layers.Dense(2), shape=(8, 8, 2))
    for layer in (model.layers[0], model.layers[2]):
        layer.kernel.assign(layer.kernel * (rng.random(layer.kernel.shape) < 0.2))
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def test_sparse_layers_survive_a_keras_file(tmp_path, always_sparse):
    model = sparse_net()
    compact = compact_model(model)
    names = [type(layer).__name__ for layer in compact.layers if isinstance(layer, SparseLayer)]
    assert names == ["SparseConv2D", "SparseDense"]
    agree(model, compact)
    compact.save(tmp_path / "compact.keras")
    loaded = keras.models.load_model(tmp_path / "compact.keras")
    x = np.random.default_rng(2).normal(size=(5, 8, 8, 2)).astype("float32")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), compact.predict(x, verbose=0))
    again = compact_model(loaded)
    np.testing.assert_array_equal(again(x), compact(x))


def test_sparse_layers_follow_their_weights(always_sparse):
    model = sparse_net()
    compact = compact_model(model)
    clone = keras.models.clone_model(compact)
    clone.set_weights(compact.get_weights())
    agree(model, clone)


@pytest.mark.parametrize("jit", [True, False])
def test_sparse_layers_predict_compiled(always_sparse, jit):
    model = sparse_net()
    compact = compact_model(model)
    compact.compile(jit_compile=jit)
    x = np.random.default_rng(2).normal(size=(5, 8, 8, 2)).astype("float32")
    np.testing.assert_allclose(compact.predict(x, verbose=0), model(x), rtol=1e-5, atol=1e-5)


def test_keras_exports_sparse_layers_too(tmp_path, always_sparse):
    model = sparse_net()
    compact_model(model).export(tmp_path / "compact", verbose=False)
    x = np.random.default_rng(2).normal(size=(5, 8, 8, 2)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path / "compact"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)


def test_two_tasks_loaded_in_one_process_have_their_own_kernels(tmp_path, always_sparse):
    x = np.random.default_rng(2).normal(size=(5, 8, 8, 2)).astype("float32")
    models = [sparse_net(), sparse_net()]
    models[1].layers[0].kernel.assign(-models[1].layers[0].kernel)
    for number, model in enumerate(models):
        compact_model(model).export(tmp_path / str(number), verbose=False)
    loaded = [tf.saved_model.load(str(tmp_path / number)) for number in ("0", "1", "0")]
    for each, model in zip(loaded, [*models, models[0]], strict=True):
        np.testing.assert_allclose(each.serve(x), model(x), rtol=1e-5, atol=1e-5)
    del loaded[2]
    np.testing.assert_allclose(loaded[0].serve(x), models[0](x), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def wide_pack():
    def make():
        hidden = [layers.Dense(96, activation="relu", name=f"dense_{number}") for number in (1, 2)]
        return of(*hidden, layers.Dense(2, name="head"), shape=(64,))

    keras.utils.set_random_seed(0)
    return pack_of(make)


def test_a_process_without_the_library_serves_a_compact_task(tmp_path, wide_pack):
    x = blobs(5, (64,), examples=7)[0]
    np.save(tmp_path / "x.npy", x)
    tp.export_task(wide_pack, 2, tmp_path / "task_2", compact=True)
    arguments = [tmp_path / name for name in ("task_2", "x.npy", "y.npy", "weights.npz")]
    subprocess.run([sys.executable, "-c", LOAD_WITHOUT_THE_LIBRARY, *map(str, arguments)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), dense_model(wide_pack, 2)(x), rtol=1e-5, atol=1e-6)
    # No variable of the SavedModel is a dense kernel.
    largest = max(weight.size for weight in np.load(tmp_path / "weights.npz").values())
    assert largest < 64 * 96


def test_the_report_compares_every_task(tmp_path, wide_pack):
    for number in (1, 2):
        tp.export_task(wide_pack, number, tmp_path / f"task_{number}", compact=True)
    rows = export_report(wide_pack, tmp_path, seconds=0)
    assert [row.name for row in rows] == ["task_1", "task_2"]
    for row in rows:
        assert row.weights[0] == 64 * 96 + 96 + 96 * 96 + 96 + 2 * 96 + 2
        assert row.flops[0] == 2 * (64 * 96 + 96 * 96 + 2 * 96)
        assert all(after < before for before, after in (row.weights, row.bytes))
        assert all(packed < raw for packed, raw in zip(row.gzip_bytes, row.bytes, strict=True))
        on_disk = sum(path.stat().st_size for path in (tmp_path / f"task_{row.task}").rglob("*") if path.is_file())
        assert row.bytes[1] == on_disk

    saved = json.loads((tmp_path / "report.json").read_text())["tasks"]
    assert saved[1]["bytes"] == dict(zip(("dense", "exported"), rows[1].bytes, strict=True))
    console = Console(width=120, record=True, file=io.StringIO())
    exports.print_exports(rows, console)
    assert "task_2" in console.export_text()


def test_latency_is_measured_on_request(tmp_path, wide_pack):
    for number in (1, 2):
        tp.export_task(wide_pack, number, tmp_path / f"task_{number}", compact=True)
    rows = export_report(wide_pack, tmp_path)
    assert all(row.latency.keys() == {1, 256} and min(row.latency.values()) > 0 for row in rows)
    console = Console(width=120, record=True, file=io.StringIO())
    exports.print_exports(rows, console)
    assert "batch  batch" in console.export_text()


def test_the_table_fits_a_terminal():
    sizes = {"exported": 433_840, "dense": 8_632_514}
    batches = {"latency": {"1": 1.02, "256": 0.98}, "times_smaller": 115.5}
    row = {
        "name": "airplane-automobile",
        **dict.fromkeys(("weights", "bytes", "gzip_bytes", "flops"), sizes),
        **batches,
    }
    console = Console(width=80, record=True, file=io.StringIO())
    table = exports.render([row])

    console.print(table)
    text = console.export_text()
    assert "\u2026" not in text
    assert "434k" in text
    assert "8.63M" in text


@pytest.mark.parametrize(
    ("count", "short"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (9994, "9.99k"), (99_949, "99.9k"), (267_266, "267k"), (999_499, "999k")]
    + [(999_500, "1.00M"), (8_632_514, "8.63M"), (34_582_000, "34.6M"), (1_300_000_000, "1.30G")],
)
def test_counts_are_short(count, short):
    assert exports.abbreviate(count) == short


def test_a_report_needs_the_exports(tmp_path, wide_pack):
    with pytest.raises(tp.ArgumentError, match="a folder that contains the SavedModel task_1"):
        export_report(wide_pack, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("add", [lambda x, y: x + y, lambda x, y: layers.Add()([x, y])], ids=["operation", "layer"])
def test_masks_reach_the_same_layers(add):
    """An operation drops the masks of its inputs, a layer combines them."""
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 5, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(add(layers.MultiHeadAttention(1, 3)(x, x), x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = np.array([[1, 4, 0, 3], [0, 7, 8, 0]])
    np.testing.assert_allclose(compact_model(model)(x), model(x), rtol=1e-5, atol=1e-6)
