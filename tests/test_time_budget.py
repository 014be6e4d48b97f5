"""`TimeBudget` and its division of the time between prune rounds, with a simulated clock."""

import datetime
import time

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.test_rounds import candidates, left_after
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import MaskedDense
from tf_packnet.pruning import timing
from tf_packnet.training import training_state


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def model():
    layers = [MaskedDense(7, name="one"), MaskedDense(5, name="two")]
    model = compile_model(keras.Sequential([keras.Input((6,)), *layers]))
    model.optimizer.build(model.trainable_variables)
    model.start = training_state.capture(model)
    model.start = {name: np.array(value) for name, value in model.start.items()}
    return model


class Simulated:
    """A `fit` without training: calls the callbacks as Keras does, and moves the clock.

    Args:
        seconds: Seconds of an epoch, from its number.
        rounds: Prune rounds; 0 for a `fit` without them.
        pruning: Seconds of a prune round.
        tail: Seconds after every epoch, in which other callbacks work.
        batches: Batches per epoch.
        before: Seconds of an epoch of the `fit` before, without compilation if they are 1; 0 if there was none.
        shape: How the epochs are divided.
    """

    def __init__(self, model, seconds, rounds, pruning=0.0, tail=0.0, batches=4, shape="uniform", before=0.0):
        self.model, self.seconds, self.rounds = model, seconds, rounds
        self.pruning, self.tail, self.batches, self.shape = pruning, tail, batches, shape
        self.before = before
        self.clock = Clock()

    def fit(self, epochs=10_000, **arguments):
        training_state.restore(self.model, dict(self.model.start))
        lifecycle.records(self.model).begin()
        self.model.stop_training = False
        self.model._initial_epoch = None
        self.budget = tp.TimeBudget(**arguments, clock=self.clock)
        callbacks = [self.budget]
        if self.rounds:
            test = self

            class Scheduler(tp.PruneRoundScheduler):
                def _prune(self, *args):
                    super()._prune(*args)
                    test.clock.now += test.pruning

            self.scheduler = Scheduler(tp.EqualShare(0.5, 2, self.rounds, round_epochs=self.shape))
            callbacks.append(self.scheduler)
        params = {"epochs": epochs}
        for callback in callbacks:
            callback.params, callback._model = params, self.model
        self.budget.before = lambda: (self.before, self.before == 1.0)
        for callback in callbacks:
            callback.on_train_begin()
        began = self.clock.now
        for epoch in range(epochs):
            for callback in callbacks:
                callback.on_epoch_begin(epoch)
            seconds = self.seconds(epoch)
            compiling, steady = seconds if isinstance(seconds, tuple) else (0.0, seconds)
            for batch in range(self.batches):
                self.budget.on_train_batch_begin(batch)
                self.clock.now += steady / self.batches + (compiling if batch == 0 else 0.0)
                self.budget.on_train_batch_end(batch)
            for callback in callbacks:
                callback.on_epoch_end(epoch, {})
            self.clock.now += self.tail
            if self.model.stop_training:
                break
        for callback in callbacks:
            callback.on_train_end()
        self.took = self.clock.now - began
        return self.budget.round_epochs

    def check(self, limit):
        """Check that all rounds ran, and that the `fit` ended at most one epoch late."""
        assert lifecycle.records(self.model).rounds_due == 0
        assert len(self.budget.round_epochs) == self.rounds
        assert self.budget.round_epochs[-1] >= 1
        before = {path: int(np.prod(w.owner_map().shape)) for path, w in lifecycle.masked_weights(self.model).items()}
        assert candidates(self.model) == left_after(before, self.rounds, self.rounds)
        assert [each["round"] for each in self.scheduler.rounds] == list(range(1, self.rounds + 1))
        epoch = max(self.budget.epoch_seconds[0], self.budget.epoch_seconds[-1]) + self.tail
        assert self.took <= limit + epoch + sum(self.budget.round_seconds) + 1e-6
        assert sum(self.budget.seconds_by_round) == pytest.approx(self.took - self.tail)


def steadily(seconds):
    return lambda epoch: seconds


@pytest.mark.parametrize(
    ("limit", "rounds", "arguments", "expected"),
    [
        (30.5, 1, {}, [30]),
        (30.5, 3, {}, [10, 10, 10]),
        (30.5, 4, {}, [8, 7, 8, 7]),
        (10.5, 4, {"shape": "growing"}, [1, 2, 3, 4]),
        (10.5, 4, {"shape": "shrinking"}, [4, 3, 2, 1]),
        (30.5, 3, {"pruning": 3.0}, [7, 7, 7]),  # rounds take time
        (30.5, 3, {"tail": 0.5}, [7, 6, 7]),  # as do backups
        (5.1, 5, {}, [1, 1, 1, 1, 1]),
        (5.1, 5, {"batches": 1}, [2, 0, 1, 1, 1]),  # not before an epoch without compilation was timed
        (5.1, 5, {"batches": 1, "before": 1.0}, [1, 1, 1, 1, 1]),  # but the last fit has told how long they take
        (3.1, 5, {}, [1, 0, 0, 1, 1]),
        (0.1, 3, {"before": 1.0}, [0, 0, 1]),
        (1.5, 1, {}, [1]),
    ],
)
def test_epochs_of_equal_length(model, limit, rounds, arguments, expected):
    fit = Simulated(model, steadily(1.0), rounds, **arguments)
    assert fit.fit(time=limit) == expected
    fit.check(limit)


