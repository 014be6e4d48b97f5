"""Nested graphs that share layers are packed as one graph; nested graphs keep the class of the user's model."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.packs import L, around, assert_packs, graph, hidden, refusal, register
from tests.test_any_layer import Scale

IDS = np.random.default_rng(0).integers(0, 20, (48, 5))


@register
class Decoder(keras.Model):
    """A functional model with its own class, config and attributes, as in KerasHub."""

    def __init__(self, width=8, **kwargs):
        self.table = L.ReversibleEmbedding(20, width, name="table")
        self.blocks = [L.Dense(width, "gelu", name=f"block_{number}") for number in range(2)]
        inputs = keras.Input((None,), dtype="int32", name="ids")
        x = self.table(inputs)
        for block in self.blocks:
            x = L.Add(name=f"add_{block.name}")([x, block(L.Dropout(0.5, name=f"drop_{block.name}")(x))])
        super().__init__(inputs, x, **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@register
class LanguageModel(keras.Model):
    """A model whose output is computed with the embedding of a nested model."""

    def __init__(self, decoder, **kwargs):
        super().__init__(decoder.inputs, decoder.table(decoder(decoder.inputs[0]), reverse=True), **kwargs)
        self.decoder = decoder

    def train_step(self, data):
        return super().train_step(data)

    def by_hand(self, ids):
        x = self.decoder.table(ids)
        for block in self.decoder.blocks:
            x = x + block(x)
        return self.decoder.table(x, reverse=True)

    def get_config(self):
        return {"decoder": keras.saving.serialize_keras_object(self.decoder), "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "decoder": keras.saving.deserialize_keras_object(config["decoder"])})


def learn(packed, task):
    packed.begin_task(task)
    packed.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    prune = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(IDS, np.roll(IDS, -1, axis=1), epochs=1, verbose=0, callbacks=prune)


def test_a_tied_embedding_of_a_nested_model(tmp_path):
    keras.utils.set_random_seed(1)
    model = LanguageModel(Decoder(name="decoder"), name="lm")
    before = [len(layer._inbound_nodes) for layer in model.decoder.layers]
    packed = tp.pack(model, head="shared")
    assert [len(layer._inbound_nodes) for layer in model.decoder.layers] == before
    np.testing.assert_array_equal(packed.predict(IDS, verbose=0), model.predict(IDS, verbose=0))
    assert list(packed.owner_maps()) == ["table/embeddings", "block_0/kernel", "block_1/kernel"]
    learn(packed, "a")
    expected = packed.predict(IDS, verbose=0)
    packed.save(tmp_path / "a.keras")
    packed = keras.models.load_model(tmp_path / "a.keras")
    learn(packed, "b")
    tp.save_pack(packed, tmp_path / "ab.packnet")
    for each in (packed, tp.load_pack(tmp_path / "ab.packnet")):
        each.select_task("a")
        np.testing.assert_array_equal(each.predict(IDS, verbose=0), expected)
        np.testing.assert_allclose(each.by_hand(IDS), expected, rtol=1e-5, atol=1e-6)
        assert isinstance(each.decoder, Decoder)
        assert each.decoder.width == 8
        assert each.decoder.table is each.get_layer("table")
    dense = tp.export.dense_model(packed, "a")
    np.testing.assert_allclose(dense.predict(IDS, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_names_of_nested_layers_in_arguments():
    def maps(**arguments):
        return list(tp.pack(LanguageModel(Decoder(name="decoder")), head="shared", **arguments).owner_maps())

    with pytest.raises(tp.ArgumentError, match="expected a model with task-aware layers"):
        maps(exclude=["decoder"])
    assert maps(exclude=["decoder/table"]) == ["block_0/kernel", "block_1/kernel"]
    assert maps(exclude=["ids"]) == maps()  # an input
    assert maps(exclude=["block_1"]) == ["table/embeddings", "block_0/kernel"]
    assert maps(prune={"decoder/block_0/kernel": False}) == ["table/embeddings", "block_1/kernel"]


def test_layers_of_the_same_name_in_two_graphs(tmp_path):
    shared = hidden(name="shared")

    def part(name):
        inputs = keras.Input((6,))
        x = keras.ops.add(shared(inputs), 1.0)
        return keras.Model(inputs, Scale(name="own")(hidden(name="own_dense")(x)), name=name)

    packed = assert_packs(around(part("p"), part("q")), tmp_path)
    assert list(packed.owner_maps()) == ["first/kernel", "shared/kernel", "own_dense/kernel", "q_own_dense/kernel"]


def test_flags_and_arguments_of_nested_calls(tmp_path):
    shared, dropped = hidden(name="shared"), L.Dropout(0.5)
    inner = graph(shared, dropped, name="inner")
    inputs = keras.Input((6,))
    x = shared(inner(inner(inputs, training=False), training=False))
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    assert_packs(model, tmp_path)
    nodes = [node for layer in tp.pack(model).layers if isinstance(layer, L.Dropout) for node in layer._inbound_nodes]
    assert len(nodes) >= 2
    assert all(node.arguments.kwargs == {"training": False} for node in nodes)
    outer = around(shared, graph(shared, hidden(name="fixed"), name="q"))
    outer.get_layer("q").get_layer("fixed").trainable = False
    assert list(tp.pack(outer).owner_maps()) == ["first/kernel", "shared/kernel"]


def nested_call(masked):
    shared = L.Dense(5, name="shared")
    inputs = keras.Input((5, 4))
    inner = keras.Model(inputs, L.LSTM(4, return_sequences=True)(L.Dense(3)(shared(inputs))), name="inner")
    ids = keras.Input((5,), dtype="int32")
    x = L.Embedding(20, 4, mask_zero=True)(ids)
    y = inner(x, mask=keras.ops.less(ids, 7)) if masked else inner(x)
    return keras.Model(ids, L.Dense(2)(L.GlobalAveragePooling1D()(L.Concatenate()([shared(x), y]))))


def test_masks_of_nested_calls():
    model = nested_call(masked=False)
    np.testing.assert_array_equal(tp.pack(model).predict(IDS, verbose=0), model.predict(IDS, verbose=0))
    assert "Layer 'inner' is a Functional that is called with a mask" in refusal(nested_call(masked=True))


def test_what_cannot_be_copied_is_refused():
    class Unregistered(L.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size = size

        def get_config(self):
            return super().get_config()

        def call(self, x):
            return x

    shared = hidden(name="shared")
    text = refusal(around(graph(shared, Unregistered(3), name="p"), graph(shared, name="q")))
    assert "Layer 'p/unregistered" in text
    assert "cannot be created from its get_config()" in text


def test_a_nested_model_keeps_its_class(tmp_path):
    """Also without shared layers, where the pack keeps the nested graph."""
    decoder = Decoder(name="decoder")
    x = L.GlobalAveragePooling1D()(decoder(decoder.inputs[0]))

    @register
    class Classifier(keras.Model):
        def __init__(self, *args, decoder=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.decoder = decoder

        def train_step(self, data):
            return super().train_step(data)

        def get_config(self):
            return {"name": self.name}

        @classmethod
        def from_config(cls, config):
            decoder = Decoder(name="decoder")
            x = L.GlobalAveragePooling1D()(decoder(decoder.inputs[0]))
            return cls(decoder.inputs, L.Dense(2, name="head")(x), decoder=decoder, **config)

    packed = tp.pack(Classifier(decoder.inputs, L.Dense(2, name="head")(x), decoder=decoder))
    assert list(packed.owner_maps()) == [
        f"decoder/{name}" for name in ("table/embeddings", "block_0/kernel", "block_1/kernel")
    ]
    packed.begin_task("a")
    packed.commit_task()
    packed.save(tmp_path / "a.keras")
    for each in (packed, keras.models.load_model(tmp_path / "a.keras")):
        assert isinstance(each.decoder, Decoder)
        assert each.decoder is each.get_layer("decoder")
        assert each.decoder.blocks[1] is each.decoder.get_layer("block_1")
        np.testing.assert_array_equal(each.predict(IDS, verbose=0), packed.predict(IDS, verbose=0))
