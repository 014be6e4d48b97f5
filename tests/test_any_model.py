"""Many kinds of models can be packed, trained, saved, loaded and exported; committed tasks stay bit-identical."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import lifecycle
from tf_packnet.structure.layer_paths import layers_by_path

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """A typical transformer block: layers in attributes, in a list, and in an inner Sequential."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.attention = L.MultiHeadAttention(2, width // 2)
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]
        self.mlp = keras.Sequential([L.Dense(2 * width, activation="gelu"), L.Dense(width)])
        self.drop = L.Dropout(0.1)

    def build(self, shape):
        self.attention.build(shape, shape)
        for norm in self.norms:
            norm.build(shape)
        self.mlp.build(shape)
        self.built = True

    def call(self, x, training=None):
        y = self.norms[0](x)
        x = x + self.attention(y, y)
        return x + self.drop(self.mlp(self.norms[1](x)), training=training)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A subclassed model: layers in a list and a dict, a softmax after the head."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.blocks = [L.Dense(width, activation="relu") for _ in range(2)]
        self.parts = {"norm": L.BatchNormalization()}
        self.classifier = L.Dense(2)
        self.softmax = L.Softmax()

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x)
        return self.softmax(self.classifier(self.parts["norm"](x, training=training)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def vision_transformer():
    image = keras.Input((8, 8, 1))
    patches = L.Reshape((4, 8))(L.Conv2D(8, 4, 4, name="conv2d")(image))
    x = Block(8, name="block_1")(Block(8, name="block")(patches))
    return keras.Model(image, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


def text(*layers):
    def make():
        words = keras.Input((6,), dtype="int32")
        x = L.Embedding(20, 6)(words)
        for layer in layers:
            x = type(layer).from_config(layer.get_config())(x)
        return keras.Model(words, L.Dense(2)(x))

    return make


MODELS = {
    "subclassed": subclassed,
    "vision transformer": vision_transformer,
    "recurrent": text(
        L.LSTM(4, return_sequences=True, name="lstm"), L.GRU(4, return_sequences=True, name="gru"), L.SimpleRNN(4)
    ),
    "wrapped": text(
        L.Bidirectional(L.GRU(3, return_sequences=True), name="bidirectional"),
        L.TimeDistributed(L.Dense(4), name="time_distributed"),
        L.Flatten(),
    ),
    "cells": text(L.RNN([L.LSTMCell(4), L.GRUCell(3)], name="rnn"), L.PReLU()),
}
# Within what the export answers alike, and what XLA compiles: it takes most of the time of a test.
HOW = {"vision transformer": (0.05, False), "subclassed": (1e-5, "auto")}
KERNELS = {
    "subclassed": {"subclassed/blocks_0/kernel", "subclassed/blocks_1/kernel"},
    "recurrent": {"lstm/cell/kernel", "lstm/cell/recurrent_kernel", "gru/cell/kernel"},
    "wrapped": {"bidirectional/forward_layer/cell/kernel", "time_distributed/layer/kernel"},
    "cells": {"rnn/cell/cells_0/kernel", "rnn/cell/cells_1/recurrent_kernel"},
    "vision transformer": {"block/attention/query_dense/kernel", "block_1/mlp/dense_0/kernel", "conv2d/kernel"},
}


def examples(model, seed, number=32):
    rng = np.random.default_rng(seed)
    shape, kind = model.inputs[0].shape[1:], model.inputs[0].dtype
    x = rng.integers(0, 20, (number, *shape)) if kind == "int32" else rng.normal(size=(number, *shape))
    return x.astype(kind), rng.integers(0, 2, number)


def learn(packed, name, data, loss=None, jit=False, **begin):
    packed.begin_task(name, **begin)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    averaged = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 1}
    packed.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1, **averaged), loss, jit_compile=jit)
    retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(*data, epochs=1, verbose=0, callbacks=retraining)


