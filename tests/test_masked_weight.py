"""The values, masks and outputs of a layer's weights over several tasks."""

import collections

import keras
import numpy as np
import pytest
from keras import ops

from tf_packnet.errors import ArgumentError
from tf_packnet.layers import MaskedDense, TaskHead
from tf_packnet.layers.base import CALLER_COMPARES_TASKS
from tf_packnet.layers.weights import check_freed_weights, check_task_number, replaced

SHAPE = (4, 3)
STORED = ("committed_tasks", "open", "selected_task")


def masked_dense(**arguments) -> MaskedDense:
    layer = MaskedDense(SHAPE[1], **arguments)
    layer.build((None, SHAPE[0]))
    return layer


def saved_and_loaded(layer, **arguments):
    store = {}
    layer.save_own_variables(store)
    again = masked_dense(**arguments)
    assert (again.was_loaded, again.selected_task) == (False, 1)
    again.load_own_variables({name: np.array(value) for name, value in store.items()})
    assert (again.was_loaded, again.selected_task) == (True, layer.selected_task)
    for variable, loaded in zip(layer.variables, again.variables, strict=True):
        np.testing.assert_array_equal(loaded, variable)
    return again


class Oracle:
    """A masked kernel as plain arrays: what each committed task computes with never changes."""

    def __init__(self, values, base=None, visible=False):
        self.owner = np.full(SHAPE, 255)
        self.values, self.freed, self.base = np.array(values), np.zeros(SHAPE, np.float32), base
        self.hidden = base if visible else np.zeros(SHAPE, np.float32)
        self.kernels = []
        self.committed = np.zeros(SHAPE, np.float32)

    def start_values(self, freed_weights, fresh):
        return self.base if self.base is not None else {"zero": 0, "keep": self.freed, "reinit": fresh}[freed_weights]

    def open(self, freed_weights, fresh):
        free = self.owner == 0
        self.values = np.where(free, self.start_values(freed_weights, fresh), self.values)
        self.owner[free] = 255

    def prune(self, keep):
        pruned = (self.owner == 255) & ~keep
        self.freed = np.where(pruned, self.values, self.freed)
        self.owner[pruned] = 0

    def commit(self):
        self.committed = np.where(self.owner == 255, self.values, self.committed)
        self.owner[self.owner == 255] = len(self.kernels) + 1
        self.kernels.append(np.where(self.owner > 0, self.committed, self.hidden))

    def kernel(self):
        """What the open task computes with."""
        return np.where(self.owner == 255, self.values, np.where(self.owner > 0, self.committed, self.hidden))


@pytest.mark.parametrize("pretrained", [None, "prunable", "visible"])
@pytest.mark.parametrize("freed_weights", ["zero", "keep", "reinit"])
def test_a_kernel_agrees_with_plain_arrays_over_the_life_of_its_tasks(pretrained, freed_weights):
    rng = np.random.default_rng(0)
    layer = masked_dense(pretrained=pretrained)
    (weight,) = layer.masked_weights
    weight.set_pretrained()
    base = None if pretrained is None else np.array(weight.values())
    oracle = Oracle(weight.values(), base, pretrained == "visible")

    for task, steps in enumerate([["prune", "prune", "save"], ["prune", "reopen", "prune"], ["save", "prune"]], 1):
        fresh = np.array(keras.initializers.GlorotUniform(seed=task)(SHAPE))
        weight.begin(task, freed_weights, seed=task)
        oracle.open(freed_weights, fresh)
        if task > 1:
            np.testing.assert_array_equal(weight.values(), np.where(oracle.owner == 255, oracle.values, 0))
        for step in steps:
            oracle.values = rng.normal(size=SHAPE).astype("float32")
            weight.variable.assign(oracle.values)  # an optimizer may change all entries
            if step == "prune":
                keep = rng.random(SHAPE) < 0.6
                weight.prune(keep)
                oracle.prune(keep)
            elif step == "reopen":
                weight.reopen(freed_weights, seed=task)
                oracle.open(freed_weights, fresh)
                np.testing.assert_array_equal(weight.values(), oracle.values)
            else:
                layer = saved_and_loaded(layer, pretrained=pretrained)
                (weight,) = layer.masked_weights
            np.testing.assert_array_equal(weight.owner_map(), oracle.owner)
            np.testing.assert_array_equal(weight.value(), oracle.kernel())
            np.testing.assert_array_equal(weight.trained(), oracle.owner == 255)
            np.testing.assert_array_equal(
                weight.importance(), oracle.values - (base if pretrained == "visible" else np.float32(0))
            )
            assert not any(weight.computes_as(number) for number in range(task + 1))
        weight.commit(task)
        oracle.commit()
        assert weight.computes_as(task)
        weight.variable.assign(rng.normal(size=SHAPE))  # momentum, for instance
        np.testing.assert_array_equal(weight.value(), oracle.kernels[-1])
        for number, kernel in enumerate(oracle.kernels, start=1):
            weight.select(number, learning=False)
            np.testing.assert_array_equal(weight.value(), kernel)
            assert [other for other in range(1, task + 1) if weight.computes_as(other)] == [number]


@pytest.mark.parametrize("pretrained", [None, "prunable"])
def test_every_variable_is_trained_or_bookkeeping(pretrained):
    layer = masked_dense(pretrained=pretrained)
    known = [*layer.trained_variables, *layer.bookkeeping]
    assert sorted(variable.path for variable in known) == sorted(variable.path for variable in layer.variables)


