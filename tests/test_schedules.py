import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import EqualShare
from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.round_schedule import RoundSchedule
from tf_packnet.pruning.schedules import GrowingShare
from tf_packnet.pruning.shares import pruned_per_round, released_fraction, remaining, round_lengths, rounds_that_divide
from tf_packnet.pruning.tfmot import PruningSchedule

fractions = st.floats(0.001, 0.999)


@given(fractions, st.integers(1, 20))
def test_all_tasks_together_leave_p_free(p, num_tasks):
    free = 1.0
    for _ in range(num_tasks):
        free *= released_fraction(p, num_tasks)
    assert math.isclose(free, p, rel_tol=1e-12)


@given(fractions, st.integers(1, 72))
def test_all_rounds_together_release_r(released, rounds):
    left = 1.0
    for _ in range(rounds):
        left *= 1 - pruned_per_round(released, rounds)
    assert math.isclose(left, 1 - released, rel_tol=1e-9)


@given(st.integers(0, 10_000), st.fractions(0, 1, max_denominator=64))
def test_remaining_rounds_to_the_nearest_half_to_even(candidates, fraction):
    exact = candidates * fraction
    count = remaining(candidates, float(fraction))
    assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_the_paper_at_mnist():
    schedule = EqualShare(final_prune=0.95, num_tasks=5, rounds=1, epochs=72)
    assert math.isclose(schedule.released, 0.95 ** (1 / 5))
    assert remaining(200_704, schedule.kept_fraction(1)) == 2_048  # of 784 x 256, by hand: 200704 * (1 - 0.95^0.2)


@pytest.mark.parametrize(("rounds", "at"), [(1, [0]), (2, [0, 6]), (4, [0, 3, 6, 9]), (12, list(range(12)))])
def test_rounds_fall_at_equal_distances(rounds, at):
    schedule = EqualShare(0.5, 3, rounds, epochs=12)
    assert [epoch for epoch in range(24) if schedule.round_at(epoch)] == at
    assert [schedule.round_at(epoch) for epoch in at] == list(range(1, rounds + 1))


def test_it_is_a_tfmot_schedule():
    schedule = EqualShare(0.5, 2, rounds=2, epochs=4)
    assert isinstance(schedule, PruningSchedule)
    told = [(bool(prune), float(sparsity)) for prune, sparsity in map(schedule, range(4))]
    first, last = 1 - schedule.kept_fraction(1), schedule.released
    assert [prune for prune, _ in told] == [True, False, True, False]
    for (_, sparsity), expected in zip(told, [first, first, last, last], strict=True):
        assert math.isclose(sparsity, expected)
    assert EqualShare.from_config(schedule.get_config()).get_config() == schedule.get_config()


