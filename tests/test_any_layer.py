"""Layers without a twin of their own: users' layers, and every layer of Keras."""

import collections
import inspect
import re

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import compile_model
from tf_packnet.errors import ArgumentError

layers = keras.layers
own = keras.saving.register_keras_serializable("test_any_layer")

Pair = collections.namedtuple("Pair", ["shift", "factor"])


@own
class Scale(layers.Layer):
    """A vector."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain


@own
class Position(layers.Layer):
    """A matrix that is added."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="glorot_uniform", name="table")

    def call(self, x):
        return x + self.table


@own
class ClassToken(layers.Layer):
    """A weight with axes of length 1, and a matrix that is not used."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), initializer="normal", name="token")
        self.unused = self.add_weight(shape=(3, input_shape[-1]), initializer="normal", name="unused")

    def call(self, x):
        token = keras.ops.broadcast_to(self.token, (keras.ops.shape(x)[0], 1, x.shape[-1]))
        return keras.ops.concatenate([token, x], axis=1)


@own
class Center(layers.Layer):
    """State that `call` assigns, beside a weight."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.mean = self.add_weight(shape=(size,), initializer="zeros", trainable=False, name="mean")
        self.factor = self.add_weight(shape=(size,), initializer="ones", name="factor")

    def call(self, x, training=None):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return (x - self.mean) * self.factor


@own
class Containers(layers.Layer):
    """Weights in lists, dicts, tuples and named tuples, with equal names."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernels = [self.add_weight(shape=(size, size), name="w") for _ in range(2)]
        self.parts = {
            "shift": self.add_weight(shape=(size,), initializer="zeros", name="w"),
            "nested": [{"factor": self.add_weight(shape=(1, size), initializer="ones", name="w")}],
        }
        self.pair = Pair(
            self.add_weight(shape=(size,), initializer="zeros"), self.add_weight(shape=(size,), initializer="ones")
        )

    def call(self, x):
        for kernel in self.kernels:
            x = x @ kernel
        x = x * self.parts["nested"][0]["factor"] + self.parts["shift"]
        return x * self.pair.factor + self.pair.shift


@own
class FromInit(layers.Layer):
    """A private weight that exists before `build`."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self._w = self.add_weight(shape=(size, size), name="w")

    def call(self, x):
        return x @ self._w

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@own
class Block(layers.Layer):
    """Weights beside layers with weights, one of which has no twin either."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units)
        self.blocks = [Scale(), layers.Dense(units, "relu")]

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, self.units), name="token")
        self.out = self.add_weight(shape=(self.units, self.units), name="out")
        self.first.build(input_shape)
        for block in self.blocks:
            block.build((None, self.units))

    def call(self, x):
        x = self.first(x) + self.token
        for block in self.blocks:
            x = block(x)
        return x @ self.out

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@own
class Computes(layers.Layer):
    """`get_config` returns more than `__init__` takes; no `build`, but `compute_output_shape`. Has its own weight."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size, self.half = size, np.int64(size // 2)
        self.inner = layers.Dense(size, name="inner")
        self.table = self.add_weight(shape=(size, size), initializer="normal", name="table")

    def call(self, x):
        return self.inner(x) @ self.table

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.size)

    def get_config(self):
        return {**super().get_config(), "size": self.size, "half": self.half}


@own
class ComputesAround(Computes):
    """The same without a weight of its own."""

    def __init__(self, size, **kwargs):
        layers.Layer.__init__(self, **kwargs)
        self.size, self.half = size, size // 2
        self.inner = layers.Dense(size, name="inner")

    def call(self, x):
        return self.inner(x)


@own
class DoubledDense(layers.Dense):
    """A subclass of a layer that has a twin."""

    def call(self, x):
        return 2 * super().call(x)


@own
class TwoInputs(layers.Layer):
    """A layer with two inputs and a regularizer."""

    def build(self, first_shape, second_shape):
        self.w = self.add_weight(shape=(first_shape[-1], second_shape[-1]), name="w", regularizer="l2")

    def call(self, first, second):
        return first @ self.w + second


def two_inputs():
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(2)(TwoInputs(name="own")(x, layers.Dense(5)(x))))


