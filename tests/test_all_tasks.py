"""The outputs of all tasks for a batch are computed in one pass, bit-identical to `predict`, without side effects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet
from tests.packs import X, around
from tests.test_task_management import assert_same, assign, everything, learn, network
from tf_packnet import lifecycle
from tf_packnet.packed import all_tasks
from tf_packnet.packed.task_inference import task_scores

L = keras.layers
NAMES = ["a", "b", "c", "d"]


@keras.saving.register_keras_serializable("all_tasks")
class Shift(L.Layer):
    """Has state besides weights, in a variable of Keras or of TensorFlow, or in a number computed from it."""

    def __init__(self, kind="keras", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, shape):
        if self.kind == "tensorflow":
            self.offset = tf.Variable(tf.zeros(shape[-1:]))
        else:
            self.offset = self.add_weight(shape=shape[-1:], trainable=False, name="offset")
        self.finalize_state() if self.kind == "finalized" else None

    def __getattr__(self, name):
        if name == "finalize_state" and vars(self).get("kind") == "finalized":
            return self._finalize
        raise AttributeError(name)

    def _finalize(self):
        self.number = np.array(self.offset)

    def call(self, x):
        if self.kind == "counter":
            self.offset.assign(self.offset + 1)
        return x + (self.number if self.kind == "finalized" else self.offset)


@keras.saving.register_keras_serializable("all_tasks")
class Doubles(keras.Model):
    def predict_step(self, data):
        return 2 * super().predict_step(data)


def own_step():
    inputs = keras.Input((6,))
    return Doubles(inputs, L.Dense(2)(L.Dense(8, "relu")(inputs)))


def images():
    inputs = x = keras.Input((8, 8, 1))
    for layer in (L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.DepthwiseConv2D(3), L.Flatten(), L.Dropout(0.5)):
        x = layer(x)
    return keras.Model(inputs, L.Dense(2)(x))


def large():
    """Has so many weights that they are selected before the first layer."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(2)(L.Dense(256, "relu")(L.Dense(300, "relu")(inputs))))


def mixed():
    inputs = keras.Input((6,), dtype="float32")
    hidden = L.Dense(8, "relu", dtype="mixed_bfloat16")(inputs)
    hidden = L.BatchNormalization(dtype="mixed_bfloat16")(hidden)
    return keras.Model(inputs, L.Dense(2, dtype="mixed_bfloat16")(hidden))


def texts():
    inputs = keras.Input((6,), dtype="int32")
    return keras.Model(inputs, L.Dense(2)(L.LSTM(5)(L.Embedding(9, 4)(inputs))))


NETWORKS = {
    "norm": network,
    "images": images,
    "large": large,
    "mixed": mixed,
    "texts": texts,
    "own_step": own_step,
    "convnet": make_convnet,
    **{kind: lambda kind=kind: around(Shift(kind)) for kind in ("keras", "tensorflow", "finalized", "counter")},
}
TOGETHER = {"tensorflow": False, "finalized": False, "counter": False}


def pack(name="norm", classes=(2, 3, 2, 4), **kwargs):
    packed = tp.pack(NETWORKS[name](), bias_policy="per_task", **kwargs)
    for seed, (task, number) in enumerate(zip(NAMES, classes, strict=False)):
        packed.begin_task(task, num_classes=number)
        assign(packed, seed)
        for layer in packed.layers:
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()
        packed.commit_task()
    return packed


def inputs_of(packed, examples=70):
    draw = np.random.default_rng(0)
    if packed.inputs[0].dtype == "int32":
        return draw.integers(0, 9, (examples, 6)).astype("int32")
    return draw.normal(size=(examples, *packed.input_shape[1:])).astype("float32")