def assert_keeps_two_tasks_exactly(packed, folder, rtol=1e-5, jit=False):
    """Learn two tasks with saving and loading in between: the first does not change by a bit. Export both."""
    probe, seen = examples(packed, 9)[0], {}
    for number, name in enumerate(["first", "second"], start=1):
        learn(packed, name, examples(packed, number), jit=jit)
        seen[name] = packed.predict(probe, verbose=0)
        packed.save(folder / "pack.keras")
        maps = packed.owner_maps()
        policy = keras.config.dtype_policy()
        keras.utils.clear_session()  # as in a new process, which numbers its layers from the start
        keras.config.set_dtype_policy(policy)
        packed = keras.models.load_model(folder / "pack.keras", safe_mode=True)
        for path, owner in packed.owner_maps().items():
            np.testing.assert_array_equal(owner, maps[path])
    for name, then in seen.items():
        packed.select_task(name)
        np.testing.assert_array_equal(packed.predict(probe, verbose=0), then)
        plain = tp.export.dense_model(packed, name)
        assert not [
            layer for layer in layers_by_path(plain).values() if type(layer).__module__.startswith("tf_packnet")
        ]
        np.testing.assert_allclose(plain.predict(probe, verbose=0), then, rtol=rtol, atol=1e-6)
    assert not np.array_equal(seen["first"], seen["second"])
    assert set(map(int, np.unique(np.concatenate([m.ravel() for m in maps.values()])))) == {0, 1, 2}


SLOW = ("cells", "recurrent", "vision transformer", "wrapped")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_any_model_keeps_two_tasks_exactly(name, tmp_path):
    keras.utils.clear_session()
    if name == "vision transformer":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = MODELS[name]()
    packed = tp.pack(model, bias_policy="per_task")
    probe = examples(packed, 9)[0]
    np.testing.assert_array_equal(packed.predict(probe, verbose=0), model.predict(probe, verbose=0))
    assert KERNELS[name] <= set(packed.owner_maps())
    assert len(lifecycle.heads(packed)) == 1
    assert_keeps_two_tasks_exactly(packed, tmp_path, *HOW.get(name, (1e-5, False)))


def pack_application(name, policy, folder):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(input_shape=(32, 32, 3), weights=None, classes=2)
    assert_keeps_two_tasks_exactly(tp.pack(model, bias_policy=policy), Path(folder), rtol=1e-4, jit="auto")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["first_task", "per_task"])
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "EfficientNetV2B0"])
def test_keras_applications(name, policy, tmp_path):
    """In a process of its own: what XLA compiles for it takes 2 GB and more, until the process ends."""
    code = f"from tests.test_any_model import pack_application as f; f({name!r}, {policy!r}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def two_outputs():
    one, other = keras.Input((6,), name="one"), keras.Input((6,), name="other")
    features = L.Dense(8, activation="relu", name="trunk")(L.concatenate([one, other]))
    outputs = {"kind": L.Dense(3, name="kind")(features), "size": L.Dense(1, name="size")(features)}
    return keras.Model({"one": one, "other": other}, outputs)


def test_several_inputs_and_outputs(tmp_path):
    packed = tp.pack(two_outputs())
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(32, 6)).astype("float32") for name in ("one", "other")}
    loss = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}

    def y(classes):
        return {"kind": rng.integers(0, classes, 32), "size": rng.normal(size=(32, 1)).astype("float32")}

    learn(packed, "first", (x, y(3)), loss)
    first = packed.predict(x, verbose=0)
    learn(packed, "second", (x, y(5)), loss, num_classes={"kind": 5})
    assert {name: out.shape[1] for name, out in packed.predict(x, verbose=0).items()} == {"kind": 5, "size": 1}
    packed.save(tmp_path / "pack.keras")
    packed = keras.models.load_model(tmp_path / "pack.keras")
    packed.select_task("first")
    for name, then in first.items():
        np.testing.assert_array_equal(packed.predict(x, verbose=0)[name], then)
    with pytest.raises(
        tp.ArgumentError,
        match="expected the names of heads as keys, among 'kind', 'size'. Received:.*'age'",
    ):
        packed.begin_task("third", num_classes={"age": 2})