@pytest.mark.parametrize("batches", [1, 4])
def test_compilation_in_the_first_epoch_does_not_mislead(model, batches):
    fit = Simulated(model, lambda epoch: (20.0 if epoch == 0 else 0.0, 1.0), 3, batches=batches)
    assert fit.fit(time=60.5) == [13, 14, 13]
    fit.check(60.5)


@pytest.mark.parametrize(
    ("factor", "expected"), [(2.0, [10, 4, 5]), (9.0, [10, 0, 1]), (0.5, [17, 18, 17]), (30.0, [10, 0, 1])]
)
def test_the_rest_is_planned_anew_when_the_speed_changes(model, factor, expected):
    fit = Simulated(model, lambda epoch: 1.0 if epoch < 9 else factor, 3)
    assert fit.fit(time=30.5) == expected
    assert lifecycle.records(model).rounds_due == 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_it_ends_in_time_under_changing_load(model, data):
    """No epoch takes more than twice as long as the slowest of the three before."""
    rounds, limit = data.draw(st.integers(1, 6)), data.draw(st.floats(0.1, 40))
    compiling, batches = data.draw(st.sampled_from([0.0, 0.5, 10.0])), data.draw(st.integers(1, 4))
    before = data.draw(st.sampled_from([1.0, 1.0 + compiling]))
    shape = data.draw(st.sampled_from(["uniform", "growing", "shrinking"]))
    factors = data.draw(st.lists(st.floats(0.6, 2.0), min_size=50, max_size=50))
    durations = [1.0]
    for factor in factors:
        durations.append(max(0.2, max(durations[-3:]) * factor if factor <= 1 else min(durations[-3:]) * factor))

    def seconds(epoch):
        return 0.0 if epoch else compiling, durations[min(epoch, 50)]

    fit = Simulated(model, seconds, rounds, batches=batches, shape=shape, before=before)
    fit.fit(time=limit)
    fit.check(limit)


def test_epochs_are_an_upper_bound(model):
    fit = Simulated(model, steadily(1.0), 3)
    assert fit.fit(time=1e6, epochs=10) == [3, 4, 3]
    assert fit.fit(time=1e6, epochs=2) == [0, 1, 1]
    assert fit.fit(time="20s", epochs=10_000) == [7, 6, 7]


def test_a_fit_without_prune_rounds_ends_too(model):
    fit = Simulated(model, steadily(1.0), 0)
    fit.fit(time=5.5)
    assert (fit.took, fit.budget.epoch_seconds, fit.budget.round_epochs) == (5.0, [1.0] * 5, [])


def test_the_nearer_of_time_and_deadline_holds(model):
    soon = datetime.datetime.now() + datetime.timedelta(hours=1)
    for limit, deadline, epochs in ((350, soon, 5), (1e6, soon, 59), (1e6, soon.astimezone().isoformat(), 59)):
        fit = Simulated(model, steadily(60.0), 1)
        (found,) = fit.fit(time=limit, deadline=deadline)
        assert epochs - 1 <= found <= epochs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("8h", 28800), ("1h30m", 5400), ("1.5h", 5400), ("1d2h3m4s", 93784), ("0.5s", 0.5)],
)
def test_durations(text, seconds):
    assert timing.seconds_of(text) == seconds
    assert timing.seconds_of(timing.shown(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "8", "8 h", "h", "-1h", "0s", "0h0m", "1m1h", "1h1h", "1e3s", "٣h", "9999d", "inf", "1..5h", "8H", "1h\n"],
)
def test_no_durations(text):
    assert timing.seconds_of(text) is None
    with pytest.raises(ArgumentError, match="`time`: expected a positive number of seconds, or a time such as 90s"):
        tp.TimeBudget(text)


NOW = datetime.datetime(2030, 1, 31, 6, 30).astimezone()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("07:00", "2030-01-31T07:00:00"),
        ("7:00", "2030-01-31T07:00:00"),
        ("06:30", "2030-02-01T06:30:00"),
        ("00:00", "2030-02-01T00:00:00"),
        ("2030-01-31T07:00", "2030-01-31T07:00:00"),
        ("2030-01-31 07:00:30", "2030-01-31T07:00:30"),
        ("2030-01-31T06:30", "2030-01-31T06:30:00"),
    ],
)
def test_deadlines(text, expected):
    assert timing.is_deadline(text)
    moment = timing.moment_of(text, NOW)
    assert moment.replace(tzinfo=None).isoformat() == expected
    if moment > NOW:
        timing.check_is_ahead(moment, NOW)
    else:
        with pytest.raises(ArgumentError, match="`deadline`: expected a time after now, 2030-01-31T06:30:00. Received"):
            timing.check_is_ahead(moment, NOW)


