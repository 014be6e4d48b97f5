"""`TaskRecords` keeps, saves and restores the records of tasks."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_packnet.layers.records import TaskRecords, Witness, checksum, same_bits


def counts(records):
    return records.rounds_done, records.rounds_due, records.rounds_planned, records.rounds_from


def test_tasks_without_a_name_have_a_number():
    records = TaskRecords()
    records.names = ["a", "b"]
    assert [records.name_of(task) for task in (1, 2, 3)] == ["a", "b", "task_3"]


def test_rounds_are_counted():
    records = TaskRecords()
    assert counts(records) == (0, 0, 0, 0)
    records.plan_rounds(4, first_epoch=7)
    assert counts(records) == (0, 4, 4, 7)
    for _ in range(3):
        records.round_was_run()
    assert counts(records) == (3, 1, 4, 7)
    records.round_was_undone()
    assert counts(records) == (2, 2, 4, 7)
    records.begin()
    assert counts(records) == (0, 0, 0, 0)


def test_equal_values_of_consecutive_tasks_are_kept_once():
    records = TaskRecords()
    for task, value in enumerate([1.0, 1.0, 2.0, 1.0], start=1):
        records.keep_state(task, {"same": np.zeros(3), "value": np.array(value)})
    assert [records.state[task]["value"] for task in records.state] == [1, 1, 2, 1]
    assert len({id(state["same"]) for state in records.state.values()}) == 1
    ids = [id(state["value"]) for state in records.state.values()]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("value", [np.float32(1), np.float32([1, -0.0]), np.array([True]), np.zeros((0, 2))])
def test_arrays_are_equal_if_their_bits_are(value):
    one = np.array(value)
    assert same_bits(one, one)
    assert same_bits(one, one.copy())
    assert not same_bits(one, one.reshape(1, *one.shape))
    assert not same_bits(one, one.astype("complex64"))
    if one.size:
        assert not same_bits(one, np.logical_not(one).astype(one.dtype))
    assert same_bits(np.float32([0.0]), np.float32([-0.0])) is False
    assert same_bits(np.array(0.0), np.array(-0.0)) is False


def test_checksums_are_those_of_earlier_files():
    value = np.arange(6, dtype="float32").reshape(2, 3)
    assert checksum(value.T) == hashlib.blake2b(np.float32([0, 3, 1, 4, 2, 5]).tobytes(), digest_size=8).hexdigest()


def test_what_is_saved_is_loaded():
    records, again, store = TaskRecords(), TaskRecords(), {}
    records.names = ["a", "b"]
    records.plan_rounds(4, first_epoch=7)
    records.round_was_run()
    records.keep_state(1, {"mean": np.arange(3), "count": np.array(2)})
    records.keep_state(2, {"mean": np.arange(3), "count": np.array(3)})
    records.open_state = {"mean": np.ones(3)}
    records.volatile = {"count"}
    records.variables = {"kept by Keras": keras.Variable(1.0), "not kept": tf.Variable([2.0, 3.0])}
    facts = {"examples": 8, "size": 0}, {"mean": "00ff"}, {"device": "CPU"}
    records.witnesses[2] = Witness([np.eye(2), np.zeros(1)], *facts)
    records.save(store)
    assert len(store) == 1 + 1 + 2 + 1 + 1 + 2  # each array once
    again.load(store)
    assert (again.names, counts(again), again.volatile) == (["a", "b"], (1, 3, 4, 7), {"count"})
    np.testing.assert_equal(again.state, records.state)
    assert again.state[1]["mean"] is again.state[2]["mean"]
    np.testing.assert_equal(again.open_state, records.open_state)
    np.testing.assert_equal(again.loaded, {"not kept": np.float32([2, 3])})
    assert again.witnesses.keys() == {2}
    witness = again.witnesses[2]
    np.testing.assert_equal(witness.outputs, records.witnesses[2].outputs)
    assert (witness.inputs, witness.checksums, witness.environment) == facts


def test_files_of_earlier_versions_have_less():
    records = TaskRecords()
    records.plan_rounds(4, first_epoch=7)
    records.load({})
    assert counts(records) == (0, 0, 0, 0)
    records.plan_rounds(4, first_epoch=7)
    records.load({"records": np.frombuffer(b'{"names": ["a"]}', np.uint8)})
    assert (records.names, counts(records), records.state, records.witnesses) == (["a"], (0, 0, 0, 0), {}, {})
