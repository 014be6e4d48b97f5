"""Packs can be saved and loaded to the bit; errors of `pack` name all unsupported layers with reasons."""

import collections
import dataclasses
import enum
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import make_mlp
from tf_packnet import lifecycle
from tf_packnet.packfile import container, saving
from tf_packnet.prediction.predicting import is_probability
from tf_packnet.structure import layer_paths

L = keras.layers
X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
register = keras.saving.register_keras_serializable("refusals")


def hidden(**kwargs):
    return L.Dense(6, activation="tanh", **kwargs)


def around(*layers):
    """A classifier with 6 inputs and `layers` in the middle."""
    inputs = x = keras.Input((6,))
    for layer in [L.Dense(6, name="first"), *layers, L.Dense(2, name="head")]:
        x = layer(x)
    return keras.Model(inputs, x, name="model")


def commit(packed, number, **begin):
    """Commit a task without training: random values, half of them kept."""
    rng = np.random.default_rng(number)
    packed.begin_task(f"task {number}", **begin)
    for layer in lifecycle.task_layers(packed):
        for weight in layer.task_weights + layer.masked_weights:
            weight.variable.assign(rng.normal(size=weight.variable.shape))
    for weight in lifecycle.masked_weights(packed).values():
        owner = weight.owner_map()
        weight.prune((owner == 255) & (rng.random(owner.shape) < 0.5))
    packed.commit_task()


