"""`PruneRoundScheduler`, called as Keras calls it, without training."""

import warnings

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import compile_model
from tests.test_rounds import candidates, left_after, share
from tf_packnet import lifecycle
from tf_packnet.callbacks.prune_round_scheduler import SNAPSHOT, missing_rounds
from tf_packnet.layers import MaskedDense
from tf_packnet.system.keras_internals import resume_at, resumed_epoch
from tf_packnet.training.fit_checks import FitRequest


@pytest.fixture
def model():
    layers = [MaskedDense(7, name="one"), MaskedDense(5, name="two")]
    model = compile_model(keras.Sequential([keras.Input((6,)), *layers]))
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        variable.assign(np.full(variable.shape, 3, variable.dtype))
    return model


def begin(model, scheduler, epochs=4, **params):
    scheduler.set_params({"epochs": epochs, **params})
    scheduler.set_model(model)
    scheduler.on_train_begin()
    return scheduler


def slots(model):
    return [np.array(variable) for variable in model.optimizer.variables if len(variable.shape)]


def commit(model, keep=0.5):
    for weight in lifecycle.masked_weights(model).values():
        weight.prune(np.random.default_rng(0).random(weight.owner_map().shape) < keep)
    lifecycle.commit_task(model)


def test_rounds_and_logs_of_each_epoch(model):
    began, values = candidates(model), {p: w.values() for p, w in lifecycle.masked_weights(model).items()}
    scheduler = begin(model, tp.PruneRoundScheduler(share(2)))
    sparsities = []
    for epoch in range(4):
        scheduler.on_epoch_begin(epoch)
        logs = {"loss": 1.0}
        scheduler.on_epoch_end(epoch, logs)
        sparsities.append(logs.pop("sparsity"))
        assert logs == {"loss": 1.0}
        scheduler.on_epoch_end(epoch)
        assert candidates(model) == left_after(began, epoch // 2 + 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.on_train_end()
    kept = [left_after(began, n, 2) for n in (1, 2)]
    expected = [1 - sum(each.values()) / sum(began.values()) for each in kept]
    assert sparsities == pytest.approx([expected[0], expected[0], expected[1], expected[1]])
    assert scheduler.rounds == [
        {"round": n + 1, "epoch": 2 * n, "kept": kept[n], "sparsity": pytest.approx(expected[n])} for n in (0, 1)
    ]
    for path, weight in lifecycle.masked_weights(model).items():
        magnitudes, is_kept = np.abs(values[path]), weight.owner_map() == 255
        assert magnitudes[is_kept].min() > magnitudes[~is_kept].max()
    begin(model, scheduler, epochs=1)
    assert scheduler.rounds == []


def test_before_the_first_round_the_sparsity_is_that_at_the_beginning(model):
    late = tp.PruneRoundScheduler(lambda step: (step == 1, 0.75))
    begin(model, late, epochs=2)
    logs = {}
    late.on_epoch_begin(0)
    late.on_epoch_end(0, logs)
    assert logs == {"sparsity": 0.0}
    lifecycle.masked_weights(model)["one/kernel"].prune(np.zeros((6, 7), bool))
    begin(model, late, epochs=2)
    late.on_epoch_begin(0)
    late.on_epoch_end(0, logs)
    assert logs["sparsity"] == pytest.approx(42 / 77)


class TestOptimizer:
    def test_it_is_reset_when_a_fit_begins(self, model):
        begin(model, tp.PruneRoundScheduler(share(1)))
        assert not any(slot.any() for slot in slots(model))

    def test_unless_told_otherwise_or_the_fit_resumes(self, model):
        before = slots(model)
        begin(model, tp.PruneRoundScheduler(share(1), reset_optimizer=False))
        scheduler = tp.PruneRoundScheduler(share(1))
        scheduler.set_params({"epochs": 4})
        scheduler.set_model(model)
        resume_at(model, 2)
        scheduler.on_train_begin()
        assert len(before) > 0
        for slot, value in zip(slots(model), before, strict=True):
            np.testing.assert_array_equal(slot, value)

    @pytest.mark.parametrize("when", ["first epoch", "end"])
    def test_it_is_restored_if_the_fit_is_refused(self, model, when):
        before = slots(model)
        scheduler = begin(model, tp.PruneRoundScheduler(share(3)))
        with pytest.raises(tp.ArgumentError):
            scheduler.on_epoch_begin(0) if when == "first epoch" else scheduler.on_train_end()
        for slot, value in zip(slots(model), before, strict=True):
            np.testing.assert_array_equal(slot, value)

    def test_it_is_restored_once(self, model):
        scheduler = begin(model, tp.PruneRoundScheduler(share(3)))
        with pytest.raises(tp.ArgumentError):
            scheduler.on_train_end()
        for variable in model.optimizer.variables:
            variable.assign(np.full(variable.shape, 5, variable.dtype))
        scheduler._undo_reset()
        assert all((slot == 5).all() for slot in slots(model))

    def test_a_refusal_later_does_not_bring_old_values_back(self, model):
        scheduler = begin(model, tp.PruneRoundScheduler(share(1)))
        scheduler.on_epoch_begin(0)
        scheduler._undo_reset()
        assert not any(slot.any() for slot in slots(model))


class TestResumedFits:
    def test_the_fit_after_one_begins_anew(self, model):
        resume_at(model, 2)
        scheduler = tp.PruneRoundScheduler(share(1))
        assert scheduler.model is None
        scheduler.set_model(model)
        assert resumed_epoch(model) is None

    @pytest.fixture
    def resumed(self, model):
        """A fit of 4 epochs from epoch 1 on, with rounds at 1 and 3, that resumes at epoch 3."""
        resume_at(model, None)
        scheduler = tp.PruneRoundScheduler(share(2))
        scheduler.set_params({"epochs": 5})
        scheduler.set_model(model)
        resume_at(model, 3)
        scheduler.on_train_begin()
        lifecycle.records(model).plan_rounds(2, first_epoch=1)
        return scheduler

    def test_the_next_round_runs(self, model, resumed):
        lifecycle.records(model).round_was_run()
        resumed.on_epoch_begin(3)
        assert [(each["round"], each["epoch"]) for each in resumed.rounds] == [(2, 3)]
        assert lifecycle.records(model).rounds_due == 0
        resumed.on_epoch_begin(4)
        assert len(resumed.rounds) == 1

    def test_a_backup_with_other_rounds(self, model, resumed):
        began = candidates(model)
        with pytest.raises(tp.ArgumentError, match="a backup of this fit, which has 2 prune rounds, 1 of them before"):
            resumed.on_epoch_begin(3)
        assert candidates(model) == began

    def test_one_without_an_epoch_is_complete(self, model, resumed):
        lifecycle.records(model).round_was_run()
        lifecycle.records(model).round_was_run()
        resumed.on_train_end()
        assert resumed.rounds == []


class TestSchedules:
    @pytest.mark.parametrize("committed", [0, 1, 2])
    def test_erk_leaves_an_even_share_to_later_tasks(self, model, committed):
        """A density of 1/3 would be exceeded by the small layer with three tasks left, and of 1/2 with two."""
        for _ in range(committed):
            commit(model, keep=0.2)
            lifecycle.begin_task(model)
        free = candidates(model)
        scheduler = begin(model, tp.PruneRoundScheduler(tp.EqualShare(0.4, 3), "erk"), epochs=1)
        scheduler.on_epoch_begin(0)
        cap = 1 / (3 - committed)
        assert all(count <= np.ceil(cap * free[path]) for path, count in candidates(model).items())
        released = 0.4 ** (1 / 3)
        assert abs(sum(candidates(model).values()) - (1 - released) * sum(free.values())) <= 1

    def test_erk_has_no_cap_with_a_schedule_of_tfmot(self, model):
        scheduler = begin(model, tp.PruneRoundScheduler(lambda step: (True, 0.02), "erk"), epochs=1)
        scheduler.on_epoch_begin(0)
        assert candidates(model) == {"one/kernel": 40, "two/kernel": 35}  # all of the small layer, 0.98 * 77 in all

    def test_more_tasks_than_it_has(self, model):
        scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 1))
        scheduler.check_fit(model, FitRequest(epochs=4, initial_epoch=0, callbacks=[scheduler]))
        commit(model)
        lifecycle.begin_task(model)
        with pytest.raises(tp.ArgumentError, match="`num_tasks`: expected more than the 1 tasks that are already"):
            scheduler.check_fit(model, FitRequest(epochs=4, initial_epoch=0, callbacks=[scheduler]))

    def test_an_own_score(self, model):
        class LastFirst(tp.PruneRoundScheduler):
            def score(self, path, values):
                assert path in ("one/kernel", "two/kernel")
                return np.arange(values.size).reshape(values.shape)

        begin(model, LastFirst(lambda step: (True, 0.5)), epochs=1).on_epoch_begin(0)
        owner = lifecycle.masked_weights(model)["one/kernel"].owner_map().ravel()
        assert owner.tolist() == [0] * 21 + [255] * 21

    def test_magnitudes_are_the_score_of_every_other_class(self, model):
        values = np.float32([-2.0, 1.0])
        np.testing.assert_array_equal(tp.PruneRoundScheduler(share(1)).score("one/kernel", values), [2, 1])


