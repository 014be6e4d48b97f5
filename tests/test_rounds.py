"""Every scheduled prune round runs, or `fit` raises an error; a task with missing rounds is not committed."""

import json
import tempfile
import warnings

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
from hypothesis import given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import lifecycle
from tf_packnet.layers import MaskedDense
from tf_packnet.layers.records import COUNTS
from tf_packnet.pruning.round_schedule import RoundSchedule
from tf_packnet.training import training_state

PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay
ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
X, Y = blobs(1)


@pytest.fixture(scope="module")
def trained():
    """A pack with an open task, trained for one epoch, so that its functions are compiled only once."""
    return _trained(tp.pack(make_mlp()))


@pytest.fixture(scope="module")
def trained_plain():
    """A plain Keras model of masked layers, whose `fit` is not checked before it begins."""
    layers = [MaskedDense(12, activation="relu", name="dense_1"), MaskedDense(2, name="head")]
    return _trained(keras.Sequential([keras.Input((6,)), *layers]))


def _trained(model):
    compile_model(model, "adam")
    getattr(model, "begin_task", lambda name: None)("first")
    model.fit(X, Y, verbose=0)
    return model, training_state.capture(model)


def reset(trained):
    model, state = trained
    training_state.restore(model, {name: np.array(value) for name, value in state.items()})
    model._initial_epoch = None
    return model


@pytest.fixture
def packed(trained):
    return reset(trained)


@pytest.fixture
def plain(trained_plain):
    return reset(trained_plain)


