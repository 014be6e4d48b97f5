"""Runs with a time budget for retraining: keys, stored plans, division of the time, and bit-identical results."""

import datetime
import json
import multiprocessing
import time

import keras
import pytest

from tests.conftest import launch
from tests.test_stages import EXECUTION, FakeApproach
from tf_packnet.errors import ArgumentError
from tf_packnet.runs import learning, setup, single_run, time_shares
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.runs.shared_store import SharedStore
from tf_packnet.runs.stages import chain
from tf_packnet.runs.store import StageStore, StoredPlans, StoredStages
from tf_packnet.runs.time_shares import TimeShares
from tf_packnet.runs.workers import Workers
from tf_packnet.system import objects

TIMED = Config(retrain_time="1h", prune_rounds=3)
FIXED = Config(prune_rounds=3, retrain_epochs=8, round_epochs="1,2,5/0,1,1")


def stages(config, plans=lambda request: None, tasks=(1, 2)):
    return chain(config, tasks, "data", EXECUTION, plans=plans)


def test_the_keys_are_those_of_the_plans_that_are_known():
    nothing_known = stages(TIMED)
    assert [stage.is_open for stage in nothing_known] == [False, True, False, True]
    assert nothing_known[0] == stages(FIXED)[0]
    plans = {nothing_known[1].request: [1, 2, 5]}
    one_known = stages(TIMED, plans.get)
    assert [stage.is_open for stage in one_known] == [False, False, False, True]
    plans[one_known[3].request] = [0, 1, 1]
    found = stages(TIMED, plans.get)
    for attribute in ("key", "epochs", "round_epochs", "shared"):
        expected = [getattr(stage, attribute) for stage in stages(FIXED)]
        assert [getattr(stage, attribute) for stage in found] == expected
    keys = {stage.key for each in (nothing_known, one_known, found) for stage in each}
    assert len(keys) == 4 + 3 + 1


def test_a_list_for_all_tasks_has_the_keys_that_it_had():
    listed = Config(prune_rounds=3, retrain_epochs=8, round_epochs="1,2,5")
    both = Config(prune_rounds=3, retrain_epochs=8, round_epochs="1,2,5/1,2,5")
    assert [stage.key for stage in stages(listed)] == [stage.key for stage in stages(both)]
    assert stages(listed)[1].key == "5f6b9671586c5835f80ecdc36f032462"  # of an earlier version


def test_what_requests_depend_on():
    def request(**fields):
        return stages(Config(**{"prune_rounds": 3, **fields}))[1].request

    different = [
        request(retrain_time="1h"),
        request(retrain_time="1h/task"),
        request(retrain_time="2h"),
        request(deadline="07:00"),
        request(deadline="07:00", retrain_time="1h"),
        request(retrain_time="1h", round_epochs="growing"),
        request(retrain_time="1h", prune_rounds=2),
    ]
    assert len(set(different)) == len(different)
    assert request(retrain_time="60m") == request(retrain_time="1h")
    assert request(deadline="08:00") == request(deadline="07:00")
    assert Config(deadline="08:00").identity() == Config(deadline="07:00").identity()
    assert Config.from_json(Config(retrain_time="90m/task").to_json()).retrain_time == "1h30m/task"


def finish(stored, plans, lengths):
    """Finish the next stage with a `FakeApproach`; returns whether it was reused."""
    stage = stored.next_stage

    def compute(backup):
        if stage.is_open:
            plans.records[stage.request] = {"round_epochs": lengths, "seconds": 1.0}
        return {"task": stage.task, "stage": stage.name, "learned": None}

    return stored.finish(stage, compute).reused


