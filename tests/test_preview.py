"""`preview_task` shows the state in which `begin_task` would begin the next task, and changes nothing."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model
from tests.packs import commit
from tf_packnet import lifecycle
from tf_packnet.approaches import PackNet
from tf_packnet.packed.preview import preview_task
from tf_packnet.system.keras_internals import all_layers, seed_generators

L = keras.layers
SIZES = (2, 3, 2)
X = blobs(0)[0]


@pytest.fixture(autouse=True)
def _global_generator():
    # Where operations are deterministic, as other tests of this process may want, TensorFlow makes none by itself.
    tf.random.set_global_generator(tf.random.Generator.from_seed(0))


@keras.saving.register_keras_serializable("preview")
class Counter(L.Layer):
    """Counts its calls, also those of `predict`: state that belongs to no weight."""

    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1)
        return inputs


def network():
    inputs = x = keras.Input((6,))
    scale = L.Normalization(name="scale")
    scale.adapt(X)
    for layer in (
        *(scale, Counter(name="counter"), L.Dense(8, activation="relu", name="dense")),
        *(L.BatchNormalization(name="batch_norm"), L.Dropout(0.2, seed=1, name="dropout"), L.Dense(2, name="head")),
    ):
        x = layer(x)
    return keras.Model(inputs, x, name="model")


def outputs_of(number, head):
    return SIZES[number - 1] if head == "per_task" else 2


def learn(packed, number, head):
    """Learn a task, with one prune round; return the predictions before its first step."""
    packed.begin_task(f"task {number}", num_classes=outputs_of(number, head))
    at_start = packed.predict(X, verbose=0)
    schedule = tp.EqualShare(0.4, num_tasks=len(SIZES), rounds=1)
    callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot(None)]
    packed.fit(*blobs(number, classes=2), epochs=2, batch_size=32, shuffle=False, callbacks=callbacks, verbose=0)
    return at_start


def everything(packed, folder):
    """All that a preview could change: values, generators, records, and the bytes of the pack file."""
    variables = {each.path: np.asarray(each) for each in packed.variables}
    generators = [random.getstate(), [part.tolist() for part in np.random.get_state()[1:2]]]
    generators += [each.state.numpy().tolist() for layer in all_layers(packed) for each in seed_generators(layer)]
    generators += [tf.random.get_global_generator().state.numpy().tolist()]
    names = ("open", "selected_task", "committed_tasks", "units", "num_outputs", "_outputs_of", "_activation_of")
    of_layers = [
        [str(vars(layer).get(name)) for name in names] + list(vars(layer).get("_slots", ()))
        for layer in lifecycle.task_layers(packed)
    ]
    counts = {name: value for name, value in vars(lifecycle.records(packed)).items() if isinstance(value, int)}
    path = folder / "pack.packnet"
    content = b""
    if packed.committed_tasks and not lifecycle.has_open_task(packed):
        tp.save_pack(packed, path)
        content = path.read_bytes()
    saved = {name: value.tobytes() for name, value in lifecycle.state(packed).items()}
    flags = [each.trainable for each in packed.variables]
    return variables, [generators, of_layers, counts, packed.task_names, flags, saved, content]


def assert_unchanged(before, after):
    assert list(before[0]) == list(after[0])
    for path, value in before[0].items():
        np.testing.assert_array_equal(value, after[0][path], err_msg=path)
    assert before[1] == after[1]


def preview(packed, sizes):
    predictions = []
    for size in sizes:
        with preview_task(packed, size):
            predictions.append(packed.predict(X, verbose=0))
    return predictions


@pytest.mark.parametrize(("head", "bias_policy"), [("per_task", "per_task"), ("shared", "first_task")])
def test_it_is_what_begin_task_creates_and_changes_nothing(head, bias_policy, tmp_path):
    sizes = (3, 2) if head == "per_task" else (2,)
    traces = []
    for with_previews in (True, False):
        keras.utils.clear_session()  # which numbers the names of layers from the start
        keras.utils.set_random_seed(0)
        packed = compile_model(tp.pack(network(), head=head, bias_policy=bias_policy, seed=7))
        trace = []
        for number in (1, 2, 3) if head == "per_task" else (1, 2):
            if with_previews:
                before = everything(packed, tmp_path)
                seen = dict(zip(sizes, preview(packed, sizes), strict=True))
                assert_unchanged(before, everything(packed, tmp_path))
                assert [value.shape[1] for value in seen.values()] == list(sizes)
            at_start = learn(packed, number, head)
            if with_previews:
                np.testing.assert_array_equal(at_start, seen[outputs_of(number, head)])
            trace.append(everything(packed, tmp_path))
        traces.append(trace)
    for ours, theirs in zip(*traces, strict=True):
        assert_unchanged(ours, theirs)


def test_an_error_inside_the_block_leaves_the_pack_as_it_was(tmp_path):
    packed = compile_model(tp.pack(network()))
    commit(packed, 1)
    before = everything(packed, tmp_path)
    with pytest.raises(KeyError), preview_task(packed, 4):
        raise KeyError
    assert_unchanged(before, everything(packed, tmp_path))
    with pytest.raises(tp.ArgumentError, match="num_classes"), preview_task(packed, 0):
        pass
    assert_unchanged(before, everything(packed, tmp_path))


def test_free_weights_are_hidden_whatever_their_policy():
    """Stages are shared between runs with other policies, so their records must not depend on it."""
    seen = {}
    for policy in ("zero", "keep", "reinit"):
        keras.utils.set_random_seed(0)
        packed = tp.pack(network(), freed_weights=policy)
        commit(packed, 1)
        with preview_task(packed, 2):
            seen[policy] = np.asarray(packed(X, training=False))
    np.testing.assert_array_equal(seen["keep"], seen["zero"])
    np.testing.assert_array_equal(seen["reinit"], seen["zero"])


def test_an_open_task_is_refused():
    packed = tp.pack(network())
    commit(packed, 1)
    packed.begin_task("second")
    with pytest.raises(RuntimeError, match="still open"), preview_task(packed, 2):
        pass


def test_unseen_tasks_of_different_sizes():
    packed = compile_model(tp.pack(network()))
    commit(packed, 1)
    approach = PackNet(packed, tp.EqualShare(0.4, num_tasks=5, rounds=1), train_epochs=1, retrain_epochs=1)
    tasks, expected = [], []
    for number, size in enumerate((2, 3, 2, 3), start=2):
        x, y = blobs(number, classes=size)
        splits = {"test": tp.tasks.Split(x, y)}
        tasks.append(SimpleNamespace(number=number, num_classes=size, splits=splits))
        with preview_task(packed, size):
            expected.append(np.mean(np.argmax(packed(x, training=False), axis=-1) == y))
    assert approach.unseen_accuracy(tasks) == expected
    assert approach.unseen_accuracy([]) == []
