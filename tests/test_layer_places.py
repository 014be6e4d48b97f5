"""Layers are found and saved wherever a model holds them, or the model is refused."""

import collections
import dataclasses
import enum
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.packs import L, around, assert_packs, hidden, refusal, register
from tf_packnet.structure import layer_paths


class Chain(L.Layer):
    """Calls its layers in order; subclasses determine where they are held."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hold()

    def build(self, shape):
        for layer in self.each():
            if not layer.built:
                layer.build(shape)

    def call(self, x):
        for layer in self.each():
            x = layer(x)
        return x


def holding(name, hold, each):
    return register(type(name, (Chain,), {"hold": hold, "each": each}))


def named(attribute):
    name = "Named" + re.sub(r"\W", "", attribute.title())
    return holding(name, lambda self: setattr(self, attribute, hidden()), lambda self: [getattr(self, attribute)])


def held(name, make, parts):
    """Create a class that holds `make()` in its attribute `x`."""
    return holding(name, lambda self: setattr(self, "x", make()), lambda self: parts(self.x))


class Colour(enum.Enum):
    RED = 1


class Key:
    pass


Pair = collections.namedtuple("Pair", "one other")
ATTRIBUTES = {
    "_self_attention": "self_attention",
    "_self_setattr": "self_setattr",
    "self_attention": "self_attention",
    "dense_": "dense",
    "_nodes": "nodes",
    "_operations": "operations",
    "_functional": "functional",
    "_nodes_by_depth": "nodes_by_depth",
    "\u00e4\u00f6": "\u00e4\u00f6",
    "roles": "roles",
    "_": "",
}


def test_layers_are_found_whatever_their_attribute_is_called(tmp_path):
    blocks = [named(attribute)(name=f"block_{index}") for index, attribute in enumerate(ATTRIBUTES)]
    packed = assert_packs(around(*blocks), tmp_path)
    expected = [f"block_{index}/{place}/kernel" for index, place in enumerate(ATTRIBUTES.values())]
    assert list(packed.owner_maps()) == ["first/kernel", *expected]


def collide(self):
    self._dense, self.dense, self.dense_ = hidden(), hidden(), hidden()


def twice(self):
    self.one = self.other = hidden()
    self.parts = [self.one, {"same": self.one}]


HELD = {
    "names that collide": (
        holding("Collides", collide, lambda self: [self._dense, self.dense, self.dense_]),
        ["dense", "dense_1", "dense_2"],
    ),
    "one layer by several names": (
        holding("Twice", twice, lambda self: [self.one, self.other, self.parts[0], self.parts[1]["same"]]),
        ["one"],
    ),
    "namedtuple": (held("InPair", lambda: Pair(hidden(), hidden()), list), ["x_0", "x_1"]),
    "tuple": (held("InTuple", lambda: (hidden(), hidden()), list), ["x_0", "x_1"]),
    "ordered dict": (
        held("InOrder", lambda: collections.OrderedDict(b=hidden(), a=hidden()), lambda x: list(x.values())),
        ["x_b", "x_a"],
    ),
    "odd keys": (
        held("OddKeys", lambda: {1: hidden(), (2, 3): hidden(), Colour.RED: hidden()}, lambda x: list(x.values())),
        ["x_1", "x_(2, 3)", "x_Colour.RED"],
    ),
    "keys that print otherwise every time": (
        held("ObjectKeys", lambda: {Key(): hidden(), Key(): hidden()}, lambda x: list(x.values())),
        ["x_0", "x_1"],
    ),
    "a slash in a key": (
        held("Slash", lambda: {"a/b": hidden(), "a": hidden()}, lambda x: list(x.values())),
        ["x_a/b", "x_a"],
    ),
}


def test_layers_are_found_wherever_they_are_held(tmp_path):
    blocks = [make(name=f"block_{index}") for index, (make, _) in enumerate(HELD.values())]
    packed = assert_packs(around(*blocks), tmp_path)
    expected = [f"block_{index}/{part}/kernel" for index, (_, parts) in enumerate(HELD.values()) for part in parts]
    assert list(packed.owner_maps()) == ["first/kernel", *expected]


@pytest.mark.skipif(not layer_paths._SAVES_NESTED, reason="this version of Keras does not save lists of lists")
@pytest.mark.parametrize("name", ["a b", "ä", "a:b", "*"])
def test_layers_keep_any_name_that_keras_accepts(name):
    """In graphs TensorFlow refuses these names, with and without a pack."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name=name), L.Dense(2, name="head")])
    packed = tp.pack(model)
    assert list(packed.owner_maps()) == [f"{name}/kernel"]
    np.testing.assert_array_equal(packed(np.ones((2, 4))), model(np.ones((2, 4))))