class TestStore:
    @pytest.fixture
    def store(self, tmp_path):
        return StageStore(tmp_path)

    def test_hosts_share_plans(self, tmp_path):
        shared = objects.Folder(tmp_path / "shared")
        run = self.run(SharedStore(tmp_path / "one", shared))
        for lengths in ([], [1, 2, 5], [], [0, 1, 1]):
            finish(*run, lengths)
        other = self.run(SharedStore(tmp_path / "other", shared))
        assert [finish(*other, [9, 9, 9]) for _ in range(4)] == [True] * 4

    @staticmethod
    def run(store):
        plans = StoredPlans(store)

        def timed():
            return stages(TIMED, plans)

        return StoredStages(store, timed(), FakeApproach(), True, chain=timed, plans=plans), plans

    def test_a_repeated_run_takes_the_plans_from_the_store(self, store):
        run = self.run(store)
        assert [finish(*run, lengths) for lengths in ([], [1, 2, 5], [], [0, 1, 1])] == [False] * 4
        again, plans = self.run(store)
        assert [finish(again, plans, [9, 9, 9]) for _ in range(4)] == [True] * 4
        assert [plans(stage.request) for stage in again._stages] == [None, [1, 2, 5], None, [0, 1, 1]]
        fixed = StoredStages(store, stages(FIXED), FakeApproach(), True)
        assert [finish(fixed, plans, []) for _ in range(4)] == [True] * 4

    def test_a_run_that_another_one_overtakes_has_its_plans(self, store):
        slow, fast = self.run(store), self.run(store)
        assert not finish(*slow, [])
        for lengths in ([], [1, 2, 5], [], [0, 1, 1]):
            finish(*fast, lengths)
        assert [finish(*slow, [9, 9, 9]) for _ in range(3)] == [True] * 3
        assert [stage.key for stage in slow[0]._stages] == [stage.key for stage in stages(FIXED)]

    def test_a_result_that_is_lost_is_computed_with_its_plan(self, store):
        run = self.run(store)
        for lengths in ([], [1, 2, 5], [], [0, 1, 1]):
            finish(*run, lengths)
        for path in store.folder(stages(FIXED)[3]).path.iterdir():
            path.unlink()
        again, plans = self.run(store)
        assert [finish(again, plans, [9, 9, 9]) for _ in range(4)] == [True, False, False, False]
        assert [stage.round_epochs for stage in again._stages[1::2]] == [(1, 2, 5), (0, 1, 1)]

    def test_without_the_plan_the_stage_is_computed_again(self, store):
        """As if the process was killed between storing the result and the plan."""
        run = self.run(store)
        finish(*run, [])
        request = run[0].next_stage
        finish(*run, [1, 2, 5])
        for path in store.folder(request).path.iterdir():
            path.unlink()
        again = self.run(store)
        assert [finish(*again, lengths) for lengths in ([], [1, 2, 5])] == [True, False]
        assert [stage.key for stage in again[0]._stages[:2]] == [stage.key for stage in stages(FIXED)[:2]]


class Now:
    """A clock for `TimeShares`."""

    def __init__(self, monkeypatch):
        self.seconds, self.start = 0.0, datetime.datetime.now().astimezone()
        now = self

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return now.start + datetime.timedelta(seconds=now.seconds)

        monkeypatch.setattr(time_shares.datetime, "datetime", Clock)
        monkeypatch.setattr(time_shares.time, "monotonic", lambda: now.seconds)

    def deadline(self, seconds):
        return (self.start + datetime.timedelta(seconds=seconds)).isoformat()


class TestShares:
    @staticmethod
    def shares(**fields):
        return TimeShares(Config(**fields), 3, Workers())

    @staticmethod
    def retrained(shares, seconds):
        shares.stage_ends({"stage": "prune+retrain"}, {"seconds": seconds})

    def test_what_is_left_is_divided_equally(self):
        shares = self.shares(retrain_time="30s")
        for used, expected in ((10.0, 10.0), (6.0, 10.0), (18.0, 14.0)):
            assert shares.next_budget().report(1)["budget"] == pytest.approx(expected)
            self.retrained(shares, used)

    def test_each_task_has_its_own_time(self):
        shares = self.shares(retrain_time="30s/task")
        for used in (10.0, 40.0, 30.0):
            assert shares.next_budget().report(1)["budget"] == 30.0
            self.retrained(shares, used)

    def test_a_time_that_is_used_up_leaves_one_epoch(self):
        shares = self.shares(retrain_time="30s")
        self.retrained(shares, 31.0)
        budget = shares.next_budget()
        assert budget.report(1)["budget"] == 0.0
        assert budget.time > 0

    def test_a_deadline_leaves_time_for_training_and_saving(self, monkeypatch):
        now = Now(monkeypatch)
        shares = self.shares(deadline=now.deadline(100))
        shares.task_begins()
        now.seconds = 10
        shares.stage_ends({"stage": "train", "seconds": 10.0}, None)
        budget = shares.next_budget()
        assert budget.report(1)["budget"] == pytest.approx((90 - 2 * 10) / 3, abs=1e-3)
        now.seconds = 30
        budget._mark = 30.0
        self.retrained(shares, 20.0)
        now.seconds = 35
        shares.task_begins()
        now.seconds = 43
        shares.stage_ends({"stage": "train", "seconds": 8.0}, None)
        assert shares.next_budget().report(1)["budget"] == pytest.approx((57 - 8) / 2 - 5, abs=1e-3)

    def test_the_smaller_limit_holds(self, monkeypatch):
        now = Now(monkeypatch)
        for seconds, expected in ((90, 30.0), (900, 100.0)):
            budget = self.shares(deadline=now.deadline(seconds), retrain_time="100s/task").next_budget()
            assert budget.report(1)["budget"] == pytest.approx(expected)


FIELDS = {
    "num_tasks": 2,
    "hidden_units": (8,),
    "train_epochs": 1,
    "prune_rounds": 2,
    "jit": "off",
    "batch_size": 128,
}


