"""Errors of `pack` name all layers that cannot be packed, with the reasons."""

import re

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import make_mlp
from tests.packs import L, around, assert_packs, commit, graph, hidden, refusal, register
from tests.test_layer_places import LOST


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

    @pytest.mark.parametrize("kind", ["outer and block", "two blocks", "outer, inner and block"])
    def test_with_a_block_is_refused(self, kind):
        shared = hidden(name="shared")
        model, first, second = {
            "outer and block": lambda: (around(shared, Holder(shared, name="h")), "shared", "h/inner"),
            "two blocks": lambda: (around(Holder(shared, name="g"), Holder(shared, name="h")), "g/inner", "h/inner"),
            "outer, inner and block": lambda: (
                around(shared, graph(shared, Holder(shared, name="h"), name="p")),
                "shared",
                "p/h/inner",
            ),
        }[kind]()
        assert f"Layer {first!r} is a Dense that is also used at {second!r}, and becomes two layers" in refusal(model)

    @pytest.mark.parametrize("kind", ["outer and inner", "two inner", "deep", "an inner model"])
    def test_between_graphs(self, kind, tmp_path):
        shared, inner = hidden(name="shared"), graph(hidden(name="shared"), name="inner")
        layers = {
            "outer and inner": lambda: [shared, graph(hidden(name="more"), shared, name="in")],
            "two inner": lambda: [graph(shared, name="p"), graph(shared, name="q")],
            "deep": lambda: [shared, graph(graph(shared, name="q"), name="p")],
            "an inner model": lambda: [inner, graph(inner, name="p")],
        }[kind]()
        packed = assert_packs(around(*layers), tmp_path)
        more = ["more/kernel"] if kind == "outer and inner" else []
        assert list(packed.owner_maps()) == ["first/kernel", "shared/kernel", *more]


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
    def test_the_stated_reasons_are_true(self, make, message):
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
