"""Tasks are begun, reopened and committed in a model of masked layers, without training."""

import hashlib
import types

import keras
import numpy as np
import pytest

from tests.stateful import Center, CountsCalls, Measures
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, DivergedError, FreezeError
from tf_packnet.layers import MaskedDense, TaskHead
from tf_packnet.lifecycle import task_checks

MORE = ("center/more.0", "center/more.1.key")
X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def network(**arguments) -> keras.Model:
    """Two kernels of equal shape, a head, and a layer with state that belongs to no weight."""
    x = inputs = keras.Input((6,))
    x = Center(name="center")(x)
    for name in ("one", "two"):
        x = MaskedDense(6, name=name, bias_policy="per_task", **arguments)(x)
    return keras.Model(inputs, TaskHead(2, name="head")(x), name="network")


def train(model: keras.Model, seed: int, keep: float = 0.5) -> np.ndarray:
    """Change all that training changes, and prune; returns the outputs."""
    rng = np.random.default_rng(seed)
    for layer in lifecycle.task_layers(model):
        for variable in layer.trained_variables:
            variable.assign(rng.normal(size=variable.shape))
    for weight in lifecycle.masked_weights(model).values():
        weight.prune(rng.random(weight.owner_map().shape) < keep)
    model.get_layer("center").mean.assign(rng.normal(size=6))
    return np.array(model(X))


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in lifecycle.state(model).items()}


