"""Stages by their content: what shares, what does not, and a store in which nothing is half there."""

import dataclasses
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from tf_packnet.runs import stages
from tf_packnet.runs.config import Config
from tf_packnet.runs.stages import chain, shared_beginning
from tf_packnet.runs.store import StageStore

CHOICE = {"xla": "step", "threads": 1}
OTHER = {
    "approach": "memory", "model": "conv", "hidden_units": (8,), "fc8192": "dense", "dropout": 0.2, "head": "shared",
    "bias_policy": "per_task", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7, "seed": 9,
    "precision": "mixed_bfloat16", "train_epochs": 31, "freed_weights": "keep", "retrain_epochs": 33,
    "prune_rounds": 2, "final_prune": 0.5, "prune_scope": "erk", "budget": "epochs",
}  # fmt: skip


def keys(config, lessons=(1, 2, 3), data="data", choice=CHOICE):
    return [stage.key for stage in chain(config, lessons, data, choice)]


def first_difference(config):
    pairs = enumerate(zip(keys(Config()), keys(config), strict=True))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), None)


def test_every_field_is_accounted_for_once():
    groups = (
        *(stages.NETWORK, stages.TRAINING, stages.DAY, stages.LATER_DAYS, stages.NIGHT, stages.JOINT),
        *(stages.IN_THE_DATA, stages.IN_THE_CHOICE, stages.NOWHERE),
    )
    fields = [field for group in groups for field in group]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([*stages.NETWORK, *stages.TRAINING, *stages.DAY], 0),
        (stages.NIGHT, 1),
        (stages.LATER_DAYS, 2),
        ([*stages.JOINT, *stages.IN_THE_DATA, *stages.IN_THE_CHOICE, *stages.NOWHERE], None),
    ],
)
def test_a_field_changes_the_stages_that_depend_on_it_and_those_after(fields, expected):
    for field in fields:
        if field in OTHER:
            assert first_difference(dataclasses.replace(Config(), **{field: OTHER[field]})) == expected, field


def test_the_budget_is_the_bounds_own():
    memory = Config(approach="memory")
    assert keys(memory)[0] != keys(dataclasses.replace(memory, budget="epochs"))[0]


def test_the_examples_and_what_was_chosen_change_everything():
    assert not set(keys(Config())) & set(keys(Config(), data="other"))
    assert not set(keys(Config())) & set(keys(Config(), choice={**CHOICE, "threads": 2}))


def test_only_the_first_stage_is_shared_by_other_p_and_n():
    assert [stage.shared for stage in chain(Config(), (1, 2), "data", CHOICE)] == [True, False, False, False]


def test_the_beginning_that_the_workers_keep_apart_is_that_of_the_first_stage():
    for field, value in OTHER.items():
        other = dataclasses.replace(Config(), **{field: value})
        assert (shared_beginning(other) == shared_beginning(Config())) == (keys(other)[0] == keys(Config())[0]), field


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


@pytest.fixture
def plan():
    return chain(Config(), (1, 2), "data", CHOICE)


def state_of(number):
    return {"weights": np.full(3, number, np.float32), "names": np.array(["a", "bc"])}


def test_what_was_put_is_found(store, plan):
    assert store.record(plan[0]) is None
    assert not store.has_state(plan[0])
    store.put(plan[0], {"seconds": 1.5}, state_of(1))
    assert store.record(plan[0]) == {"seconds": 1.5}
    for name, value in store.state(plan[0]).items():
        np.testing.assert_array_equal(value, state_of(1)[name])
    store.drop_state(plan[0])
    assert store.record(plan[0]) == {"seconds": 1.5}
    assert not store.has_state(plan[0])


@pytest.mark.parametrize(
    ("put", "dropped", "with_state", "expected"),
    [
        ((), (), False, 0),
        ((0,), (), False, 1),
        ((0, 1, 2), (0, 1), False, 3),
        ((0, 1, 2), (1, 2), False, 1),  # what the last one builds on has to be computed again
        ((0, 1, 2), (0, 1, 2), False, 0),
        ((0, 1, 2, 3), (0, 1, 2, 3), False, 4),
        ((0, 1, 2, 3), (1, 2, 3), True, 1),
        ((0, 1, 2, 3), (1, 2), True, 4),
        ((0, 2), (), False, 1),
    ],
)
def test_where_a_run_goes_on(store, plan, put, dropped, with_state, expected):
    for index in put:
        store.put(plan[index], {}, state_of(index))
    for index in dropped:
        store.drop_state(plan[index])
    assert store.first_to_compute(plan, with_state) == expected


def test_a_damaged_state_is_computed_again(store, plan):
    for index in (0, 1):
        store.put(plan[index], {}, state_of(index))
    path = store.root / plan[1].key / "state.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    told = []
    store.damaged = told.append
    assert not store.has_state(plan[1])
    assert told == [path]
    assert store.first_to_compute(plan, with_state=False) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "other", "sha256": "", "record": {}}'])
def test_of_two_records_one_may_be_damaged(store, plan, text):
    store.put(plan[0], {"seconds": 1.5}, state_of(0))
    paths = [store.root / plan[0].key / name for name in ("stage.json", "stage.copy.json")]
    whole = paths[0].read_bytes()
    for path in paths:
        path.write_text(text)
        assert store.record(plan[0]) == {"seconds": 1.5}
        assert [path.read_bytes() for path in paths] == [whole, whole]
    for path in paths:
        path.write_text(text)
    assert store.record(plan[0]) is None
    assert store.first_to_compute(plan, with_state=False) == 0


def test_what_a_killed_process_left_is_no_stage_and_goes(store, plan):
    leftover = store.root / f".{plan[0].key}.abc.unfinished" / plan[0].key
    leftover.mkdir(parents=True)
    (leftover / "stage.json").write_text(json.dumps({"key": plan[0].key, "sha256": "", "record": {}}))
    assert store.record(plan[0]) is None
    store.put(plan[0], {}, state_of(0))
    assert [path.name for path in store.root.iterdir()] == [plan[0].key]


def test_a_stage_is_one_processs_at_a_time_and_free_when_that_dies(store, plan):
    hold = (
        "import time; from pathlib import Path\n"
        "from tf_packnet.runs.config import Config\n"
        "from tf_packnet.runs.stages import chain\n"
        "from tf_packnet.runs.store import StageStore\n"
        f"stage = chain(Config(), (1, 2), 'data', {CHOICE!r})[0]\n"
        f"with StageStore(Path({str(store.root)!r})).lock(stage):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    got = threading.Event()

    def wait():
        with store.lock(plan[0]):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.3)
    holder.kill()
    assert got.wait(10)
    waiting.join()
    holder.wait()
