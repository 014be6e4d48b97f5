"""Changes of committed values are detected; the error names them."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tf_packnet import lifecycle
from tf_packnet.errors import FreezeError
from tf_packnet.lifecycle import task_checks
from tf_packnet.training import freeze_guard


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 12)).astype(np.float32), rng.integers(0, 2, 64)


@pytest.fixture(scope="module")
def learned(data):
    """A pack with two committed tasks and an open one."""
    layers = [keras.Input((12,)), keras.layers.Dense(9, name="dense"), keras.layers.BatchNormalization(name="norm")]
    packed = tp.pack(keras.Sequential([*layers, keras.layers.Dense(2, name="head")]), bias_policy="per_task")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    packed.compile("adam", loss, jit_compile=False)
    for number in (1, 2, 3):
        packed.begin_task(num_classes=3 if number == 2 else 2)
        if number < 3:
            schedule = tp.EqualShare(final_prune=0.4, num_tasks=3)
            callbacks = [tp.PruneRoundScheduler(schedule), tp.TaskMaskSnapshot()]
            packed.fit(*data, epochs=1, verbose=0, callbacks=callbacks)
    return packed, lifecycle.state(packed)


@pytest.fixture
def packed(learned):
    packed, state = learned
    yield packed
    lifecycle.load_state(packed, state)


class Assigns(keras.callbacks.Callback):
    """Change the model in a way that is not permitted."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def on_epoch_end(self, epoch, logs=None):
        self.change(self.model)


def flip_one_bit(array, where):
    """Return the array with the lowest bit of the first entry in the mask flipped."""
    changed = np.array(array)
    flat = changed.view(np.uint32).reshape(-1)
    flat[np.flatnonzero(where)[0]] ^= 1
    return changed


@pytest.mark.parametrize("task", [1, 2])
def test_one_bit_of_a_committed_weight(packed, data, task):
    def change(model):
        weight = lifecycle.masked_weights(model)["dense/kernel"]
        weight.frozen.assign(flip_one_bit(weight.frozen, weight.owner_map() == task))

    with pytest.raises(FreezeError, match=f"committed weights have changed, of task {task} .*in 'dense/kernel'"):
        packed.fit(*data, epochs=1, verbose=0, callbacks=[Assigns(change)])


def test_an_owner_that_changes(packed, data):
    def change(model):
        weight = lifecycle.masked_weights(model)["dense/kernel"]
        owner = weight.owner_map().copy()
        owner.flat[np.flatnonzero(owner == 1)[0]] = 2
        weight.owner.assign(owner)

    with pytest.raises(FreezeError, match="of task 1 .*in 'dense/kernel', task 2 .*in 'dense/kernel':"):
        packed.fit(*data, epochs=1, verbose=0, callbacks=[Assigns(change)])


def test_the_head_of_a_task_with_other_classes(packed, data):
    def change(model):
        (head,) = lifecycle.heads(model).values()
        weight = next(weight for weight in head.all_task_weights if 2 in weight.kept)
        weight.kept[2] = flip_one_bit(weight.kept[2], weight.kept[2] != 0)

    with pytest.raises(FreezeError, match="of task 2 .*in 'head/kernel':"):
        packed.fit(*data, epochs=1, verbose=0, callbacks=[Assigns(change)])


def test_statistics_of_a_task(packed, data):
    def change(model):
        layer = model.get_layer("norm")
        layer.task_weights[-1].kept[1] = layer.task_weights[-1].kept[1] + 1e-3

    with pytest.raises(FreezeError, match="of task 1 .*in 'norm/"):
        packed.fit(*data, epochs=1, verbose=0, callbacks=[Assigns(change)])


def test_training_itself_changes_nothing(packed, data):
    before = freeze_guard.checksums(packed)
    assert {name.partition(" in ")[0] for name in before} == {"task 1", "task 2"}
    packed.fit(*data, epochs=2, verbose=0)
    assert freeze_guard.checksums(packed) == before


def test_checksums_of_a_kernel_in_chunks_are_those_of_its_parts(packed, monkeypatch):
    """With small chunks, every entry still changes the checksum."""
    monkeypatch.setattr(task_checks, "CHUNK", 7)
    before = freeze_guard.checksums(packed)
    weight = lifecycle.masked_weights(packed)["dense/kernel"]
    owner, values = weight.owner_map(), np.array(weight.frozen)
    for place in np.flatnonzero((owner > 0) & (owner < 255)):
        one = np.zeros(owner.shape, bool)
        one.flat[place] = True
        weight.frozen.assign(flip_one_bit(values, one))
        changed = [name for name, checksum in freeze_guard.checksums(packed).items() if before[name] != checksum]
        assert changed == [f"task {owner.flat[place]} in dense/kernel"]
    weight.frozen.assign(values)
    assert freeze_guard.checksums(packed) == before


def test_a_change_before_a_fit_is_found_before_its_first_step(packed, data):
    weight = lifecycle.masked_weights(packed)["dense/kernel"]
    weight.frozen.assign(flip_one_bit(weight.frozen, weight.owner_map() == 1))
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    with pytest.raises(FreezeError, match="of task 1 .*in 'dense/kernel'"):
        packed.fit(*data, epochs=1, verbose=0, callbacks=[count])
    assert steps == []


@pytest.mark.parametrize("task", [1, 2])
def test_the_checksum_of_a_task_depends_on_each_of_its_values_only(packed, task):
    before = freeze_guard.by_task(packed)
    assert before.keys() == {"task 1", "task 2"}
    for path, weight in lifecycle.masked_weights(packed).items():
        values = np.array(weight.frozen)
        weight.frozen.assign(flip_one_bit(values, weight.owner_map() == task))
        after = freeze_guard.by_task(packed)
        assert [name for name in before if after[name] != before[name]] == [f"task {task}"], path
        with pytest.raises(FreezeError, match=f"committed weights of task {task} have changed"):
            freeze_guard.check(before, after)
        weight.frozen.assign(values)
    assert freeze_guard.by_task(packed) == before


def test_checksums_are_compared_by_name():
    before = {"task 1": "a", "task 2": "b"}
    freeze_guard.check(before, {**before, "task 3": "c"})
    freeze_guard.check({}, before)
    with pytest.raises(FreezeError, match="weights of task 2 have changed"):
        freeze_guard.check(before, {"task 1": "a"})
    with pytest.raises(FreezeError, match="weights of task 1, task 2 have changed"):
        freeze_guard.check(before, {"task 1": "b", "task 2": "a"})
