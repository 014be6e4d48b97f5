import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import ROOT, blobs, compile_model, make_convnet, make_mlp
from tf_packnet import lifecycle
from tf_packnet.layers import MaskedConv2D, MaskedDense, TaskHead
from tf_packnet.pruning import ownership


@pytest.mark.parametrize("make", [make_mlp, make_convnet])
@pytest.mark.parametrize("head", ["per_task", "shared"])
def test_the_pack_computes_the_same_as_the_model(make, head):
    model = make()
    packed = tp.pack(model, head=head)
    x = blobs(0, model.input_shape[1:])[0]
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    packed.begin_task()
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))


def test_same_topology_and_names():
    model = make_convnet()
    packed = tp.pack(model)
    assert [layer.name for layer in packed.layers] == [layer.name for layer in model.layers]
    kinds = {layer.name: type(layer) for layer in packed.layers}
    assert kinds["conv_1"] is MaskedConv2D
    assert kinds["dense_1"] is MaskedDense
    assert kinds["head"] is TaskHead
    assert kinds["pool"] is keras.layers.MaxPooling2D
    assert packed.output_shape == model.output_shape


def test_sequential_nested_and_shared_layers():
    trunk = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="relu", name="inner")], name="trunk")
    one, other = keras.Input((6,), name="one"), keras.Input((6,), name="other")
    shared = keras.layers.Dense(4, name="shared")
    features = keras.layers.concatenate([shared(trunk(one)), shared(trunk(other))])
    model = keras.Model([one, other], keras.layers.Dense(3)(features))
    packed = tp.pack(model)
    x = [blobs(0)[0], blobs(1)[0]]
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    assert sorted(path.rsplit("/", 2)[-2] for path in packed.owner_maps()) == ["inner", "shared"]


def test_a_sequential_model():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(2)])
    packed = tp.pack(model)
    x = blobs(0)[0]
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    assert packed.input_shape == (None, 6)


def test_the_model_is_unchanged():
    model = make_mlp()
    before = model.get_weights()
    packed = compile_model(tp.pack(model), "adam")
    packed.begin_task()
    packed.fit(*blobs(0), verbose=0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_layer_that_is_not_trainable_is_one_value_for_all_tasks():
    model = make_mlp()
    model.get_layer("dense_1").trainable = False
    packed = compile_model(tp.pack(model), "adam")
    before = packed.get_layer("dense_1").get_weights()
    packed.begin_task()
    packed.fit(*blobs(0), verbose=0)
    for now, then in zip(packed.get_layer("dense_1").get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert list(packed.owner_maps()) == ["dense_2/kernel"]


def test_config_round_trips():
    packed = tp.pack(make_convnet(), head="shared", bias_policy="per_task", freed_weights="reinit", seed=7)
    packed.begin_task("first")
    again = tp.PackedModel.from_config(packed.get_config())
    assert again.get_config() == packed.get_config()
    assert (again.head, again.freed_weights, again.seed, again.task_names) == ("shared", "reinit", 7, [])


@pytest.mark.parametrize("first", ["tf_packnet", "keras"])
def test_a_new_process_loads_a_pack_after_importing_the_library(tmp_path, first):
    packed = compile_model(tp.pack(make_mlp()), "adam")
    packed.begin_task("cats")
    packed.save(tmp_path / "pack.keras")
    second = {"tf_packnet": "keras", "keras": "tf_packnet"}[first]
    code = f"import {first}, {second}; print(keras.models.load_model('pack.keras', safe_mode=True).task_names)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "['cats']", done.stderr


def test_a_layer_it_cannot_pack_is_named():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="norm")
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    with pytest.raises(tp.ArgumentError, match="Layer 'norm' is a SpectralNormalization .*exclude=\\['norm'\\]"):
        tp.pack(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "two"}, "`head`: expected one of per_task, shared. Received: head='two'"),
        ({"bias_policy": "x"}, "`bias_policy`: expected one of first_task, per_task"),
        ({"freed_weights": "x"}, "`freed_weights`: expected one of zero, keep, reinit"),
    ],
)
def test_bad_arguments_are_named(mlp, arguments, message):
    with pytest.raises(tp.ArgumentError, match=message):
        tp.pack(mlp, **arguments)