def test_a_schedule_without_a_number_of_epochs_says_so():
    with pytest.raises(ValueError, match="no number of epochs"):
        EqualShare(0.5, 2)(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_prune": 0.0}, "`final_prune`: expected a fraction between 0 and 1"),
        ({"final_prune": 1.0}, "Received: final_prune=1.0"),
        ({"num_tasks": 0}, "`num_tasks`: expected at least 1"),
        ({"rounds": 0}, "`rounds`: expected at least 1"),
        ({"epochs": 0}, "`epochs`: expected at least 1. Received: epochs=0"),
        ({"epochs": -4, "rounds": 2}, "`epochs`: expected at least 1"),
        ({"rounds": 13, "epochs": 12, "round_epochs": "growing"}, "at most the 12 epochs. Received: rounds=13"),
        ({"rounds": 2, "round_epochs": (1, 2, 5)}, "`rounds`: expected 3, as many as in round_epochs"),
        ({"epochs": 9, "round_epochs": (1, 2, 5)}, "`epochs`: expected 8, the sum of round_epochs"),
        ({"round_epochs": (1, 0)}, "`round_epochs`: expected uniform, growing, shrinking, or the epochs after each"),
        ({"round_epochs": (-1, 1)}, "the last at least 1"),
        ({"round_epochs": ()}, "`round_epochs`: expected uniform"),
        ({"round_epochs": (1.5,)}, "`round_epochs`: expected a string or a list of whole numbers"),
        ({"round_epochs": 3}, "Received: round_epochs=3"),
        ({"round_epochs": "linear"}, "`round_epochs`: expected"),
        ({"rounds": 5, "epochs": 12}, r"a divisor of the 12 epochs \(1, 2, 3, 4, 6, 12\). Received: rounds=5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        EqualShare(**{"final_prune": 0.5, "num_tasks": 2, **arguments})


def test_rounds_that_divide():
    assert rounds_that_divide(72) == [1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36, 72]


@given(st.integers(1, 40), st.integers(0, 100))
def test_growing_rounds(rounds, more):
    epochs = rounds + more
    growing = round_lengths(epochs, rounds, "growing")
    assert (len(growing), sum(growing)) == (rounds, epochs)
    assert list(growing) == sorted(growing)
    assert growing[0] >= 1
    assert round_lengths(epochs, rounds, "shrinking") == growing[::-1]
    proportional = [epochs * n / sum(range(1, rounds + 1)) for n in range(1, rounds + 1)]
    if proportional[0] >= 1:
        assert all(abs(length - exact) <= 1 for length, exact in zip(growing, proportional, strict=True))


def test_rounds_of_any_length_by_hand():
    assert round_lengths(72, 8, "growing") == (2, 4, 6, 8, 10, 12, 14, 16)
    assert round_lengths(5, 4, "growing") == (1, 1, 1, 2)
    for round_epochs, first_epochs in (
        ("uniform", [0, 3]),
        ("growing", [0, 2]),
        ("shrinking", [0, 4]),
        ([1, 5], [0, 1]),
        (np.array([5, 1]), [0, 5]),
    ):
        schedule = EqualShare(0.25, 2, 2, 6, round_epochs)
        assert [epoch for epoch in range(9) if schedule.round_at(epoch)] == first_epochs
        assert [bool(schedule(epoch)[0]) for epoch in range(9)] == [epoch in first_epochs for epoch in range(9)]
        assert EqualShare.from_config(schedule.get_config()).get_config() == schedule.get_config()
        plan = RoundSchedule.of(schedule, 3, 9)
        assert plan.first_epochs == tuple(3 + epoch for epoch in first_epochs)
        assert plan.kept == tuple(schedule.kept_fraction(number) for number in range(1, len(first_epochs) + 1))
    merged = EqualShare(0.25, 2, round_epochs=[0, 2, 0, 0, 1])  # rounds without an epoch between them
    assert [merged.round_at(epoch) for epoch in range(4)] == [2, None, 5, None]
    assert [float(merged(epoch)[1]) for epoch in (0, 2)] == [1 - merged.kept_fraction(n) for n in (2, 5)]
    plan = RoundSchedule.of(merged, 1, 4)
    assert plan.first_epochs == (1, 1, 3, 3, 3)
    assert plan.kept == tuple(merged.kept_fraction(number) for number in range(1, 6))
    listed = EqualShare(0.25, 2, round_epochs=[1, 2, 5])
    assert (listed.rounds, listed.epochs) == (3, 8)
    assert GrowingShare(0.25, 2, task=2, round_epochs=[1, 2, 5]).round_at(3) == 3


def test_a_task_may_take_an_even_split_of_each_layer():
    schedule = EqualShare(0.5, 5)
    assert [schedule.largest_share(committed) for committed in range(6)] == [1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0, 1.0]
    assert GrowingShare(0.5, 5, task=2).largest_share(1) == 1.0


def test_erk_leaves_an_even_split_of_each_layer_to_later_tasks():
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task("first")
    scheduler = tp.PruneRoundScheduler(EqualShare(final_prune=0.3, num_tasks=3), scope="erk")
    packed.fit(*blobs(1), epochs=1, verbose=0, callbacks=[scheduler, tp.GradientMask(), tp.TaskMaskSnapshot()])
    # 63 of 72 + 120 weights are kept. ERK alone would keep 39.5% of the smaller layer; a third is the limit.
    assert list(scheduler.rounds[0]["kept"].values()) == [24, 39]


def test_defaults_and_limits():
    schedule = EqualShare(0.5, 1)
    assert schedule.get_config() == {"final_prune": 0.5, "num_tasks": 1, "rounds": 1, "epochs": None}
    assert schedule.for_epochs(1).get_config() == {"final_prune": 0.5, "num_tasks": 1, "rounds": 1, "epochs": 1}
    assert GrowingShare(0.5, 3).get_config() == {**EqualShare(0.5, 3).get_config(), "task": 1}
    assert GrowingShare(0.5, 3, task=3).for_epochs(4).get_config()["task"] == 3
    for task in (0, 4):
        with pytest.raises(ArgumentError, match=f"the number of a task, 1 to 3. Received: task={task}"):
            GrowingShare(0.5, 3, task=task)


def test_kept_fractions_by_hand():
    schedule = EqualShare(0.25, 2, rounds=2, epochs=4)  # each task releases half of the free weights
    kept = [schedule.kept_fraction(n) for n in range(3)]
    assert kept == pytest.approx([1, math.sqrt(0.5), 0.5])
    after_the_last_round = schedule(9)
    assert not after_the_last_round[0]
    assert float(after_the_last_round[1]) == pytest.approx(0.5)


def test_the_shared_mask_grows_to_what_packnet_has_used():
    first, second = (GrowingShare(0.25, 2, rounds=2, task=task) for task in (1, 2))
    assert [first.kept_fraction(n) for n in range(3)] == pytest.approx([1, math.sqrt(0.5), 0.5])
    assert [second.kept_fraction(n) for n in range(3)] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.75])
