"""Outputs of committed tasks do not change, for layers with any kind of state; changed variables are detected."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests import stateful
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tests.stateful import learn, outputs, pack_stateful
from tf_packnet import lifecycle
from tf_packnet.lifecycle import task_checks, witness
from tf_packnet.structure.state import unowned_variables

X, Y = blobs(0)
STATE = [
    "base/fixed/kernel",
    "base/fixed/bias",
    "base/fixed_norm/gamma",
    "base/fixed_norm/beta",
    "base/fixed_norm/moving_mean",
    "base/fixed_norm/moving_variance",
    "center/mean",
    "center/steps",
    "center/more.0",
    "center/more.1.key",
    "block/u",
]


@pytest.fixture(autouse=True)
def outside():
    yield
    stateful.OUTSIDE.assign(1.0)


def two_tasks() -> tp.PackedModel:
    keras.utils.set_random_seed(0)
    packed = pack_stateful()
    learn(packed, "a", X, Y)
    learn(packed, "b", X + 3, 1 - Y)
    return packed


class TestState:
    def test_every_variable_is_a_weight_of_a_task_or_state(self):
        packed = pack_stateful()
        found = unowned_variables(packed)
        assert list(found) == STATE
        owned = [v for layer in lifecycle.task_layers(packed) for v in (*layer.trained_variables, *layer.bookkeeping)]
        everything = {id(variable) for variable in packed.variables}
        assert everything <= {id(variable) for variable in (*owned, *found.values())}

    def test_a_task_keeps_its_state(self):
        packed = pack_stateful()
        learn(packed, "a", X, Y)
        before = outputs(packed, X)["a"]
        values = {name: np.array(lifecycle.view_of(each)) for name, each in unowned_variables(packed).items()}
        learn(packed, "b", X + 3, 1 - Y)
        moved = [n for n, v in unowned_variables(packed).items() if not np.array_equal(lifecycle.view_of(v), values[n])]
        assert moved == ["center/mean", "center/steps", "center/more.0", "block/u"]
        packed.select_task("a")
        for name, variable in unowned_variables(packed).items():
            np.testing.assert_array_equal(lifecycle.view_of(variable), values[name])
        np.testing.assert_array_equal(packed.predict(X, verbose=0), before)

    def test_the_next_task_starts_from_the_state_of_the_one_before(self):
        packed = two_tasks()
        steps = packed.get_layer("center").steps
        assert steps.numpy() == 8.0  # two tasks of two epochs of two batches
        packed.select_task("a")
        assert steps.numpy() == 4.0
        packed.begin_task("c")
        assert steps.numpy() == 8.0

    def test_the_open_task_finds_its_state_again(self):
        packed = two_tasks()
        packed.begin_task("c")
        packed.fit(X, Y, verbose=0)
        mean = np.array(packed.get_layer("center").mean)
        packed.select_task("a")
        packed.select_task("b")
        assert not np.array_equal(packed.get_layer("center").mean, mean)
        packed.select_task("c")
        np.testing.assert_array_equal(packed.get_layer("center").mean, mean)

    def test_state_that_is_equal_is_kept_once(self):
        kept = lifecycle.records(two_tasks()).state
        assert kept[1]["base/fixed/kernel"] is kept[2]["base/fixed/kernel"]
        assert kept[1]["center/mean"] is not kept[2]["center/mean"]

    def test_kept_state_survives_whatever_writes_to_the_variable(self):
        """The array is a view of the variable's memory, which TensorFlow must not change."""
        packed = two_tasks()
        kept = lifecycle.records(packed).state[2]
        before = {name: np.array(value) for name, value in kept.items()}
        packed.begin_task("c")
        center, fixed = packed.get_layer("center"), packed.get_layer("base").get_layer("fixed")
        center.steps.assign_add(1.0)
        center.more[0].assign(9.0)
        center.mean.value.scatter_nd_update([[0]], [9.0])
        fixed.kernel.value.assign_sub(np.ones((6, 20), np.float32))
        tf.raw_ops.ResourceScatterUpdate(resource=fixed.bias.value.handle, indices=[0], updates=[5.0])
        for name, value in before.items():
            np.testing.assert_array_equal(kept[name], value)

    def test_inference_may_change_state(self):
        inputs = keras.Input((6,))
        x = stateful.CountsCalls(name="counter")(keras.layers.Dense(8, "relu")(inputs))
        packed = compile_model(tp.pack(keras.Model(inputs, keras.layers.Dense(2)(x))))
        learn(packed, "a", X, Y)
        before = outputs(packed, X)["a"]
        for _ in range(3):
            packed.predict(X, verbose=0)
        learn(packed, "b", X, 1 - Y)
        np.testing.assert_array_equal(outputs(packed, X)["a"], before)
        assert lifecycle.records(packed).volatile == {"counter/calls"}

    @pytest.mark.parametrize("excluded", [True, False])
    def test_a_stateful_part_that_is_excluded(self, excluded):
        inputs = keras.Input((6,))
        part = keras.Sequential([keras.Input((6,)), stateful.Center(), keras.layers.Dense(6, name="in")], name="part")
        part.trainable = excluded
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(8, "relu")(part(inputs))))
        packed = compile_model(tp.pack(model, exclude=["part"] if excluded else ()))
        learn(packed, "a", X, Y)
        before = outputs(packed, X)["a"]
        learn(packed, "b", X + 3, 1 - Y)
        np.testing.assert_array_equal(outputs(packed, X)["a"], before)