def test_unsupported_models_are_refused(mlp):
    with pytest.raises(tp.ArgumentError, match="ends in a Dense layer"):
        tp.pack(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Reshape((3, 1))]))
    with pytest.raises(tp.ArgumentError, match="at least one masked kernel"):
        tp.pack(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.ReLU()]))
    with pytest.raises(tp.ArgumentError, match="with an Input"):
        tp.pack(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(tp.ArgumentError, match="`model`"):
        tp.pack("mlp")


class TestTaskLifecycle:
    def packed(self, **kwargs):
        return compile_model(tp.pack(make_mlp(), **kwargs), "adam")

    def test_begin_task_numbers_and_names(self):
        packed = self.packed()
        assert packed.begin_task() == 1
        lifecycle.masked_weights(packed)["dense_1/kernel"].prune(np.zeros((6, 12), bool))
        packed.commit_task()
        assert packed.begin_task("second") == 2
        assert packed.task_names == ["task_1", "second"]
        assert packed.task_number("second") == packed.task_number(2) == 2

    def test_a_first_task_that_was_never_begun_has_a_name(self):
        packed = self.packed()
        retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.TaskMaskSnapshot()]
        packed.fit(*blobs(1), epochs=1, verbose=0, callbacks=retraining)  # in a new pack task 1 is already open
        assert packed.task_names == ["task_1"]
        assert packed.begin_task("second") == 2
        assert packed.task_names == ["task_1", "second"]
        packed.select_task("task_1")
        assert packed.selected_task == 1
        packed.select_task("second")
        assert packed.selected_task == 2

    def test_begin_before_commit_is_refused(self):
        packed = self.packed()
        packed.begin_task("first")
        with pytest.raises(RuntimeError, match="task 'first' is still open"):
            packed.begin_task("second")

    def test_a_name_twice_is_refused(self):
        packed = self.packed()
        packed.begin_task("cats")
        packed.commit_task()
        with pytest.raises(tp.ArgumentError, match="no task of this pack has yet. Received: name='cats'"):
            packed.begin_task("cats")

    def test_a_full_pack_is_refused(self):
        packed = self.packed()
        packed.begin_task()
        packed.commit_task()  # nothing was pruned
        with pytest.raises(tp.ArgumentError, match="tasks own all weights"):
            packed.begin_task()

    def test_more_classes_than_a_shared_head_has(self):
        with pytest.raises(tp.ArgumentError, match="at most the 2 units of the shared head. Received: num_classes=3"):
            self.packed(head="shared").begin_task(num_classes=3)

    def test_unknown_tasks_are_refused(self):
        packed = self.packed()
        packed.begin_task("cats")
        with pytest.raises(tp.ArgumentError, match="one of 'cats', or its number. Received: task='dogs'"):
            packed.select_task("dogs")
        with pytest.raises(tp.ArgumentError, match="or its number. Received: task=2"):
            packed.select_task(2)

    @pytest.mark.parametrize("limit", [3, pytest.param(ownership.MAX_TASKS, marks=pytest.mark.slow)])
    def test_254_tasks_and_not_one_more(self, limit, monkeypatch):
        assert ownership.MAX_TASKS == 254
        monkeypatch.setattr(ownership, "MAX_TASKS", limit)
        packed = self.packed()
        kernels = lifecycle.masked_weights(packed).values()
        for _ in range(limit):
            packed.begin_task()
            for weight in kernels:
                weight.prune(np.zeros(weight.owner_map().shape, bool))  # a round may prune all candidates
            packed.commit_task()
        assert packed.free_fraction()["overall"] == 1.0
        with pytest.raises(tp.ArgumentError, match=f"1 to {limit} "):
            packed.begin_task()


class TestFreedWeights:
    """Start values in task 2 of the weights that task 1 has released."""

    def at_the_start_of_task_2(self, policy):
        packed = compile_model(tp.pack(make_mlp(), freed_weights=policy, seed=3), "adam")
        packed.begin_task()
        packed.fit(*blobs(1), epochs=2, verbose=0)
        weight = lifecycle.masked_weights(packed)["dense_1/kernel"]
        pruned = np.random.default_rng(0).random((6, 12)) < 0.5
        at_pruning = weight.values().copy()
        weight.prune(~pruned)
        packed.fit(*blobs(1), epochs=2, verbose=0)  # momentum and moments change the trainable variable
        packed.commit_task()
        packed.begin_task()
        return packed, np.array(weight.value()), pruned, at_pruning

    def test_zero(self):
        _, now, pruned, _ = self.at_the_start_of_task_2("zero")
        np.testing.assert_array_equal(now[pruned], 0)
        assert (now[~pruned] != 0).all()

    def test_keep_is_as_they_were_when_pruned(self):
        _, now, pruned, at_pruning = self.at_the_start_of_task_2("keep")
        np.testing.assert_array_equal(now[pruned], at_pruning[pruned])

    def test_reinit_is_a_fresh_seeded_draw(self):
        _, now, pruned, at_pruning = self.at_the_start_of_task_2("reinit")
        _, again, _, _ = self.at_the_start_of_task_2("reinit")
        np.testing.assert_array_equal(now[pruned], again[pruned])
        assert not np.isin(now[pruned], at_pruning).any()
        limit = np.sqrt(6 / (6 + 12))  # of Glorot's uniform draw
        assert np.abs(now[pruned]).max() <= limit
        assert now[pruned].std() == pytest.approx(limit / np.sqrt(3), rel=0.3)


