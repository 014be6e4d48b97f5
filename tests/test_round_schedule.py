"""Prune rounds are planned without a model: the cases of `test_rounds.py`, and the limits of the look-ahead."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot

import tf_packnet as tp
from tests.test_rounds import FITS, REFUSED, own, params, share
from tf_packnet.pruning import round_schedule
from tf_packnet.pruning.round_schedule import RoundSchedule

PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay
ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity


@params(FITS)
def test_the_plan_has_every_round(case):
    schedule, epochs, first, at = case
    plan = RoundSchedule.of(schedule, first, epochs)
    assert list(plan.first_epochs) == at
    assert plan.last_epoch == at[-1]
    for epoch in range(first, epochs):
        assert plan.rounds_by(epoch) == len([each for each in at if each <= epoch])
    for number, epoch in enumerate(at, start=1):
        if isinstance(schedule, tp.EqualShare):
            assert plan.kept_after(number) == (1 - schedule.pruned_per_round) ** number
        else:
            assert plan.kept_after(number) == pytest.approx(1 - float(schedule(np.int64(epoch - first))[1]))


@params(REFUSED)
def test_a_plan_with_a_round_outside_is_refused(case):
    schedule, epochs, first, argument, message = case
    with pytest.raises(tp.ArgumentError, match=message) as told:
        RoundSchedule.of(schedule, first, epochs)
    assert told.value.argument == argument


@pytest.mark.parametrize(("epochs", "first", "argument"), [(0, 0, "epochs"), (3, 3, "initial_epoch")])
def test_a_fit_without_epochs(epochs, first, argument):
    with pytest.raises(tp.ArgumentError) as told:
        RoundSchedule.of(share(1), first, epochs)
    assert (told.value.argument, told.value.received) == (argument, epochs if first == 0 else first)
    assert list(RoundSchedule.of(share(1), first, epochs + 1).first_epochs) == [first]


@pytest.mark.parametrize(("epoch", "planned", "done"), [(0, 2, 0), (1, 2, 1), (2, 2, 1), (3, 2, 2), (2, 2, 2)])
def test_a_backup_of_this_fit(epoch, planned, done):
    RoundSchedule.of(share(2), 0, 4).check_resumed(epoch, planned, done)  # rounds at 0 and 2


@pytest.mark.parametrize(("epoch", "planned", "done"), [(1, 2, 0), (3, 2, 1), (2, 1, 2), (2, 3, 2)])
def test_a_backup_of_another_fit(epoch, planned, done):
    before = 1 if epoch < 3 else 2
    message = f"has 2 prune rounds, {before} of them before epoch {epoch}, .*a backup with {done} of {planned} prune"
    with pytest.raises(tp.ArgumentError, match=message):
        RoundSchedule.of(share(2), 0, 4).check_resumed(epoch, planned, done)


class TestLookAhead:
    """Steps after the end of the fit at which a round is possible."""

    @pytest.mark.parametrize("frequency", [1, 3, 7])
    @pytest.mark.parametrize("begin", [0, 2, 9, 40])
    @pytest.mark.parametrize("end", [-1, 41, 3000])
    def test_of_a_schedule_with_bounds(self, begin, end, frequency):
        schedule = ConstantSparsity(0.5, begin, end, frequency)
        budget, most = 10, round_schedule._ROUNDS_AHEAD
        last = end if end >= 0 else max(begin, budget) + frequency * most
        expected = [step for step in range(budget, last + 1) if step >= begin and (step - begin) % frequency == 0]
        assert list(round_schedule._later_steps(schedule, budget)) == expected[-most:]

    def test_of_a_function(self):
        assert list(round_schedule._later_steps(own, 10)) == list(range(10, 1010))

    @pytest.mark.parametrize(
        "bounds", [{"frequency": 0}, {"frequency": -2}, {"frequency": 1.5}, {"end_step": None}, {}]
    )
    def test_of_a_schedule_with_other_bounds(self, bounds):
        class Own:
            begin_step, end_step, frequency = 0, 5, 1

        for name, value in bounds.items():
            setattr(Own, name, value)
        if not bounds:
            del Own.begin_step
        assert list(round_schedule._later_steps(Own(), 10)) == list(range(10, 1010))

    def test_of_a_schedule_that_ends_with_its_first_step(self):
        class Once:
            begin_step, end_step, frequency = 0, 0, 1

        assert list(round_schedule._later_steps(Once(), 10)) == []

    def test_a_schedule_that_is_not_defined_after_the_fit(self):
        table = [(True, 0.1), (True, 0.3)]
        assert list(RoundSchedule.of(lambda step: table[step], 0, 2).first_epochs) == [0, 1]

    @pytest.mark.parametrize(("more", "refused"), [(0.0, False), (5e-7, False), (1e-6, False), (2e-6, True)])
    def test_rounding_errors_are_no_later_rounds(self, more, refused):
        def schedule(step):
            return step in (0, 5), 0.5 + more * (step == 5)

        if refused:
            with pytest.raises(tp.ArgumentError, match="at step 0, reaches a sparsity of 0.5, but step 5 would reach"):
                RoundSchedule.of(schedule, 0, 3)
        else:
            assert RoundSchedule.of(schedule, 0, 3).kept == (0.5,)


@pytest.mark.parametrize(("less", "refused"), [(0.0, False), (5e-7, False), (2e-6, True)])
def test_rounding_errors_are_no_decrease(less, refused):
    def schedule(step):
        return step < 3, 0.5 - less * (step == 2)

    if refused:
        with pytest.raises(tp.ArgumentError, match="does not decrease.*0.5 at step 2 after 0.5 at step 1 of schedule"):
            RoundSchedule.of(schedule, 0, 3)
    else:
        assert len(RoundSchedule.of(schedule, 0, 3).kept) == 3


def test_the_largest_rounding_error():
    round_schedule._check_order(own, [(0, 0.0), (1, 1e-6)])
    with pytest.raises(tp.ArgumentError, match="does not decrease"):
        round_schedule._check_order(own, [(0, 0.0), (1, np.nextafter(1e-6, 1))])


@pytest.mark.parametrize(
    ("schedule", "shown"),
    [
        (own, "own"),
        (share(2), "EqualShare(final_prune=0.5, num_tasks=2, rounds=2, epochs=None)"),
        (type("Mine", (), {})(), "Mine"),
        (ConstantSparsity(0.5, 4), "ConstantSparsity(target_sparsity=0.5, begin_step=4, end_step=-1, frequency=100)"),
    ],
)
def test_schedules_are_shown_with_their_settings(schedule, shown):
    assert round_schedule._shown(schedule) == shown
