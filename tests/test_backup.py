"""A `fit` that dies goes on after its last epoch, and ends in the same bits."""

import json
import os
import re
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, DivergedError
from tf_packnet.training import training_state

EPOCHS = 6


class CrashError(Exception):
    pass


class DiesAt(keras.callbacks.Callback):
    """Ends the process, as far as the `fit` is concerned, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise CrashError


@pytest.fixture(scope="module")
def batches():
    return tp.tasks.load("digits", num_tasks=2, batch_size=32)[0].training_batches(seed=3, resident=True)


def packed_model(optimizer="adamw", jit=False):
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), dense(24, activation="relu", name="dense_1")]
    layers += [keras.layers.Dropout(0.3, seed=4), keras.layers.BatchNormalization(name="norm")]
    packed = tp.pack(keras.Sequential([*layers, dense(16, activation="relu", name="dense_2"), dense(2, name="head")]))
    optimizers = {
        "adamw": lambda: keras.optimizers.AdamW(3e-3, weight_decay=0.1, use_ema=True, ema_momentum=0.9, clipnorm=1.0),
        "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    packed.compile(optimizers[optimizer](), loss, metrics=["accuracy"], jit_compile=jit)
    packed.begin_task("first")
    return packed


def night(backup, *more):
    schedule = tp.EqualShare(final_prune=0.6, num_tasks=2, rounds=3)
    watching = [keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=10.0), *more]
    return [tp.PruneRoundScheduler(schedule), tp.GradientMask(), *watching, *backup, tp.TaskMaskSnapshot()]


def fit(packed, batches, backup, *more):
    return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=night(backup, *more))


def same(one, two):
    one, two = training_state.capture(one), training_state.capture(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.parametrize("how", [("adamw", "auto"), ("momentum", False)], ids=["XLA", "plain"])
def test_a_night_that_dies_twice_ends_in_the_same_bits(batches, how, tmp_path):
    whole = packed_model(*how)
    expected = fit(whole, batches, [])
    for epoch in (2, 5):
        with pytest.raises(CrashError):
            fit(packed_model(*how), batches, [tp.EpochBackup(tmp_path / "night")], DiesAt(epoch))
    resumed = packed_model(*how)
    history = fit(resumed, batches, [tp.EpochBackup(tmp_path / "night")], DiesAt(None))
    same(whole, resumed)
    assert history.history == expected.history
    assert history.epoch == expected.epoch
    assert not list(tmp_path.iterdir())  # the night is over


def test_what_early_stopping_remembers_goes_on(batches, tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping("loss", patience=2, min_delta=10.0, restore_best_weights=True)

    def day(packed, *callbacks):
        return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=list(callbacks))

    whole, rule = packed_model(), stopping()
    expected = day(whole, rule)
    assert len(expected.epoch) == 3  # the loss does not fall by 10 an epoch
    with pytest.raises(CrashError):
        day(packed_model(), stopping(), DiesAt(2), tp.EpochBackup(tmp_path / "day"))
    resumed, again = packed_model(), stopping()
    history = day(resumed, again, DiesAt(None), tp.EpochBackup(tmp_path / "day"))
    assert history.epoch == expected.epoch
    assert (again.wait, again.best, again.best_epoch) == (rule.wait, rule.best, rule.best_epoch)
    same(whole, resumed)


def test_a_fit_that_was_stopped_early_and_dies_then_is_not_trained_further(batches, tmp_path):
    class DiesAtTheEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise CrashError

    class StopsAfterTwo(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def day(packed, *end):
        callbacks = [StopsAfterTwo(), tp.EpochBackup(tmp_path / "day", delete_at_end=False), *end]
        return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=callbacks)

    dead, resumed = packed_model(), packed_model()
    with pytest.raises(CrashError):
        day(dead, DiesAtTheEnd())
    assert day(resumed).epoch == [0, 1]
    same(dead, resumed)


def test_when_an_epoch_begins_the_one_before_the_last_is_on_disk(batches, tmp_path):
    found = []

    class Looks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            found.append((epoch, [int(path.name.split(".")[1]) for path in tmp_path.glob("day.*.npz")]))

    packed_model().fit(batches, epochs=8, verbose=0, callbacks=[Looks(), tp.EpochBackup(tmp_path / "day")])
    for epoch, epochs_on_disk in found[2:]:
        assert max(epochs_on_disk) >= epoch - 1


def test_a_damaged_backup_is_told_and_not_used(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "night")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], DiesAt(4))
    backup.wait()
    path = max(tmp_path.glob("night.*.npz"))
    whole = packed_model()
    fit(whole, batches, [], DiesAt(None))
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        path.write_bytes(damaged)
        told = []
        resumed = packed_model()
        fit(resumed, batches, [tp.EpochBackup(tmp_path / "night", on_damaged=told.append)], DiesAt(None))
        assert told == [path]
        assert not path.exists()
        same(whole, resumed)
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="is damaged: the fit resumes from an earlier epoch"):
        fit(packed_model(), batches, [tp.EpochBackup(tmp_path / "night")], DiesAt(None))


def test_the_backup_of_another_fit_is_refused(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "night")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], DiesAt(4))
    with pytest.raises(ArgumentError, match=re.escape("the backup there is from another fit (task 1, 6 epochs)")):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "night")])


def test_it_comes_after_what_acts_on_epochs(batches, tmp_path):
    callbacks = [tp.EpochBackup(tmp_path / "day"), tp.PruneRoundScheduler(tp.EqualShare(0.6, 2))]
    with pytest.raises(ArgumentError, match="PruneRoundScheduler before EpochBackup"):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)


def test_a_full_disk_ends_the_fit_and_leaves_the_epochs_before(batches, tmp_path, monkeypatch):
    write, written = np.savez, []

    def full(file, **arrays):
        written.append(arrays)
        if len(written) > 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        packed_model().fit(batches, epochs=5, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    assert [path.name for path in tmp_path.iterdir()] == ["day.2.npz"]
    monkeypatch.undo()
    resumed = packed_model().fit(batches, epochs=5, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    assert resumed.history == packed_model().fit(batches, epochs=5, verbose=0).history


def test_state_of_another_model_is_refused(batches):
    state = training_state.capture(fitted(batches))
    with pytest.raises(ValueError, match="from another model or another optimizer"):
        training_state.restore(fitted(batches, "momentum"), state)


def fitted(batches, optimizer="adamw"):
    packed = packed_model(optimizer)
    packed.fit(batches, epochs=1, verbose=0)
    return packed


def test_weights_that_are_no_numbers_end_the_fit_at_the_last_good_epoch(batches, tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                weight = next(iter(lifecycle.masked_weights(self.model).values()))
                weight.variable.assign(np.full(weight.variable.shape, np.nan))

    callbacks = [Poison(), tp.StopWhenDiverged("task 1, train"), tp.EpochBackup(tmp_path / "day")]
    with pytest.raises(DivergedError, match="task 1, train: .* in epoch 4, the training has diverged") as stopped:
        packed_model().fit(batches, epochs=6, verbose=0, callbacks=callbacks)
    assert "dense" in str(stopped.value)
    callbacks[-1].wait()
    (path,) = tmp_path.glob("day.*.npz")
    assert path.name.split(".")[1] == "3"
    with np.load(path) as archive:
        numbers = [archive[name] for name in archive.files if archive[name].dtype == np.float32]
    assert all(np.isfinite(values).all() for values in numbers)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", ["loss", "weight", "both"])
def test_whichever_is_not_finite_is_told(batches, broken, value):
    stop = tp.StopWhenDiverged()
    stop.set_model(fitted(batches))
    stop.on_epoch_end(0, {"loss": 0.5})
    if broken != "loss":
        kernel = lifecycle.masked_weights(stop.model)["dense_1/kernel"].variable
        kernel.assign(np.where(np.arange(24) == 7, value, kernel))  # one column
    with pytest.raises(DivergedError) as stopped:
        stop.on_epoch_end(1, {"loss": 0.5 if broken == "weight" else value})
    kind = "not a number" if np.isnan(value) else "infinite"
    what = "weights are NaN or infinite" if broken == "weight" else f"the loss is {kind}"
    where = "the weights are finite" if broken == "loss" else "not finite: dense_1/kernel"
    assert str(stopped.value).startswith(f"fit: {what} in epoch 2, the training has diverged ({where}). Try a smaller")


class Looks(keras.callbacks.Callback):
    """Sees which files are there while an epoch is computed."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append({path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set())


