"""Tasks get different shares of the network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.test_task_management import learn
from tf_packnet.command_line.run_command import parse_command, parse_config
from tf_packnet.pruning.shares import remaining
from tf_packnet.runs.config import Config

X, Y = blobs(0)


def fit(packed, name, schedule, scope="layer"):
    packed.begin_task(name)
    prune = tp.PruneRoundScheduler(schedule, scope=scope)
    packed.fit(X, Y, epochs=2, verbose=0, callbacks=[prune, tp.TaskMaskSnapshot()])


@pytest.mark.parametrize("scope", ["layer", pytest.param("erk", marks=pytest.mark.slow)])
@pytest.mark.parametrize("by_name", [False, True])
def test_tasks_keep_their_share_as_planned(by_name, scope):
    shares = {"a": 0.5, "b": 0.2, "c": 0.25} if by_name else [0.5, 0.2, 0.25]
    schedule = tp.Shares(shares, rounds=2)
    packed = compile_model(tp.pack(make_mlp()))
    planned = tp.plan(packed, shares=schedule, scope=scope)
    assert (planned.first_task, planned.tasks, planned.prune_rounds) == (1, 3, 2)
    assert planned.final_prune == planned.free / planned.weights
    fit(packed, "a", schedule, scope)
    later = tp.plan(packed, shares=shares, scope=scope, prune_rounds=2)
    assert (later.first_task, later.kept, later.free) == (2, planned.kept[1:], planned.free)
    for name in ("c", "b") if by_name else "bc":
        fit(packed, name, schedule, scope)
    owned = {task.name: task for task in packed.tasks}
    if not by_name:  # planned in the order of the shares
        assert tuple(owned[name].weights for name in "abc") == planned.kept
    for name, share in zip("abc", [0.5, 0.2, 0.25], strict=True):
        assert abs(owned[name].share - share) < 0.02


def test_rounds_prune_equal_fractions_and_end_at_the_share():
    schedule = tp.Shares([0.5, 0.1], rounds=4, epochs=8).for_task(2, ["a", "b"], free=0.5)
    kept = [schedule.kept_fraction(number) for number in range(5)]
    assert kept[0] == 1
    assert kept[4] == 1 - (1 - 0.1 / 0.5)
    np.testing.assert_allclose(np.diff(np.log(kept)), np.log(0.2) / 4)
    assert schedule.largest_share(1) == 1
    assert [schedule.round_at(epoch) for epoch in range(8)] == [1, None, 2, None, 3, None, 4, None]


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=20))
def test_any_shares_can_be_learned_in_order(values):
    shares = [value / sum(values) * 0.999 for value in values]
    free = weights = 10**6
    for number, share in enumerate(shares, start=1):
        schedule = tp.Shares(shares).for_task(number, [str(n) for n in range(number)], free / weights)
        kept = remaining(free, schedule.kept_fraction(1))
        assert abs(kept - share * weights) <= 1
        free -= kept
    assert free >= 0


def test_errors_give_shares():
    by_accuracy = tp.Shares.by_accuracy
    assert by_accuracy({"a": 0.9, "b": 0.7}, total=0.8, smallest=0.0).shares == pytest.approx({"a": 0.2, "b": 0.6})
    assert by_accuracy({"a": 0.9, "b": 0.7}, total=0.8, smallest=1.0).shares == pytest.approx({"a": 0.4, "b": 0.4})
    assert by_accuracy({"a": 1.0, "b": 1.0}, total=0.8).shares == pytest.approx({"a": 0.4, "b": 0.4})
    assert by_accuracy({"a": 1.0, "b": 0.5}, total=1, rounds=3).shares == pytest.approx({"a": 0.25, "b": 0.75})
    for arguments in ({"total": 0}, {"total": 1.1}, {"total": 0.5, "smallest": -1}, {"total": "x"}):
        with pytest.raises(tp.ArgumentError, match="a fraction from 0 to 1"):
            by_accuracy({"a": 0.5}, **arguments)
    for accuracy in ({}, {"a": 2}, {"a": None}, [0.5]):
        with pytest.raises(tp.ArgumentError, match="Invalid `accuracy`"):
            by_accuracy(accuracy, total=0.5)


def test_errors_give_shares_before_later_tasks_are_known():
    def shares(*accuracy, **arguments):
        known = {str(number): value for number, value in enumerate(accuracy)}
        return list(tp.Shares.by_accuracy(known, **{"total": 0.8, "num_tasks": 4, **arguments}).shares.values())

    first, second = shares(0.9), shares(0.9, 0.7)
    assert first == pytest.approx([0.2])  # an equal share, as there is nothing to compare with
    assert second == pytest.approx([0.2, 0.2 * (0.5 + 0.5 * 1.5)])  # errors 0.3 of a mean of 0.2
    assert shares(0.9, 0.7, 1.0)[:2] == second
    assert shares(0.9, 0.7, 1.0)[2] == pytest.approx((0.8 - sum(second)) / 2 * 0.5)
    assert shares(1.0, 1.0, 1.0, 1.0) == pytest.approx([0.2] * 4)
    assert shares(0.9, 0.5, smallest=1.0) == pytest.approx([0.2] * 2)
    for accuracy in ([1, 1, 1, 0], [1, 0, 0, 0], [0.9, 0.1, 0.99, 0.2]):
        found = shares(*accuracy, total=1, smallest=0.1)
        assert min(found) > 0
        assert sum(found) <= 1 + 1e-9
    for number in (0, 1, 2.5, "4", True):
        with pytest.raises(tp.ArgumentError, match="Invalid `num_tasks`: expected a whole number of at least 2"):
            shares(0.9, 0.8, num_tasks=number)


def test_the_accuracy_of_the_training_decides_the_share_of_a_task():
    packed = compile_model(tp.pack(make_mlp()))
    accuracy = {}
    for name in ("a", "b"):
        packed.begin_task(name)
        history = packed.fit(X, Y, verbose=0, validation_data=(X, np.roll(Y, name == "b")))
        accuracy[name] = history.history["val_accuracy"][-1]
        schedule = tp.Shares.by_accuracy(accuracy, total=0.6, num_tasks=3)
        packed.fit(X, Y, verbose=0, callbacks=[tp.PruneRoundScheduler(schedule), tp.TaskMaskSnapshot()])
    first, second = packed.tasks
    assert abs(first.share - 0.2) < 0.02
    assert abs(second.share - schedule.shares["b"]) < 0.02
    assert schedule.shares["b"] != pytest.approx(0.2)


@pytest.mark.parametrize(
    "shares", [[], {}, [0], [0.5, 0.6], [-0.1], [float("nan")], "0.5", 0.5, None, [True], [[0.5]], {1: 0.5}, ["0.5"]]
)
def test_shares_that_are_none(shares):
    with pytest.raises(tp.ArgumentError, match="Invalid `shares`"):
        tp.Shares(shares)


def test_tasks_without_a_share_are_refused_before_training():
    packed = compile_model(tp.pack(make_mlp()))
    learn(packed, "a", 0)  # keeps about half of the weights
    packed.begin_task("b")
    weights = packed.get_weights()
    for schedule, expected in {
        tp.Shares([0.5]): "at least 2 shares",
        tp.Shares({"a": 0.5}): "a share for task 'b'",
        tp.Shares([0.1, 0.9]): "the share that is free, for task 'b'",
    }.items():
        with pytest.raises(tp.ArgumentError, match=expected):
            packed.fit(X, Y, epochs=1, verbose=0, callbacks=[tp.PruneRoundScheduler(schedule)])
    for now, before in zip(packed.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)


def test_plans_that_are_refused():
    model = make_mlp()
    for arguments, expected in [
        ({}, "Invalid `num_tasks`: expected a number, or shares"),
        ({"num_tasks": 2}, "Invalid `final_prune`: expected a number, or shares"),
        ({"final_prune": 0.5, "shares": [0.5]}, "Invalid `final_prune`: expected None"),
        ({"num_tasks": 2, "shares": [0.5]}, "Invalid `num_tasks`: expected 1"),
        ({"shares": [0.5, 1e-9]}, "Invalid `shares`: expected a larger share for task 'task_2'"),
    ]:
        with pytest.raises(tp.ArgumentError, match=expected):
            tp.plan(model, **arguments)


def test_the_final_prune_of_a_preset_has_no_effect_beside_shares():
    config = parse_config(["run", "--flagfile=mnist", "--shares=0.3,0.2,0.1,0.1,0.1"])
    assert config.final_prune == Config().final_prune
    assert parse_config(["run", "--flagfile=mnist", "--shares=equal", "--final_prune=0.9"]).final_prune == 0.9
    swept = parse_command(["experiment", "--sweep=shares=equal,0.5+0.2", "--final_prune=0.9"])
    assert [run.final_prune for run in swept.experiment.configs] == [0.9, Config().final_prune]


def test_schedule_is_created_from_its_config():
    schedule = tp.Shares({"a": 0.5, "b": 0.2}, round_epochs=(1, 3))
    again = tp.Shares(**schedule.get_config())
    assert again.get_config() == schedule.get_config()
    assert schedule.for_epochs(4).for_task(1, ["a"], 1.0).kept_fraction(2) == 0.5
    with pytest.raises(ValueError, match="no task yet"):
        schedule.kept_fraction(1)