def test_a_regression_beside_a_classification(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.Dense(12, activation="relu"), L.Dense(2, activation="softmax")])
    packed = tp.pack(model)
    x, y = blobs(1)
    learn(packed, "kind", (x, y), keras.losses.SparseCategoricalCrossentropy())
    kind = packed.predict(x, verbose=0)
    np.testing.assert_allclose(kind.sum(axis=1), 1, rtol=1e-5)
    learn(packed, "size", (x, x[:, :1]), "mse", num_classes=1, activation="linear")
    size = packed.predict(x, verbose=0)
    assert size.shape == (64, 1)
    assert len(np.unique(size)) > 2  # a softmax over one unit would be 1 everywhere
    packed.save(tmp_path / "pack.keras")
    packed = keras.models.load_model(tmp_path / "pack.keras")
    for name, then in {"size": size, "kind": kind}.items():
        packed.select_task(name)
        np.testing.assert_array_equal(packed.predict(x, verbose=0), then)
        plain = tp.export.dense_model(packed, name)
        np.testing.assert_allclose(plain.predict(x, verbose=0), then, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "at least 1. Received: num_classes=0"),
        ({"num_classes": 2.5}, "a whole number, at least 1. Received: num_classes=2.5"),
        ({"activation": "swoosh"}, "the name of a Keras activation. Received: activation='swoosh'"),
    ],
)
def test_invalid_heads_are_refused(arguments, message):
    packed = tp.pack(make_mlp())
    with pytest.raises(tp.ArgumentError, match=message):
        packed.begin_task(**arguments)
    assert packed.task_names == []
    packed.begin_task("first")  # the failed call has changed nothing


class TestExclude:
    def test_excluded_layers_are_unchanged(self, tmp_path):
        packed = tp.pack(vision_transformer(), exclude=["block", "block_1/attention/query_dense"])
        excluded = [layers_by_path(packed)[place] for place in ("block", "block_1/attention/query_dense")]
        before = [value for layer in excluded for value in layer.get_weights()]
        assert not [path for path in packed.owner_maps() if path.startswith("block/") or "query" in path]
        assert_keeps_two_tasks_exactly(packed, tmp_path)
        for now, then in zip([v for layer in excluded for v in layer.get_weights()], before, strict=True):
            np.testing.assert_array_equal(now, then)

    def test_unknown_names_are_refused(self):
        with pytest.raises(tp.ArgumentError, match="among 'conv2d', .*Received: exclude='conv'"):
            tp.pack(vision_transformer(), exclude=["conv"])
        with pytest.raises(tp.ArgumentError, match=r"such as \['conv'\]"):
            tp.pack(vision_transformer(), exclude="conv")


def test_every_argument_survives_a_config_and_a_file(tmp_path):
    arguments = {"bias_policy": "per_task", "freed_weights": "reinit", "seed": 5, "pretrained": "task 0"}
    packed = tp.pack(vision_transformer(), exclude=["block"], prune_pretrained=False, **arguments)
    packed.begin_task("first")
    packed.save(tmp_path / "pack.keras")
    loaded = keras.models.load_model(tmp_path / "pack.keras")

    def as_json(model):  # JSON has no tuples
        return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))["config"]

    for again in (tp.PackedModel.from_config(packed.get_config()), loaded):
        assert as_json(again) == as_json(packed)
        assert again.roles == packed.roles
    assert (loaded.freed_weights, loaded.seed, loaded.task_names) == ("reinit", 5, ["first"])
    assert loaded.roles.pretrained == "visible"
    assert {weight.pretrained for weight in lifecycle.masked_weights(loaded).values()} == {"visible"}


