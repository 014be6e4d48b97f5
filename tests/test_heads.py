"""What makes a layer a head, and how heads switch between numbers of outputs."""

import random

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.test_head_kinds import Experts, after_body
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TaskHead
from tf_packnet.layers.head import (
    Head,
    class_axis,
    fresh_copy,
    number_of_outputs,
    outputs_in,
    with_outputs,
)

L = keras.layers


@pytest.mark.parametrize(
    ("config", "outputs", "with_nine"),
    [
        ({"units": 3, "name": "a"}, 3, {"units": 9, "name": "a"}),
        ({"filters": 4}, 4, {"filters": 9}),
        ({"num_classes": 2, "units": 3}, 3, {"num_classes": 2, "units": 9}),
        ({"output_shape": (4, 7)}, 7, {"output_shape": (4, 9)}),
        ({"output_shape": [None, 7]}, 7, {"output_shape": [None, 9]}),
        ({"output_shape": (2, 4, 7)}, 7, {"output_shape": (2, 4, 9)}),
        ({"output_shape": [7]}, 7, {"output_shape": [9]}),
        ({"output_shape": 7}, 7, {"output_shape": 9}),
        ({"units": True}, None, None),
        ({"units": "3"}, None, None),
        ({"units": None, "filters": 4}, 4, None),
        ({"output_shape": ()}, None, None),
        ({"name": "a"}, None, None),
    ],
)
def test_the_config_has_the_number_of_outputs(config, outputs, with_nine):
    assert outputs_in(config) == outputs
    if with_nine:
        changed = with_outputs(config, 9)
        assert changed == with_nine
        assert [type(value) for value in changed.values()] == [type(value) for value in config.values()]


class Twice(L.Dense):
    """Has two outputs per unit."""

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2 * self.units)


class Fails(L.Dense):
    def get_config(self):
        raise ValueError


class Around(L.Layer):
    """A weight of its own, and a layer inside that has weights or none."""

    def __init__(self, inner):
        super().__init__()
        self.units, self.inner = 3, inner

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.inner.build(shape)

    def get_config(self):
        return {"units": self.units}


@pytest.mark.parametrize(
    ("layer", "shape", "outputs"),
    [
        (L.Dense(3), (None, 4), 3),
        (L.Dense(3), None, None),
        (L.Conv2D(5, 3), (None, 8, 8, 2), 5),
        (L.Conv2D(5, 3, data_format="channels_first"), (None, 2, 8, 8), 5),
        (L.EinsumDense("abc,cd->abd", (4, 5)), (None, 4, 6), 5),
        (L.Dropout(0.5), (None, 4), None),
        (L.BatchNormalization(), (None, 4), None),
        (Twice(3), (None, 4), None),
        (Fails(3), (None, 4), None),
        (Around(L.Dense(3)), (None, 4), None),
        (Around(L.ReLU()), (None, 4), 3),
    ],
)
def test_which_layers_can_be_heads(layer, shape, outputs):
    if shape:
        layer.build(shape)
    assert number_of_outputs(layer) == outputs


def test_other_objects_are_no_heads():
    assert number_of_outputs(3) is None
    assert Head.first_outputs_of(L.Dense(3)) is None


def test_classes_are_channels():
    assert class_axis(L.Conv2D(3, 3, data_format="channels_first")) == 1
    assert class_axis(L.Conv2D(3, 3, data_format="channels_last")) == class_axis(L.Dense(3)) == -1


def test_a_fresh_copy_takes_no_random_numbers():
    layer = L.Dense(3)
    layer.build((None, 4))
    before = random.getstate()
    copy = fresh_copy(L.Dense, layer.get_config(), layer.get_build_config())
    assert random.getstate() == before
    assert tuple(copy.kernel.shape) == (4, 3)
    assert not fresh_copy(L.Dense, layer.get_config(), None).built