def model_with(layer, *shape, dtype="float32"):
    x = keras.Input(shape, dtype=dtype)
    h = layer(x)
    h = layers.Flatten()(h) if len(h.shape) > 2 else h
    return keras.Model(x, layers.Dense(2)(layers.Dense(8, "relu")(h)))


OWN = {
    "vector": lambda: model_with(Scale(name="own"), 8),
    "matrix": lambda: model_with(Position(name="own"), 4, 3),
    "class token": lambda: model_with(ClassToken(name="own"), 4, 3),
    "state": lambda: model_with(Center(name="own"), 8),
    "containers": lambda: model_with(Containers(name="own"), 8),
    "in __init__": lambda: model_with(FromInit(8, name="own"), 8),
    "layers inside": lambda: model_with(Block(6, name="own"), 8),
    "config": lambda: model_with(Computes(6, name="own"), 8),
    "config, layers inside": lambda: model_with(ComputesAround(6, name="own"), 8),
    "subclass": lambda: model_with(DoubledDense(6, name="own"), 8),
    "two inputs": two_inputs,
    "ConvLSTM2D": lambda: model_with(layers.ConvLSTM2D(2, 2, name="own"), 2, 3, 3, 2),
    "ReversibleEmbedding": lambda: model_with(layers.ReversibleEmbedding(30, 4, name="own"), 6, dtype="int32"),
}
MASKED = {
    "class token": ["unused"],
    "matrix": ["table"],
    "containers": ["kernels_0", "kernels_1"],
    "in __init__": ["w"],
    "layers inside": ["blocks_1/kernel", "first/kernel", "out"],
    "config": ["inner/kernel", "table"],
    "config, layers inside": ["inner/kernel"],
    "subclass": ["kernel"],
    "two inputs": ["w"],
    "ConvLSTM2D": ["cell/kernel", "cell/recurrent_kernel"],
    "ReversibleEmbedding": ["embeddings"],
}


def examples(model, seed):
    rng = np.random.default_rng(seed)
    shape = (64, *model.input_shape[1:])
    x = rng.integers(0, 30, shape) if model.inputs[0].dtype == "int32" else rng.normal(size=shape).astype("float32")
    return x, rng.integers(0, 2, 64)


def learn(packed, name, seed, jit=False):
    compile_model(packed, keras.optimizers.AdamW(0.01, weight_decay=0.1), jit)
    packed.begin_task(name)
    rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(*examples(packed, seed), epochs=2, verbose=0, callbacks=rounds)


SLOW = ("ConvLSTM2D", "ReversibleEmbedding", "config, layers inside", "containers", "two inputs")


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(pytest.param(name, "per_task", marks=[pytest.mark.slow] * (name in SLOW)) for name in OWN),
        ("state", "first_task"),
    ],
)
def test_two_tasks_stay_exact_with_a_reload_between_them(name, policy, tmp_path):
    keras.utils.set_random_seed(1)
    model = OWN[name]()
    x, _ = examples(model, 0)
    before = model.predict(x, verbose=0)
    packed = tp.pack(model, bias_policy=policy)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), before)
    assert sorted(path.removeprefix("own/") for path in packed.owner_maps() if path.startswith("own/")) == MASKED.get(
        name, []
    )
    jit = "auto" if name == "layers inside" else False  # XLA takes most of the time of a test
    learn(packed, "first", 1, jit)
    first = packed.predict(x, verbose=0)
    packed.save(tmp_path / "pack.keras")
    packed = keras.saving.load_model(tmp_path / "pack.keras")
    learn(packed, "second", 2, jit)
    second = packed.predict(x, verbose=0)
    assert not np.array_equal(first, second)
    tp.save_pack(packed, tmp_path / "pack.packnet")
    packed.save(tmp_path / "pack.keras")
    for each in (packed, tp.load_pack(tmp_path / "pack.packnet"), keras.saving.load_model(tmp_path / "pack.keras")):
        each.select_task("first")
        np.testing.assert_array_equal(each.predict(x, verbose=0), first)
        each.select_task("second")
        np.testing.assert_array_equal(each.predict(x, verbose=0), second)
    for task, outputs in (("first", first), ("second", second)):
        plain = tp.dense_model(packed, task)
        assert {type(layer).__module__.partition(".")[0] for layer in plain._flatten_layers()} <= {
            "keras",
            __name__.partition(".")[0],
        }
        np.testing.assert_array_equal(plain.predict(x, verbose=0), outputs)
    exported = tp.load_task(tmp_path / "pack.packnet", "first")
    np.testing.assert_array_equal(exported.predict(x, verbose=0), first)