def outputs(model):
    return [np.asarray(each) for each in keras.tree.flatten(model(X, training=False))]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_packs(model, folder, *begins):
    """Check that outputs are those of the model, and unchanged for two tasks after loading both files; export one."""
    packed = tp.pack(model)
    assert_same(outputs(packed), outputs(model))
    for number, begin in enumerate(begins or ({}, {}), start=1):
        commit(packed, number, **begin)
    packed.save(folder / "pack.keras")
    tp.save_pack(packed, folder / "pack.packnet")
    keras.utils.clear_session()  # as in a new process, which numbers its layers from the start
    for loaded in (keras.models.load_model(folder / "pack.keras"), tp.load_pack(folder / "pack.packnet")):
        assert list(loaded.owner_maps()) == list(packed.owner_maps())
        for number in range(1, packed.committed_tasks + 1):
            packed.select_task(number)
            loaded.select_task(number)
            assert_same(outputs(loaded), outputs(packed))
    for number in range(1, packed.committed_tasks + 1):
        packed.select_task(number)
        for ours, theirs in zip(outputs(tp.export.dense_model(packed, number)), outputs(packed), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    return packed


def refusal(model, **arguments):
    """Return the error message of `pack`, with one line per layer."""
    with pytest.raises(tp.ArgumentError) as caught:
        tp.pack(model, **arguments)
    text = str(caught.value)
    assert text.startswith("Invalid `model`: expected ")
    assert text.endswith(f". Received: model={model.name!r}")
    assert text.count("Layer '") == len(text.splitlines()) - ("\n" in text)
    return text


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


@pytest.mark.skipif(not layer_paths._SAVES_NESTED, reason="this Keras saves no list of lists")
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


class TestQuantized:
    @pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
    def test_models(self, mode):
        model = around(L.Dense(6, name="middle"))
        model.quantize(mode)
        text = refusal(model)
        for name in ("first", "middle", "head"):
            assert f"Layer '{name}' is a Dense that is quantized ({mode}): pack the model first, then" in text

    @pytest.mark.parametrize("kind", ["dense", "embedding", "einsum"])
    def test_layers_in_a_block_excluded_or_not(self, kind):
        layer = {
            "dense": L.Dense(6, name="q"),
            "embedding": L.Embedding(3, 6, name="q"),
            "einsum": L.EinsumDense("ab,bc->ac", 6, name="q"),
        }[kind]
        inner = keras.Sequential([keras.Input((6,)), *([L.Flatten()] if kind != "embedding" else []), layer], name="in")
        x = keras.Input((6,))
        y = inner(x) if kind != "embedding" else L.GlobalAveragePooling1D()(inner(x))
        model = keras.Model(x, L.Dense(2)(L.Dense(3)(y)))
        layer.quantize("int8")
        for arguments in ({}, {"exclude": ["in"]}, {"exclude": ["q"]}):
            assert "Layer 'in/q' is a " in refusal(model, **arguments)

    def test_a_dtype_policy(self):
        model = around(L.Dense(6, name="q", dtype="int8_from_float32"))
        assert "Layer 'q' is a Dense that is quantized (int8)" in refusal(model)

    @pytest.mark.parametrize("exclude", [(), ("lora",)])
    def test_lora(self, exclude):
        for built_with_it in (True, False):
            layer = L.Dense(6, name="lora", lora_rank=2 if built_with_it else None)
            model = around(layer)
            if not built_with_it:
                layer.enable_lora(2)
            assert "Layer 'lora' is a Dense with LoRA enabled (rank 2)" in refusal(model, exclude=exclude)

    def test_a_pack_cannot_be(self):
        packed = tp.pack(make_mlp())
        for arguments in (("int8",), ("float8",)):
            with pytest.raises(tp.ArgumentError, match=r"^Invalid `mode`: .*export a task.*$"):
                packed.quantize(*arguments)
        commit(packed, 1)
        plain = tp.export.dense_model(packed, 1)
        plain.quantize("int8")  # as the message advises
        assert plain.get_layer("dense_1").quantization_mode == "int8"


@register
class Holder(L.Layer):
    """A block that gets a layer as an argument."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "inner": keras.saving.deserialize_keras_object(config["inner"])})


def graph(*layers, name):
    inputs = x = keras.Input((6,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


class TestSharedLayers:
    def test_an_inner_model_used_twice(self, tmp_path):
        inner = graph(hidden(name="a"), name="inner")
        packed = assert_packs(around(inner, inner), tmp_path)
        assert list(packed.owner_maps()) == ["first/kernel", "inner/a/kernel"]

    def test_a_layer_used_twice_in_one_graph(self, tmp_path):
        shared = hidden(name="shared")
        packed = assert_packs(around(shared, L.ReLU(), shared), tmp_path)
        assert list(packed.owner_maps()) == ["first/kernel", "shared/kernel"]

    def test_one_input_of_two_graphs(self, tmp_path):
        inputs = keras.Input((6,))
        encoder = keras.Model(inputs, hidden(name="a")(inputs), name="encoder")
        assert_packs(keras.Model(inputs, L.Dense(2)(encoder(inputs)), name="model"), tmp_path)

    @pytest.mark.parametrize("kind", ["outer and inner", "two inner", "outer and block", "two blocks", "deep"])
    def test_between_levels_is_refused(self, kind):
        shared = hidden(name="shared")
        model, first, second = {
            "outer and inner": lambda: (around(shared, graph(hidden(), shared, name="in")), "shared", "in/shared"),
            "two inner": lambda: (around(graph(shared, name="p"), graph(shared, name="q")), "p/shared", "q/shared"),
            "outer and block": lambda: (around(shared, Holder(shared, name="h")), "shared", "h/inner"),
            "two blocks": lambda: (around(Holder(shared, name="g"), Holder(shared, name="h")), "g/inner", "h/inner"),
            "deep": lambda: (
                around(shared, graph(graph(shared, name="q"), name="p")),
                "shared",
                "p/q/shared",
            ),
        }[kind]()
        assert f"Layer {first!r} is a Dense that is also used at {second!r}, and becomes two layers" in refusal(model)

    def test_an_inner_model_shared_between_levels_is_refused(self):
        inner = graph(hidden(), name="inner")
        assert "Layer 'inner' is a Functional that is also used at 'p/inner'" in refusal(
            around(inner, graph(inner, name="p"))
        )


@register
class Grows(L.Layer):
    """A block to which a layer was added later."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = hidden()

    def call(self, x):
        return self.dense(x)


@register
class Closure(L.Layer):
    """Holds its weight in a function, where it cannot be masked."""

    def build(self, shape):
        gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.scale = lambda x: x * gamma

    def call(self, x):
        return self.scale(x)


@register
class Counts(L.Layer):
    """Has an inner layer and its own non-trainable variable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = hidden()

    def build(self, shape):
        self.dense.build(shape)
        self.mean = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False, name="mean")

    def call(self, x):
        return self.dense(x) * self.mean


@register
class Tied(L.Layer):
    """Computes with the kernel of another layer."""

    def __init__(self, other=None, **kwargs):
        super().__init__(**kwargs)
        self.parts = [{"kernel": other.kernel}] if other is not None else []

    def call(self, x):
        return x @ self.parts[0]["kernel"]


class Odd(L.Layer):
    def __init__(self, width):
        super().__init__()

    def call(self, x):
        return x


class Renamed(L.Layer):
    def __init__(self, **k):
        super().__init__(**k)

    def call(self, x):
        return x


class Other(L.Layer):
    @classmethod
    def from_config(cls, config):
        return L.Identity(name=config["name"])

    def call(self, x):
        return x


class Array(L.Layer):
    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, x):
        return x


class TestOneErrorListsAll:
    def test_with_place_class_and_reason(self):
        quantized = L.Dense(6, name="small")
        block = graph(Closure(name="scale"), quantized, name="inner")
        model = around(Closure(name="one"), block, Odd(3), Renamed(name="renamed"), LOST["deque"][0](name="lost"))
        quantized.quantize("int8")
        lines = refusal(model).splitlines()
        assert lines[0] == "Invalid `model`: expected layers that can be packed. 6 cannot:"
        found = [re.match(r"  Layer '([\w/]+?)(_\d+)?' is a (\w+) (\w+)", line).groups() for line in lines[1:]]
        assert sorted((place, kind, word) for place, _, kind, word in found) == [
            ("inner/scale", "Closure", "with"),
            ("inner/small", "Dense", "that"),
            ("lost", "InDeque", "that"),
            ("odd", "Odd", "that"),
            ("one", "Closure", "with"),
            ("renamed", "Renamed", "whose"),
        ]

    def test_one_alone_on_one_line(self):
        text = refusal(around(Closure(name="scale")))
        assert "\n" not in text
        assert "exclude=['scale']" in text
        tp.pack(around(Closure(name="scale")), exclude=["scale"])  # as the message advises

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Renamed(), "has no name.* Renamed.__init__ must take `\\*\\*kwargs`"),
            (lambda: Odd(3), "unexpected keyword argument.* Odd.__init__ must pass \\*\\*kwargs"),
            (lambda: Other(), "whose from_config\\(\\) creates a Identity"),
            (lambda: Array(np.ones(3)), "whose get_config\\(\\) fails.* passing non-serializable argument values"),
            (lambda: L.BatchNormalization(renorm=True), "whose twin cannot be created: .*`renorm`"),
        ],
    )
    def test_and_what_it_says_is_true(self, make, message):
        try:
            layer = make()
        except (TypeError, ValueError):
            pytest.skip("this Keras has no such argument")
        assert re.search(message, refusal(around(layer)))

    def test_layers_that_a_config_does_not_have(self):
        block = Grows(name="block")
        model = around(block)
        block._tracker.unlock()
        block.more = hidden()
        block.more.build((None, 6))
        assert "whose from_config() creates different inner layers (lacks more)" in refusal(model)


def refusal_without_layers(model):
    with pytest.raises(tp.ArgumentError) as caught:
        tp.pack(model)
    return str(caught.value)


class TestWeightsOfLayersWithoutATwin:
    def test_that_are_not_trained_are_packed(self):
        packed = tp.pack(around(Counts(name="counts")))
        assert "counts/dense/kernel" in packed.owner_maps()

    @pytest.mark.parametrize("built", [True, False])
    def test_of_another_layer_are_refused(self, built):
        inputs = keras.Input((6,))
        dense = L.Dense(6, name="dense")
        x = dense(inputs)
        tied = Tied(dense, name="tied")
        model = keras.Model(inputs, L.Dense(2)(tied(x)))
        text = refusal(model)
        assert "Layer 'tied' is a Tied that uses weights of other layers (kernel of 'dense')" in text
        assert "exclude=['tied']" in text

    def test_of_the_layer_inside_are_refused(self):
        layer = L.SpectralNormalization(L.Dense(6), name="norm")
        text = refusal(around(layer))
        assert "'norm' is a SpectralNormalization that uses weights of other layers (kernel of 'norm/layer')" in text
        tp.pack(around(L.SpectralNormalization(L.Dense(6), name="norm")), exclude=["norm"])  # as the message advises

    @pytest.mark.parametrize("exclude", [(), ("gru",)])
    def test_of_no_layer_are_refused(self, exclude):
        inputs = keras.Input((6,), batch_size=5)
        x = L.GRU(4, stateful=True, name="gru")(L.Reshape((3, 2))(inputs))
        text = refusal(keras.Model(inputs, L.Dense(2)(L.Dense(3)(x)), name="model"), exclude=exclude)
        assert re.search(r"Layer 'gru' is a GRU (with variables|that reads).*: (they|it) would not be saved", text)


def two_heads(*, separate):
    inputs = keras.Input((6,))
    x = hidden(name="body")(inputs)
    kind = L.Activation("softmax", name="kind_softmax")(L.Dense(3, name="kind")(x))
    size = L.Dense(1, name="size")(x)
    size = L.LeakyReLU(name="size_leaky")(size) if separate else L.Dropout(0.5, name="size_drop")(size)
    return keras.Model(inputs, {"kind": kind, "size": size}, name="model")


class TestAnActivationBehindTheHead:
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
        found = [is_probability(tp.export.dense_model(packed, task), np.full((1, 2), 0.3)) for task in (1, 2)]
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

    def test_behind_which_another_output_takes_the_logits_stays(self, tmp_path):
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


@pytest.mark.parametrize("activation", [lambda x: x, 3, Key()])
def test_an_activation_that_no_file_can_name_is_refused(activation):
    packed = tp.pack(make_mlp())
    with pytest.raises(tp.ArgumentError, match="the name of a Keras activation"):
        packed.begin_task(activation=activation)


class TestReadBack:
    @pytest.fixture
    def saved(self, tmp_path):
        packed = tp.pack(make_mlp(), freed_weights="keep")
        commit(packed, 1)
        path = tmp_path / "pack.packnet"
        tp.save_pack(packed, path)
        commit(packed, 2)
        return packed, path, path.read_bytes()

    def assert_untouched(self, path, before):
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("free_values", [False, True])
    def test_the_new_file_replaces_the_old_one(self, saved, free_values):
        packed, path, _ = saved
        tp.save_pack(packed, path, free_values=free_values)
        assert tp.load_pack(path).task_names == ["task 1", "task 2"]

    def test_a_file_that_cannot_be_read_does_not(self, saved, monkeypatch):
        packed, path, before = saved
        write = container.write

        def cut_short(temporary, *rest):
            write(temporary, *rest)
            temporary.write_bytes(temporary.read_bytes()[:-1])

        monkeypatch.setattr(container, "write", cut_short)
        with pytest.raises(tp.ArgumentError, match=r"that can be read back from its file; part 'task 2' is cut short"):
            tp.save_pack(packed, path)
        self.assert_untouched(path, before)

    @pytest.mark.parametrize("change", ["owner", "frozen", "own", "name", "selected", "shared"])
    def test_nor_one_that_gives_something_else(self, saved, monkeypatch, change):
        packed, path, before = saved
        load = saving.load_pack

        def changed(*args, **kwargs):
            loaded = load(*args, **kwargs)
            weight = lifecycle.masked_weights(loaded)["dense_2/kernel"]
            if change == "owner":
                weight.owner.assign(weight.owner * 0)
            elif change == "frozen":
                weight.frozen.assign(-weight.frozen)
            elif change == "own":
                kept = loaded.get_layer("dense_1").task_weights[0].kept
                kept[1] = np.nextafter(kept[1], np.float32(9))
            elif change == "name":
                lifecycle.records(loaded).names[0] = "another"
            elif change == "selected":
                loaded.select_task(1)
            else:
                loaded.get_layer("head").__class__ = L.Dense
            return loaded

        monkeypatch.setattr(saving, "load_pack", changed)
        with pytest.raises(tp.ArgumentError, match="read back from its file; .* differs after loading"):
            tp.save_pack(packed, path)
        self.assert_untouched(path, before)

    def test_values_are_compared_by_their_bits(self):
        nan = np.array([np.nan], np.float32)
        assert saving._same_bits(nan, nan.copy())
        assert not saving._same_bits(np.array([0.0]), np.array([-0.0]))
        assert not saving._same_bits(np.zeros(2, "float32"), np.zeros(2, "float64"))

    def test_names_and_seeds_go_on_as_if_nothing_was_saved(self, saved):
        packed, path, _ = saved
        found = []
        for save in (False, True):
            keras.utils.set_random_seed(3)
            keras.utils.clear_session(free_memory=False)
            if save:
                tp.save_pack(packed, path)
            layer = L.Dense(3)
            layer.build((None, 2))
            found.append((layer.name, layer.kernel.numpy().tolist(), random.random()))
        assert found[0] == found[1]