class TestBiases:
    def after_two_tasks(self, policy):
        packed = compile_model(tp.pack(make_mlp(), bias_policy=policy), "adam")
        biases = {}
        for number in (1, 2):
            packed.begin_task()
            packed.fit(*blobs(number), epochs=3, verbose=0)
            for weight in lifecycle.masked_weights(packed).values():
                weight.prune(np.random.default_rng(number).random(weight.owner_map().shape) < 0.5)
            packed.commit_task()
            biases[number] = np.array(packed.get_layer("dense_1").bias)
        return packed, biases

    def test_first_task(self):
        _, biases = self.after_two_tasks("first_task")
        assert biases[1].any()
        np.testing.assert_array_equal(biases[2], biases[1])

    def test_per_task(self):
        packed, biases = self.after_two_tasks("per_task")
        assert not np.array_equal(biases[2], biases[1])
        packed.select_task(1)
        np.testing.assert_array_equal(packed.get_layer("dense_1").bias, biases[1])


class TestHeads:
    def test_a_first_task_that_was_never_begun_keeps_its_number_of_classes(self):
        packed = compile_model(tp.pack(make_mlp()))
        x, y = blobs(0)
        for number in (1, 2):
            if number == 2:
                packed.begin_task(num_classes=3)
            packed.fit(x, y, verbose=0, callbacks=[tp.TaskMaskSnapshot()] if number == 2 else self.retraining())
            if number == 1:
                before = packed.predict(x, verbose=0)
        packed.select_task(1)
        np.testing.assert_array_equal(packed.predict(x, verbose=0), before)

    def retraining(self):
        return [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3)), tp.TaskMaskSnapshot()]

    def test_per_task_heads_are_not_pruned_and_start_afresh(self):
        packed = compile_model(tp.pack(make_mlp()), "adam")
        assert "head/kernel" not in packed.owner_maps()
        packed.begin_task()
        first = np.array(packed.get_layer("head").kernel)
        lifecycle.masked_weights(packed)["dense_1/kernel"].prune(np.zeros((6, 12), bool))
        packed.commit_task()
        packed.begin_task()
        second = np.array(packed.get_layer("head").kernel)
        assert not np.isin(second, first).any()
        assert (second != 0).all()

    def test_a_shared_head_is_masked(self):
        packed = compile_model(tp.pack(make_mlp(), head="shared"), "adam")
        assert list(packed.owner_maps()) == ["dense_1/kernel", "dense_2/kernel", "head/kernel"]


def test_a_new_task_starts_with_a_fresh_optimizer_and_the_same_compiled_step():
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.Adam(0.01))
    traces = []
    step = packed.train_step
    packed.train_step = lambda data: (traces.append(1), step(data))[1]
    retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    for number in (1, 2, 3):
        packed.begin_task()
        assert int(packed.optimizer.iterations) == 0
        packed.fit(*blobs(number), epochs=2, batch_size=16, verbose=0)
        packed.optimizer.learning_rate = 0.5
        packed.fit(*blobs(number), epochs=2, batch_size=16, verbose=0, callbacks=retraining)
        assert float(packed.optimizer.learning_rate) == 0.5  # set by the user
    assert len(traces) <= 2  # tf.function traces once, XLA's wrapper once more; never again for masks, rounds or tasks


def test_fresh_pack_without_begin_is_open_for_its_first_task():
    packed = compile_model(tp.pack(make_mlp()), "adam")
    assert packed.committed_tasks == 0
    assert packed.selected_task == 1
    assert packed.free_fraction() == {"overall": 1.0, "layers": {"dense_1/kernel": 1.0, "dense_2/kernel": 1.0}}
