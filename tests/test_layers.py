"""Tests that every masked layer must pass."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from tests.conftest import compile_model
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import (
    TWINS,
    MaskedConv1D,
    MaskedConv1DTranspose,
    MaskedConv2D,
    MaskedConv2DTranspose,
    MaskedConv3D,
    MaskedConv3DTranspose,
    MaskedDense,
    MaskedDepthwiseConv1D,
    MaskedDepthwiseConv2D,
    MaskedEinsumDense,
    MaskedEmbedding,
    MaskedGRUCell,
    MaskedLSTMCell,
    MaskedSeparableConv1D,
    MaskedSeparableConv2D,
    MaskedSimpleRNNCell,
    Routed,
    TaskHead,
    TaskLayer,
    twin,
)

LAYERS = [
    pytest.param(MaskedDense, {"units": 5, "activation": "relu"}, (7,), id="dense"),
    pytest.param(MaskedDense, {"units": 5, "use_bias": False}, (3, 7), id="dense-3d-no-bias"),
    pytest.param(
        MaskedEinsumDense, {"equation": "abc,cd->abd", "output_shape": (4, 5), "bias_axes": "d"}, (4, 6), id="einsum"
    ),
    pytest.param(MaskedConv1D, {"filters": 4, "kernel_size": 3, "padding": "causal"}, (9, 2), id="conv1d"),
    pytest.param(
        MaskedConv2D, {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "relu"}, (9, 9, 2), id="conv2d"
    ),
    pytest.param(
        MaskedConv2D, {"filters": 4, "kernel_size": 2, "groups": 2, "use_bias": False}, (6, 6, 2), id="conv2d-groups"
    ),
    pytest.param(MaskedConv3D, {"filters": 2, "kernel_size": 2}, (4, 4, 4, 1), id="conv3d"),
    pytest.param(MaskedConv1DTranspose, {"filters": 4, "kernel_size": 3, "strides": 2}, (5, 2), id="conv1d-transpose"),
    pytest.param(
        MaskedConv2DTranspose,
        {"filters": 3, "kernel_size": 2, "strides": 2, "padding": "same"},
        (4, 4, 2),
        id="conv2d-transpose",
    ),
    pytest.param(
        MaskedConv3DTranspose, {"filters": 2, "kernel_size": 2, "use_bias": False}, (3, 3, 3, 2), id="conv3d-transpose"
    ),
    pytest.param(
        MaskedDepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2, "activation": "relu"}, (9, 2), id="depthwise1d"
    ),
    pytest.param(MaskedDepthwiseConv2D, {"kernel_size": 3, "use_bias": False}, (6, 6, 4), id="depthwise2d"),
    pytest.param(MaskedSeparableConv1D, {"filters": 4, "kernel_size": 3}, (9, 3), id="separable1d"),
    pytest.param(
        MaskedSeparableConv2D, {"filters": 4, "kernel_size": 2, "depth_multiplier": 2}, (6, 6, 2), id="separable2d"
    ),
    pytest.param(MaskedEmbedding, {"input_dim": 4, "output_dim": 6}, (3,), id="embedding"),
    pytest.param(TaskHead, {"units": 3}, (7,), id="head"),
]
parametrize = pytest.mark.parametrize(("layer_class", "arguments", "shape"), LAYERS)


def plain_twin(layer):
    """Return the corresponding Keras layer with the weights that `layer` computes with."""
    base = next(c for c in type(layer).__mro__ if c.__module__.startswith("keras."))
    config = {k: v for k, v in layer.get_config().items() if k != "bias_policy"}
    twin = base.from_config(config)
    twin.build(layer.get_build_config()["input_shape"])
    values = [getattr(layer, name) for name in layer.masked + layer.per_task]
    twin.set_weights([ops.convert_to_numpy(value) for value in values if value is not None])
    return twin


def inputs(shape, seed=0, layer=None):
    """Return inputs for a layer: numbers, or indices for an embedding."""
    rng = np.random.default_rng(seed)
    if isinstance(layer, MaskedEmbedding):
        return rng.integers(0, layer.input_dim, (8, *shape))
    return rng.normal(size=(8, *shape)).astype("float32")


def test_every_masked_layer_is_under_the_contract():
    tested = {parameter.values[0] for parameter in LAYERS}
    cells = {MaskedSimpleRNNCell, MaskedGRUCell, MaskedLSTMCell}  # tested inside recurrent layers in test_any_model.py
    masked = {plain: masked for plain, masked in TWINS.items() if masked.masked}
    assert {*masked.values(), TaskHead} == tested | cells
    for plain, found in masked.items():
        assert found.__name__ == f"Masked{plain.__name__}"


@parametrize
def test_a_fresh_layer_computes_the_same_as_keras(layer_class, arguments, shape):
    layer = layer_class(**arguments)
    x = inputs(shape, layer=layer)
    np.testing.assert_array_equal(layer(x), plain_twin(layer)(x))


@parametrize
def test_config_round_trips(layer_class, arguments, shape):
    more = {} if layer_class is TaskHead else {"bias_policy": "per_task"}
    names = [name for name in layer_class(**arguments).get_config() if re.search("_(initializer|regularizer)$", name)]
    assert names
    more |= {name: "he_normal" if name.endswith("initializer") else "l2" for name in names if "bias" not in name}
    layer = layer_class(**arguments, **more, name="named")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is layer_class
    assert again.get_config() == layer.get_config()


@parametrize
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_fit_moves_candidates_only(layer_class, arguments, shape, mode):
    layer = layer_class(**arguments)
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten(), keras.layers.Dense(2)])
    keep = []
    for weight in layer.masked_weights:
        keep.append(np.random.default_rng(1).random(weight.owner_map().shape) < 0.5)
        weight.prune(keep[-1])
    before = [weight.values() for weight in layer.masked_weights]
    compile_model(model, "sgd", run_eagerly=mode == "eager", jit_compile=mode == "jit")
    model.fit(inputs(shape, layer=layer), np.arange(8) % 2, epochs=2, verbose=0)
    for weight, mask, values in zip(layer.masked_weights, keep, before, strict=True):
        np.testing.assert_array_equal(weight.values()[~mask], values[~mask])
        assert (weight.values()[mask] != values[mask]).mean() > 0.5
        np.testing.assert_array_equal(ops.convert_to_numpy(weight.value())[~mask], 0)


@parametrize
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_low_and_stores_high(layer_class, arguments, shape, policy):
    layer = layer_class(**arguments, dtype=policy)
    out = layer(inputs(shape, layer=layer))
    assert keras.backend.standardize_dtype(out.dtype) == policy.removeprefix("mixed_")
    assert {v.dtype for v in layer.trainable_variables} == {"float32"}
    np.testing.assert_array_equal(out, plain_twin(layer)(inputs(shape, layer=layer)))


@parametrize
def test_saved_and_loaded_it_is_the_same_layer(layer_class, arguments, shape, tmp_path):
    model = keras.Sequential([keras.Input(shape), layer_class(**arguments)])
    for _ in range(2):
        lifecycle.task_layers(model)[0].begin_task("zero", seed=1)
        for weight in lifecycle.task_layers(model)[0].masked_weights:
            weight.prune(np.random.default_rng(2).random(weight.owner_map().shape) < 0.5)
        lifecycle.task_layers(model)[0].commit_task()
    lifecycle.task_layers(model)[0].begin_task("reinit", seed=2)  # a third task is open
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    ours, theirs = lifecycle.task_layers(model)[0], lifecycle.task_layers(again)[0]
    x = inputs(shape, layer=ours)
    for task in (3, 1, 2):
        ours.select_task(task), theirs.select_task(task)
        np.testing.assert_array_equal(model(x), again(x))
    for one, other in zip(ours.masked_weights, theirs.masked_weights, strict=True):
        np.testing.assert_array_equal(one.owner_map(), other.owner_map())


@parametrize
def test_gradients_of_other_weights_than_candidates_are_exactly_0(layer_class, arguments, shape):
    import tensorflow as tf

    layer = layer_class(**arguments)
    x = inputs(shape, layer=layer)
    layer(x)
    for weight in layer.masked_weights:
        weight.prune(np.random.default_rng(1).random(weight.owner_map().shape) < 0.3)
        # An optimizer may change entries that are not candidates: they are not read.
        weight.variable.assign(np.where(weight.owner_map() == 255, 0.5, np.inf))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        gradient = tape.gradient(loss, weight.variable.value).numpy()
        np.testing.assert_array_equal(gradient[weight.owner_map() != 255], 0)
        assert np.isfinite(loss)


def test_layers_answer_tfmots_prunable_interface():
    layer = MaskedDense(3)
    layer.build((None, 2))
    assert [v.path for v in layer.get_prunable_weights()] == [f"{layer.name}/kernel"]
    head = TaskHead(3)
    head.build((None, 2))
    assert head.get_prunable_weights() == []


def test_one_byte_a_weight_for_masks():
    layer = MaskedDense(10)
    layer.build((None, 20))
    masks = [v for v in layer.non_trainable_variables if v.dtype not in ("float32",)]
    assert sum(int(np.prod(v.shape)) for v in masks) == 200 + 3  # the map, and three scalars


class Own(TaskLayer, keras.layers.Layer):
    """A layer with three weights and state of its own, which it adds in all ways that Keras allows."""

    masked = ("first", "second", "third")
    per_task = ()
    first, second, third = Routed(), Routed(), Routed()

    def build(self, shape):
        self.first = self.add_weight((4, 3))
        self.second = self.add_weight((4, 3), "he_normal")
        self.third = self.add_weight((4, 3), initializer="ones", regularizer=keras.regularizers.L2(0.5))
        self.count = self.add_weight((), "zeros", trainable=False)
        super().build(shape)

    def call(self, x):
        return x @ (self.first + self.second + self.third)


def own() -> Own:
    layer = Own()
    assert layer.selected_task == 1
    assert layer.routed_weights == []
    layer.build((None, 4))
    return layer


def test_weights_start_again_from_the_initializers_that_were_given_to_add_weight():
    layer = own()
    layer.commit_task()
    for weight in layer.masked_weights:
        weight.owner.assign(np.zeros((4, 3)))
    layer.begin_task("reinit", seed=5)
    expected = [keras.initializers.GlorotUniform(5), keras.initializers.HeNormal(6), keras.initializers.Ones()]
    for weight, initializer in zip(layer.masked_weights, expected, strict=True):
        np.testing.assert_array_equal(weight.values(), initializer((4, 3)))
    assert not np.array_equal(keras.initializers.HeNormal(6)((4, 3)), keras.initializers.HeNormal(4)((4, 3)))


def test_weights_that_are_not_pruned_have_a_seed_of_their_own():
    head = TaskHead(3, bias_initializer="he_normal")
    head.build((None, 4))
    head.begin_task("zero", seed=5)
    head.commit_task()
    head.begin_task("zero", seed=5)
    kernel, bias = head.task_weights
    np.testing.assert_array_equal(kernel.variable, keras.initializers.GlorotUniform(5)((4, 3)))
    np.testing.assert_array_equal(bias.variable, keras.initializers.HeNormal(6)((3,)))


def test_state_of_no_task_is_saved_with_the_layer():
    layer, again, store = own(), own(), {}
    layer.count.assign(7)
    layer.save_own_variables(store)
    again.load_own_variables(store)
    assert float(again.count) == 7
    for name in [name for name in store if name.startswith("state.")]:
        del store[name]
    again.count.assign(3)
    again.load_own_variables(store)  # of another format, which saves it elsewhere
    assert float(again.count) == 3


def test_a_regularizer_gets_the_weights_that_the_task_computes_with():
    layer = own()
    (*_, third) = layer.masked_weights
    third.prune(np.arange(12).reshape(4, 3) < 5)
    third.variable.assign(np.full((4, 3), 2.0))
    assert [float(loss) for loss in layer.losses] == [5 * 2**2 * 0.5]
    layer.trainable = False
    assert layer.losses == []


def test_a_mixin_may_stand_between_the_bases_of_a_twin():
    class Plain(keras.layers.Layer):
        pass

    class Mixin:
        pass

    class Masked(TaskLayer, Mixin, Plain):
        pass

    assert twin("tests.layers")(Masked) is Masked
    assert TWINS.pop(Plain) is Masked


def test_unsupported_settings_are_refused():
    with pytest.raises(ArgumentError, match="`pretrained`: expected one of prunable, visible"):
        MaskedDense(3, pretrained="maybe")
    with pytest.raises(ArgumentError, match="`bias_policy`: expected one of first_task, per_task"):
        MaskedDense(3, bias_policy="never")
    with pytest.raises(ArgumentError, match="task-aware layers do not support LoRA. Received: lora_rank=2"):
        MaskedDense(3, lora_rank=2)
    layer = MaskedDense(3)
    layer.build((None, 2))
    with pytest.raises(NotImplementedError, match="do not support LoRA"):
        layer.enable_lora(2)
    with pytest.raises(NotImplementedError, match="export a task, then quantize"):
        layer.quantize("int8")


@pytest.mark.parametrize(("units", "use_bias", "shape"), [(1, True, (7,)), (8, True, (7,)), (9, True, (7,)),
    (3, False, (7,)), (3, True, (5, 7)), (9, False, (5, 7))])  # fmt: skip
def test_a_head_has_the_gradients_of_the_keras_layer(units, use_bias, shape):
    import tensorflow as tf

    x = np.random.default_rng(0).integers(-8, 9, (4, *shape)).astype("float32")  # whose sums are exact in any order
    outputs, gradients = [], []
    for layer in (TaskHead(units, use_bias=use_bias), keras.layers.Dense(units, use_bias=use_bias)):
        layer.build(x.shape)
        layer.set_weights([np.ones(w.shape, w.dtype) if w.dtype == "float32" else w.numpy() for w in layer.weights])
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(y**2)
        outputs.append(y)
        gradients.append(tape.gradient(loss, layer.trainable_variables))
    np.testing.assert_array_equal(*outputs)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)


class TestHeadsOfManySizes:
    def test_use_takes_the_same_weights_for_the_same_outputs(self):
        head = TaskHead(2)
        head.build((None, 4))
        seen = []
        for change in [(2,), (2, "linear"), (2, "softmax"), (3, "softmax"), (3,), (2,)]:
            head.use(*change)
            seen.append((head.units, head.activation.__name__, head.slots[head.num_outputs]))
        assert [each[:2] for each in seen] == [
            *((2, "linear"), (2, "linear"), (2, "softmax")),
            *((3, "softmax"), (3, "linear"), (2, "linear")),
        ]
        slots = [slot for _, _, slot in seen]
        assert slots[0] is slots[1] is slots[2] is slots[5]
        assert slots[3] is slots[4] is not slots[0]
        assert [tuple(v.shape) for v in head.trainable_variables] == [(4, 2), (2,)]

    def test_task_1_needs_no_beginning(self):
        head = TaskHead(2)
        head.build((None, 4))
        head.commit_task()
        for units in (5, 3):
            head.use(units)
            head.begin_task("zero", seed=1)
            head.commit_task()
        assert [head.outputs_of(task) for task in (1, 2, 3)] == [2, 5, 3]
        head.use_task(1)
        assert [head.outputs_of(task) for task in (1, 2, 3)] == [2, 5, 3]

    def test_each_task_keeps_its_activation(self, tmp_path):
        layer = TaskHead(3, activation="relu")
        model = keras.Sequential([keras.Input((4,)), layer])
        activations = [None, "softmax", "linear", None]
        for task, activation in enumerate(activations, start=1):
            layer.use(3, activation)
            layer.begin_task("zero", seed=task)
            layer.commit_task()
        layer.use_task(2)
        config = layer.get_config()
        assert (config["units"], config["activation"]) == (3, "relu")
        model.save(tmp_path / "heads.keras")
        for head in (layer, keras.models.load_model(tmp_path / "heads.keras").layers[0]):
            assert [head.activation_of(task) for task in (1, 2, 3, 4)] == activations
            for task, name in enumerate(activations, start=1):
                head.use_task(task)
                assert head.activation is keras.activations.get(name or "relu")

    def test_files_with_other_sizes_are_refused(self):
        _, layer = self.head()
        store = {}
        layer.save_own_variables(store)
        (name,) = [name for name in store if "5" in name and store[name].shape == (4, 5) and "variable" in name]
        store[name] = np.zeros((4, 6), "float32")
        again = TaskHead(2)
        again.build((None, 4))
        with pytest.raises(ValueError, match="size|shape"):
            again.load_own_variables(store)

    def test_the_config_has_the_units_of_the_last_task(self):
        _, layer = self.head()
        for task in (1, 2, 3, 4):
            layer.use_task(task)
            assert layer.get_config()["units"] == 3
        assert "bias_policy" not in layer.get_config()

    def head(self):
        layer = TaskHead(2)
        model = keras.Sequential([keras.Input((4,)), layer])
        for task, units in enumerate([2, 5, 2, 3], start=1):
            layer.use(units)
            layer.begin_task("zero", seed=task)
            layer.commit_task()
        return model, layer

    def test_each_task_keeps_its_own(self):
        model, layer = self.head()
        outputs = {}
        x = inputs((4,))
        for task in (1, 2, 3, 4):
            layer.use_task(task)
            layer.select_task(task)
            outputs[task] = np.array(model(x))
        assert [outputs[task].shape[1] for task in (1, 2, 3, 4)] == [2, 5, 2, 3]
        assert not np.array_equal(outputs[1], outputs[3])

    def test_they_survive_saving(self, tmp_path):
        model, layer = self.head()
        model.save(tmp_path / "heads.keras")
        again = keras.models.load_model(tmp_path / "heads.keras")
        x = inputs((4,))
        for task in (1, 2, 3, 4):
            for one in (layer, again.layers[0]):
                one.use_task(task)
                one.select_task(task)
            np.testing.assert_array_equal(model(x), again(x))

    def test_only_the_one_in_use_is_trainable(self):
        _, layer = self.head()
        assert [tuple(v.shape) for v in layer.trainable_variables] == [(4, 3), (3,)]