def test_a_vector_with_first_task_policy_moves_in_the_first_task_only():
    packed = tp.pack(OWN["vector"]())
    learn(packed, "first", 1)
    gain = np.array(packed.get_layer("own").gain)
    assert not np.array_equal(gain, np.ones(8))
    learn(packed, "second", 2)
    np.testing.assert_array_equal(np.array(packed.get_layer("own").gain), gain)


def test_prune_says_which_weights_are_pruned(tmp_path):
    x = keras.Input((4, 3))
    h = layers.Flatten()(layers.Dense(5, name="dense")(Position(name="own")(x)))
    model = keras.Model(x, layers.Dense(2, name="head")(h))
    assert list(tp.pack(model).owner_maps()) == ["own/table", "dense/kernel"]
    packed = tp.pack(model, prune={"own/table": False, "dense/bias": True})
    assert list(packed.owner_maps()) == ["dense/kernel", "dense/bias"]
    learn(packed, "first", 1)
    packed.save(tmp_path / "pack.keras")
    loaded = keras.saving.load_model(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    for each in (loaded, tp.load_pack(tmp_path / "pack.packnet")):
        assert list(each.owner_maps()) == ["dense/kernel", "dense/bias"]
        np.testing.assert_array_equal(each.owner_maps()["dense/bias"], packed.owner_maps()["dense/bias"])


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"own/matrix": True}, r"'own/table'.*Received: prune='own/matrix'"),
        ({"own": True}, "names of weights with their layer"),
        ({"other/table": True}, "names of layers of the model"),
        ({"head/kernel": True}, "outside heads"),
        ({"own/table": 1}, "a mapping"),
        (["own/table"], "a mapping"),
    ],
)
def test_names_that_prune_cannot_mean_are_refused(prune, message):
    x = keras.Input((4, 3))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(Position(name="own")(x))))
    with pytest.raises(ArgumentError, match=message):
        tp.pack(model, prune=prune)


class FromList(layers.Layer):
    """Reads its weight from Keras's own list."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 3), name="w")

    def call(self, x):
        return x @ self.trainable_weights[0]


class InTraining(layers.Layer):
    """Reads its weight from Keras's own list in training only."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 3), name="w")

    def call(self, x, training=None):
        if training:
            self.add_loss(keras.ops.sum(self.trainable_weights[0]))
        return x @ self.w


class Closure(layers.Layer):
    """Holds its weight in a function."""

    def build(self, input_shape):
        w = self.add_weight(shape=(input_shape[-1], 3), name="w")
        self.product = lambda x: x @ w

    def call(self, x):
        return self.product(x)


class Assigning(layers.Layer):
    """Assigns to its trainable weight."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 3), name="w")

    def call(self, x):
        self.w.assign(self.w / 2)
        return x @ self.w


class Opened(layers.Layer):
    """Has an attribute with the name of one of `TaskLayer`, and a method."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 3), name="w")
        self.open = "yes"

    def begin_task(self):
        return self.open

    def call(self, x):
        return x @ self.w