def test_deadlines_in_a_time_zone():
    one = timing.moment_of("2030-01-31T07:00Z", NOW)
    assert one == datetime.datetime(2030, 1, 31, 7, tzinfo=datetime.timezone.utc)
    assert timing.moment_of("2030-01-31T07:00+02:00", NOW) == one - datetime.timedelta(hours=2)


def test_a_deadline_after_a_clock_change(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        evening = datetime.datetime(2030, 3, 30, 22).astimezone()  # clocks go forward that night
        moment = timing.moment_of("07:00", evening)
        assert moment - evening == datetime.timedelta(hours=8)
        assert (moment.hour, moment.day) == (7, 31)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "7", "24:00", "07:60", "7am", "2030-01-31", "2030-02-30T07:00", "tomorrow", "07:00\n"]
)
def test_no_deadlines(text):
    with pytest.raises(ArgumentError, match="`deadline`: expected a datetime, a time of day such as 07:00, or a date"):
        tp.TimeBudget(deadline=text)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, b"8h", [8]])
def test_no_times(value):
    with pytest.raises(ArgumentError, match="`time`: expected a positive number of seconds"):
        tp.TimeBudget(value)


X, Y = blobs(1)


class Steps(keras.callbacks.Callback):
    """Moves the clock in every epoch, and dies in one of them."""

    def __init__(self, clock, seconds=1.0, dies_at=None):
        super().__init__()
        self._clock, self._seconds, self._dies_at = clock, seconds, dies_at

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self._clock.now += self._seconds

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._dies_at:
            raise InterruptedError


def trained():
    keras.utils.set_random_seed(0)
    packed = tp.pack(make_mlp())
    compile_model(packed, "adam")
    packed.begin_task("first")
    return packed


@pytest.fixture(scope="module")
def open_pack():
    return trained()


def state(packed):
    return {name: np.array(value).tobytes() for name, value in lifecycle.state(packed).items()}


def callbacks(clock, *others, schedule=None):
    schedule = schedule or tp.EqualShare(0.5, 2, rounds=3)
    return [tp.TimeBudget(7.5, clock=clock), tp.PruneRoundScheduler(schedule), tp.GradientMask(), *others]


def test_the_plan_it_ended_with_gives_the_same_bits_and_resumes(tmp_path):
    timed, clock = trained(), Clock()
    given = callbacks(clock, Steps(clock), tp.TaskMaskSnapshot())
    history = timed.fit(X, Y, epochs=100, verbose=0, shuffle=False, callbacks=given).history
    plan = given[0].round_epochs
    assert plan == [2, 2, 3]
    fixed = trained()
    schedule = tp.EqualShare(0.5, 2, round_epochs=plan)
    same = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot()]
    assert fixed.fit(X, Y, epochs=7, verbose=0, shuffle=False, callbacks=same).history == history
    assert state(fixed) == state(timed)

    resumed, clock = trained(), Clock()
    path = tmp_path / "backup"
    dying = callbacks(clock, Steps(clock, dies_at=4), tp.EpochBackup(path), tp.TaskMaskSnapshot())
    with pytest.raises(InterruptedError):
        resumed.fit(X, Y, epochs=100, verbose=0, shuffle=False, callbacks=dying)
    clock.now += 1000.0  # does not count
    other = trained()
    again = callbacks(clock, Steps(clock), tp.EpochBackup(path), tp.TaskMaskSnapshot())
    other.fit(X, Y, epochs=100, verbose=0, shuffle=False, callbacks=again)
    assert (again[0].round_epochs, again[0].seconds) == (plan, 7.0)
    assert state(other) == state(timed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: [tp.TimeBudget()], "`time`: expected a time such as 90s, 15m, 8h or 1h30m, or a deadline"),
        (lambda c: callbacks(c)[1::-1], "`callbacks`: expected TimeBudget before PruneRoundScheduler"),
        (lambda c: [tp.TimeBudget(1), tp.TimeBudget(2)], "one TimeBudget per fit"),
        (
            lambda c: callbacks(c, schedule=tp.EqualShare(0.5, 2, 3, 6)),
            "EqualShare with a number of rounds and",
        ),
        (lambda c: callbacks(c, schedule=lambda step: (step == 0, 0.5)), "EqualShare with a number of rounds and"),
        (
            lambda c: callbacks(c, keras.callbacks.EarlyStopping(restore_best_weights=True, start_from_epoch=99)),
            "EarlyStopping without restore_best_weights, because of TimeBudget",
        ),
        (lambda c: callbacks(c, tp.RetrainingRate("cosine")), "`schedule`: expected constant with TimeBudget"),
        (
            lambda c: callbacks(c, keras.callbacks.BackupAndRestore("backup")),
            "tp.EpochBackup with TimeBudget, to resume with the time that is left",
        ),
        (
            lambda c: [tp.TimeBudget(deadline=datetime.datetime(2020, 1, 31, 7))],
            "`deadline`: expected a time after now, ",
        ),
    ],
)
def test_what_it_refuses(make, message, open_pack):
    with pytest.raises(ArgumentError, match=message):
        open_pack.fit(X, Y, epochs=100, verbose=0, callbacks=make(Clock()))