def assert_unchanged(model: keras.Model, before: dict[str, np.ndarray]) -> None:
    after = values(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def kernels(model: keras.Model) -> list[np.ndarray]:
    return [np.array(weight.values()) for weight in lifecycle.masked_weights(model).values()]


def test_every_task_computes_as_when_it_was_committed():
    model, expected = network(), {}
    for task in (1, 2, 3):
        assert lifecycle.begin_task(model) == task
        assert lifecycle.has_open_task(model)
        expected[task] = train(model, seed=task)
        if task == 3:
            lifecycle.select_task(model, 1)  # the open task is committed, whichever is selected
        assert lifecycle.commit_task(model) == task == lifecycle.committed_tasks(model)
        assert not lifecycle.has_open_task(model)
        assert lifecycle.selected_task(model) == task
        np.testing.assert_array_equal(model(X), expected[task])
        for number, outputs in expected.items():
            lifecycle.select_task(model, number)
            np.testing.assert_array_equal(model(X), outputs)
        lifecycle.check_tasks(model)
    assert set(lifecycle.records(model).witnesses) == set(lifecycle.records(model).state) == {1, 2, 3}


@pytest.mark.parametrize("loaded", [False, True])
def test_a_task_starts_from_the_state_and_biases_of_the_one_before_it(loaded, tmp_path):
    model = network()
    for task in (1, 2):
        if task > 1:
            lifecycle.begin_task(model)
        train(model, seed=task)
        lifecycle.commit_task(model)
    records = lifecycle.records(model)
    records.plan_rounds(2, first_epoch=3)
    records.round_was_run()
    mean, bias = np.array(model.get_layer("center").mean), np.array(model.get_layer("one").bias)
    lifecycle.select_task(model, 1)
    assert not np.isclose(model.get_layer("center").mean, mean).any()
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
        records = lifecycle.records(model)
    lifecycle.begin_task(model)
    assert lifecycle.selected_task(model) == 3
    assert (records.rounds_done, records.rounds_due, records.rounds_planned, records.rounds_from) == (0, 0, 0, 0)
    np.testing.assert_array_equal(model.get_layer("center").mean, mean)
    np.testing.assert_array_equal(model.get_layer("one").bias, bias)


def test_new_values_depend_on_seed_task_and_layer():
    drawn = {}
    for seed in (0, 0, 1):
        model = network()
        for task in (2, 3):
            train(model, seed=task, keep=0.0)
            lifecycle.commit_task(model)
            lifecycle.begin_task(model, "reinit", seed)
            found = kernels(model)
            for one, other in zip(found, drawn.get((seed, task), found), strict=True):
                np.testing.assert_array_equal(one, other)
            drawn[seed, task] = found
    everything = [kernel for found in drawn.values() for kernel in found]
    assert len(everything) == 8
    for number, kernel in enumerate(everything):
        assert kernel.any()
        assert not any(np.isclose(kernel, other).any() for other in everything[:number])


def test_by_default_a_task_begins_with_seed_0():
    drawn = []
    for arguments in ({}, {"seed": 0}):
        model = network()
        train(model, seed=1, keep=0.0)
        lifecycle.commit_task(model)
        lifecycle.begin_task(model, "reinit", **arguments)
        drawn.append(kernels(model))
    np.testing.assert_array_equal(*drawn)


class TestReopening:
    def test_free_weights_become_candidates_again(self):
        model = network()
        train(model, seed=1)
        lifecycle.records(model).plan_rounds(2, 0)
        lifecycle.records(model).round_was_run()
        before = [weight.owner_map() == 255 for weight in lifecycle.masked_weights(model).values()]
        trained = kernels(model)
        lifecycle.reopen_task(model, "reinit", seed=3)
        for weight, mask, kernel in zip(lifecycle.masked_weights(model).values(), before, trained, strict=True):
            assert (weight.owner_map() == 255).all()
            np.testing.assert_array_equal(weight.values()[mask], kernel[mask])
            assert not np.isclose(weight.values()[~mask], kernel[~mask]).any()
        one, two = kernels(model)
        both_free = ~before[0] & ~before[1]
        assert not np.isclose(one[both_free], two[both_free]).any()
        again = network()
        train(again, seed=1)
        lifecycle.reopen_task(again, "reinit", seed=3)
        for kernel, other in zip(kernels(again), (one, two), strict=True):
            np.testing.assert_array_equal(kernel, other)
        records = lifecycle.records(model)
        assert (records.rounds_done, records.rounds_due, records.rounds_planned) == (0, 0, 0)

    def test_by_default_with_0(self):
        model = network()
        train(model, seed=1, keep=0.0)
        lifecycle.reopen_task(model)
        assert not any(kernel.any() for kernel in kernels(model))

    def test_by_default_with_seed_0(self):
        drawn = []
        for arguments in ({}, {"seed": 0}):
            model = network()
            train(model, seed=1, keep=0.0)
            lifecycle.reopen_task(model, "reinit", **arguments)
            lifecycle.commit_task(model)
            drawn.append([np.array(weight.frozen) for weight in lifecycle.masked_weights(model).values()])
        np.testing.assert_array_equal(*drawn)

    def test_needs_an_open_task_and_a_known_policy(self):
        model = network()
        with pytest.raises(ArgumentError, match="`freed_weights`: expected one of zero, keep, reinit"):
            lifecycle.reopen_task(model, "guess")
        train(model, seed=1)
        lifecycle.commit_task(model)
        before = values(model)
        with pytest.raises(RuntimeError, match="no task is open in model 'network'"):
            lifecycle.reopen_task(model)
        assert_unchanged(model, before)


class TestRefusals:
    """Nothing changes if a task cannot begin or be committed."""

    @pytest.fixture
    def committed(self):
        model = network()
        train(model, seed=1)
        lifecycle.commit_task(model)
        return model

    def test_a_task_is_still_open(self, committed):
        lifecycle.begin_task(committed)
        before = values(committed)
        with pytest.raises(RuntimeError, match="task 2 is still open"):
            lifecycle.begin_task(committed)
        assert_unchanged(committed, before)

    def test_no_task_is_open(self, committed):
        before = values(committed)
        with pytest.raises(RuntimeError, match="no task is open in model 'network'"):
            lifecycle.commit_task(committed)
        assert_unchanged(committed, before)

    def test_an_unknown_policy(self, committed):
        before = values(committed)
        with pytest.raises(ArgumentError, match="`freed_weights`: expected one of zero, keep, reinit"):
            lifecycle.begin_task(committed, "guess")
        assert_unchanged(committed, before)

    def test_no_weight_is_free(self):
        model = network()
        train(model, seed=1, keep=1.0)
        lifecycle.check_can_begin(model, "zero")  # the first task is open
        lifecycle.commit_task(model)
        with pytest.raises(ArgumentError, match="expected a model with free weights .its 1 tasks own all weights"):
            lifecycle.begin_task(model)

    def test_all_task_numbers_are_used(self, committed):
        for layer in lifecycle.task_layers(committed):
            layer.committed_tasks = 254
        before = values(committed)
        with pytest.raises(ArgumentError, match="`task`: expected a number from 1 to 254"):
            lifecycle.begin_task(committed)
        assert_unchanged(committed, before)

    @pytest.mark.parametrize(
        ("pretrained", "refused"),
        [
            (None, {"keep": "`freed_weights`: expected zero or reinit .this pack was loaded"}),
            ("prunable", dict.fromkeys(["zero", "keep", "reinit"], "a pack with its pretrained values")),
            ("visible", {}),
        ],
    )
    @pytest.mark.parametrize("freed_weights", ["zero", "keep", "reinit"])
    def test_start_values_that_a_file_lacks(self, pretrained, refused, freed_weights):
        model = network(pretrained=pretrained)
        train(model, seed=1)
        lifecycle.masked_weights(model)["two/kernel"].has_free_values = False
        lifecycle.check_can_begin(model, freed_weights)  # the first task needs none
        lifecycle.masked_weights(model)["two/kernel"].has_free_values = True
        for layer in lifecycle.task_layers(model):
            layer.commit_task()
        lifecycle.check_can_begin(model, freed_weights)
        lifecycle.masked_weights(model)["two/kernel"].has_free_values = False
        assert lifecycle.lacks_free_values(model)
        if freed_weights not in refused:
            lifecycle.check_can_begin(model, freed_weights)
            return
        with pytest.raises(ArgumentError, match=refused[freed_weights]):
            lifecycle.check_can_begin(model, freed_weights)

    def test_weights_that_are_not_finite(self, committed):
        lifecycle.begin_task(committed)
        kernel = committed.get_layer("two").masked_weights[0].variable
        kernel.assign(np.full(kernel.shape, np.inf))
        before = values(committed)
        with pytest.raises(DivergedError, match="in two/kernel: it cannot be committed"):
            lifecycle.commit_task(committed)
        assert_unchanged(committed, before)

    def test_an_earlier_task_that_has_changed(self, committed):
        lifecycle.begin_task(committed)
        train(committed, seed=2)
        frozen = committed.get_layer("two").masked_weights[0].frozen
        frozen.assign(np.array(frozen) + 1)
        before = values(committed)
        with pytest.raises(FreezeError, match="of task 1 .*in 'two/kernel'"):
            lifecycle.commit_task(committed)
        assert_unchanged(committed, before)


class TestChecks:
    @pytest.fixture
    def two_tasks(self):
        model = network(pretrained="visible")
        for weight in lifecycle.masked_weights(model).values():
            weight.set_pretrained()
        for task in (1, 2):
            lifecycle.begin_task(model)
            train(model, seed=task)
            lifecycle.commit_task(model)
        return model

    def test_pretrained_values_that_all_tasks_see(self, two_tasks):
        base = lifecycle.masked_weights(two_tasks)["one/kernel"].base
        base.assign(np.array(base) + 1)
        message = r"of task 1 \('task_1'\) in 'one/kernel \(pretrained\)', task 2 .* in 'one/kernel \(pretrained\)':"
        with pytest.raises(FreezeError, match=message):
            lifecycle.check_tasks(two_tasks)

    def test_values_that_are_not_finite(self, two_tasks):
        task_checks.check_committed_finite(two_tasks)
        kernel = lifecycle.masked_weights(two_tasks)["two/kernel"]
        bias = two_tasks.get_layer("one").task_weights[0]
        bias.kept[1] = bias.kept[1] * np.float32(np.inf)
        with pytest.raises(DivergedError, match="'network' has committed weights that are NaN .*, in one/bias$"):
            task_checks.check_committed_finite(two_tasks)
        kernel.frozen.assign(np.where(kernel.owner_map() == 1, np.nan, kernel.frozen))
        with pytest.raises(DivergedError, match="in two/kernel, one/bias$"):
            task_checks.check_committed_finite(two_tasks)

    def test_missing_records_are_completed(self, two_tasks):
        records = lifecycle.records(two_tasks)
        assert task_checks.committed_checksums(two_tasks).keys() == {1, 2}
        before = {task: (each.checksums, each.outputs) for task, each in records.witnesses.items()}
        state = {task: dict(values) for task, values in records.state.items()}
        for selected in (1, 2):
            lifecycle.select_task(two_tasks, selected)
            for missing in ([1], [2], [1, 2], []):
                for task in missing:
                    del records.witnesses[task]
                task_checks.complete_records(two_tasks)
                assert lifecycle.selected_task(two_tasks) == selected
                assert records.witnesses.keys() == {1, 2}
                for task, (checksums, outputs) in before.items():
                    assert records.witnesses[task].checksums == checksums
                    np.testing.assert_array_equal(records.witnesses[task].outputs, outputs)
        assert {task: list(values) for task, values in state.items()} == {
            task: list(values) for task, values in records.state.items()
        }

    def test_the_state_of_a_file_without_records_is_that_of_all_tasks(self, two_tasks):
        records = lifecycle.records(two_tasks)
        records.state.clear()
        records.witnesses.clear()
        two_tasks.get_layer("center").mean.assign(np.arange(6))
        task_checks.complete_records(two_tasks)
        assert records.state.keys() == {1, 2}
        for state in records.state.values():
            np.testing.assert_array_equal(state["center/mean"], np.arange(6))
        lifecycle.check_tasks(two_tasks)

    def test_a_value_that_is_gone(self, two_tasks):
        checksums = lifecycle.records(two_tasks).witnesses[1].checksums
        assert {len(value) for value in checksums.values()} == {16}
        checksums["captured gone"] = "0"  # a variable that no layer tracks need not have the same name
        lifecycle.check_tasks(two_tasks)
        checksums["gone/kernel"] = "0"
        with pytest.raises(FreezeError, match=r"of task 1 \('task_1'\) in 'gone/kernel':"):
            lifecycle.check_tasks(two_tasks)

    def test_the_checksum_of_a_large_kernel_is_that_of_earlier_files(self):
        rng, size = np.random.default_rng(0), 2**20
        owner = rng.integers(0, 4, 2 * size - 6, np.uint8)
        frozen = rng.normal(size=owner.size).astype("float32")
        weight = types.SimpleNamespace(owner=keras.Variable(owner, dtype="uint8"), frozen=keras.Variable(frozen))
        found = task_checks._checksums_by_owner(weight, 3)
        assert found.keys() == {1, 2, 3}
        for task, checksum in found.items():
            positions = np.flatnonzero(owner == task)
            digest = hashlib.sha256()
            for part in (positions[positions < size], positions[positions >= size]):
                digest.update(part.astype("uint32").tobytes() + frozen[part].tobytes())
            assert checksum == digest.hexdigest()

    def test_state_that_inference_changes_is_as_before_it(self):
        x = inputs = keras.Input((6,))
        for layer in (MaskedDense(6), CountsCalls(name="counter"), Measures(name="measures"), TaskHead(2)):
            x = layer(x)
        model = keras.Model(inputs, x)
        model.get_layer("counter").calls.assign(4.0)
        lifecycle.commit_task(model)
        records = lifecycle.records(model)
        assert records.volatile == {"counter/calls"}
        assert records.witnesses[1].outputs
        assert not [name for name in records.witnesses[1].checksums if name.startswith("captured")]
        assert float(model.get_layer("counter").calls) == float(records.state[1]["counter/calls"]) == 4
        lifecycle.check_tasks(model)

    def test_later_tasks_are_forgotten(self, two_tasks):
        records = lifecycle.records(two_tasks)
        task_checks.forget_later_tasks(two_tasks, 2)
        assert records.witnesses.keys() == records.state.keys() == {1, 2}
        task_checks.forget_later_tasks(two_tasks, 1)
        assert records.witnesses.keys() == records.state.keys() == {1}

    def test_outputs_that_no_variable_explains(self, two_tasks):
        two_tasks.get_layer("one").activation = keras.activations.tanh
        lifecycle.records(two_tasks).functions.clear()
        lifecycle.select_task(two_tasks, 1)
        with pytest.raises(FreezeError, match="the outputs of task 'task_1' have changed .* by [0-9.]+ relative"):
            lifecycle.check_tasks(two_tasks)
        assert lifecycle.selected_task(two_tasks) == 1

    def test_outputs_of_any_task(self, two_tasks):
        (outputs,) = lifecycle.records(two_tasks).witnesses[2].outputs
        outputs[np.argmax(np.abs(outputs))] *= np.float32(1 + 1e-6)
        with pytest.warns(UserWarning, match="outputs of task 'task_2' have changed .* rounds differently") as told:
            lifecycle.check_tasks(two_tasks)
        assert len(told) == 1
        outputs *= 2
        with pytest.raises(FreezeError, match="outputs of task 'task_2' have changed .* by 0.5 relative"):
            lifecycle.check_tasks(two_tasks)

    @pytest.mark.parametrize("what", ["bias", "state", "shown"])
    @pytest.mark.parametrize("task", [1, 2])
    def test_what_the_selected_task_shows(self, two_tasks, what, task):
        lifecycle.select_task(two_tasks, task)
        lifecycle.check_tasks(two_tasks)
        if what == "bias":
            two_tasks.get_layer("one").task_weights[0].frozen.assign(np.ones(6))
        elif what == "state":
            two_tasks.get_layer("center").mean.assign(np.ones(6))
        else:
            lifecycle.masked_weights(two_tasks)["one/kernel"].shown.assign(3 - task)
        name = {"bias": "one/bias", "state": "center/mean", "shown": "one/kernel"}[what]
        with pytest.raises(FreezeError, match=f"^'{name}' changed while the committed task 'task_{task}' was selected"):
            lifecycle.check_tasks(two_tasks)
        lifecycle.begin_task(two_tasks)  # the open task may change what it likes
        two_tasks.get_layer("center").mean.assign(np.zeros(6))
        lifecycle.check_tasks(two_tasks)


def committed(num_tasks: int = 2) -> keras.Model:
    model = network()
    for task in range(1, num_tasks + 1):
        if task > 1:
            lifecycle.begin_task(model)
        train(model, seed=task)
        lifecycle.commit_task(model)
    return model


class TestSelecting:
    @pytest.mark.parametrize("task", [0, -1, 3, True, 1.0, "1", None])
    def test_tasks_that_do_not_exist(self, task):
        model = committed()
        with pytest.raises(ArgumentError, match="`task`: expected the number of a task in the pack, 1 to 2"):
            lifecycle.select_task(model, task)
        assert lifecycle.selected_task(model) == 2
        lifecycle.select_task(model, np.int64(1))
        assert lifecycle.selected_task(model) == 1
        assert type(lifecycle.selected_task(model)) is int

    def test_the_open_task_finds_its_state_again(self):
        model = committed()
        mean = model.get_layer("center").mean
        lifecycle.begin_task(model)
        mean.assign(np.full(6, 7.0))
        lifecycle.select_task(model, 3)
        for committed_task in (1, 2):
            lifecycle.select_task(model, committed_task)
            np.testing.assert_array_equal(mean, lifecycle.records(model).state[committed_task]["center/mean"])
        assert set(lifecycle.records(model).open_state) == {"center/mean", "center/steps", *MORE}
        lifecycle.select_task(model, 3)
        np.testing.assert_array_equal(mean, np.full(6, 7.0))
        assert lifecycle.records(model).open_state == {}

    def test_steps_are_compiled_again_if_the_shape_of_a_head_changes(self):
        model = committed(1)
        (head,) = lifecycle.heads(model).values()
        head.use(3)
        lifecycle.begin_task(model)
        lifecycle.commit_task(model)
        for task, kept in ((2, True), (1, False), (1, True), (2, False)):
            model.train_function = model.test_function = model.predict_function = f"compiled for {head.units}"
            lifecycle.select_task(model, task)
            assert head.units == task + 1
            assert (model.train_function is not None) == kept
            known = f"compiled for {head.units}" if (task, kept) != (1, False) else None
            assert model.test_function == model.predict_function == known

    def test_heads_switch_to_the_numbers_that_are_given(self):
        x = keras.Input((6,))
        hidden = MaskedDense(4)(x)
        model = keras.Model(x, [TaskHead(2, name=name)(hidden) for name in ("a", "b")])
        lifecycle.use_outputs(model, {"b": 5})
        assert {path: head.num_outputs for path, head in lifecycle.heads(model).items()} == {"a": 2, "b": 5}
        lifecycle.use_outputs(model, {"a": 3})
        assert {path: head.num_outputs for path, head in lifecycle.heads(model).items()} == {"a": 3, "b": 5}

    def test_values_that_a_layer_computes_from_its_variables_are_updated(self):
        x = inputs = keras.Input((6,))
        normalization = keras.layers.Normalization()
        normalization.adapt(X)
        model = keras.Model(inputs, MaskedDense(2)(normalization(x)))
        next(iter(lifecycle.masked_weights(model).values())).prune(np.arange(12).reshape(6, 2) < 6)
        lifecycle.commit_task(model)
        first = np.array(model(X))
        lifecycle.begin_task(model)
        normalization.adapt(10 * X)
        for task, changes in ((2, False), (1, True), (1, False), (2, True)):
            model.predict_function = "compiled"
            lifecycle.records(model).functions["traced"] = None
            lifecycle.select_task(model, task)
            assert np.array_equal(model(X), first) == (task == 1)
            assert (model.predict_function is None) == changes
            assert ("traced" not in lifecycle.records(model).functions) == changes


class TestState:
    def test_the_records_are_those_of_the_first_layer(self):
        model = network()
        records = lifecycle.records(model)
        assert [layer.records for layer in lifecycle.task_layers(model)] == [records, None, None]
        assert lifecycle.records(model) is records

    def test_it_is_loaded_into_a_model_whose_layers_have_other_numbers(self):
        def unnamed():
            inputs = keras.Input((6,))
            return keras.Model(inputs, MaskedDense(2)(MaskedDense(4)(Center()(inputs))))

        keras.backend.clear_session()
        model, again = unnamed(), unnamed()
        model.layers[1].mean.assign(np.arange(6))
        model.layers[1].steps.assign(3.0)
        lifecycle.commit_task(model)
        state = values(model)
        assert {name for name in state if name.startswith("state/")} == {
            f"state/center/{name}" for name in ("mean", "steps", "more.0", "more.1.key")
        }
        lifecycle.load_state(again, state)
        np.testing.assert_array_equal(again(X), model(X))
        assert lifecycle.committed_tasks(again) == 1
        for value, other in zip(state.values(), values(again).values(), strict=True):
            np.testing.assert_array_equal(value, other)
        again.layers[1].mean.assign(np.ones(6))
        lifecycle.load_state(again, {name: value for name, value in state.items() if not name.startswith("state/")})
        np.testing.assert_array_equal(again.layers[1].mean, np.ones(6))
        del state[next(name for name in state if name.endswith("kernel.frozen"))]
        with pytest.raises(KeyError):
            lifecycle.load_state(again, state)

    def test_variables_that_keras_does_not_save_are_assigned_once(self):
        model = network()
        steps = model.get_layer("center").steps
        lifecycle.records(model).loaded = {"center/steps": np.float32(5), "gone": np.float32(1)}
        variables = lifecycle.bind_state(model)
        assert variables is lifecycle.records(model).variables
        assert float(steps) == 5
        assert variables["center/steps"] is steps
        steps.assign(6)
        lifecycle.bind_state(model)
        assert float(steps) == 6
        lifecycle.show_state(model, {"center/steps": np.float32(7), "gone": np.float32(1)})
        assert float(steps) == 7

    def test_maps_and_fractions(self):
        model = network()
        one, two = lifecycle.masked_weights(model).values()
        assert lifecycle.free_fraction(model)["overall"] == 1.0  # what an open task uses may become free
        one.prune(np.arange(36).reshape(6, 6) < 9)
        two.prune(np.zeros((6, 6), bool))
        lifecycle.commit_task(model)
        lifecycle.begin_task(model)
        assert lifecycle.free_fraction(model) == {"overall": 63 / 72, "layers": {"one/kernel": 0.75, "two/kernel": 1.0}}
        maps = lifecycle.owner_maps(model)
        np.testing.assert_array_equal(
            maps["one/kernel"], (np.arange(36).reshape(6, 6) < 9).astype("uint8"), strict=True
        )
        np.testing.assert_array_equal(maps["two/kernel"], np.zeros((6, 6), "uint8"), strict=True)

    def test_values_of_free_weights_are_forgotten(self):
        model = committed(1)
        assert not lifecycle.lacks_free_values(model)
        lifecycle.forget_free_values(model)
        assert lifecycle.lacks_free_values(model)
        assert not any(weight.has_free_values for weight in lifecycle.masked_weights(model).values())

    def test_views_cannot_be_changed(self):
        center = network().get_layer("center")
        for variable in (center.mean, center.steps):
            assert not lifecycle.view_of(variable).flags.writeable

    def test_seeds_are_the_same_on_every_machine(self):
        assert lifecycle.derived_seed(1, 2, 3) == np.random.SeedSequence((1, 2, 3)).generate_state(1)[0] // 2
        assert all(0 <= lifecycle.derived_seed(number) < 2**31 for number in range(9))

    @pytest.mark.parametrize(
        ("head", "expected"),
        [(keras.layers.Dense, "task-aware layers, from tp.pack"), (TaskHead, "at least one masked")],
    )
    def test_models_without_masked_weights_are_refused(self, head, expected):
        model = keras.Sequential([keras.Input((3,)), head(2)], name="plain")
        with pytest.raises(ArgumentError, match=f"`model`: .* model with {expected}.*Received: model='plain'"):
            lifecycle.masked_weights(model)