@pytest.fixture(params=["packed", "plain"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


class Counts(keras.callbacks.Callback):
    """Records the candidates of every kernel in each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def on_train_batch_begin(self, batch, logs=None):
        self.seen[len(self.seen)] = candidates(self.model) if batch == 0 else self.seen.popitem()[1]


class DiesAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch=-1):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._die(-1)

    def on_train_batch_end(self, batch, logs=None):
        self._die(batch)

    def _die(self, batch):
        if (self.epoch, batch) == self.at:
            raise InterruptedError


class StopsAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == self.epoch


def candidates(model):
    return {path: int(np.sum(w.owner_map() == 255)) for path, w in lifecycle.masked_weights(model).items()}


def left_after(began, n, rounds, p=0.5, tasks=2):
    """Compute the counts with the formula of the paper: `round(c * (1-z)^n)`."""
    z = 1 - (1 - p ** (1 / tasks)) ** (1 / rounds)
    return {path: int(np.rint(count * (1 - z) ** n)) for path, count in began.items()}


def share(rounds, epochs=None):
    return tp.EqualShare(0.5, 2, rounds, epochs)


def own(step):
    return step in (0, 3), 0.2 + 0.1 * int(step)


class Late(tp.EqualShare):
    """A schedule whose last round is after the last epoch."""

    def round_at(self, epoch):
        return super().round_at(epoch - 1) if epoch else None


FITS = {
    "the whole fit": (share(2), 4, 0, [0, 2]),
    "one round": (share(1), 4, 0, [0]),
    "a round every epoch": (share(4), 4, 0, [0, 1, 2, 3]),
    "its own budget": (share(2, 4), 4, 0, [0, 2]),
    "from a later epoch": (share(2), 6, 2, [2, 4]),
    "rounds that divide what is left only": (share(3), 7, 1, [1, 3, 5]),
    "its own budget from a later epoch": (share(2, 4), 6, 2, [2, 4]),
    "a polynomial": (PolynomialDecay(0.2, 0.8, 1, 3, frequency=2), 4, 0, [1, 3]),
    "a polynomial from a later epoch": (PolynomialDecay(0.2, 0.8, 1, 3, frequency=2), 6, 2, [3, 5]),
    "a polynomial whose end is not a round": (PolynomialDecay(0.2, 0.8, 0, 3, frequency=2), 3, 0, [0, 2]),
    "constant without an end": (ConstantSparsity(0.5, 1, frequency=2), 4, 0, [1, 3]),
    "constant until later": (ConstantSparsity(0.5, 2, 99, frequency=100), 4, 0, [2]),
    "a function": (own, 4, 0, [0, 3]),
    "a table": (lambda step: [(True, 0.1), (False, 0.1), (True, 0.5)][step], 3, 0, [0, 2]),
    "nothing is pruned at first": (PolynomialDecay(0.0, 0.5, 0, 2, frequency=1), 3, 0, [0, 1, 2]),
    "all of it": (lambda step: (step == 1, 1.0), 3, 0, [1]),
}
REFUSED = {
    "rounds that do not divide": (share(3), 4, 0, "rounds", r"a divisor of the 4 epochs \(1, 2, 4\)"),
    "rounds that divide `epochs` only": (share(4), 4, 2, "rounds", r"a divisor of the 2 epochs"),
    "a smaller budget": (share(2, 2), 4, 0, "epochs", "4 in EqualShare, the number of epochs of this fit"),
    "a larger budget": (share(2, 8), 4, 0, "epochs", "4 in EqualShare, .*Received: epochs=8"),
    "the budget of all epochs": (share(2, 4), 4, 2, "epochs", "2 in EqualShare, .*Received: epochs=4"),
    "rounds outside of the budget": (Late(0.5, 2, 2), 2, 0, "schedule", "all its 2 prune rounds within the 2 epochs"),
    "a polynomial in gradient steps": (
        *(PolynomialDecay(0.2, 0.8, 0, 1000), 4, 0, "schedule"),
        "step 0, reaches a sparsity of 0.2, but step 100 would reach 0.363 .*PolynomialDecay.initial_sparsity=0.2",
    ),
    "one round too late": (
        PolynomialDecay(0.2, 0.8, 0, 4, frequency=2),
        4,
        0,
        "schedule",
        "but step 4 would reach 0.8",
    ),
    "that begins too late": (
        PolynomialDecay(0.2, 0.8, 4, 8),
        4,
        0,
        "schedule",
        "at least one prune round within the 4",
    ),
    "that ends before it": (PolynomialDecay(0.2, 0.8, 2, 4, frequency=2), 6, 4, "schedule", "within the 2 epochs"),
    "constant, too late": (ConstantSparsity(0.5, 4), 4, 0, "schedule", "at least one prune round"),
    "a function, too long": (own, 3, 0, "schedule", "step 3 would reach 0.5 .*Received: schedule='own'"),
    "never": (lambda step: (False, 0.5), 4, 0, "schedule", "at least one prune round within the 4 epochs"),
    "it decreases": (
        PolynomialDecay(0.8, 0.2, 0, 2, frequency=1),
        3,
        0,
        "schedule",
        "does not decrease: .*0.275 at st",
    ),
    "more than all": (lambda step: (True, 1.5), 3, 0, "schedule", "between 0 and 1. Received: schedule='1.5 at step 0"),
    "less than nothing": (lambda step: (True, -0.5), 3, 0, "schedule", "a sparsity between 0 and 1"),
    "no number": (lambda step: (True, float("nan")), 3, 0, "schedule", "a sparsity between 0 and 1"),
    "no pair": (lambda step: 0.5, 3, 0, "schedule", r"returns two scalars \(should_prune, sparsity\), not 0.5"),
    "no epochs": (share(2), 4, 4, "initial_epoch", "less than the 4 epochs of the fit"),
    "fewer than no epochs": (share(2), 4, 6, "initial_epoch", "less than the 4 epochs of the fit"),
}


def params(table):
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())


@params(FITS)
def test_rounds_fall_where_the_schedule_says(case, model):
    schedule, epochs, first, at = case
    began = candidates(model)
    counts, scheduler = Counts(), tp.PruneRoundScheduler(schedule)
    model.fit(X, Y, 64, epochs, 0, [scheduler, tp.GradientMask(), counts], initial_epoch=first)  # by position
    assert [entry["epoch"] for entry in scheduler.rounds] == at
    assert [entry["round"] for entry in scheduler.rounds] == list(range(1, len(at) + 1))
    for epoch, found in zip(range(first, epochs), counts.seen.values(), strict=True):
        n = sum(each <= epoch for each in at)
        if isinstance(schedule, tp.EqualShare):
            assert found == left_after(began, n, schedule.rounds)
        else:
            kept = 1 - float(schedule(np.int64(at[n - 1] - first))[1]) if n else 1
            assert found == {path: int(np.rint(count * kept)) for path, count in began.items()}
    records = lifecycle.records(model)
    assert (records.rounds_done, records.rounds_due) == (len(at), 0)


@params(REFUSED)
def test_a_fit_that_cannot_run_them_is_refused_before_anything_changes(case, model):
    schedule, epochs, first, argument, message = case
    before = {name: np.array(value) for name, value in training_state.capture(model).items()}
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(1))
    callbacks = [count, tp.TaskMaskSnapshot(), tp.PruneRoundScheduler(schedule), tp.GradientMask()]
    plain_without_epochs = not isinstance(model, tp.PackedModel) and first >= epochs  # Keras does not pass the epochs
    with pytest.raises(
        tp.ArgumentError, match="more than `initial_epoch`" if plain_without_epochs else message
    ) as told:
        model.fit(X, Y, 64, epochs, 0, callbacks, initial_epoch=first)
    assert told.value.argument == ("epochs" if plain_without_epochs else argument)
    assert steps == []
    after = training_state.capture(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_the_plan_is_that_of_a_loop_over_the_steps(data):
    """`RoundSchedule` against TF-MOT's schedules, evaluated step by step."""
    budget, first = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 5))
    begin, length, frequency = (data.draw(st.integers(low, 14)) for low in (0, 1, 1))
    schedule = PolynomialDecay(0.25, 0.75, begin, begin + length, power=1, frequency=frequency)
    asked = [(step, *schedule(np.int64(step))) for step in range(64)]
    rounds = {step: float(sparsity) for step, prune, sparsity in asked if prune}
    inside = {step: sparsity for step, sparsity in rounds.items() if step < budget}
    if inside and max(rounds.values()) == max(inside.values()):
        plan = RoundSchedule.of(schedule, first, first + budget)
        assert plan.first_epochs == tuple(first + step for step in inside)
        assert plan.kept == tuple(1 - sparsity for sparsity in inside.values())
    else:
        with pytest.raises(tp.ArgumentError, match="within the"):
            RoundSchedule.of(schedule, first, first + budget)


