"""Heads of any kind: convolutions, EinsumDense, users' layers, layers with layers inside."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tf_packnet import lifecycle

L = keras.layers
own = keras.saving.register_keras_serializable("test_head_kinds")


@own
class Doubled(L.Dense):
    """A subclass with an attribute that depends on the number of outputs."""

    def build(self, shape):
        super().build(shape)
        self.factor = 1 / self.units

    def call(self, x):
        return super().call(x) * self.factor


@own
class Experts(L.Layer):
    """Weights in a list, and a number of outputs in the config."""

    def __init__(self, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def build(self, shape):
        self.kernels = [self.add_weight(shape=(shape[-1], self.num_classes), name=f"w{i}") for i in range(2)]

    def call(self, x):
        return x @ self.kernels[0] + keras.ops.tanh(x @ self.kernels[1])

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@own
class Prototypes(L.Layer):
    """A fixed number of outputs, in no config."""

    def build(self, shape):
        self.points = self.add_weight(shape=(shape[-1], 3), initializer="random_normal", name="points")
        self.shift = self.add_weight(shape=(3,), initializer="ones", name="shift")

    def call(self, x):
        return x @ self.points + self.shift


@own
class Block(L.Layer):
    """Layers with weights, normalization and state, and a weight of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = L.Dense(4, "relu")
        self.norm = L.BatchNormalization()
        self.out = L.Dense(units)

    def build(self, shape):
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")
        self.hidden.build(shape)
        self.norm.build((None, 4))
        self.out.build((None, 4))

    def call(self, x, training=None):
        return self.out(self.norm(self.hidden(x), training=training) * self.gain)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@own
class Segmenter(keras.Model):
    """Code that is no graph of Keras layers goes on after the head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = L.Conv2D(4, 3, padding="same", activation="relu")
        self.head = L.Conv2D(3, 1)
        self.resize = L.UpSampling2D(2, interpolation="bilinear")

    def call(self, x):
        return self.resize(self.head(self.body(x)))


def after_body(*layers, rank=0):
    inputs = keras.Input((4,) * rank + (6,))
    x = L.Dense(5, "tanh", name="body")(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="model")


def segmenter():
    model = Segmenter(name="segmenter")
    model(np.zeros((1, 4, 4, 6), "float32"))
    return model


# Model, arguments of `pack`, names of the heads that may have another number of outputs.
KINDS = {
    "Conv1D": (lambda: after_body(L.Conv1D(3, 2, name="head"), rank=1), {}, ["head"]),
    "Conv2D": (lambda: after_body(L.Conv2D(3, 1, name="head"), L.UpSampling2D(2), L.Softmax(), rank=2), {}, ["head"]),
    "Conv3D": (lambda: after_body(L.Conv3D(3, 2, name="head"), rank=3), {}, ["head"]),
    "Conv1DTranspose": (lambda: after_body(L.Conv1DTranspose(3, 2, name="head"), rank=1), {}, ["head"]),
    "Conv2DTranspose": (
        lambda: after_body(L.Conv2DTranspose(3, 2, 2, name="head"), L.Resizing(6, 6), rank=2),
        {},
        ["head"],
    ),
    "Conv3DTranspose": (lambda: after_body(L.Conv3DTranspose(3, 2, use_bias=False, name="head"), rank=3), {}, ["head"]),
    "EinsumDense": (
        lambda: after_body(L.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d", name="head"), rank=1),
        {},
        ["head"],
    ),
    "SeparableConv2D": (lambda: after_body(L.SeparableConv2D(3, 2, name="head"), rank=2), {}, ["head"]),
    "global pooling": (
        lambda: after_body(
            L.Conv2D(3, 1, activation="relu", name="head"), L.GlobalAveragePooling2D(), L.Activation("softmax"), rank=2
        ),
        {},
        ["head"],
    ),
    "subclass of Dense": (lambda: after_body(Doubled(3, name="head"), L.Softmax()), {}, ["head"]),
    "user's layer": (lambda: after_body(Experts(3, name="head")), {}, ["head"]),
    "fixed": (lambda: after_body(Prototypes(name="head")), {"head_layers": ["head"]}, []),
    "layers inside": (lambda: after_body(Block(3, name="block")), {"head_layers": ["block"]}, ["block/out"]),
    "Sequential": (
        lambda: after_body(keras.Sequential([keras.Input((5,)), L.Dense(4, "relu", name="one"), L.Dense(3, name="two")], name="top")),
        {"head_layers": ["top"]},
        ["top/two"],
    ),
    "subclassed model": (segmenter, {}, ["segmenter/head"]),
}


def learn(packed, x, name, outputs):
    packed.begin_task(name, **({} if outputs is None else {"num_classes": outputs}))
    probabilities = any(isinstance(layer, L.Softmax) for layer in packed.layers) or "softmax" in packed.layers[-1].name
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    packed.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), loss)
    shape = packed.predict(x, verbose=0).shape
    y = np.random.default_rng(shape[-1]).integers(0, shape[-1], shape[:-1])
    rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(x, y, epochs=2, verbose=0, callbacks=rounds)
    return packed.predict(x, verbose=0)


SLOW = {"Conv3D", "Conv1DTranspose", "Conv3DTranspose", "SeparableConv2D", "Sequential"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def test_tasks_of_other_sizes_stay_exact_with_a_reload_between_them(kind, tmp_path):
    make, arguments, resizable = KINDS[kind]
    model = make()
    packed = tp.pack(model, **arguments)
    x = np.random.default_rng(0).normal(size=(8, *packed.input_shape[1:])).astype("float32")
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    assert list(lifecycle.heads(packed)) == resizable
    assert all("body" in path for path in packed.owner_maps())
    outputs = {"first": learn(packed, x, "first", None)}
    packed.save(tmp_path / "pack.keras")
    packed = keras.saving.load_model(tmp_path / "pack.keras")
    outputs["second"] = learn(packed, x, "second", 5 if resizable else None)
    assert outputs["second"].shape[-1] == (5 if resizable else 3)
    tp.save_pack(packed, tmp_path / "pack.packnet")
    packed = tp.load_pack(tmp_path / "pack.packnet")
    outputs["third"] = learn(packed, x, "third", 3 if resizable else None)
    tp.save_pack(packed, tmp_path / "pack.packnet")
    packed.save(tmp_path / "pack.keras")
    loaded = (tp.load_pack(tmp_path / "pack.packnet"), keras.saving.load_model(tmp_path / "pack.keras"))
    for task, expected in outputs.items():
        for each in (packed, *loaded):
            each.select_task(task)
            np.testing.assert_array_equal(each.predict(x, verbose=0), expected)
        plain = tp.load_task(tmp_path / "pack.packnet", task)
        assert not any(isinstance(layer, tp.layers.TaskLayer) for layer in plain._flatten_layers())
        np.testing.assert_array_equal(plain.predict(x, verbose=0), expected)