class TestPretrained:
    def packed(self, **kwargs):
        model = make_mlp()
        return compile_model(tp.pack(model, pretrained="task 0", **kwargs), "adam"), model

    def retraining(self, packed, seed):
        packed.begin_task()
        retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(*blobs(seed), epochs=3, verbose=0, callbacks=retraining)

    def test_every_task_starts_its_free_weights_from_them(self):
        packed, model = self.packed()
        self.retraining(packed, 1)
        packed.begin_task()
        kernel, owner = packed.get_layer("dense_1").kernel, packed.owner_maps()["dense_1/kernel"]
        np.testing.assert_array_equal(kernel[owner == 0], model.get_layer("dense_1").kernel.numpy()[owner == 0])

    def test_what_a_task_prunes_is_0_for_it(self):
        packed, _ = self.packed()
        self.retraining(packed, 1)
        owner = packed.owner_maps()["dense_1/kernel"]
        assert (np.array(packed.get_layer("dense_1").kernel)[owner == 0] == 0).all()

    def test_or_goes_back_to_the_pretrained_value(self, tmp_path):
        packed, model = self.packed(prune_pretrained=False)
        pretrained = model.get_layer("dense_1").kernel.numpy()
        kernels = {}
        for number in (1, 2):
            self.retraining(packed, number)
            kernels[number] = np.array(packed.get_layer("dense_1").kernel)
            owner = packed.owner_maps()["dense_1/kernel"]
            np.testing.assert_array_equal(kernels[number][owner == 0], pretrained[owner == 0])
            mine = owner == number
            assert (kernels[number][mine] != pretrained[mine]).any()
        packed.save(tmp_path / "pack.keras")
        packed = keras.models.load_model(tmp_path / "pack.keras")
        for number, then in kernels.items():  # task 1 still sees the pretrained values where task 2 owns weights
            packed.select_task(number)
            np.testing.assert_array_equal(packed.get_layer("dense_1").kernel, then)
            plain = tp.export.dense_model(packed, number)
            np.testing.assert_array_equal(plain.get_layer("dense_1").kernel, then)
        packed.begin_task()
        self_first = packed.get_layer("dense_1")
        np.testing.assert_array_equal(np.array(self_first.kernel)[owner == 0], pretrained[owner == 0])

    def test_a_task_keeps_what_it_moved_furthest(self):
        packed, model = self.packed(prune_pretrained=False)
        packed.begin_task()
        weight = lifecycle.masked_weights(packed)["dense_1/kernel"]
        moved = np.random.default_rng(0).normal(size=(6, 12)).astype("float32")
        weight.variable.assign(weight.base + moved)
        scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 1, epochs=1))
        scheduler.set_model(packed)
        scheduler.set_params({"epochs": 1})
        scheduler.on_train_begin()
        scheduler.on_epoch_begin(0)
        kept = weight.owner_map() == 255
        assert kept.sum() == 36
        distance = np.abs(weight.values() - model.get_layer("dense_1").kernel.numpy())
        assert distance[kept].min() >= distance[~kept].max()

    def test_only_task_0(self):
        with pytest.raises(tp.ArgumentError, match="None or 'task 0'. Received: pretrained='imagenet'"):
            tp.pack(make_mlp(), pretrained="imagenet")