class TestUnfreezing:
    @pytest.mark.parametrize("how", ["layer", "model", "variable", "inner", "frozen weight"])
    def test_what_no_task_owns_is_not_trained(self, how):
        packed = two_tasks()
        base = packed.get_layer("base")
        if how == "layer":
            base.trainable = True
        elif how == "model":
            packed.trainable = False
            packed.trainable = True
        elif how == "inner":
            base.get_layer("fixed").trainable = True
            base.trainable = True
        elif how == "variable":
            for layer in base.layers:
                layer.trainable = True
                for variable in layer.variables:
                    variable.trainable = True
        else:
            lifecycle.masked_weights(packed)["dense/kernel"].frozen.trainable = True
        compile_model(packed)
        packed.begin_task("c")
        with pytest.raises(tp.ArgumentError, match="`trainable`: expected False for everything that no task owns"):
            packed.fit(X, Y, verbose=0)
        assert packed.optimizer.iterations == 0

    def test_a_callback_that_unfreezes_comes_too_late(self):
        class Unfreezes(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.model.get_layer("base").trainable = True

        packed = compile_model(two_tasks())  # so that the step is traced again
        before = outputs(packed, X)
        packed.begin_task("c")
        with pytest.raises(tp.ArgumentError, match="expected False for everything that no task owns"):
            packed.fit(X, Y, verbose=0, callbacks=[Unfreezes()])
        packed.get_layer("base").trainable = False
        for task, now in outputs(packed, X).items():
            np.testing.assert_array_equal(now, before[task])

    def test_freezing_more_is_allowed(self):
        packed = two_tasks()
        before = outputs(packed, X)
        packed.get_layer("dense").trainable = False
        compile_model(packed)
        learn(packed, "c", X, Y)
        for task in before:
            np.testing.assert_array_equal(outputs(packed, X)[task], before[task])


def weight(packed, path):
    return lifecycle.masked_weights(packed)[path]


def kept(packed, place, name):
    return next(w for w in packed.get_layer(place).all_task_weights if w.name == name).kept


def moved(values):
    values += 1


def swap_owners(packed):
    owner = weight(packed, "dense/kernel").owner
    owner.assign(np.where(np.array(owner) == 1, 2, owner))


def change_records(packed):
    state = lifecycle.records(packed).state[1]
    state["center/mean"] = state["center/mean"] + 1


def change_activation(packed):
    packed.get_layer("dense").activation = keras.activations.tanh
    compile_model(packed)


# By the name in the error. A change that is not detected must not have changed a committed task.
ATTACKS = {
    "dense/kernel: frozen": lambda p: weight(p, "dense/kernel").frozen.assign(weight(p, "dense/kernel").frozen + 0.1),
    "dense/kernel: one entry": lambda p: weight(p, "dense/kernel").frozen.value.scatter_nd_update([[0, 0]], [9.0]),
    "dense/kernel: owner": swap_owners,
    "dense/kernel: set_weights": lambda p: p.get_layer("dense").set_weights(
        [np.ones_like(w) if w.dtype == np.float32 else w for w in p.get_layer("dense").get_weights()]
    ),
    "dense/bias: kept": lambda p: moved(kept(p, "dense", "bias")[1]),
    "norm/moving_mean: kept": lambda p: moved(kept(p, "norm", "moving_mean")[1]),
    "norm/gamma: kept": lambda p: moved(kept(p, "norm", "gamma")[2]),
    "head/kernel: kept": lambda p: moved(kept(p, "head", "kernel")[1]),
    "head/bias: lost": lambda p: kept(p, "head", "bias").__setitem__(1, np.zeros(2, np.float32)),
    "center/mean: records": change_records,
    "outputs": change_activation,
    "healed: shown bias": lambda p: p.get_layer("dense").task_weights[0].frozen.assign(np.ones(16)),
    "healed: shown": lambda p: weight(p, "dense/kernel").shown.assign(1),
    "healed: learning": lambda p: weight(p, "dense/kernel").learning.assign(False),
    "healed: state": lambda p: p.get_layer("center").mean.assign(np.ones(20)),
    "healed: excluded": lambda p: p.get_layer("base").get_layer("fixed").kernel.assign_add(np.ones((6, 20))),
    "healed: excluded statistics": lambda p: (
        p.get_layer("base").get_layer("fixed_norm").moving_mean.assign(np.ones(20))
    ),
    "healed: tf.Variable": lambda p: p.get_layer("center").steps.assign(70.0),
    "healed: in a list": lambda p: p.get_layer("center").more[0].assign(7.0),
}


class TestDirectChanges:
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_between_fits(self, attack):
        packed = two_tasks()
        before = outputs(packed, X)
        packed.begin_task("c")
        ATTACKS[attack](packed)
        named = attack.partition(":")[0]
        if named != "healed":
            with pytest.raises(tp.FreezeError, match=named) as caught:
                packed.fit(X, Y, verbose=0)
            assert "task" in str(caught.value)
            assert "\n" not in str(caught.value)
            return
        packed.fit(X, Y, verbose=0)
        for task, now in outputs(packed, X).items():
            np.testing.assert_array_equal(now, before[task])

    @pytest.mark.parametrize("attack", [name for name in ATTACKS if not name.startswith("healed")][:4])
    def test_in_a_fit_and_before_a_commit(self, attack):
        class Attacks(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                ATTACKS[attack](self.model)

        packed = two_tasks()
        packed.begin_task("c")
        with pytest.raises(tp.FreezeError, match=attack.partition(":")[0]):
            packed.fit(X, Y, verbose=0, callbacks=[Attacks()])
        with pytest.raises(tp.FreezeError, match=attack.partition(":")[0]):
            packed.commit_task()
        assert packed.committed_tasks == 2

    @pytest.mark.parametrize("attack", [name for name in ATTACKS if name.startswith("healed")])
    def test_of_what_the_selected_task_shows(self, attack):
        packed = two_tasks()
        packed.select_task("a")
        before = packed.predict(X, verbose=0)
        ATTACKS[attack](packed)
        if np.array_equal(packed.predict(X, verbose=0), before):
            return  # `shown` is 1 for task a
        with pytest.raises(tp.FreezeError, match="changed while the committed task 'a' was selected"):
            lifecycle.check_tasks(packed)
        packed.select_task("a")
        lifecycle.check_tasks(packed)
        np.testing.assert_array_equal(packed.predict(X, verbose=0), before)


class TestWitness:
    @pytest.mark.parametrize("make", [make_mlp, make_convnet])
    def test_it_is_what_predict_gives(self, make):
        packed = compile_model(tp.pack(make()))
        learn(packed, "a", *blobs(0, packed.input_shape[1:]))
        found = lifecycle.records(packed).witnesses[1]
        draw = np.random.RandomState(witness.SEED)
        x = draw.standard_normal((found.inputs["examples"], *packed.input_shape[1:])).astype("float32")
        assert 1 <= len(x) <= 16
        packed.select_task("a")
        np.testing.assert_array_equal(found.outputs[0], packed.predict(x, verbose=0, batch_size=16).reshape(-1))

    def test_it_is_no_function_of_the_data(self):
        facts = []
        for seed in (0, 1):
            packed = compile_model(tp.pack(make_mlp()))
            learn(packed, "a", *blobs(seed))
            facts.append(lifecycle.records(packed).witnesses[1].inputs)
        assert facts[0] == facts[1]

    def test_inputs_of_every_kind(self):
        """Indices within the vocabulary, strings, axes of unknown size, several inputs."""
        ids, words = keras.Input((None,), dtype="int32", name="ids"), keras.Input((), dtype="string", name="words")
        numbers = keras.Input((3,), name="numbers")
        looked_up = keras.layers.StringLookup(vocabulary=["1", "2"], output_mode="one_hot")(words)
        pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(5, 4)(ids))
        joined = keras.layers.Concatenate()([pooled, looked_up, numbers])
        model = keras.Model({"ids": ids, "words": words, "numbers": numbers}, keras.layers.Dense(2)(joined))
        packed = compile_model(tp.pack(model, head="per_task"))
        x = {
            "ids": np.random.default_rng(0).integers(0, 5, (8, 7)),
            "words": np.array(["1", "2", "3", "1"] * 2),
            "numbers": np.ones((8, 3)),
        }
        packed.begin_task("a")
        packed.fit(tf.data.Dataset.from_tensor_slices((x, np.arange(8) % 2)).batch(4), verbose=0)
        packed.commit_task()
        assert lifecycle.records(packed).witnesses[1].outputs[0].size == 2 * witness.EXAMPLES

    def test_a_model_that_draws_random_numbers_has_checksums_alone(self):
        @keras.saving.register_keras_serializable("tests.witness")
        class Noise(keras.layers.Layer):
            def call(self, z):
                return z + tf.random.normal(tf.shape(z))

        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(4, name="hidden")(Noise()(inputs))
        packed = compile_model(tp.pack(keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))))
        packed.begin_task("a")
        packed.commit_task()
        found = lifecycle.records(packed).witnesses[1]
        assert found.outputs == []
        assert list(found.checksums) == ["hidden/kernel", "hidden/bias", "head/kernel", "head/bias"]

    def test_dropout_draws_nothing_from_its_seed(self):
        packed = compile_model(tp.pack(make_convnet(dropout=0.5)))
        generators = [g for layer in packed._flatten_layers() for g in layer._seed_generators]
        before = [np.array(generator.state) for generator in generators]
        packed.begin_task("a")
        packed.commit_task()
        for generator, state in zip(generators, before, strict=True):
            np.testing.assert_array_equal(generator.state, state)

    def test_elsewhere_it_is_compared_to_a_tolerance(self):
        packed = two_tasks()
        found = lifecycle.records(packed).witnesses[1]
        found.outputs = [found.outputs[0] * np.float32(1 + 1e-4)]
        with pytest.raises(tp.FreezeError, match="outputs of task 'a' have changed"):
            lifecycle.check_tasks(packed)
        found.environment = {**found.environment, "tensorflow": "2.99"}
        lifecycle.check_tasks(packed)
        found.outputs = [found.outputs[0] * np.float32(1.5)]
        with pytest.raises(tp.FreezeError, match="outputs of task 'a' have changed"):
            lifecycle.check_tasks(packed)

    def test_differences_of_rounding_alone_are_a_warning(self):
        packed = two_tasks()
        (recorded,) = lifecycle.records(packed).witnesses[1].outputs
        recorded[:] = np.nextafter(recorded, np.inf)
        with pytest.warns(UserWarning, match="the outputs of task 'a' have changed .* rounds differently"):
            lifecycle.check_tasks(packed)
        recorded *= 1.001
        with pytest.raises(tp.FreezeError, match="a layer computes differently"):
            lifecycle.check_tasks(packed)

    def test_a_plain_model_of_masked_layers(self):
        inputs = keras.Input((6,))
        hidden = stateful.Center()(tp.layers.MaskedDense(12, activation="relu", name="dense")(inputs))
        model = compile_model(keras.Model(inputs, tp.layers.TaskHead(2, name="head")(hidden)))
        first = []
        for task, y in ((1, Y), (2, 1 - Y)):
            tp.begin_task(model)
            model.fit(X + 3 * task, y, verbose=0, callbacks=stateful.prune_and_commit())
            tp.select_task(model, 1)
            found = model.predict(X, verbose=0)
            first.append(found)
            np.testing.assert_array_equal(found, first[0])
        tp.begin_task(model)
        frozen = lifecycle.masked_weights(model)["dense/kernel"].frozen
        frozen.assign(frozen + 1)
        with pytest.raises(tp.FreezeError, match="dense/kernel"):
            model.fit(X, Y, verbose=0, callbacks=stateful.prune_and_commit())

    def test_a_variable_that_no_layer_holds(self):
        inputs = keras.Input((6,))
        hidden = stateful.Outside()(tp.layers.MaskedDense(12, activation="relu", name="dense")(inputs))
        model = compile_model(keras.Model(inputs, tp.layers.TaskHead(2, name="head")(hidden)))
        model.fit(X, Y, verbose=0, callbacks=stateful.prune_and_commit())
        stateful.OUTSIDE.assign(2.0)
        with pytest.raises(tp.FreezeError, match="captured Variable"):
            lifecycle.check_tasks(model)

    def test_the_records_are_json_and_arrays(self):
        store = {}
        lifecycle.records(two_tasks()).save(store)
        facts = json.loads(store["records"].tobytes())
        assert facts["names"] == ["a", "b"]
        assert set(facts["state"]["1"]) == set(STATE)
        assert {type(value) for value in store.values()} == {np.ndarray}