@pytest.mark.parametrize("policy", ["first_task", "per_task"])
def test_a_bias_is_that_of_task_1_or_one_per_task(policy):
    layer = masked_dense(bias_policy=policy)
    (bias,) = layer.task_weights
    rng = np.random.default_rng(0)
    expected = {}
    for task in (1, 2, 3):
        layer.begin_task("zero", seed=task)
        assert bool(bias.learning.numpy()) == (policy == "per_task" or task == 1)
        if task > 1:
            np.testing.assert_array_equal(bias.value(), expected[task - 1])  # where the previous task ended
        trained = rng.normal(size=3).astype("float32")
        bias.variable.assign(trained)
        layer.commit_task()
        expected[task] = trained if policy == "per_task" or task == 1 else expected[1]
        bias.variable.assign(rng.normal(size=3))
        np.testing.assert_array_equal(bias.value(), expected[task])
        layer = saved_and_loaded(layer, bias_policy=policy)
        (bias,) = layer.task_weights
        for number in (*expected, task):
            layer.select_task(number)
            assert layer.selected_task == number
            np.testing.assert_array_equal(bias.value(), expected[number])
            as_tasks = [number] if policy == "per_task" else list(expected)
            assert [other for other in expected if bias.computes_as(other)] == as_tasks
    bias.frozen.assign(bias.frozen + 1)
    assert not bias.computes_as(3)


def test_the_head_of_each_task_starts_from_new_values_that_only_the_seed_determines():
    starts = []
    for seeds in ([0, 1], [0, 1], [0, 2]):
        head = TaskHead(3)
        head.build((None, 4))
        kernel, bias = head.task_weights
        for seed in seeds:
            head.begin_task("zero", seed)
            start = [np.array(each.variable) for each in (kernel, bias)]
            head.commit_task()
        starts.append(start)
    np.testing.assert_array_equal(starts[0][0], starts[1][0])
    assert not np.isclose(starts[0][0], starts[2][0]).any()
    assert starts[0][0].any()
    np.testing.assert_array_equal(starts[0][1], 0)


def test_a_substituted_kernel_is_used_inside_the_block_only():
    layer = masked_dense()
    (weight,) = layer.masked_weights
    own = np.array(weight.value())
    with weight.substitute(ops.full(SHAPE, 2.0)):
        np.testing.assert_array_equal(weight.value(), np.full(SHAPE, 2.0))
        np.testing.assert_array_equal(weight.own_value(), own)
    np.testing.assert_array_equal(weight.value(), own)


def test_nothing_outside_a_mask():
    (weight,) = masked_dense().masked_weights
    values, mask = np.array(weight.values()), np.random.default_rng(0).random(SHAPE) < 0.5
    weight.zero_outside(mask)
    np.testing.assert_array_equal(weight.values(), np.where(mask, values, 0))


def test_pruned_values_that_a_file_lacks_are_missed_until_the_next_task_begins():
    layer = masked_dense()
    (weight,) = layer.masked_weights
    layer.commit_task()
    assert saved_and_loaded(layer).masked_weights[0].has_free_values
    weight.has_free_values = False
    again = saved_and_loaded(layer)
    (loaded,) = again.masked_weights
    assert not loaded.has_free_values
    again.begin_task("zero", seed=0)
    assert loaded.has_free_values


@pytest.mark.parametrize(
    ("committed", "selected", "valid"),
    [(0, 0, True), (0, 1, True), (2, 3, True), (254, 254, True), (254, 255, True), (0, 2, False), (2, 4, False),
     (-1, 0, False), (0, -1, False), (255, 3, False)],
)  # fmt: skip
def test_tasks_that_a_file_cannot_have_are_refused(committed, selected, valid):
    layer = masked_dense()
    store = {name: np.array(value) for name, value in zip(STORED, (committed, True, selected), strict=True)}
    if valid:
        layer.load_progress(store)
        assert (layer.committed_tasks, layer.selected_task) == (committed, selected)
    else:
        with pytest.raises(ValueError, match=f"task {selected} of {committed} committed tasks is selected"):
            layer.load_progress(store)
        assert (layer.committed_tasks, layer.selected_task) == (0, 1)


def test_files_with_fewer_tasks_are_refused_unless_the_caller_compares_them():
    layer, store = masked_dense(), {}
    layer.commit_task()
    layer.save_own_variables(store)
    saved_and_loaded(layer).load_own_variables(store)
    layer.begin_task("zero", seed=0)
    layer.select_task(1)
    layer.commit_task()  # of the open task, whichever is selected
    assert layer.selected_task == 2
    with pytest.raises(ArgumentError, match="at least the 2 committed tasks of layer .* Received: weights=1"):
        layer.load_own_variables(store)
    assert layer.committed_tasks == 2
    token = CALLER_COMPARES_TASKS.set(True)
    layer.load_own_variables(store)
    CALLER_COMPARES_TASKS.reset(token)
    assert layer.committed_tasks == 1


def test_task_numbers_fit_into_owner_maps():
    for task in (1, 254):
        check_task_number(task)
    for task in (0, 255):
        with pytest.raises(ArgumentError, match="a number from 1 to 254"):
            check_task_number(task)


def test_a_view_of_a_variable_cannot_be_changed():
    (weight,) = masked_dense().masked_weights
    assert not weight.values().flags.writeable


def test_variables_are_replaced_wherever_they_are():
    variable = keras.Variable(np.zeros(2))
    pair = collections.namedtuple("Pair", ["first", "second"])
    held = {"list": [variable, (variable, "text")], "pair": pair(variable, {3: variable}), "other": 1.5}
    found = replaced(held, lambda each: "value" if each is variable else None)
    assert found == {"list": ["value", ("value", "text")], "pair": pair("value", {3: "value"}), "other": 1.5}
    assert type(found["pair"]) is pair
    assert type(found["list"][1]) is tuple


def test_unknown_start_values_are_refused():
    check_freed_weights("zero")
    with pytest.raises(ArgumentError, match="freed_weights.*Received: freed_weights='none'"):
        check_freed_weights("none")