@pytest.mark.parametrize(
    "name", [name if name == "norm" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_outputs_are_those_of_predict(name):
    packed = compile_model(pack(name))
    packed.begin_task("open", num_classes=5)
    x = inputs_of(packed)
    with all_tasks.state_restored(packed):
        assert all_tasks.can_compute(packed, [1, 2, 3, 4]) == TOGETHER.get(name, True)
    expected = {}
    for task in NAMES:
        with all_tasks.state_restored(packed):
            expected[task] = packed.predict(x, task=task, verbose=0)
    before = everything(packed)
    names, _, outputs = task_scores(packed, x)
    assert_same(dict(zip(names, outputs, strict=True)), expected)
    assert_same(everything(packed), before)
    assert packed.selected_task == 5
    assert packed(x[:3], training=False).shape == (3, 5)


def counted(x, reads, batch=16):
    for start in range(0, len(x), batch):
        reads.append(start)
        yield (x[start : start + batch],)


@pytest.mark.parametrize("name", ["norm", pytest.param("finalized", marks=pytest.mark.slow)])
def test_data_are_read_once(name):
    packed = compile_model(pack(name))
    x = inputs_of(packed)
    names = packed.infer_task(x, batch_size=16)
    batches = list(range(0, 70, 16))

    reads = []
    assert packed.infer_task(counted(x, reads)) == names
    assert reads == batches
    reads = []
    assert packed.infer_task(counted(x, reads), steps=2) == names[:32]
    assert len(reads) <= 3  # Keras reads one batch ahead
    reads = []
    data = tf.data.Dataset.from_generator(
        lambda: counted(x, reads), output_signature=(tf.TensorSpec((None, 6), tf.float32),)
    )
    predicted = packed.predict(data, task="auto", verbose=0)
    assert predicted.tasks == names
    assert reads == batches
    by_name = {name: packed.predict(x, task=name, batch_size=16, verbose=0) for name in NAMES}
    for example, task in enumerate(names):
        np.testing.assert_array_equal(predicted.outputs[example], by_name[task][example])


def test_an_error_changes_nothing():
    packed = compile_model(pack(), steps_per_execution=2)
    packed.select_task("b")
    packed.predict(X, verbose=0)
    before, function = everything(packed), packed.predict_function

    def broken():
        yield (X,)
        raise OSError("the disk is gone")

    with pytest.raises(Exception, match="the disk is gone"):
        packed.infer_task(broken())
    assert_same(everything(packed), before)
    assert (packed.selected_task, packed.steps_per_execution) == (2, 2)
    assert packed.predict_function is function
    assert packed.infer_task(X) == packed.predict(X, task="auto", verbose=0).tasks


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tasks_in_groups_are_those_together(eager, monkeypatch):
    packed = compile_model(pack(), run_eagerly=eager)
    names, found, outputs = task_scores(packed, X, "energy")
    for tasks_together in (3, 1):
        monkeypatch.setattr(all_tasks, "MOST_BYTES", tasks_together * all_tasks._bytes_of(packed))
        again, found_again, outputs_again = task_scores(packed, X, "energy")
        assert again == names
        np.testing.assert_array_equal(found_again, found)
        assert_same(dict(zip(again, outputs_again, strict=True)), dict(zip(names, outputs, strict=True)))


@pytest.mark.slow
def test_traced_functions_follow_the_pack():
    packed = compile_model(pack(classes=(2, 3, 2)))
    packed.infer_task(X)
    packed.rename_task("a", "first")
    learn(packed, "d", 8, 3)
    packed.forget_task("b")
    compile_model(packed)
    for _ in range(2):
        names, _, outputs = task_scores(packed, X)
        assert names == ["first", "c", "d"]
        for name, output in zip(names, outputs, strict=True):
            np.testing.assert_array_equal(output, packed.predict(X, task=name, verbose=0))
        x, y = blobs(3)
        packed.begin_task("e", num_classes=2)
        packed.fit(x, y, epochs=1, verbose=0)
        packed.abandon_task()


def test_substitutes_nest():
    packed = pack(classes=(2,))
    layer = next(each for each in lifecycle.task_layers(packed) if each.masked_weights and each.task_weights)
    for weight in (layer.masked_weights[0], layer.task_weights[0]):
        own = np.array(weight.value())
        with weight.substitute("outer"):
            with weight.substitute("inner"):
                assert weight.value() == "inner"
            assert weight.value() == "outer"
        np.testing.assert_array_equal(weight.value(), own)