def test_weights_that_are_not_finite_are_not_committed():
    packed = two_tasks()
    packed.begin_task("c")
    variable = weight(packed, "dense/kernel").variable
    for value in (np.nan, np.inf):
        variable.assign(np.full((20, 16), value))
        with pytest.raises(tp.DivergedError, match="task 'c' has weights that are NaN or infinite, in dense/kernel"):
            packed.commit_task()
        assert packed.committed_tasks == 2
    assert task_checks.check_tasks(packed) is None


@pytest.mark.parametrize("jit", ["auto", False])
def test_a_layer_that_is_adapted_to_each_task(jit):
    """Normalization computes with tensors that depend on its variables."""
    inputs = keras.Input((6,))
    scaled = keras.layers.Normalization(name="scaled")
    hidden = keras.layers.Dense(8, "relu")(scaled(inputs))
    scaled.adapt(X)
    packed = compile_model(tp.pack(keras.Model(inputs, keras.layers.Dense(2)(hidden))), jit_compile=jit)
    learn(packed, "a", X, Y)
    before = outputs(packed, X)["a"]
    packed.begin_task("b")
    packed.get_layer("scaled").adapt(5 * X + 3)
    compile_model(packed, jit_compile=jit)
    packed.fit(5 * X + 3, 1 - Y, epochs=2, verbose=0, callbacks=stateful.prune_and_commit())
    found = outputs(packed, X)
    np.testing.assert_array_equal(found["a"], before)
    packed.select_task("b")
    plain = tp.dense_model(packed, "b")
    np.testing.assert_allclose(plain.predict(X, verbose=0), found["b"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["a"], found["b"])