class SavesANumber(layers.Layer):
    """Saves an attribute that is no variable."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 3), name="w")
        self.factor = 1.0

    def call(self, x):
        return self.factor * (x @ self.w)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["factor"] = np.array(self.factor)


@pytest.mark.parametrize("layer_class", [Computes, ComputesAround])
def test_a_config_that_would_lose_a_value_is_refused(layer_class):
    class Loses(layer_class):
        factor = 2.0

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    layer = Loses(6, name="own")
    tp.pack(model_with(layer, 8))  # the copy has the same factor
    layer.factor = 3.0
    with pytest.raises(ArgumentError, match="'own' is a Loses that cannot be created from its get_config"):
        tp.pack(model_with(layer, 8))


@pytest.mark.parametrize(
    ("layer_class", "reason"),
    [
        (SavesANumber, "'own' is a SavesANumber whose save_own_variables would not be called"),
        (Opened, r"'own' is a Opened with attributes or methods that task-aware layers use \(begin_task, open\)"),
        (FromList, r"'own' is a FromList that reads its weights \(w\) other than by the attributes"),
        (InTraining, r"'own' is a InTraining that reads its weights \(w\) other than by the attributes"),
        (Closure, r"'own' is a Closure with trainable weights \(w\) outside its attributes"),
        (Assigning, "tensors in place of their weights .*has no attribute 'assign'"),
    ],
)
def test_layers_whose_weights_cannot_be_masked_are_refused(layer_class, reason):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(layer_class(name="own")(x)))
    with pytest.raises(ArgumentError, match=reason):
        tp.pack(model)


IMAGE = (8, 8, 3)
SEQUENCE = (4, 3)
VECTOR = (4,)
# Arguments and the shape of an example, by the name of the layer, for layers that `by_rank` does not know.
# Functions make new layers. Two shapes: the layer takes a list of two inputs.
ARGUMENTS = {
    "Activation": (["relu"], VECTOR),
    "ActivityRegularization": ([0.1], VECTOR),
    "Add": ([], [VECTOR, VECTOR]),
    "AdditiveAttention": ([], [SEQUENCE, SEQUENCE]),
    "AlphaDropout": ([0.5], VECTOR),
    "Attention": ([True], [SEQUENCE, SEQUENCE]),
    "Average": ([], [VECTOR, VECTOR]),
    "BatchNormalization": ([], VECTOR),
    "Bidirectional": ([lambda: layers.GRU(2)], SEQUENCE),
    "CategoryEncoding": ([9], VECTOR),
    "CenterCrop": ([2, 2], IMAGE),
    "Concatenate": ([], [VECTOR, VECTOR]),
    "Dense": ([3], VECTOR),
    "Discretization": ([[0.0, 1.0]], VECTOR),
    "Dot": ([1], [VECTOR, VECTOR]),
    "Dropout": ([0.5], VECTOR),
    "ELU": ([], VECTOR),
    "EinsumDense": (["ab,bc->ac", 3], VECTOR),
    "Embedding": ([9, 3], VECTOR),
    "Flatten": ([], SEQUENCE),
    "GRU": ([3], SEQUENCE),
    "GaussianDropout": ([0.5], VECTOR),
    "GaussianNoise": ([0.5], VECTOR),
    "GroupNormalization": ([2], VECTOR),
    "GroupQueryAttention": ([2, 2, 1], [SEQUENCE, SEQUENCE]),
    "Hashing": ([5], VECTOR),
    "HashedCrossing": ([5], [(1,), (1,)]),
    "Identity": ([], VECTOR),
    "IntegerLookup": ([None, 1, None, -1, [1, 2, 3]], VECTOR),
    "LSTM": ([3], SEQUENCE),
    "LayerNormalization": ([], VECTOR),
    "LeakyReLU": ([], VECTOR),
    "Masking": ([], SEQUENCE),
    "Maximum": ([], [VECTOR, VECTOR]),
    "MelSpectrogram": ([16, 8, 16], (64,)),
    "Minimum": ([], [VECTOR, VECTOR]),
    "MultiHeadAttention": ([2, 2], [SEQUENCE, SEQUENCE]),
    "Multiply": ([], [VECTOR, VECTOR]),
    "Normalization": ([-1, [0.0] * 4, [1.0] * 4], VECTOR),
    "PReLU": ([], VECTOR),
    "Permute": ([(2, 1)], SEQUENCE),
    "Pipeline": ([lambda: [layers.Rescaling(2.0)]], VECTOR),
    "RMSNormalization": ([], VECTOR),
    "RNN": ([lambda: layers.GRUCell(3)], SEQUENCE),
    "ReLU": ([], VECTOR),
    "RepeatVector": ([2], VECTOR),
    "Rescaling": ([2.0], VECTOR),
    "Reshape": ([(2, 2)], VECTOR),
    "Resizing": ([4, 4], IMAGE),
    "ReversibleEmbedding": ([9, 3], VECTOR),
    "STFTSpectrogram": (["log", 16, 8], (64, 1)),
    "SimpleRNN": ([3], SEQUENCE),
    "Softmax": ([], VECTOR),
    "SpectralNormalization": ([lambda: layers.Dense(3)], VECTOR),
    "Subtract": ([], [VECTOR, VECTOR]),
    "TimeDistributed": ([lambda: layers.Dense(3)], SEQUENCE),
    "UnitNormalization": ([], VECTOR),
    **{name: ([], IMAGE) for name in ("AugMix", "AutoContrast", "Equalization", "RandAugment", "Solarization")},
    "ContrastLimitedAdaptiveHistogramEqualization": ([], IMAGE),
}
RANDOM = {
    "RandomBrightness": [0.2],
    "RandomColorDegeneration": [0.2],
    "RandomContrast": [0.2],
    "RandomCrop": [8, 8],
    "RandomHue": [0.2],
    "RandomPosterization": [4],
    "RandomRotation": [0.1],
    "RandomSaturation": [0.2],
    "RandomSharpness": [0.2],
    "RandomTranslation": [0.1, 0.1],
    "RandomZoom": [0.1],
}
# Layers of Keras that are no part of a model of their own.
NOT_ALONE = {
    "Layer": "the base class",
    "Wrapper": "a base class",
    "InputLayer": "made by keras.Input",
    "GRUCell": "a part of GRU and RNN",
    "LSTMCell": "a part of LSTM and RNN",
    "SimpleRNNCell": "a part of SimpleRNN and RNN",
    "StackedRNNCells": "a part of RNN",
    "Lambda": "code that no file can hold; tests/test_any_model.py has one",
    "CutMix": "takes images with labels, before the model",
    "MixUp": "takes images with labels, before the model",
    "MaxNumBoundingBoxes": "takes boxes, before the model",
    "StringLookup": "takes strings, before the model",
    "TextVectorization": "takes strings, before the model",
    "FlaxLayer": "a module of another library",
    "JaxLayer": "a module of another library",
    "TFSMLayer": "a SavedModel, whose variables it does not track",
    "TorchModuleWrapper": "a module of another library",
}
REFUSED = {"SpectralNormalization": "uses weights of other layers"}


def by_rank(name):
    """Arguments and example shape of a layer whose name ends with its rank."""
    rank = int(re.search(r"(\d)D", name).group(1))
    shape = (6,) * rank + (3,)
    if name.startswith("ConvLSTM"):
        return [2, 2], (2, *shape)
    if name.startswith("DepthwiseConv"):
        return [2], shape
    if "Conv" in name:
        return [2, 2], shape
    return ([2] if "Pool" in name and "Global" not in name else [0.5] if "Dropout" in name else []), shape


def keras_layers():
    """The classes of the layers of Keras, without other names of the same class."""
    classes = {
        each: name for name, each in inspect.getmembers(layers, inspect.isclass) if issubclass(each, layers.Layer)
    }
    return sorted(classes.values())


@pytest.mark.parametrize("name", [name for name in keras_layers() if name not in NOT_ALONE])
def test_every_layer_of_keras_packs_or_is_refused(name):
    if name.startswith("Random"):
        arguments, shape = RANDOM.get(name, []), IMAGE
    else:
        arguments, shape = ARGUMENTS[name] if name in ARGUMENTS else by_rank(name)
    layer = getattr(layers, name)(*[each() if callable(each) else each for each in arguments])
    if isinstance(shape, list):
        inputs = [keras.Input(each, dtype="int32" if name == "HashedCrossing" else "float32") for each in shape]
        h = layer(*inputs) if name in ("MultiHeadAttention", "GroupQueryAttention") else layer(inputs)
    else:
        inputs = keras.Input(shape)
        h = layer(inputs)
    h = layers.Flatten()(keras.ops.cast(h, "float32"))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(3)(h)))
    if name in REFUSED:
        with pytest.raises(ArgumentError, match=REFUSED[name]):
            tp.pack(model)
        return
    packed = tp.pack(model)
    of_tasks = [weight for each in tp.lifecycle.task_layers(packed) for weight in each.trained_variables]
    assert {id(variable) for variable in packed.trainable_variables} <= {id(variable) for variable in of_tasks}