def test_no_more_than_two_files_are_there(batches, tmp_path):
    looks = Looks(tmp_path / "backup")
    backup = tp.EpochBackup(tmp_path / "backup" / "day", delete_at_end=False)
    packed_model().fit(batches, epochs=8, verbose=0, callbacks=[looks, backup])
    assert len(looks.seen) == 8
    assert max(map(len, looks.seen)) == 2
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["day.8.npz"]
    backup.remove()
    assert list((tmp_path / "backup").iterdir()) == []


@pytest.mark.parametrize("leftover", ["folder", "file"])
def test_what_a_killed_process_left_goes(batches, leftover, tmp_path):
    (tmp_path / ".day.spare.unfinished").write_bytes(b"half") if leftover == "file" else None
    (tmp_path / ".day.3.npz.abc.unfinished").mkdir() if leftover == "folder" else None
    packed_model().fit(batches, epochs=2, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    assert list(tmp_path.iterdir()) == []


def test_what_goes_at_the_end_is_not_written_before(batches, tmp_path, monkeypatch):
    written = []
    write = np.savez
    monkeypatch.setattr(np, "savez", lambda *args, **arrays: written.append(args) or write(*args, **arrays))
    packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_backup_goes_leaves_the_last_epoch(batches, tmp_path, monkeypatch):
    unlink = Path.unlink

    def interrupts(path, missing_ok=False):
        unlink(path, missing_ok)
        if path.name == "day.2.npz":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupts)
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    assert "day.3.npz" in os.listdir(tmp_path)


