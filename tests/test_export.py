import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tests.test_freeze import learn
from tf_packnet import lifecycle
from tf_packnet.export import compact_model, dense_model
from tf_packnet.structure.state import unowned_variables

LOAD_WITHOUT_THE_LIBRARY = """
import sys
import numpy as np, tensorflow as tf
sys.modules["tf_packnet"] = None  # importing it would raise
loaded = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], loaded.serve(np.load(sys.argv[2])))
kernels = {v.path if hasattr(v, "path") else v.name: v.numpy() for v in loaded.variables}
np.savez(sys.argv[4], **{name.replace("/", "|"): value for name, value in kernels.items()})
"""


def pack_of(make, num_tasks=2, **kwargs):
    packed = compile_model(tp.pack(make(), **kwargs), "adam")
    for number in range(1, num_tasks + 1):
        learn(packed, number, blobs(number, packed.input_shape[1:]), num_tasks)
    return packed


@pytest.mark.parametrize("make", [make_mlp, make_convnet])
@pytest.mark.parametrize("head", ["per_task", "shared"])
@pytest.mark.parametrize("bias_policy", ["first_task", "per_task"])
def test_the_plain_model_has_the_logits_of_the_pack(make, head, bias_policy):
    packed = pack_of(make, head=head, bias_policy=bias_policy)
    x = blobs(5, packed.input_shape[1:])[0]
    for task in (1, 2):
        plain = dense_model(packed, task)
        assert not any(type(layer).__module__.startswith("tf_packnet") for layer in plain._flatten_layers())
        packed.select_task(task)
        np.testing.assert_allclose(plain.predict(x, verbose=0), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-7)


def test_kernels_are_0_where_the_task_sees_no_weight():
    packed = pack_of(make_mlp)
    for task in (1, 2):
        kernel = dense_model(packed, task).get_layer("dense_1").kernel
        owner = packed.owner_maps()["dense_1/kernel"]
        visible = (owner > 0) & (owner <= task)
        np.testing.assert_array_equal(np.array(kernel)[~visible], 0)
        assert (np.array(kernel)[visible] != 0).all()


def test_a_process_without_the_library_serves_a_saved_model(tmp_path):
    packed = pack_of(make_convnet)
    x = blobs(5, (8, 8, 1), examples=7)[0]
    np.save(tmp_path / "x.npy", x)
    for task in (1, 2):
        tp.export_task(packed, task, tmp_path / f"task_{task}")
        arguments = [tmp_path / name for name in (f"task_{task}", "x.npy", "y.npy", "weights.npz")]
        subprocess.run([sys.executable, "-c", LOAD_WITHOUT_THE_LIBRARY, *map(str, arguments)], check=True, cwd=tmp_path)
        packed.select_task(task)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-7)
        weights = dict(np.load(tmp_path / "weights.npz"))
        owner = packed.owner_maps()["conv_1/kernel"]
        kernel = next(value for value in weights.values() if value.shape == owner.shape)
        np.testing.assert_array_equal(kernel != 0, (owner > 0) & (owner <= task))


def test_mixed_precision_packs_export_too(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    packed = pack_of(make_mlp)
    x = blobs(5)[0]
    tp.export_task(packed, "task_1", tmp_path / "task_1")
    packed.select_task(1)
    loaded = tf.saved_model.load(str(tmp_path / "task_1"))
    np.testing.assert_allclose(loaded.serve(x), packed.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_export_keeps_the_selection_and_replaces_an_earlier_export(tmp_path):
    packed = pack_of(make_mlp)
    packed.select_task(2)
    for _ in range(2):
        tp.export_task(packed, 1, tmp_path / "task_1")
    assert packed.selected_task == 2
    assert [p.name for p in tmp_path.iterdir()] == ["task_1"]


def test_tasks_that_cannot_be_exported(tmp_path):
    packed = pack_of(make_mlp)
    packed.begin_task("open")
    with pytest.raises(RuntimeError, match="'open' is still being learned"):
        tp.export_task(packed, "open", tmp_path / "x")
    with pytest.raises(tp.ArgumentError, match="'open', or its number. Received: task='cats'"):
        tp.export_task(packed, "cats", tmp_path / "x")
    with pytest.raises(tp.ArgumentError, match="`task`"):
        tp.export_task(packed, 9, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@keras.saving.register_keras_serializable("tests")
class Center(keras.layers.Layer):
    """Subtracts a running mean that every call in training moves, and counts these calls in a `tf.Variable`."""

    def build(self, shape):
        self.mean = self.add_weight(name="mean", shape=shape[-1:], initializer="zeros", trainable=False)
        self.calls = tf.Variable(0.0, trainable=False)
        super().build(shape)

    def call(self, inputs, training=None):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(inputs, axis=0))
            self.calls.assign_add(1.0)
        return inputs - self.mean + 0 * self.calls


def net_with_state():
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 6)))
    layers = [keras.Input((6,)), normalization, keras.layers.Dense(12, activation="relu"), Center(name="center")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(2, name="head")]
    return keras.Sequential(layers)