def test_what_a_head_says_of_its_tasks():
    head = TaskHead(2, activation="relu")
    head.build((None, 4))
    assert (head.last_outputs, head.outputs_of(1)) == (2, 2)
    for outputs, activation in ((2, None), (5, "softmax"), (3, "linear")):
        head.use(outputs, activation)
        head.begin_task("zero", seed=outputs)
        head.commit_task()
    assert Head.first_outputs_of(head) == 2
    for selected in (3, 1, 2):
        head.use_task(selected)
        assert head.own_activation is keras.activations.relu
        assert [head.outputs_of(task) for task in (1, 2, 3)] == [2, 5, 3]
        assert [head.config_of(task)["units"] for task in (1, 2, 3)] == [2, 5, 3]
        assert [head.config_of(task)["activation"] for task in (1, 2, 3)] == ["relu", "softmax", "linear"]
        assert (head.last_config()["units"], head.last_config()["activation"], head.last_outputs) == (3, "relu", 3)
        for task, outputs in enumerate((2, 5, 3), start=1):
            kernel, bias = head.weights_of(task)
            assert (tuple(kernel.variable.shape), tuple(bias.variable.shape)) == ((4, outputs), (outputs,))
            assert kernel.variable.trainable == bias.variable.trainable == (task == selected)
    assert len(head.all_task_weights) == 6
    assert head.shapes_with(5) == {"kernel": (4, 5), "bias": (5,)} == head.shapes_with(5)
    assert head.shapes_with(7) == {"kernel": (4, 7), "bias": (7,)}
    assert len(head.all_task_weights) == 6


def test_a_head_without_an_activation():
    (head,) = lifecycle.heads(tp.pack(after_body(Experts(3)))).values()
    assert head.own_activation is None
    for outputs in (3, 5, 5, 3):
        head.use(outputs)
        assert (head.num_outputs, head.own_activation) == (outputs, None)
    assert head.config_of(1)["num_classes"] == 3
    assert "activation" not in head.config_of(1)
    head.commit_task()
    assert head.activation_of(1) is None


def test_the_config_of_a_head_is_that_of_a_plain_layer():
    head = TaskHead(2, kernel_initializer="he_normal", name="head")
    assert head.get_config().keys() == L.Dense(2).get_config().keys()
    with pytest.raises(ArgumentError):
        TaskHead(2, pretrained="maybe")


def test_settings_of_the_new_variables_are_those_of_the_first():
    head = TaskHead(2, kernel_regularizer="l2", bias_constraint="non_neg", use_bias=True)
    head.build((None, 4))
    head.use(5)
    kernel, bias = head.weights_of(1)
    assert isinstance(kernel.regularizer, keras.regularizers.L2)
    assert isinstance(bias.variable.constraint, keras.constraints.NonNeg)
    assert [weight.variable.name for weight in (kernel, bias)] == ["kernel_5", "bias_5"]
    assert head._kernel is kernel.variable
    assert head._bias is bias.variable


def test_a_head_is_saved_with_the_values_of_its_tasks():
    store, heads = {}, [TaskHead(2) for _ in range(2)]
    for head in heads:
        head.build((None, 4))
    head, again = heads
    for task, outputs in enumerate((2, 5, 2), start=1):
        head.use(outputs)
        head.begin_task("zero", seed=task)
        head.commit_task()
    head.use_task(1)
    head.select_task(1)
    head.save_own_variables(store)
    del store["activation_of"]  # files of the first versions have none
    again.load_own_variables(store)
    assert (again.committed_tasks, again.selected_task, again.num_outputs) == (3, 1, 2)
    for task in (1, 2, 3):
        for one, other in zip(head.weights_of(task), again.weights_of(task), strict=True):
            assert one.kept.keys() == other.kept.keys() == ({2} if task == 2 else {1, 3})
            np.testing.assert_array_equal(one.kept[task], other.kept[task])
    store["units_5.kernel.variable"] = np.zeros((4, 6), "float32")
    with pytest.raises(ValueError, match="another size"):
        again.load_own_variables(store)


def test_weights_that_depend_on_the_number_of_outputs_are_refused(monkeypatch):
    head = TaskHead(2)
    head.build((None, 4))
    monkeypatch.setattr(TaskHead, "plain_weights", lambda self, plain: {"kernel": plain.kernel})
    with pytest.raises(ValueError, match="its weights are then kernel, not kernel, bias"):
        head.plain_with(5)


class Counting(TaskHead):
    """Has state that belongs to no task."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        super().build(shape)


def test_state_of_a_head_is_saved():
    store, (head, again) = {}, (Counting(2), Counting(2))
    for each in (head, again):
        each.build((None, 4))
    head.count.assign(7.0)
    head.save_own_variables(store)
    again.load_own_variables(store)
    assert float(again.count) == 7