@pytest.mark.parametrize("how", ["list", "nested", "tuple", "CallbackList"])
def test_callbacks_in_every_form_that_keras_accepts(packed, how):
    scheduler, mask, snapshot = tp.PruneRoundScheduler(share(2, 8)), tp.GradientMask(), tp.TaskMaskSnapshot()
    forms = {
        "list": [scheduler, mask, snapshot],
        "nested": [[scheduler, mask], [[snapshot]]],
        "tuple": (scheduler, mask, snapshot),
        "CallbackList": keras.callbacks.CallbackList([scheduler, mask, snapshot], model=packed, epochs=4),
    }
    with pytest.raises(tp.ArgumentError, match="`epochs`: expected 4 in EqualShare"):
        packed.fit(X, Y, 64, 4, 0, forms[how])
    scheduler.schedule = share(2)
    packed.fit(X, Y, 64, 4, 0, forms[how])
    assert [entry["epoch"] for entry in scheduler.rounds] == [0, 2]
    assert packed.committed_tasks == 1


def test_a_callback_list_of_another_fit(packed):
    made = keras.callbacks.CallbackList([tp.PruneRoundScheduler(share(2))], model=packed, epochs=2)
    with pytest.raises(tp.ArgumentError, match="the epochs of the fit. Received: epochs=2"):
        packed.fit(X, Y, epochs=4, verbose=0, callbacks=made)


def test_one_callback_alone(packed):
    scheduler = tp.PruneRoundScheduler(share(2))
    with pytest.warns(UserWarning, match="task 'first' is not committed: 1 of its 2 prune rounds did not run"):
        packed.fit(X, Y, 64, 2, 0, [scheduler, StopsAfter(0)])
    with pytest.raises(tp.ArgumentError, match="a divisor of the 3 epochs"):
        packed.fit(X, Y, 64, 3, 0, scheduler)
    packed.fit(X, Y, 64, 2, 0, scheduler)
    assert len(scheduler.rounds) == 2


def test_a_limit_that_keras_puts_on_epochs(packed, monkeypatch):
    monkeypatch.setattr(keras.config, "max_epochs", lambda: 3)
    with pytest.raises(tp.ArgumentError, match="a divisor of the 3 epochs"):
        packed.fit(X, Y, epochs=4, verbose=0, callbacks=[tp.PruneRoundScheduler(share(2))])


def test_two_schedulers(model):
    callbacks = [tp.PruneRoundScheduler(share(2)), tp.PruneRoundScheduler(share(1))]
    with pytest.raises(tp.ArgumentError, match="one PruneRoundScheduler per fit"):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)


