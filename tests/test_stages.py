"""Stage keys: what they depend on. The store of stages: atomic, shared, and checked for damage."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.runs import stage_folder, stages
from tf_packnet.runs.config import OPTIONS, Config
from tf_packnet.runs.output import check_same
from tf_packnet.runs.stages import chain, shared_beginning
from tf_packnet.runs.store import StageStore, StoredStages
from tf_packnet.system import files

EXECUTION = {"xla": "step", "threads": 1}
OTHER = {
    "approach": "memory", "model": "conv", "hidden_units": (8,), "fc8192": "dense", "dropout": 0.2, "head": "shared",
    "bias_policy": "per_task", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7, "seed": 9,
    "precision": "mixed_bfloat16", "train_epochs": 31, "freed_weights": "keep", "retrain_epochs": 33,
    "prune_rounds": 2, "final_prune": 0.5, "prune_scope": "erk", "budget": "epochs",
}  # fmt: skip


def keys(config, tasks=(1, 2, 3), data="data", execution=EXECUTION):
    return [stage.key for stage in chain(config, tasks, data, execution)]


def first_difference(config):
    pairs = enumerate(zip(keys(Config()), keys(config), strict=True))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), None)


def test_every_field_is_in_exactly_one_list():
    groups = (
        *(stages.NETWORK, stages.TRAINING, stages.TRAIN_STAGE, stages.LATER_TRAIN_STAGES, stages.PRUNE_RETRAIN_STAGE),
        *(stages.BASELINES, stages.COVERED_BY_DATA, stages.COVERED_BY_EXECUTION, stages.NO_EFFECT),
    )
    fields = [field for group in groups for field in group]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([*stages.NETWORK, *stages.TRAINING, *stages.TRAIN_STAGE], 0),
        (stages.PRUNE_RETRAIN_STAGE, 1),
        (stages.LATER_TRAIN_STAGES, 2),
        ([*stages.BASELINES, *stages.COVERED_BY_DATA, *stages.COVERED_BY_EXECUTION, *stages.NO_EFFECT], None),
    ],
)
def test_a_field_changes_the_stages_that_depend_on_it_and_those_after(fields, expected):
    for field in fields:
        if field in OTHER:
            assert first_difference(dataclasses.replace(Config(), **{field: OTHER[field]})) == expected, field


def test_only_baselines_depend_on_the_budget():
    memory = Config(approach="memory")
    assert keys(memory)[0] != keys(dataclasses.replace(memory, budget="epochs"))[0]


class TestAFieldThatWasAddedLater:
    @pytest.fixture(autouse=True)
    def dropout_was_added(self, monkeypatch):
        monkeypatch.setitem(OPTIONS, "dropout", dataclasses.replace(OPTIONS["dropout"], neutral=0.3))

    def test_is_in_no_key_at_its_neutral_value(self, monkeypatch):
        neutral = Config(dropout=0.3)
        with_field = keys(neutral), shared_beginning(neutral)
        monkeypatch.setattr(stages, "NETWORK", [name for name in stages.NETWORK if name != "dropout"])
        assert with_field == (keys(neutral), shared_beginning(neutral))

    def test_is_in_all_keys_at_other_values(self):
        assert not set(keys(Config(dropout=0.3))) & set(keys(Config(dropout=0.4)))
        assert shared_beginning(Config(dropout=0.3)) != shared_beginning(Config(dropout=0.4))

    def test_has_its_neutral_value_in_files_without_it(self, tmp_path):
        old = Config(seed=3).to_json()
        del old["dropout"]
        assert Config.from_json(old) == Config(seed=3, dropout=0.3)
        check_same(tmp_path, "run", Config(seed=3, dropout=0.3).identity(), old)
        with pytest.raises(ArgumentError, match=r"with --dropout=0\.3"):
            check_same(tmp_path, "run", Config(seed=3, dropout=0.4).identity(), old)


def test_data_and_execution_settings_change_every_key():
    assert not set(keys(Config())) & set(keys(Config(), data="other"))
    assert not set(keys(Config())) & set(keys(Config(), execution={**EXECUTION, "threads": 2}))


def test_only_the_first_stage_is_shared_by_other_p_and_n():
    assert [stage.shared for stage in chain(Config(), (1, 2), "data", EXECUTION)] == [True, False, False, False]


def test_shared_beginning_is_equal_exactly_where_the_first_key_is():
    for field, value in OTHER.items():
        other = dataclasses.replace(Config(), **{field: value})
        assert (shared_beginning(other) == shared_beginning(Config())) == (keys(other)[0] == keys(Config())[0]), field


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


@pytest.fixture
def chained():
    return chain(Config(), (1, 2), "data", EXECUTION)


def state_of(number):
    return {"weights": np.full(3, number, np.float32), "names": np.array(["a", "bc"])}


def test_a_stored_stage_is_read_back(store, chained):
    assert store.record(chained[0]) is None
    assert not store.has_state(chained[0])
    store.put(chained[0], {"seconds": 1.5}, state_of(1))
    assert store.record(chained[0]) == {"seconds": 1.5}
    for name, value in store.state(chained[0]).items():
        np.testing.assert_array_equal(value, state_of(1)[name])
    store.drop_state(chained[0])
    assert store.record(chained[0]) == {"seconds": 1.5}
    assert not store.has_state(chained[0])


@pytest.mark.parametrize(
    ("put", "dropped", "with_state", "expected"),
    [
        ((), (), False, 0),
        ((0,), (), False, 1),
        ((0, 1, 2), (0, 1), False, 3),
        ((0, 1, 2), (1, 2), False, 1),  # the state that the last one starts from is missing
        ((0, 1, 2), (0, 1, 2), False, 0),
        ((0, 1, 2, 3), (0, 1, 2, 3), False, 4),
        ((0, 1, 2, 3), (1, 2, 3), True, 1),
        ((0, 1, 2, 3), (1, 2), True, 4),
        ((0, 2), (), False, 1),
    ],
)
def test_where_a_run_resumes(store, chained, put, dropped, with_state, expected):
    for index in put:
        store.put(chained[index], {}, state_of(index))
    for index in dropped:
        store.drop_state(chained[index])
    assert store.first_to_compute(chained, with_state) == expected


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
def test_a_damaged_state_is_repaired_from_its_copy(store, chained, damage):
    store.put(chained[0], {}, state_of(0))
    paths = [store.root / chained[0].key / name for name in ("state.npz", "state.copy.npz")]
    whole = paths[0].read_bytes()
    for path in paths:
        damage(path)
        reported = []
        store.on_damaged = reported.append
        assert store.has_state(chained[0])
        assert reported == [path]
        assert [path.read_bytes() for path in paths] == [whole, whole]


def test_a_state_without_an_undamaged_copy_is_recomputed(store, chained):
    for index in (0, 1):
        store.put(chained[index], {}, state_of(index))
    paths = [store.root / chained[1].key / name for name in ("state.npz", "state.copy.npz")]
    for path in paths:
        path.write_bytes(b"other")
    reported = []
    store.on_damaged = reported.append
    assert not store.has_state(chained[1])
    assert reported == paths
    assert not any(path.exists() for path in paths)
    assert store.first_to_compute(chained, with_state=False) == 1


def test_a_state_of_an_earlier_version_has_one_copy(store, chained):
    store.put(chained[0], {}, state_of(0))
    folder = store.root / chained[0].key
    (folder / "state.copy.npz").unlink()
    for name in ("stage.json", "stage.copy.json"):
        entry = files.read_json(folder / name)
        del entry["state_copies"]
        files.write_json(folder / name, entry)
    store.on_damaged = pytest.fail
    assert store.has_state(chained[0])
    assert store.folder(chained[0]).damaged_files() == []


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_state_whose_deletion_was_interrupted_is_not_damaged(store, chained, monkeypatch, deleted):
    store.put(chained[0], {}, state_of(0))
    remove, removed = files.remove, []

    def interrupted(path):
        if len(removed) == deleted:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path)

    monkeypatch.setattr(files, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt) if deleted < 2 else contextlib.nullcontext():
        store.drop_state(chained[0])
    monkeypatch.undo()
    store.on_damaged = pytest.fail
    assert not store.has_state(chained[0])
    assert store.record(chained[0]) == {}
    assert store.folder(chained[0]).damaged_files() == []
    store.drop_state(chained[0])
    assert sorted(os.listdir(store.root / chained[0].key)) == ["stage.copy.json", "stage.json"]


def test_a_state_that_another_process_deletes_meanwhile_is_not_damaged(store, chained, monkeypatch):
    store.put(chained[0], {}, state_of(0))
    store.on_damaged = pytest.fail
    has_checksum = stage_folder._has_checksum

    def after_the_other(path, checksum):
        monkeypatch.setattr(stage_folder, "_has_checksum", has_checksum)
        StageStore(store.root).drop_state(chained[0])
        return has_checksum(path, checksum)

    monkeypatch.setattr(stage_folder, "_has_checksum", after_the_other)
    assert not store.has_state(chained[0])
    assert store.record(chained[0]) == {}
    assert store.state(chained[0]) == {}


def test_a_run_that_another_one_overtakes_continues_after_it(store, chained):
    slow, fast = (StoredStages(store, chained, FakeApproach(), with_state=True) for _ in range(2))
    slow.finish(chained[0], slow._approach.learn)
    for stage in chained:
        fast.finish(stage, fast._approach.learn)
    assert [slow.finish(stage, pytest.fail).reused for stage in chained[1:]] == [True] * 3
    assert slow._approach.number == 3


def test_files_of_the_user_in_a_stage_that_is_computed_again_are_refused(store, chained):
    store.put(chained[0], {}, state_of(0))
    notes = store.root / chained[0].key / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match="move this away"):
        store.put(chained[0], {}, state_of(0))
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "other", "sha256": "", "record": {}}'])
def test_a_damaged_record_is_repaired_from_its_copy(store, chained, text):
    store.put(chained[0], {"seconds": 1.5}, state_of(0))
    paths = [store.root / chained[0].key / name for name in ("stage.json", "stage.copy.json")]
    whole = paths[0].read_bytes()
    for path in paths:
        path.write_text(text)
        assert store.record(chained[0]) == {"seconds": 1.5}
        assert [path.read_bytes() for path in paths] == [whole, whole]
    for path in paths:
        path.write_text(text)
    assert store.record(chained[0]) is None
    assert store.first_to_compute(chained, with_state=False) == 0


def test_leftovers_of_a_killed_process_are_ignored_and_removed(store, chained):
    leftover = store.root / f".{chained[0].key}.abc.unfinished" / chained[0].key
    leftover.mkdir(parents=True)
    (leftover / "stage.json").write_text(json.dumps({"key": chained[0].key, "sha256": "", "record": {}}))
    assert store.record(chained[0]) is None
    store.put(chained[0], {}, state_of(0))
    assert [path.name for path in store.root.iterdir()] == [chained[0].key]


def test_leftovers_of_a_killed_process_are_removed_unless_the_stage_is_being_written(store, chained):
    store.put(chained[0], {"a": 1}, state_of(0))
    folder = store.folder(chained[0])
    leftover = store.root / f".{chained[0].key}.abc{files.UNFINISHED}"
    (leftover / "old").mkdir(parents=True)
    with folder.lock():
        stage_folder.repair([store.folder(chained[0])])
        assert leftover.exists()
    stage_folder.repair([folder])
    assert not leftover.exists()
    assert store.record(chained[0]) == {"a": 1}


def test_the_lock_of_a_stage_ends_with_its_process(store, chained):
    hold = (
        "import time; from pathlib import Path\n"
        "from tf_packnet.runs.config import Config\n"
        "from tf_packnet.runs.stages import chain\n"
        "from tf_packnet.runs.store import StageStore\n"
        f"stage = chain(Config(), (1, 2), 'data', {EXECUTION!r})[0]\n"
        f"with StageStore(Path({str(store.root)!r})).folder(stage).lock():\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    got = threading.Event()

    def wait():
        with store.folder(chained[0]).lock():
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.3)
    holder.kill()
    assert got.wait(10)
    waiting.join()
    holder.wait()


class FakeApproach:
    """Its state is the number of the last stage that it has learned."""

    number = -1

    def state(self):
        return {"number": np.array(self.number)}

    def restore(self, state):
        self.number = int(state["number"])

    def learn(self, backup):
        self.number += 1
        return {"number": self.number}


def take_through(store, chained, until, with_state=True):
    """Finish the stages up to `until`; return the approach, and which stages were reused."""
    approach = FakeApproach()
    stored = StoredStages(store, chained, approach, with_state)
    finished = [stored.finish(stage, approach.learn) for stage in chained[:until]]
    assert [stage.record["number"] for stage in finished] == list(range(until))
    return approach, [stage.reused for stage in finished]


def test_a_run_resumes_after_its_last_stored_stage(store, chained):
    assert take_through(store, chained, 2)[1] == [False, False]
    approach, reused = take_through(store, chained, 4)
    assert reused == [True, True, False, False]
    approach, reused = take_through(store, chained, 4)
    assert reused == [True] * 4
    assert approach.number == 3


@pytest.mark.parametrize(
    ("with_state", "kept"), [(True, [True, False, False, True]), (False, [True, False, False, False])]
)
def test_states_that_no_stage_needs_are_deleted(store, chained, with_state, kept):
    take_through(store, chained, 4, with_state)
    assert [store.has_state(stage) for stage in chained] == kept  # the first one is shared with other runs


def test_a_stage_that_another_process_has_stored_meanwhile_is_reused(store, chained):
    approach = FakeApproach()
    stored = StoredStages(store, chained, approach, with_state=True)
    take_through(store, chained, 1)
    assert stored.finish(chained[0], approach.learn).reused
    assert approach.number == 0


def test_a_record_that_is_lost_during_the_run_ends_it(store, chained):
    take_through(store, chained, 2)
    approach = FakeApproach()
    stored = StoredStages(store, chained, approach, with_state=True)
    shutil.rmtree(store.root / chained[0].key)
    with pytest.raises(StoppedError, match=rf"{chained[0].key}: the record .* was deleted or damaged during the run"):
        stored.finish(chained[0], approach.learn)