class Killed(keras.callbacks.Callback):
    """Ends the process, so to speak, in an epoch of the first retraining."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt


def _killed(*_):
    raise KeyboardInterrupt


def learn(folder, callback=None, **fields):
    def observers(task, stage):
        return [callback] if callback and stage == "prune+retrain" else []

    return learning.learn_only(Config(**{**FIELDS, **fields}), StorePlace(folder), observers)


def stored(folder):
    return {path.parent.name: json.loads(path.read_text())["sha256"] for path in folder.glob("*/stage.json")}


@pytest.mark.parametrize(
    "approach", ["packnet", *(pytest.param(each, marks=pytest.mark.slow) for each in ("memory", "multinet"))]
)
def test_the_plan_of_a_resumed_run_gives_the_same_keys_and_bits(approach, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_deterministic", lambda *_: None)
    ticks = iter(range(10**6))
    monkeypatch.setattr(time_shares.time, "monotonic", lambda: float(next(ticks)))  # every look at it takes a second
    timed, fixed = tmp_path / "timed", tmp_path / "fixed"
    with pytest.raises(KeyboardInterrupt):
        learn(timed, Killed(), approach=approach, retrain_time="100s/task")
    with monkeypatch.context() as patch:
        patch.setattr(StageStore, "put", _killed)  # after the last epoch of the stage
        with pytest.raises(KeyboardInterrupt):
            learn(timed, approach=approach, retrain_time="100s/task")
    for _ in range(10_000):
        next(ticks)  # while the process is dead
    results = learn(timed, approach=approach, retrain_time="100s/task")
    parts = results["retraining"]
    assert [part["task"] for part in parts] == [1, 2] if approach != "multinet" else [2]
    for part in parts:
        assert len(part["round_epochs"]) == 2
        assert min(part["round_epochs"]) >= 2
        assert 80 < part["seconds"] <= 110
        assert sum(part["round_seconds"]) <= part["seconds"] + 5
    lists = [",".join(map(str, part["round_epochs"])) for part in parts]
    most = max(sum(part["round_epochs"]) for part in parts)
    same = learn(fixed, approach=approach, retrain_epochs=most, round_epochs="/".join(lists))
    assert same["accuracy_matrix"] == results["accuracy_matrix"]
    assert "retraining" not in same
    assert len(stored(timed)) == len(stored(fixed)) + len(parts)
    assert stored(fixed).items() <= stored(timed).items()
    again = learn(timed, approach=approach, retrain_time="100s/task")
    assert all(stage["reused"] for stage in again["seconds"])
    assert again["retraining"] == parts


def test_a_deadline_in_the_past_is_refused_before_any_work(tmp_path):
    config = Config(deadline="2020-01-31T07:00", output_dir=str(tmp_path / "out"))
    with pytest.raises(
        ArgumentError, match="`deadline`: expected a time after now, 20.* deadline='2020-01-31T07:00:00'"
    ):
        single_run.main(config)
    assert not (tmp_path / "out").exists()


def test_a_list_is_for_all_tasks_or_for_each(tmp_path):
    with pytest.raises(ArgumentError, match="`round_epochs`: expected one list of epochs, or 2: one for each retrain"):
        learn(tmp_path, retrain_epochs=3, round_epochs="1,1/1,2/0,1")


def _busy():
    while True:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("from_epoch", [0, 3])
def test_a_run_ends_in_time_while_other_processes_compute(from_epoch, tmp_path):
    """A slow layer, and from some epoch on two processes that take the cores."""
    others = [multiprocessing.get_context("fork").Process(target=_busy, daemon=True) for _ in range(2)]

    class Slow(keras.callbacks.Callback):
        began = None
        longest = 0.0

        def on_train_begin(self, logs=None):
            self.began = None

        def on_epoch_begin(self, epoch, logs=None):
            now = time.monotonic()
            self.longest = max(self.longest, now - (self.began or now))
            self.began = now
            if epoch == from_epoch and others[0].pid is None:
                for other in others:
                    other.start()

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.05)

    slow = Slow()
    try:
        results = learn(tmp_path, slow, retrain_time="6s/task", train_epochs=3, hidden_units=(256, 256))
    finally:
        for other in others:
            if other.pid:
                other.kill()
    for part in results["retraining"]:
        assert len(part["round_epochs"]) == 2
        assert 3 < part["seconds"] <= 6 + slow.longest


@pytest.mark.slow
def test_a_command_keeps_its_deadline(tmp_path):
    moment = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=100)
    flags = ["--num_tasks=2", "--train_epochs=2", "--hidden_units=64", "--prune_rounds=4", "--nocompact"]
    done = launch(*flags, f"--deadline={moment.isoformat()}", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    late = (datetime.datetime.now().astimezone() - moment).total_seconds()
    assert -30 < late < 5
    assert "Same epochs   --retrain_epochs=" in done.stdout