def test_two_snapshots(packed):
    with pytest.raises(tp.ArgumentError, match="one TaskMaskSnapshot per fit"):
        packed.fit(X, Y, epochs=2, verbose=0, callbacks=[tp.TaskMaskSnapshot(), tp.TaskMaskSnapshot()])


class TestOrder:
    def test_of_the_callbacks_does_not_matter(self, trained):
        states = []
        for places in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]):
            packed = reset(trained)
            three = [tp.PruneRoundScheduler(share(2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
            packed.fit(X, Y, epochs=4, verbose=0, shuffle=False, callbacks=[three[place] for place in places])
            assert packed.committed_tasks == 1
            states.append({name: np.array(value) for name, value in training_state.capture(packed).items()})
        for state in states[1:]:
            for name, value in states[0].items():
                np.testing.assert_array_equal(state[name], value, err_msg=name)

    @pytest.mark.parametrize("after", [True, False])
    def test_of_a_learning_rate_schedule(self, packed, after):
        """The optimizer is reset before a callback changes its learning rate."""
        packed.optimizer.learning_rate = 0.5
        rates = []
        seen = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: rates.append(float(packed.optimizer.learning_rate))
        )
        rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 if epoch == 0 else 0.25)
        callbacks = [tp.PruneRoundScheduler(share(1)), rate]
        packed.fit(X, Y, 64, 2, 0, [*(callbacks if after else callbacks[::-1]), seen])
        assert rates == [0.5, 0.25]


class TestCommit:
    def callbacks(self, *more, rounds=4, **snapshot):
        return [tp.PruneRoundScheduler(share(rounds)), tp.GradientMask(), *more, tp.TaskMaskSnapshot(**snapshot)]

    @pytest.mark.parametrize("stopped_after", [0, 1, 2])
    def test_not_with_missing_rounds(self, model, stopped_after):
        with pytest.warns(UserWarning, match="is not committed") as told:
            model.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(StopsAfter(stopped_after)))
        (warning,) = told
        name = "first" if isinstance(model, tp.PackedModel) else "task_1"
        assert str(warning.message) == (
            f"task '{name}' is not committed: {3 - stopped_after} of its 4 prune rounds did not run before the fit "
            "ended. Fit again with PruneRoundScheduler to run them, or commit it as it is with "
            "TaskMaskSnapshot(commit_incomplete=True) or packed.commit_task()"
        )
        assert lifecycle.has_open_task(model)
        assert lifecycle.committed_tasks(model) == 0
        records = lifecycle.records(model)
        assert (records.rounds_done, records.rounds_due) == (stopped_after + 1, 3 - stopped_after)

    def test_early_stopping(self, packed):
        stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
        with pytest.warns(UserWarning, match="2 of its 4 prune rounds"):
            packed.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(stop))
        assert packed.committed_tasks == 0

    def test_unless_told_to(self, model):
        began = candidates(model)
        model.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(StopsAfter(1), commit_incomplete=True))
        assert lifecycle.committed_tasks(model) == 1
        owned = {path: int(np.sum(owner == 1)) for path, owner in lifecycle.owner_maps(model).items()}
        assert owned == left_after(began, 2, 4)

    def test_by_hand(self, packed):
        with pytest.warns(UserWarning, match="is not committed"):
            packed.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(StopsAfter(1)))
        assert packed.commit_task() == 1

    def test_by_fitting_again(self, packed):
        began = candidates(packed)
        with pytest.warns(UserWarning, match="is not committed"):
            packed.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(StopsAfter(1)))
        packed.fit(X, Y, epochs=2, verbose=0, callbacks=self.callbacks(rounds=2))
        owned = {path: int(np.sum(owner == 1)) for path, owner in packed.owner_maps().items()}
        assert owned == left_after(began, 1, 1)

    def test_not_in_a_later_fit_without_rounds(self, packed):
        with pytest.warns(UserWarning, match="packed.commit_task") as told:
            packed.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(StopsAfter(1))[:-1])
        assert len(told) == 1
        with pytest.warns(UserWarning, match="2 of its 4 prune rounds"):
            packed.fit(X, Y, epochs=1, verbose=0, callbacks=[tp.TaskMaskSnapshot()])
        assert packed.committed_tasks == 0

    def test_after_a_stop_in_the_last_round(self, model):
        model.fit(X, Y, epochs=8, verbose=0, callbacks=self.callbacks(StopsAfter(6)))
        assert lifecycle.committed_tasks(model) == 1

    def test_without_any_rounds(self, model):
        model.fit(X, Y, epochs=1, verbose=0, callbacks=[tp.TaskMaskSnapshot()])
        assert lifecycle.committed_tasks(model) == 1

    def test_not_after_an_exception(self, model):
        with pytest.raises(InterruptedError):
            model.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(DiesAt(2, 0)))
        assert lifecycle.committed_tasks(model) == 0
        assert lifecycle.records(model).rounds_due == 1

    def test_not_when_the_weights_from_before_a_round_are_restored(self, plain):
        """`PackedModel.fit` raises an error; a plain `fit` can only detect this at its end."""
        stop = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True)
        began = candidates(plain)
        with pytest.warns(UserWarning, match="3 of its 4 prune rounds did not run"):
            plain.fit(X, Y, epochs=4, verbose=0, callbacks=self.callbacks(stop))
        assert candidates(plain) == left_after(began, 1, 4)
        assert lifecycle.committed_tasks(plain) == 0

    def test_the_records_are_saved_with_the_weights(self, packed, tmp_path):
        with pytest.warns(UserWarning, match="is not committed"):
            packed.fit(X, Y, epochs=4, verbose=0, initial_epoch=2, callbacks=self.callbacks(StopsAfter(2), rounds=2))
        packed.save(tmp_path / "pack.keras")
        loaded = keras.models.load_model(tmp_path / "pack.keras")
        found = vars(lifecycle.records(loaded))
        assert {name: found[name] for name in ("names", *COUNTS)} == {
            "names": ["first"],
            "rounds_done": 1,
            "rounds_due": 1,
            "rounds_planned": 2,
            "rounds_from": 2,
        }

    def test_one_scheduler_for_several_tasks(self, packed):
        callbacks = self.callbacks(rounds=2)
        for epochs, first in ((2, 0), (8, 4)):
            if first:
                packed.begin_task("second")
            began = candidates(packed)
            packed.fit(X, Y, epochs=epochs, initial_epoch=first, verbose=0, callbacks=callbacks)
            task = packed.committed_tasks
            owned = {path: int(np.sum(owner == task)) for path, owner in packed.owner_maps().items()}
            assert owned == left_after(began, 2, 2)
        assert packed.task_names == ["first", "second"]