@keras.saving.register_keras_serializable("tests")
class Scale(L.Layer):
    """A layer with its own weights, like ConvNeXt's LayerScale."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x):
        return x * self.gamma


@keras.saving.register_keras_serializable("tests")
class TaskScale(tp.layers.TaskLayer, Scale):
    masked = ()
    per_task = ("gamma",)
    gamma = tp.layers.Routed()


def scaled():
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(2)(Scale(name="scale")(L.Dense(8, activation="relu")(inputs))))


@keras.saving.register_keras_serializable("tests")
class Gated(L.Layer):
    """A layer with several kernels, and no attributes with their initializers."""

    def build(self, shape):
        size = (shape[-1], 4)
        self.kernel = self.add_weight(shape=size, name="kernel")
        self.gate = self.add_weight(size, lambda shape, dtype: keras.ops.full(shape, 7, dtype), name="gate")
        self.scale = self.add_weight(shape=size, initializer=keras.initializers.Constant(3), name="scale")
        self.bias = self.add_weight(shape=(4,), name="bias")

    def call(self, x):
        return (x @ self.kernel + self.bias) * (x @ self.gate) * (x @ self.scale)


class TestCustomLayer:
    def test_is_packed_with_a_twin(self, tmp_path, monkeypatch):
        monkeypatch.setitem(tp.layers.TWINS, Scale, TaskScale)
        packed = tp.pack(scaled(), bias_policy="per_task")
        assert type(packed.get_layer("scale")) is TaskScale
        assert_keeps_two_tasks_exactly(packed, tmp_path)

    @pytest.fixture
    def forgotten_twins(self, monkeypatch):
        """Forget the twins that a test defines."""
        for plain in (Scale, Gated):
            monkeypatch.setitem(tp.layers.TWINS, plain, None)

    def test_freed_weights_are_drawn_from_the_initializers_of_add_weight(self, forgotten_twins):
        @tp.layers.twin("tests")
        class MaskedGated(tp.layers.TaskLayer, Gated):
            masked = ("kernel", "gate", "scale")
            kernel, gate, scale, bias = (tp.layers.Routed() for _ in range(4))

        packed = tp.pack(keras.Sequential([keras.Input((6,)), Gated(), L.Dense(2)]), freed_weights="reinit")
        layer = packed.get_layer("gated")
        for name in ("first", "second"):
            packed.begin_task(name)
            weights = {weight.name: weight for weight in layer.masked_weights}
            np.testing.assert_array_equal(weights["gate"].values(), 7)
            np.testing.assert_array_equal(weights["scale"].values(), 3)
            assert len(np.unique(weights["kernel"].values())) == 24  # Keras's default, glorot_uniform
            for weight in weights.values():
                weight.variable.assign(weight.variable + 1)
                weight.prune(np.zeros(weight.variable.shape, bool))
            packed.commit_task()

    @pytest.mark.parametrize("masked", [("kernel",), ("kernel", "gats", "scale"), ("kernel", "gate", "scale")])
    def test_is_refused_if_its_twin_leaves_out_a_weight(self, forgotten_twins, masked):
        routed = {name: tp.layers.Routed() for name in (*masked, "bias") if name != "gate"}
        tp.layers.twin("tests")(type("Leaky", (tp.layers.TaskLayer, Gated), {"masked": masked, **routed}))
        with pytest.raises(tp.ArgumentError, match=r"`masked`: .* of Leaky, .* \((gate, scale|gate) would belong"):
            tp.pack(keras.Sequential([keras.Input((6,)), Gated(), L.Dense(2)]))

    @pytest.mark.parametrize(
        "bases",
        [
            (Scale, tp.layers.TaskLayer),
            (Scale,),
            (tp.layers.TaskLayer,),
            (tp.layers.TaskLayer, type("NoLayer", (), {})),
            (type("Mixin", (tp.layers.TaskLayer,), {}), tp.layers.MaskedDense),
        ],
    )
    def test_a_twin_with_other_bases_is_refused(self, forgotten_twins, bases):
        with pytest.raises(tp.ArgumentError, match=r"expected class Odd\(TaskLayer, MyLayer\), with the Keras layer"):
            tp.layers.twin("tests")(type("Odd", bases, {}))


class TestWhatCannotBePacked:
    def test_a_subclassed_model_that_was_never_called(self):
        with pytest.raises(tp.ArgumentError, match="that was called"):
            tp.pack(Subclassed())

    def test_inputs_say_what_it_is_called_with(self):
        packed = tp.pack(Subclassed(), inputs=keras.Input((6,)))
        assert packed.output_shape == (None, 2)
        with pytest.raises(tp.ArgumentError, match="inputs with which model 'subclassed.*' can be called"):
            tp.pack(Subclassed(name="subclassed"), inputs=[keras.Input((6,)), keras.Input((6,))])

    def test_a_head_that_cannot_be_found_is_named_by_hand(self):
        inputs = keras.Input((6,))
        a, b = L.Dense(4, name="a")(inputs), L.Dense(4, name="b")(inputs)
        model = keras.Model(inputs, L.Add()([a, b]))
        with pytest.raises(tp.ArgumentError, match=r"head_layers=\[...\].* comes from a Add"):
            tp.pack(model)
        packed = tp.pack(model, head_layers=["b"])
        assert list(lifecycle.heads(packed)) == ["b"]
        with pytest.raises(tp.ArgumentError, match="`head_layers`: expected layers with trainable w.*'add.*' is a Add"):
            tp.pack(model, head_layers=[model.layers[-1].name])

    def test_a_pack(self):
        with pytest.raises(tp.ArgumentError, match="not packed yet"):
            tp.pack(tp.pack(make_mlp()))

    def test_a_layer_that_is_held_out_of_reach(self):
        class Closure(L.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                hidden = L.Dense(3)
                self._layers.append(hidden)
                self.function = lambda x: hidden(x)

            def call(self, x):
                return self.function(x)

        inputs = keras.Input((6,))
        model = keras.Model(inputs, L.Dense(2)(Closure(name="closure")(inputs)))
        with pytest.raises(tp.ArgumentError, match="'closure' is a Closure that holds 'dense.*' .*outside its"):
            tp.pack(model)

    def test_a_layer_without_a_config(self):
        class Odd(L.Layer):
            def __init__(self, width):
                super().__init__()

            def call(self, x):
                return x

        inputs = keras.Input((6,))
        model = keras.Model(inputs, L.Dense(2)(Odd(3)(L.Dense(4)(inputs))))
        with pytest.raises(tp.ArgumentError, match="is a Odd that cannot be created .*: Odd.__init__ must pass"):
            tp.pack(model)


def test_a_block_of_a_class_that_keras_does_not_know_within_a_model_within_a_model():
    class Local(Block):
        pass

    trunk = keras.Sequential([keras.Input((4, 8)), Local(8)], name="trunk")
    inputs = keras.Input((4, 8))
    x = keras.ops.mean(keras.ops.where(inputs > 0, trunk(inputs), 0.0), axis=1)
    packed = tp.pack(keras.Model(inputs, L.Dense(2)(x)))
    assert "trunk/local/attention/query_dense/kernel" in packed.owner_maps()


class Nameless(keras.Model):
    def __init__(self, **options):  # Keras looks for `**kwargs`
        super().__init__(**options)
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_a_model_that_loses_its_name():
    with pytest.raises(tp.ArgumentError, match="is a Nameless whose get_config\\(\\) has no name"):
        tp.pack(Nameless(), inputs=keras.Input((6,)))


def test_a_lambda_and_a_sequential_that_was_built_by_a_call():
    model = keras.Sequential([L.Dense(8), L.Lambda(lambda x: x * 2), L.Dense(2)])
    x = blobs(0)[0]
    then = model.predict(x, verbose=0)
    packed = tp.pack(model)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), then)
    packed.begin_task()
    packed.commit_task()
    np.testing.assert_allclose(tp.export.dense_model(packed, 1).predict(x, verbose=0), then, rtol=1e-5)


def test_adapted_layers_keep_their_state(tmp_path):
    """Normalization and TextVectorization have state besides their variables."""
    normalize = L.Normalization()
    normalize.adapt(np.random.default_rng(0).normal(5, 3, (100, 6)))
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(L.Dense(8, activation="relu")(normalize(inputs))))
    packed = tp.pack(model)
    x = blobs(0)[0]
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    assert_keeps_two_tasks_exactly(packed, tmp_path)

    words = L.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat", "the dog ran"])
    text = keras.Input((), dtype="string")
    embedded = L.GlobalAveragePooling1D()(L.Embedding(10, 4)(words(text)))
    model = keras.Model(text, L.Dense(2)(embedded))
    x = np.array(["the cat", "a dog ran"], dtype=object)
    packed = tp.pack(model)
    np.testing.assert_array_equal(packed(keras.ops.convert_to_tensor(x)), model(keras.ops.convert_to_tensor(x)))


def test_packing_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.pack(subclassed())
