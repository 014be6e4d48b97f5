"""An activation layer after a head becomes the activation of the head."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import make_mlp
from tests.packs import L, assert_packs, commit, graph, hidden, outputs, register
from tf_packnet import lifecycle
from tf_packnet.structure.output_values import returns_probabilities


def two_heads(*, separate):
    inputs = keras.Input((6,))
    x = hidden(name="body")(inputs)
    kind = L.Activation("softmax", name="kind_softmax")(L.Dense(3, name="kind")(x))
    size = L.Dense(1, name="size")(x)
    size = L.LeakyReLU(name="size_leaky")(size) if separate else L.Dropout(0.5, name="size_drop")(size)
    return keras.Model(inputs, {"kind": kind, "size": size}, name="model")


class TestAnActivationAfterTheHead:
    @pytest.mark.parametrize(
        ("make", "taken"),
        [
            (lambda: L.Activation("softmax", name="act"), "softmax"),
            (lambda: L.Activation("sigmoid", name="act"), "sigmoid"),
            (lambda: L.Softmax(name="act"), "softmax"),
            (lambda: L.ReLU(name="act"), "relu"),
        ],
    )
    def test_is_the_activation_of_the_head(self, make, taken, tmp_path):
        begins = {}, {"num_classes": 1, "activation": "linear"}, {"num_classes": 4}
        packed = assert_packs(sequential(make()), tmp_path, *begins)
        head = lifecycle.heads(packed)["head"]
        assert head.own_activation is keras.activations.get(taken)
        assert [layer.name for layer in packed.layers][-2:] == ["head", "act"]
        packed.select_task(2)
        assert outputs(packed)[0].shape == (5, 1)
        assert outputs(packed)[0].min() < 0  # neither a softmax nor a relu
        plain = tp.load_task(tmp_path / "pack.packnet", 2)
        np.testing.assert_allclose(outputs(plain)[0], outputs(packed)[0], rtol=1e-5, atol=1e-6)

    def test_is_known_to_give_probabilities(self):
        packed = tp.pack(sequential(L.Activation("sigmoid")))
        commit(packed, 1)
        commit(packed, 2, activation="linear")
        found = [returns_probabilities(tp.export.dense_model(packed, task)) for task in (1, 2)]
        assert found == [True, False]

    def test_in_a_model_within_a_model(self, tmp_path):
        inner = graph(L.Dense(2, name="head"), L.Softmax(name="act"), name="top")
        inputs = keras.Input((6,))
        model = keras.Model(inputs, inner(hidden(name="body")(inputs)), name="model")
        packed = assert_packs(model, tmp_path, {}, {"num_classes": 1, "activation": "sigmoid"})
        assert lifecycle.heads(packed)["top/head"].own_activation is keras.activations.softmax

    def test_of_several_heads(self, tmp_path):
        begins = [{}, {"num_classes": {"kind": 1}, "activation": {"kind": "linear", "size": "relu"}}]
        packed = assert_packs(two_heads(separate=False), tmp_path, *begins)
        assert [head.activation_of(2) for head in lifecycle.heads(packed).values()] == ["linear", "relu"]

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: L.LeakyReLU(name="act"), r"'act' \(a LeakyReLU\)"),
            (lambda: L.ReLU(6.0, name="act"), r"'act' \(a ReLU\)"),
            (lambda: L.Activation("softmax", dtype="float64", name="act"), r"'act' \(a Activation\)"),
            (lambda: L.Softmax(axis=0, name="act"), r"'act' \(a Softmax\)"),
            (lambda: keras.Sequential([keras.Input((2,)), L.Softmax()], name="act"), r"'act' \(a Sequential\)"),
        ],
    )
    def test_that_no_head_can_take_is_named(self, make, name, tmp_path):
        packed = tp.pack(sequential(make()), head_layers=["head"])
        commit(packed, 1)
        before = lifecycle.state(packed)
        with pytest.raises(
            tp.ArgumentError, match=f"`activation`: expected None for head 'head': layer {name} after it"
        ):
            packed.begin_task("second", activation="linear")
        assert packed.task_names == ["task 1"]
        assert set(lifecycle.state(packed)) == set(before)
        packed.begin_task("second")

    def test_of_a_subclassed_model_is_named(self):
        from tests.test_any_model import subclassed

        packed = tp.pack(subclassed())
        with pytest.raises(tp.ArgumentError, match="layer 'softmax.*' .a Softmax. after it"):
            packed.begin_task(activation="linear")
        with pytest.raises(tp.ArgumentError, match="`num_classes`: expected at least 2 .*always 1"):
            packed.begin_task(num_classes=1)
        packed.begin_task(num_classes=3)

    def test_after_which_another_output_takes_the_logits_stays(self, tmp_path):
        inputs = keras.Input((6,))
        logits = L.Dense(2, name="head")(hidden(name="body")(inputs))
        model = keras.Model(inputs, [logits, L.Softmax(name="act")(logits)], name="model")
        packed = assert_packs(model, tmp_path)
        assert lifecycle.heads(packed)["head"].own_activation is keras.activations.linear
        with pytest.raises(tp.ArgumentError, match="'act' .a Softmax. after it"):
            packed.begin_task(activation="linear")

    def test_of_one_of_several_heads_is_named(self):
        packed = tp.pack(two_heads(separate=True))
        with pytest.raises(tp.ArgumentError, match="head 'size': layer 'size_leaky' .a LeakyReLU. after it"):
            packed.begin_task(activation="relu")
        packed.begin_task(activation={"kind": "linear"})

    @pytest.mark.parametrize("activation", [None, "softmax", "log_softmax"])
    def test_a_softmax_of_one_output_is_refused(self, activation):
        packed = tp.pack(sequential(L.Softmax(name="act")))
        with pytest.raises(tp.ArgumentError, match="at least 2 for head 'head', or .*: its softmax of one output is"):
            packed.begin_task(num_classes=1, activation=activation)

    def test_a_head_that_code_calls_which_cannot_be_followed(self):
        @register
        class Opaque(L.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.classifier = L.Dense(2)

            def build(self, shape):
                self.classifier.build(shape)

            def call(self, x):
                return tf.nn.softmax(self.classifier(x))

        inputs = keras.Input((6,))
        model = keras.Model(inputs, Opaque(name="top")(hidden()(inputs)), name="model")
        packed = tp.pack(model, head_layers=["top/classifier"])
        with pytest.raises(tp.ArgumentError, match="operations after it are unknown"):
            packed.begin_task(activation="linear")
        packed.begin_task()


def sequential(last):
    return keras.Sequential([keras.Input((6,)), hidden(name="body"), L.Dense(2, name="head"), last], name="model")


@pytest.mark.parametrize("activation", [lambda x: x, 3, object()])
def test_an_activation_that_no_file_can_name_is_refused(activation):
    packed = tp.pack(make_mlp())
    with pytest.raises(tp.ArgumentError, match="the name of a Keras activation"):
        packed.begin_task(activation=activation)