class TestResume:
    def fit(self, model, backup, *more, first=0, rounds=3, epochs=6, **fit):
        """Every `fit` has a new scheduler, as in a new process."""
        scheduler = tp.PruneRoundScheduler(share(rounds))
        counts = Counts()
        callbacks = [scheduler, tp.GradientMask(), counts, *more]
        place = {"last": len(callbacks), "first": 0}[fit.pop("place", "last")]
        callbacks.insert(place, backup)
        fit = {"batch_size": 16, "shuffle": False, "verbose": 0, **fit}
        history = model.fit(
            X, Y, epochs=epochs, initial_epoch=first, callbacks=[*callbacks, tp.TaskMaskSnapshot()], **fit
        )
        return scheduler, counts, history

    def whole(self, model, **fit):
        _, counts, _ = self.fit(model, keras.callbacks.Callback(), **fit)
        return list(counts.seen.values()), {n: np.array(v) for n, v in training_state.capture(model).items()}

    def backup(self, kind, path, **how):
        if kind == "keras":
            return keras.callbacks.BackupAndRestore(path / "backup", **how)
        return tp.EpochBackup(path / "backup")

    @pytest.mark.parametrize(
        ("fixture", "kind", "place", "first"),
        [
            ("trained", "keras", "first", 4),
            ("trained", "keras", "last", 0),
            ("trained_plain", "keras", "first", 0),
            ("trained_plain", "keras", "last", 4),
            ("trained", "ours", "last", 4),
        ],
    )
    def test_a_fit_that_dies_twice_ends_in_the_same_bits(self, fixture, kind, place, first, tmp_path, request):
        trained = request.getfixturevalue(fixture)
        fit = {"first": first, "epochs": first + 6, "place": place}
        seen, expected = self.whole(reset(trained), **fit)
        for epoch in (first + 2, first + 5):
            model = reset(trained)
            backup = self.backup(kind, tmp_path)
            with pytest.raises(InterruptedError):
                self.fit(model, backup, DiesAt(epoch), **fit)
            getattr(backup, "wait", lambda: None)()
        model = reset(trained)
        scheduler, counts, _ = self.fit(model, self.backup(kind, tmp_path), DiesAt(None), **fit)
        assert list(counts.seen.values()) == seen[5:]
        # All rounds were already run; EpochBackup restores the state of the callbacks.
        assert [entry["round"] for entry in scheduler.rounds] == ([1, 2, 3] if kind == "ours" else [])
        assert lifecycle.committed_tasks(model) == 1
        state = training_state.capture(model)
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)

    @pytest.mark.parametrize("dies", [(0, 1), (2, 1), (5, 2)])
    def test_a_backup_in_the_middle_of_an_epoch(self, model, dies, request, tmp_path):
        trained = request.getfixturevalue("trained" if isinstance(model, tp.PackedModel) else "trained_plain")
        began = candidates(model)
        with pytest.raises(InterruptedError):
            self.fit(model, self.backup("keras", tmp_path, save_freq=1), DiesAt(*dies))
        model = reset(trained)
        scheduler, counts, _ = self.fit(model, self.backup("keras", tmp_path, save_freq=1))
        assert list(counts.seen.values()) == [left_after(began, epoch // 2 + 1, 3) for epoch in range(dies[0], 6)]
        assert [entry["round"] for entry in scheduler.rounds] == [n for n in (1, 2, 3) if n > dies[0] // 2 + 1]
        assert lifecycle.committed_tasks(model) == 1
        assert lifecycle.records(model).rounds_done == 3

    def test_it_forgets_where_an_earlier_fit_was_resumed(self, model, request, tmp_path):
        """After a resume, Keras begins every later fit at the same epoch."""
        trained = request.getfixturevalue("trained" if isinstance(model, tp.PackedModel) else "trained_plain")
        with pytest.raises(InterruptedError):
            model.fit(X, Y, epochs=4, verbose=0, callbacks=[self.backup("keras", tmp_path), DiesAt(3)])
        model = reset(trained)
        history = model.fit(X, Y, epochs=4, verbose=0, callbacks=[self.backup("keras", tmp_path)])
        assert history.epoch == [3]
        scheduler, _, history = self.fit(model, keras.callbacks.Callback())
        assert history.epoch == list(range(6))
        assert [entry["epoch"] for entry in scheduler.rounds] == [0, 2, 4]

    @pytest.mark.parametrize("kind", ["keras", "ours"])
    def test_one_that_died_after_its_last_epoch(self, packed, trained, kind, tmp_path):
        class DiesAtTheEnd(keras.callbacks.Callback):
            def on_train_end(self, logs=None):
                raise InterruptedError

        with pytest.raises(InterruptedError):
            self.fit(packed, self.backup(kind, tmp_path), DiesAtTheEnd())
        packed = reset(trained)
        began = candidates(packed)
        self.fit(packed, self.backup(kind, tmp_path), keras.callbacks.Callback())
        owned = {path: int(np.sum(owner == 1)) for path, owner in packed.owner_maps().items()}
        assert owned == left_after(began, 3, 3)

    @pytest.mark.parametrize("kind", ["keras", "ours"])
    def test_one_that_was_stopped_before_its_last_round(self, packed, trained, kind, tmp_path):
        """The backup contains the number of missing rounds."""

        class DiesAtTheEnd(keras.callbacks.Callback):
            def on_train_end(self, logs=None):
                raise InterruptedError

        with pytest.raises(InterruptedError):
            self.fit(packed, self.backup(kind, tmp_path), DiesAtTheEnd(), StopsAfter(1))
        packed = reset(trained)
        if kind == "ours":  # a stopped fit is not continued
            with pytest.warns(UserWarning, match="2 of its 3 prune rounds did not run"):
                self.fit(packed, self.backup(kind, tmp_path), keras.callbacks.Callback(), StopsAfter(1))
            assert packed.committed_tasks == 0
        else:  # Keras continues
            self.fit(packed, self.backup(kind, tmp_path))
            assert packed.committed_tasks == 1

    def test_the_backup_of_a_fit_without_rounds(self, model, request, tmp_path):
        trained = request.getfixturevalue("trained" if isinstance(model, tp.PackedModel) else "trained_plain")
        with pytest.raises(InterruptedError):
            model.fit(X, Y, epochs=6, verbose=0, callbacks=[self.backup("keras", tmp_path), DiesAt(3)])
        with pytest.raises(
            tp.ArgumentError, match="has 3 prune rounds, 2 of them before epoch 3, .*0 of 0 prune rounds"
        ):
            self.fit(reset(trained), self.backup("keras", tmp_path))

    @pytest.mark.parametrize(("epochs", "rounds", "refused"), [(12, 3, False), (6, 2, True), (6, 6, True)])
    def test_the_backup_of_another_fit(self, packed, trained, epochs, rounds, refused, tmp_path):
        began = candidates(packed)
        with pytest.raises(InterruptedError):
            self.fit(packed, self.backup("keras", tmp_path), DiesAt(3))
        packed = reset(trained)
        if refused:
            with pytest.raises(tp.ArgumentError, match="a backup of this fit, which has"):
                self.fit(packed, self.backup("keras", tmp_path), epochs=epochs, rounds=rounds)
            assert packed.committed_tasks == 0
        else:  # more epochs, the same number of rounds: none is lost
            self.fit(packed, self.backup("keras", tmp_path), epochs=epochs, rounds=rounds)
            owned = {path: int(np.sum(owner == 1)) for path, owner in packed.owner_maps().items()}
            assert owned == left_after(began, 3, 3)

    def test_our_backup_of_a_fit_from_another_epoch(self, packed, trained, tmp_path):
        backup = self.backup("ours", tmp_path)
        with pytest.raises(InterruptedError):
            self.fit(packed, backup, DiesAt(4), first=3)
        backup.wait()
        with pytest.raises(tp.ArgumentError, match=r"is from another fit \(task 1, 6 epochs from epoch 3\)"):
            self.fit(reset(trained), self.backup("ours", tmp_path))
        *_, history = self.fit(reset(trained), self.backup("ours", tmp_path), DiesAt(None), first=3)
        assert history.epoch == [3, 4, 5]

    def test_the_sparsity_in_the_logs_continues(self, packed, trained, tmp_path):
        *_, whole = self.fit(packed, keras.callbacks.Callback())
        with pytest.raises(InterruptedError):
            self.fit(reset(trained), self.backup("keras", tmp_path), DiesAt(3))
        *_, resumed = self.fit(reset(trained), self.backup("keras", tmp_path))
        assert resumed.history["sparsity"] == whole.history["sparsity"][3:]


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_every_round_runs_once_whenever_the_process_dies(trained_plain, data):
    """Keras's loop over the callbacks without gradient steps, which is interrupted and resumed."""
    rounds, spacing, first = (data.draw(st.integers(low, 4)) for low in (1, 1, 0))
    epochs = first + rounds * spacing
    deaths = data.draw(st.lists(st.integers(first, epochs), max_size=3))
    order = data.draw(st.permutations(range(3)))
    model = reset(trained_plain)
    began = candidates(model)
    ran = []
    with tempfile.TemporaryDirectory() as folder:
        for death in [*sorted(deaths), None]:
            model = reset(trained_plain)
            scheduler = tp.PruneRoundScheduler(share(rounds))
            three = [scheduler, keras.callbacks.BackupAndRestore(f"{folder}/backup"), tp.TaskMaskSnapshot()]
            callbacks = keras.callbacks.CallbackList([three[i] for i in order], model=model, epochs=epochs)
            callbacks.on_train_begin()
            for epoch in range(model._initial_epoch or first, epochs):
                if epoch == death:
                    break
                callbacks.on_epoch_begin(epoch)
                assert candidates(model) == left_after(began, (epoch - first) // spacing + 1, rounds)
                callbacks.on_epoch_end(epoch, {})
            ran += [(entry["epoch"], entry["round"]) for entry in scheduler.rounds]
        callbacks.on_train_end()
    assert ran == [(first + n * spacing, n + 1) for n in range(rounds)]
    assert lifecycle.committed_tasks(model) == 1


def test_what_was_saved_before_these_counts(packed):
    """Weights of earlier versions, without counts of the last fit, can be loaded."""
    records = lifecycle.records(packed)
    facts = {"names": ["first"], "rounds_done": 2, "rounds_due": 1}
    records.load({"records": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    assert (records.rounds_done, records.rounds_due, records.rounds_planned, records.rounds_from) == (2, 1, 0, 0)
