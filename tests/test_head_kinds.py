"""Heads of any kind: convolutions, EinsumDense, users' layers, layers with layers inside."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tf_packnet import lifecycle
from tf_packnet.inspection.contents import inspect_pack
from tf_packnet.prediction.predicting import Asked, predict

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


def after_body(*layers, rank=0, size=4):
    inputs = keras.Input((size,) * rank + (6,))
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
        lambda: after_body(
            keras.Sequential([keras.Input((5,)), L.Dense(4, "relu", name="one"), L.Dense(3, name="two")], name="top")
        ),
        {"head_layers": ["top"]},
        ["top/two"],
    ),
    "two layers": (
        lambda: after_body(L.Dense(4, "relu", name="hidden"), L.Dense(3, name="out")),
        {"head_layers": ["hidden", "out"]},
        ["out"],
    ),
    "images of any size": (
        lambda: after_body(L.Conv2D(3, 1, name="head"), L.UpSampling2D(2, interpolation="bilinear"), rank=2, size=None),
        {},
        ["head"],
    ),
    "TimeDistributed": (
        lambda: after_body(L.TimeDistributed(L.Conv2D(3, 2), name="each"), rank=3),
        {},
        ["each/layer"],
    ),
    "subclassed model": (segmenter, {}, ["segmenter/head"]),
}


def learn(packed, x, name, outputs):
    packed.begin_task(name, **({} if outputs is None else {"num_classes": outputs}))
    probabilities = any(isinstance(layer, L.Softmax) for layer in packed.layers) or "softmax" in packed.layers[-1].name
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    packed.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), loss, jit_compile=False)
    shape = packed.predict(x, verbose=0).shape
    y = np.random.default_rng(shape[-1]).integers(0, shape[-1], shape[:-1])
    rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(x, y, verbose=0, callbacks=rounds)
    return packed.predict(x, verbose=0)


FAST = {"Conv2D"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FAST)) for kind in KINDS])
def test_tasks_of_other_sizes_stay_exact_with_a_reload_between_them(kind, tmp_path):
    make, arguments, resizable = KINDS[kind]
    model = make()
    packed = tp.pack(model, **arguments)
    x = np.random.default_rng(0).normal(size=(8, *(size or 4 for size in packed.input_shape[1:]))).astype("float32")
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


def images(channels=6, size=4, examples=8, seed=0):
    return np.random.default_rng(seed).normal(size=(examples, size, size, channels)).astype("float32")


def commit(packed, name, **begin):
    """Commit a task without training."""
    packed.begin_task(name, **begin)
    rng = np.random.default_rng(len(name))
    for weight in lifecycle.masked_weights(packed).values():
        weight.prune((weight.owner_map() == 255) & (rng.random(weight.owner_map().shape) < 0.5))
    packed.commit_task()


@pytest.mark.parametrize("kind", ["Conv2D", "user's layer", "fixed", "layers inside"])
def test_each_task_starts_from_new_values(kind):
    make, arguments, _ = KINDS[kind]
    values = []
    for seed in (3, 3, 4):
        packed = tp.pack(make(), seed=seed, **arguments)
        weights = [w for layer in lifecycle.task_layers(packed)[1:] for w in layer.task_weights]
        assert {weight.policy for weight in weights} == {"per_task"}
        for number, weight in enumerate(weights):
            weight.variable.assign(np.full(weight.variable.shape, number + 7))
        commit(packed, "first")
        packed.begin_task("second")
        values.append({weight.variable.path: np.array(weight.variable) for weight in weights})
    for path, value in values[0].items():
        np.testing.assert_array_equal(value, values[1][path])
        is_constant = path.endswith(("bias", "gain", "gamma", "beta", "shift", "moving_mean", "moving_variance"))
        assert np.array_equal(value, values[2][path]) == is_constant
        if is_constant:
            start = 1 if path.endswith(("gain", "gamma", "shift", "moving_variance")) else 0
            np.testing.assert_array_equal(value, np.full(value.shape, start))


# What follows a Conv2D with 3 outputs at 4 x 4 positions, or at one.
FOLLOWED = {
    "pooling": lambda x: L.GlobalMaxPooling2D()(x),
    "one position": lambda x: L.Flatten()(L.AveragePooling2D(4)(x)),
    "positions in a row": lambda x: L.Reshape((-1, 3))(x),
    "scaled": lambda x: keras.ops.clip(2 * x + 1, -1, 1),
    "channels first": lambda x: L.Permute((3, 1, 2))(x),
    "nested": lambda x: keras.Sequential([keras.Input((4, 4, 3)), L.UpSampling2D(), L.Softmax()])(x),
}
LOST = {
    "flat": (lambda x: L.Flatten()(x), "a Flatten that does not keep the outputs of 'head' apart"),
    "sum": (lambda x: keras.ops.sum(x, axis=-1), "a Sum that does not keep the outputs"),
    "other pooling": (lambda x: L.GlobalAveragePooling2D("channels_first")(x), "does not keep the outputs"),
    "weights": (lambda x: L.BatchNormalization()(x), "comes from a BatchNormalization"),
    "two inputs": (lambda x: x * keras.ops.sigmoid(x), "comes from a Multiply"),
    "recurrent": (lambda x: L.LSTM(3)(L.Reshape((16, 3))(x)), "comes from a LSTM"),
    "fixed": (lambda x: Prototypes()(x), r"head_layers=\[...\].*comes from a Prototypes"),
}


def followed_by(after, head=None):
    inputs = keras.Input((4, 4, 6))
    x = (head or L.Conv2D(3, 1, name="head"))(L.Dense(5, name="body")(inputs))
    return keras.Model(inputs, after(x), name="model")


@pytest.mark.parametrize("name", FOLLOWED)
def test_operations_that_keep_the_outputs_apart_follow_a_head(name):
    packed = tp.pack(followed_by(FOLLOWED[name]))
    assert list(lifecycle.heads(packed)) == ["head"]
    commit(packed, "first")
    shape = packed(images()).shape
    if name == "positions in a row":
        return  # a Reshape to 3 channels
    packed.begin_task("second", num_classes=4)
    assert [4 if size == 3 else size for size in shape] == list(packed(images()).shape)


@pytest.mark.parametrize("name", LOST)
def test_other_operations_are_refused(name):
    after, message = LOST[name]
    with pytest.raises(tp.ArgumentError, match=message):
        tp.pack(followed_by(after))
    if name not in ("recurrent", "fixed"):
        assert list(lifecycle.heads(tp.pack(followed_by(after), head_layers=["head"]))) == ["head"]


def two_heads():
    inputs = keras.Input((4, 4, 6))
    x = L.Conv2D(5, 3, padding="same", name="body")(inputs)
    outputs = {"mask": L.Conv2D(3, 1, name="mask")(x), "kind": Prototypes(name="kind")(L.GlobalMaxPooling2D()(x))}
    return keras.Model(inputs, outputs, name="model")


def reshaped(x):
    return L.Softmax()(L.Reshape((16, 3), name="rows")(x))


REFUSED = {
    "reshape": (
        lambda: followed_by(reshaped),
        {},
        {"num_classes": 4},
        r"`num_classes`: expected 3 for head 'head': layer 'rows' \(a Reshape\) cannot compute with other numbers of",
    ),
    "reshape of the batch": (
        lambda: followed_by(lambda x: keras.ops.reshape(x, (-1, 3))),
        {},
        {"num_classes": 4},
        "expected 3 for head 'head': an operation after it has a fixed number of outputs, 3",
    ),
    "groups": (
        lambda: followed_by(lambda x: x, L.Conv2D(5, 1, groups=5, name="head")),
        {},
        {"num_classes": 4},
        r"expected 5 for head 'head': a Conv2D cannot have 4 outputs \(.*groups",
    ),
    "fixed": (
        KINDS["fixed"][0],
        {"head_layers": ["head"]},
        {"num_classes": 4},
        "`num_classes`: expected None: the number of outputs of head 'head' is fixed",
    ),
    "fixed activation": (
        KINDS["fixed"][0],
        {"head_layers": ["head"]},
        {"activation": "softmax"},
        "`activation`: expected None for head 'head', whose activation is fixed",
    ),
    "one of two": (
        two_heads,
        {"head_layers": ["mask", "kind"]},
        {"num_classes": 4},
        "a mapping with keys among 'mask', because the outputs of head 'kind' are fixed",
    ),
    "unknown": (two_heads, {"head_layers": ["mask", "kind"]}, {"num_classes": {"kind": 4}}, "keys, among 'mask'"),
    "no activation": (
        KINDS["user's layer"][0],
        {},
        {"activation": "softmax"},
        "expected None for head 'head', a Experts without an attribute `activation`",
    ),
    "interpolation": (
        lambda: followed_by(L.UpSampling2D(2, interpolation="bilinear", name="up")),
        {},
        {"activation": "relu"},
        r"expected None for head 'head': layer 'up' \(a UpSampling2D\) after it would change its outputs again",
    ),
    "softmax of one": (
        lambda: followed_by(L.Softmax(axis=1), L.Conv2D(3, 1, data_format="channels_first", name="head")),
        {},
        {"num_classes": 1},
        "at least 2 for head 'head': the softmax of one output",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_head_cannot_be_in_a_task_is_refused(name):
    make, arguments, begin, message = REFUSED[name]
    packed = tp.pack(make(), **arguments)
    before = lifecycle.state(packed)
    with pytest.raises(tp.ArgumentError, match=message):
        packed.begin_task("first", **begin)
    assert packed.task_names == []
    after = lifecycle.state(packed)
    assert set(after) == set(before)
    packed.begin_task("first")


def test_a_layer_without_weights_is_no_head():
    with pytest.raises(tp.ArgumentError, match="`head_layers`: expected layers with trainable weights; 'rows' is a Re"):
        tp.pack(followed_by(reshaped), head_layers=["rows"])


def test_a_shared_head_is_masked():
    packed = tp.pack(KINDS["Conv2D"][0](), head="shared")
    assert list(packed.owner_maps()) == ["body/kernel", "head/kernel"]
    assert not lifecycle.heads(packed)


def test_names_of_layers_with_layers_inside_set_their_outputs():
    make, arguments, _ = KINDS["layers inside"]
    packed = tp.pack(make(), **arguments)
    commit(packed, "first", num_classes={"block": 4})
    commit(packed, "second", num_classes={"out": 2}, activation={"block/out": "sigmoid"})
    assert [lifecycle.heads(packed)["block/out"].outputs_of(task) for task in (1, 2)] == [4, 2]


def test_heads_of_every_kind_learn_with_labels_per_position_and_one_hot():
    packed = tp.pack(two_heads(), head_layers=["mask", "kind"])
    x, rng = images(), np.random.default_rng(0)
    packed.begin_task("first", num_classes={"mask": 4})
    kind, mask = rng.integers(0, 3, 8), rng.integers(0, 4, (8, 4, 4))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    packed.compile("adam", {"mask": loss, "kind": loss})
    packed.fit(x, {"mask": mask, "kind": kind}, verbose=0)
    with pytest.raises(tp.ArgumentError, match="`y`: expected whole numbers from 0 to 3, of 4 classes.*4 in exam"):
        packed.fit(x, {"mask": mask + 1, "kind": kind}, verbose=0)
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    packed.compile("adam", {"mask": one_hot, "kind": loss})
    labels = np.eye(4, dtype="float32")[mask]
    packed.fit(x, {"mask": labels, "kind": kind}, verbose=0)
    with pytest.raises(tp.ArgumentError, match=r"`y`: expected one-hot labels of 4 classes.*shape \(8, 4, 4, 3\)"):
        packed.fit(x, {"mask": labels[..., :3], "kind": kind}, verbose=0)
    with pytest.raises(tp.ArgumentError, match="`validation_data`: expected one-hot labels of 4 classes"):
        packed.fit(x, {"mask": labels, "kind": kind}, validation_data=(x, {"mask": mask, "kind": kind}), verbose=0)


def test_tasks_of_equal_size_share_compiled_steps():
    packed = tp.pack(KINDS["Conv2D"][0]())
    packed.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    steps = []
    for name, outputs in (("first", 3), ("second", 3), ("third", 4)):
        packed.begin_task(name, num_classes=outputs)
        rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(images(), np.zeros((8, 8, 8), int), verbose=0, callbacks=rounds)
        steps.append(packed.train_function)
    assert steps[0] is steps[1] is not steps[2]


@pytest.mark.slow
def test_mixed_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    packed = tp.pack(KINDS["layers inside"][0](), head_layers=["block"])
    x = np.ones((8, 6), "float32")
    first = learn(packed, x, "first", None)
    learn(packed, x, "second", 4)
    packed.save(tmp_path / "pack.keras")
    loaded = keras.saving.load_model(tmp_path / "pack.keras")
    loaded.select_task("first")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), first)


def test_a_head_passes_masks_on():
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(9, 6, mask_zero=True)(inputs)
    model = keras.Model(inputs, Doubled(3, name="head")(x))
    packed, ids = tp.pack(model), np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    packed.begin_task("first", num_classes=2)
    packed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.zeros((2, 5), int)
    loss = packed.evaluate(ids, labels, verbose=0)
    logits = packed.predict(ids, verbose=0)
    all_losses = np.log(np.exp(logits).sum(-1)) - logits[..., 0]
    np.testing.assert_allclose(loss, all_losses[ids > 0].mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("Conv2D", marks=pytest.mark.slow), "layers inside"])
def test_tasks_of_other_sizes_are_exported_in_every_format(kind, tmp_path):
    make, arguments, _ = KINDS[kind]
    packed = tp.pack(make(), **arguments)
    x = images() if kind == "Conv2D" else images()[:, 0, 0]
    commit(packed, "first")
    commit(packed, "second", num_classes=4)
    for task, outputs in (("first", 3), ("second", 4)):
        packed.select_task(task)
        expected = packed.predict(x, verbose=0)
        assert expected.shape[-1] == outputs
        names = [f"class {number}" for number in range(outputs)]
        for compact in (False, True):
            tp.export_task(packed, task, tmp_path / "saved", compact=compact, class_names=names)
            saved = tf.saved_model.load(tmp_path / "saved")
            np.testing.assert_allclose(saved.serve(x), expected, rtol=1e-5, atol=1e-6)
            (signature,) = saved.signatures["serving_default"](tf.constant(x)).values()
            np.testing.assert_allclose(signature, expected, rtol=1e-5, atol=1e-6)
            tp.export_task(packed, task, tmp_path / "task.keras", format="keras", compact=compact)
            loaded = keras.saving.load_model(tmp_path / "task.keras")
            np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_a_size_that_no_config_has_is_exported_to_a_saved_model_only(tmp_path):
    packed = tp.pack(segmenter())
    commit(packed, "first", num_classes=4)
    for name, options in {"task.keras": {"format": "keras"}, "compact": {"compact": True}}.items():
        with pytest.raises(tp.ArgumentError, match="Layer 'segmenter/head' .a Conv2D. then has another number of out"):
            tp.export_task(packed, "first", tmp_path / name, **options)
    tp.export_task(packed, "first", tmp_path / "saved")
    saved = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(images()), packed.predict(images(), verbose=0), rtol=1e-5, atol=1e-6)


def test_predict_lists_the_mean_over_all_positions(tmp_path, capsys):
    packed = tp.pack(KINDS["Conv2D"][0]())
    commit(packed, "first", num_classes=2)
    info = {"tasks": {"first": {"class_names": ["sky", "road"]}}}
    tp.save_pack(packed, tmp_path / "pack.packnet", info=info)
    np.save(tmp_path / "x.npy", images())
    predict(Asked(str(tmp_path / "pack.packnet"), (str(tmp_path / "x.npy"),), format="json", top=2))
    found = json.loads(capsys.readouterr().out)["predictions"]
    shares = packed.predict(images(), verbose=0).mean(axis=(1, 2))
    for example, expected in zip(found, shares, strict=True):
        listed = {each["class"]: each["probability"] for each in example["classes"]}
        np.testing.assert_allclose([listed["sky"], listed["road"]], expected, rtol=1e-5)


def test_inspection_counts_outputs_of_any_head():
    for kind, outputs in {"Conv2D": {"head": 3}, "fixed": {"head": 3}, "layers inside": {"block/out": 3}}.items():
        make, arguments, _ = KINDS[kind]
        packed = tp.pack(make(), **arguments)
        commit(packed, "first")
        assert inspect_pack(packed).tasks[0].outputs == outputs