def pack_with_state():
    """Three tasks with heads of different sizes, each with its own running mean; a fourth task is open."""
    packed = tp.pack(net_with_state(), bias_policy="per_task", freed_weights="keep")
    compile_model(packed, "adam")
    for number, classes in enumerate((2, 3, 2), start=1):
        packed.begin_task(num_classes=classes, activation="softmax" if number == 2 else None)
        packed.fit(*blobs(number), epochs=1, verbose=0)
        for weight in lifecycle.masked_weights(packed).values():
            weight.prune(np.random.default_rng(number).random(weight.owner_map().shape) < 0.5)
        packed.commit_task()
    packed.begin_task("open", num_classes=5)
    return packed


@pytest.fixture
def assigned(monkeypatch):
    """The ids of the TensorFlow variables that are assigned while the test runs."""
    ids = set()

    def watched(method):
        def assign(self, *args, **kwargs):
            ids.add(id(self))
            return method(self, *args, **kwargs)

        return assign

    for name in ("assign", "assign_add", "assign_sub"):
        method = getattr(ResourceVariable, name)
        monkeypatch.setattr(ResourceVariable, name, watched(method))
    return ids


def test_exports_only_read_the_pack(tmp_path, assigned, monkeypatch):
    packed = pack_with_state()
    x = blobs(5)[0]
    expected = {}
    for task in (1, 2, 3):
        packed.select_task(task)
        expected[task] = np.asarray(packed(x, training=False))
    packed.select_task(2)
    variables = {id(v.value) for v in packed.variables} | {
        id(v) for v in unowned_variables(packed).values() if isinstance(v, tf.Variable)
    }
    before = {name: np.array(value) for name, value in lifecycle.state(packed).items()}
    attributes = [(layer, dict(vars(layer))) for layer in lifecycle.task_layers(packed)]
    assigned.clear()
    monkeypatch.setattr(lifecycle.model_state, "select_task", None)
    models = {task: dense_model(packed, task) for task in (1, 2, 3)}
    compact = {task: compact_model(model) for task, model in models.items()}
    tp.export_task(packed, 1, tmp_path / "task_1", compact=True)
    tp.export_task(packed, 3, tmp_path / "task_3.keras", format="keras")
    tp.export_pack(packed, tmp_path / "all")
    assert assigned  # the models that were made
    assert not assigned & variables
    assert packed.selected_task == 2
    for layer, values in attributes:
        assert {name: value for name, value in vars(layer).items() if value is not values[name]} == {}
    after = lifecycle.state(packed)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    loaded = tf.saved_model.load(str(tmp_path / "all"))
    for task, outputs in expected.items():
        for model in (models[task], compact[task], loaded.serve[f"task_{task}"]):
            np.testing.assert_allclose(model(x), outputs, rtol=1e-5, atol=1e-6)


def test_the_selected_task_does_not_change_an_export():
    packed = pack_with_state()
    weights = []
    for selected in (1, 3, 4):
        packed.select_task(selected)
        weights.append([np.asarray(weight) for weight in dense_model(packed, 2).weights])
    assert np.any([weight for weight in weights[0] if weight.shape == (12,)])
    for one, other in zip(weights[0] * 2, weights[1] + weights[2], strict=True):
        np.testing.assert_array_equal(one, other)