class TestOtherCallbacks:
    @pytest.mark.parametrize(
        ("stopping", "first", "refused"),
        [
            ({"restore_best_weights": True}, 0, True),
            ({"restore_best_weights": True, "start_from_epoch": 1}, 0, True),
            ({"restore_best_weights": True, "start_from_epoch": 2}, 0, False),
            ({"restore_best_weights": True, "start_from_epoch": 3}, 0, False),
            ({"restore_best_weights": False}, 0, False),
            ({"restore_best_weights": True, "start_from_epoch": 3}, 2, True),
        ],
    )
    def test_early_stopping_must_not_undo_rounds(self, model, stopping, first, refused):
        scheduler = tp.PruneRoundScheduler(share(2))  # the last round is two epochs after the first
        callbacks = [keras.callbacks.EarlyStopping(**stopping), keras.callbacks.Callback(), scheduler]
        request = FitRequest(epochs=first + 4, initial_epoch=first, callbacks=callbacks)
        if refused:
            with pytest.raises(tp.ArgumentError, match=f"`start_from_epoch`: expected at least {first + 2}"):
                scheduler.check_fit(model, request)
        else:
            scheduler.check_fit(model, request)

    def test_one_scheduler_is_enough(self, model):
        scheduler, other = tp.PruneRoundScheduler(share(1)), tp.PruneRoundScheduler(share(1))
        with pytest.raises(tp.ArgumentError, match="one PruneRoundScheduler per fit"):
            scheduler.check_fit(model, FitRequest(epochs=4, initial_epoch=0, callbacks=[scheduler, other]))
        shared = {"epochs": 4}
        for each in (scheduler, other):
            each.params, each._model = shared, model
        scheduler.on_train_begin()
        with pytest.raises(tp.ArgumentError, match="one PruneRoundScheduler per fit"):
            other.on_train_begin()

    def test_missing_rounds_are_reported_once(self, model):
        scheduler = begin(model, tp.PruneRoundScheduler(share(2)))
        scheduler.on_epoch_begin(0)
        with pytest.warns(UserWarning, match="task 'task_1' is not committed: 1 of its 2 prune rounds did not run"):
            scheduler.on_train_end()
        begin(model, scheduler, **{SNAPSHOT: object()})
        scheduler.on_epoch_begin(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.on_train_end()  # the snapshot reports it
        lifecycle.records(model).names = ["first"]
        assert missing_rounds(model).startswith("task 'first' is not committed: 1 of its 2")

    def test_rounds_that_are_undone_are_due_again(self, model):
        before = {path: weight.owner_map() for path, weight in lifecycle.masked_weights(model).items()}
        scheduler = begin(model, tp.PruneRoundScheduler(share(2)), epochs=2)
        scheduler.on_epoch_begin(0)
        after_one = {path: weight.owner_map() for path, weight in lifecycle.masked_weights(model).items()}
        scheduler.on_epoch_begin(1)
        records = lifecycle.records(model)
        for maps, left in ((after_one, 1), (before, 0)):
            lifecycle.masked_weights(model)["two/kernel"].owner.assign(maps["two/kernel"])
            scheduler.settle()
            assert (len(scheduler.rounds), records.rounds_done, records.rounds_due) == (left, left, 2 - left)


def test_what_it_needs(model):
    for schedule in (None, 0.5):
        with pytest.raises(tp.ArgumentError, match="`schedule`: expected tp.EqualShare or another TF-MOT"):
            tp.PruneRoundScheduler(schedule)
    with pytest.raises(tp.ArgumentError, match="`scope`: expected one of layer, global, erk"):
        tp.PruneRoundScheduler(share(1), scope="all")
    scheduler = tp.PruneRoundScheduler(share(1))
    with pytest.raises(tp.ArgumentError, match="with the epochs of the fit. Received: callbacks='none'"):
        begin(model, scheduler, epochs=None)
    commit(model)
    with pytest.raises(RuntimeError, match="no task is open, so there is nothing to prune"):
        begin(model, scheduler)