def test_the_last_whole_epoch_is_on_disk_whatever_ended_the_fit(batches, tmp_path):
    class EndsBadly(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    callbacks = [EndsBadly(), tp.EpochBackup(tmp_path / "day")]
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    assert (tmp_path / "day.2.npz").exists()


@pytest.mark.parametrize("thread_comes", ["never", "late", "at once"])
def test_a_signal_while_the_thread_that_writes_is_started(batches, thread_comes, tmp_path, monkeypatch):
    started, failures = [], []
    start = threading.Thread.start

    def interrupted(thread):
        monkeypatch.setattr(threading.Thread, "start", start)
        started.append(threading.Timer({"late": 0.2, "at once": 0, "never": 60}[thread_comes], start, [thread]))
        started[0].start()
        if thread_comes == "at once":
            started[0].join()
        raise KeyboardInterrupt

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                monkeypatch.setattr(threading.Thread, "start", interrupted)

    monkeypatch.setattr(threading, "excepthook", failures.append)
    callbacks = [Interrupts(), tp.EpochBackup(tmp_path / "day")]
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    if thread_comes == "never":
        started[0].cancel()
    started[0].join()
    assert failures == []
    with np.load(tmp_path / "day.2.npz") as backup:
        assert json.loads(str(backup["meta"]))["epoch"] == 1


@pytest.mark.parametrize("while_it", ["writes", "puts away the one before"])
def test_a_signal_while_the_last_epoch_is_written(batches, while_it, tmp_path, monkeypatch):
    owner, name = {"writes": (np, "savez"), "puts away the one before": (os, "replace")}[while_it]
    function, interrupted = getattr(owner, name), []

    def interrupts(target, *args, **arrays):
        if not interrupted and target == (tmp_path / "day.2.npz" if owner is os else target):
            interrupted.append(True)
            raise KeyboardInterrupt
        return function(target, *args, **arrays)

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                backup.wait()
                monkeypatch.setattr(owner, name, interrupts)

    backup = tp.EpochBackup(tmp_path / "day", delete_at_end=False)
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[Interrupts(), backup])
    assert interrupted
    assert "day.3.npz" in os.listdir(tmp_path)
    resumed = packed_model()
    resumed.fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day")])
    whole = packed_model()
    whole.fit(batches, epochs=3, verbose=0)
    same(whole, resumed)


def test_the_backup_of_another_model_is_refused(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "day")
    with pytest.raises(CrashError):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[DiesAt(1), backup])
    backup.wait()
    with pytest.raises(ArgumentError, match="a path for this model only"):
        packed_model("momentum").fit(batches, epochs=3, verbose=0, callbacks=[DiesAt(None), backup])


def test_a_captured_state_stays_as_it_is_while_training_goes_on(batches):
    """Whoever looks at it may take his time, without a copy."""
    packed = fitted(batches)
    captured = training_state.capture(packed)
    then = {name: np.array(value) for name, value in captured.items()}
    packed.fit(batches, epochs=2, verbose=0)
    now = training_state.capture(packed)
    for name, value in then.items():
        np.testing.assert_array_equal(captured[name], value, err_msg=name)
    moved = [name for name, value in then.items() if not np.array_equal(now[name], value)]
    assert "pack/dense_1/kernel.variable" in moved


def test_every_epoch_is_copied_into_the_memory_of_the_one_before(batches, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(np, "savez", lambda file, **state: written.append(state))
    packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "day", delete_at_end=False)])
    name = "pack/dense_1/kernel.variable"
    assert written[0][name] is written[1][name] is written[2][name]
    assert not any(np.shares_memory(written[0][name], values) for other, values in written[0].items() if other != name)


def test_callbacks_that_remember_nothing_may_be_others(batches, tmp_path):
    """A run that was shown on a terminal goes on as one of an experiment, and the other way round."""
    whole = packed_model()
    fit(whole, batches, [])
    backup = tp.EpochBackup(tmp_path / "night")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], DiesAt(3), keras.callbacks.LambdaCallback())
    backup.wait()
    resumed = packed_model()
    fit(resumed, batches, [tp.EpochBackup(tmp_path / "night")])
    same(whole, resumed)


def test_a_callback_that_remembered_something_must_be_there(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "night")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], DiesAt(3))
    backup.wait()
    with pytest.raises(ArgumentError, match="the backup there is from a fit with the callback PruneRoundScheduler"):
        packed_model().fit(batches, epochs=EPOCHS, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "night")])