def test_containers_in_containers(tmp_path):
    make = held("Nested", lambda: [{"a": (hidden(), [hidden()])}], lambda x: [x[0]["a"][0], x[0]["a"][1][0]])
    packed = assert_packs(around(make(name="block")), tmp_path)
    assert {"block/x_0_a_0/kernel", "block/x_0_a_1_0/kernel"} < set(packed.owner_maps())


def test_a_layer_in_a_property(tmp_path):
    @register
    class WithProperty(Chain):
        def hold(self):
            self.dense = hidden()

        @property
        def dense(self):
            return self._kept

        @dense.setter
        def dense(self, layer):
            self._kept = layer

        def each(self):
            return [self.dense]

    assert "block/kept/kernel" in assert_packs(around(WithProperty(name="block")), tmp_path).owner_maps()


def test_a_layer_with_a_name_keeps_the_place_that_earlier_versions_gave_it(tmp_path):
    make = holding("Query", lambda self: setattr(self, "_self_q", hidden(name="query")), lambda self: [self._self_q])
    assert "block/query/kernel" in assert_packs(around(make(name="block")), tmp_path).owner_maps()


def test_tensorflow_keeps_no_other_attributes_of_its_own():
    tracked = tf.__internal__.tracking.AutoTrackable()
    tracked._maybe_initialize_trackable()
    assert set(vars(tracked)) <= layer_paths._TENSORFLOW_ATTRIBUTES


@dataclasses.dataclass
class Record:
    layer: object


def closing(self):
    layer = hidden()
    self.layer, self.function = layer, lambda: [layer]


class InSlot(Chain):
    __slots__ = ("layer",)

    def hold(self):
        self.layer = hidden()

    def each(self):
        return [self.layer]


class OfTheClass(Chain):
    layer = hidden()

    def hold(self):
        pass

    def each(self):
        return [self.layer]


class OfTensorFlow(Chain):
    def hold(self):
        self.factor = Record(tf.Variable(2.0, name="factor"))

    def each(self):
        return []

    def call(self, x):
        return x * self.factor.layer


UNTRACKED = r"reads .*, which no attribute, list, tuple or dict of a layer holds: it would not be saved"
OUT_OF_REACH = r"holds 'dense.*' \(a Dense\) outside its attributes, lists, tuples and dicts: hold"
LOST = {
    "dataclass": (held("InRecord", lambda: Record(hidden()), lambda x: [x.layer]), UNTRACKED),
    "deque": (held("InDeque", lambda: collections.deque([hidden()]), list), UNTRACKED),
    "function": (holding("InFunction", closing, lambda self: self.function()), UNTRACKED),
    "class": (OfTheClass, UNTRACKED),
    "tf.Variable": (OfTensorFlow, "reads factor"),
    "set": (held("InSet", lambda: {hidden()}, list), OUT_OF_REACH),
    "slot": (InSlot, OUT_OF_REACH),
    "double underscore": (named("__mangled"), r"holds 'dense.*' \(a Dense\) in an attribute that Keras does not save"),
    "_layers": (
        holding("Layers", lambda self: setattr(self, "_layers", [hidden()]), lambda self: list(self._layers)),
        "with an attribute '_layers', which Keras uses for its own list",
    ),
    "_metrics": (
        holding("Metrics", lambda self: setattr(self, "_metrics", [hidden()]), lambda self: list(self._metrics)),
        "with an attribute '_metrics', which Keras uses for its own list",
    ),
}


@pytest.mark.parametrize("kind", LOST)
def test_layers_that_nothing_would_save_are_refused(kind):
    make, message = LOST[kind]
    assert re.search(message, refusal(around(make(name="block"))))


@keras.saving.register_keras_serializable("test_layer_places")
class ListInSequential(keras.layers.Layer):
    """Replaces its list of layers by a Sequential; Keras still tracks the layers of the list as its own too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = []
        for units in (5, 4):
            self.parts.append(keras.layers.Dense(units))
        self.parts = keras.Sequential(self.parts)

    def build(self, shape):
        self.parts.build(shape)

    def call(self, x):
        return self.parts(x)


def test_layers_of_a_list_that_a_sequential_has_replaced(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2)(ListInSequential(name="own")(inputs)))
    packed = tp.pack(model)
    assert list(packed.owner_maps()) == ["own/parts/dense_0/kernel", "own/parts/dense_1/kernel"]
    kinds = {type(layer).__name__ for layer in packed.get_layer("own")._flatten_layers(include_self=False)}
    assert kinds == {"InputLayer", "Sequential", "MaskedDense"}
    assert len(packed.trainable_variables) == len(model.trainable_variables)
    packed.save(tmp_path / "pack.keras")
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    loaded = keras.models.load_model(tmp_path / "pack.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
