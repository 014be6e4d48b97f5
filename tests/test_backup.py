"""An interrupted `fit` resumes after its last completed epoch; the results are bit-identical."""

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
from tf_packnet.layers.augmentation import CHANGES, Augmentation
from tf_packnet.training import training_state

EPOCHS = 6


class CrashError(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    """Raises an exception at the beginning of an epoch; None for none."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise CrashError


@pytest.fixture(scope="module")
def batches():
    return tp.tasks.load("digits", num_tasks=2, batch_size=32)[0].training_batches(seed=3, resident=True)


def packed_model(optimizer="adamw", jit=False, augment=()):
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense
    changes = [Augmentation(augment)] if augment else []
    layers = [keras.Input((8, 8, 1)), *changes, keras.layers.Flatten(), dense(24, activation="relu", name="dense_1")]
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


def retrain_callbacks(backup, *others):
    schedule = tp.EqualShare(final_prune=0.6, num_tasks=2, rounds=3)
    watching = [keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=10.0), *others]
    return [tp.PruneRoundScheduler(schedule), tp.GradientMask(), *watching, *backup, tp.TaskMaskSnapshot()]


def fit(packed, batches, backup, *others):
    return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=retrain_callbacks(backup, *others))


def assert_same_state(one, two):
    one, two = training_state.capture(one), training_state.capture(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.parametrize(
    "how",
    [("adamw", "auto"), ("momentum", False), ("adamw", False, tuple(CHANGES))],
    ids=["XLA", "plain", "augmented"],
)
def test_a_retraining_that_crashes_twice_ends_with_the_same_bits(batches, how, tmp_path):
    whole = packed_model(*how)
    expected = fit(whole, batches, [])
    for epoch in (2, 5):
        with pytest.raises(CrashError):
            fit(packed_model(*how), batches, [tp.EpochBackup(tmp_path / "retrain")], CrashAt(epoch))
    resumed = packed_model(*how)
    history = fit(resumed, batches, [tp.EpochBackup(tmp_path / "retrain")], CrashAt(None))
    assert_same_state(whole, resumed)
    assert history.history == expected.history
    assert history.epoch == expected.epoch
    assert not list(tmp_path.iterdir())  # removed when the fit ends


def test_the_state_of_early_stopping_is_restored(batches, tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping("loss", patience=2, min_delta=10.0, restore_best_weights=True)

    def train(packed, *callbacks):
        return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=list(callbacks))

    whole, rule = packed_model(), stopping()
    expected = train(whole, rule)
    assert len(expected.epoch) == 3  # the loss does not fall by 10 per epoch
    with pytest.raises(CrashError):
        train(packed_model(), stopping(), CrashAt(2), tp.EpochBackup(tmp_path / "train"))
    resumed, again = packed_model(), stopping()
    history = train(resumed, again, CrashAt(None), tp.EpochBackup(tmp_path / "train"))
    assert history.epoch == expected.epoch
    assert (again.wait, again.best, again.best_epoch) == (rule.wait, rule.best, rule.best_epoch)
    assert_same_state(whole, resumed)


def test_a_fit_that_crashes_after_it_stopped_early_is_not_trained_further(batches, tmp_path):
    class CrashAtTheEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise CrashError

    class StopAfterTwo(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def train(packed, *end):
        callbacks = [StopAfterTwo(), tp.EpochBackup(tmp_path / "train", delete_at_end=False), *end]
        return packed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=callbacks)

    crashed, resumed = packed_model(), packed_model()
    with pytest.raises(CrashError):
        train(crashed, CrashAtTheEnd())
    assert train(resumed).epoch == [0, 1]
    assert_same_state(crashed, resumed)


def test_a_backup_is_on_disk_after_one_more_epoch(batches, tmp_path):
    epochs_seen = []

    class RecordBackups(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs_seen.append((epoch, [int(path.name.split(".")[1]) for path in tmp_path.glob("train.*.npz")]))

    packed_model().fit(batches, epochs=8, verbose=0, callbacks=[RecordBackups(), tp.EpochBackup(tmp_path / "train")])
    for epoch, epochs_on_disk in epochs_seen[2:]:
        assert max(epochs_on_disk) >= epoch - 1


def test_a_damaged_backup_is_reported_and_not_used(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "retrain")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], CrashAt(4))
    backup.wait()
    path = max(tmp_path.glob("retrain.*.npz"))
    whole = packed_model()
    fit(whole, batches, [], CrashAt(None))
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        path.write_bytes(damaged)
        reported = []
        resumed = packed_model()
        fit(resumed, batches, [tp.EpochBackup(tmp_path / "retrain", on_damaged=reported.append)], CrashAt(None))
        assert reported == [path]
        assert not path.exists()
        assert_same_state(whole, resumed)
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="is damaged: the fit resumes from an earlier epoch"):
        fit(packed_model(), batches, [tp.EpochBackup(tmp_path / "retrain")], CrashAt(None))


def test_the_backup_of_another_fit_is_refused(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "retrain")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], CrashAt(4))
    with pytest.raises(ArgumentError, match=re.escape("the backup there is from another fit (task 1, 6 epochs)")):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "retrain")])


def test_callbacks_after_it_must_not_act_on_epochs(batches, tmp_path):
    callbacks = [tp.EpochBackup(tmp_path / "train"), tp.PruneRoundScheduler(tp.EqualShare(0.6, 2))]
    with pytest.raises(ArgumentError, match="PruneRoundScheduler before EpochBackup"):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)


def test_a_full_disk_ends_the_fit_and_keeps_earlier_backups(batches, tmp_path, monkeypatch):
    write, written = np.savez, []

    def full(file, **arrays):
        written.append(arrays)
        if len(written) > 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        packed_model().fit(batches, epochs=5, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    assert [path.name for path in tmp_path.iterdir()] == ["train.2.npz"]
    monkeypatch.undo()
    resumed = packed_model().fit(batches, epochs=5, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    assert resumed.history == packed_model().fit(batches, epochs=5, verbose=0).history


def test_state_of_another_model_is_refused(batches):
    state = training_state.capture(fitted(batches))
    with pytest.raises(ValueError, match="from another model or another optimizer"):
        training_state.restore(fitted(batches, "momentum"), state)


def fitted(batches, optimizer="adamw"):
    packed = packed_model(optimizer)
    packed.fit(batches, epochs=1, verbose=0)
    return packed


def test_after_divergence_the_backup_has_the_last_finite_weights(batches, tmp_path):
    class AssignNaN(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                weight = next(iter(lifecycle.masked_weights(self.model).values()))
                weight.variable.assign(np.full(weight.variable.shape, np.nan))

    callbacks = [AssignNaN(), tp.StopWhenDiverged("task 1, train"), tp.EpochBackup(tmp_path / "train")]
    with pytest.raises(DivergedError, match="task 1, train: .* in epoch 4, the training has diverged") as stopped:
        packed_model().fit(batches, epochs=6, verbose=0, callbacks=callbacks)
    # The loss is finite on CPUs whose ReLU turns NaN into 0.
    assert any(found in str(stopped.value) for found in ("dense", "the loss is NaN"))
    callbacks[-1].wait()
    (path,) = tmp_path.glob("train.*.npz")
    assert path.name.split(".")[1] == "3"
    with np.load(path) as archive:
        numbers = [archive[name] for name in archive.files if archive[name].dtype == np.float32]
    assert all(np.isfinite(values).all() for values in numbers)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", ["loss", "weight", "both"])
def test_the_message_says_what_is_not_finite(batches, broken, value):
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


class RecordFiles(keras.callbacks.Callback):
    """Records which files exist while an epoch runs."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append({path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set())


def test_there_are_at_most_two_files(batches, tmp_path):
    record = RecordFiles(tmp_path / "backup")
    backup = tp.EpochBackup(tmp_path / "backup" / "train", delete_at_end=False)
    packed_model().fit(batches, epochs=8, verbose=0, callbacks=[record, backup])
    assert len(record.seen) == 8
    assert max(map(len, record.seen)) == 2
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["train.8.npz"]
    backup.remove()
    assert list((tmp_path / "backup").iterdir()) == []


@pytest.mark.parametrize("leftover", ["folder", "file"])
def test_unfinished_files_of_a_killed_process_are_removed(batches, leftover, tmp_path):
    (tmp_path / ".train.spare.unfinished").write_bytes(b"half") if leftover == "file" else None
    (tmp_path / ".train.3.npz.abc.unfinished").mkdir() if leftover == "folder" else None
    packed_model().fit(batches, epochs=2, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    assert list(tmp_path.iterdir()) == []


def test_the_last_epoch_is_not_written_if_the_backup_is_deleted(batches, tmp_path, monkeypatch):
    written = []
    write = np.savez
    monkeypatch.setattr(np, "savez", lambda *args, **arrays: written.append(args) or write(*args, **arrays))
    packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_backup_is_removed_leaves_the_last_epoch(batches, tmp_path, monkeypatch):
    unlink = Path.unlink

    def interrupts(path, missing_ok=False):
        unlink(path, missing_ok)
        if path.name == "train.2.npz":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupts)
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    assert "train.3.npz" in os.listdir(tmp_path)


def test_after_an_exception_the_last_complete_epoch_is_on_disk(batches, tmp_path):
    class InterruptAtThirdEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    callbacks = [InterruptAtThirdEpoch(), tp.EpochBackup(tmp_path / "train")]
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    assert (tmp_path / "train.2.npz").exists()


@pytest.mark.parametrize("thread_starts", ["never", "late", "at once"])
def test_a_signal_while_the_thread_that_writes_is_started(batches, thread_starts, tmp_path, monkeypatch):
    started, failures = [], []
    start = threading.Thread.start

    def interrupted(thread):
        monkeypatch.setattr(threading.Thread, "start", start)
        started.append(threading.Timer({"late": 0.2, "at once": 0, "never": 60}[thread_starts], start, [thread]))
        started[0].start()
        if thread_starts == "at once":
            started[0].join()
        raise KeyboardInterrupt

    class InterruptThirdEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                monkeypatch.setattr(threading.Thread, "start", interrupted)

    monkeypatch.setattr(threading, "excepthook", failures.append)
    callbacks = [InterruptThirdEpoch(), tp.EpochBackup(tmp_path / "train")]
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    if thread_starts == "never":
        started[0].cancel()
    started[0].join()
    assert failures == []
    with np.load(tmp_path / "train.2.npz") as backup:
        assert json.loads(str(backup["meta"]))["epoch"] == 1


@pytest.mark.parametrize("during", ["writes", "renames"])
def test_a_signal_while_the_last_epoch_is_written(batches, during, tmp_path, monkeypatch):
    owner, name = {"writes": (np, "savez"), "renames": (os, "replace")}[during]
    function, interrupted = getattr(owner, name), []

    def interrupts(target, *args, **arrays):
        if not interrupted and target == (tmp_path / "train.2.npz" if owner is os else target):
            interrupted.append(True)
            raise KeyboardInterrupt
        return function(target, *args, **arrays)

    class InterruptThirdEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                backup.wait()
                monkeypatch.setattr(owner, name, interrupts)

    backup = tp.EpochBackup(tmp_path / "train", delete_at_end=False)
    with pytest.raises(KeyboardInterrupt):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[InterruptThirdEpoch(), backup])
    assert interrupted
    assert "train.3.npz" in os.listdir(tmp_path)
    resumed = packed_model()
    resumed.fit(batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train")])
    whole = packed_model()
    whole.fit(batches, epochs=3, verbose=0)
    assert_same_state(whole, resumed)


def test_the_backup_of_another_model_is_refused(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "train")
    with pytest.raises(CrashError):
        packed_model().fit(batches, epochs=3, verbose=0, callbacks=[CrashAt(1), backup])
    backup.wait()
    with pytest.raises(ArgumentError, match="a path for this model only"):
        packed_model("momentum").fit(batches, epochs=3, verbose=0, callbacks=[CrashAt(None), backup])


def test_a_captured_state_does_not_change_when_training_continues(batches):
    """No copy is needed."""
    packed = fitted(batches)
    captured = training_state.capture(packed)
    before = {name: np.array(value) for name, value in captured.items()}
    packed.fit(batches, epochs=2, verbose=0)
    after = training_state.capture(packed)
    for name, value in before.items():
        np.testing.assert_array_equal(captured[name], value, err_msg=name)
    changed = [name for name, value in before.items() if not np.array_equal(after[name], value)]
    assert "pack/dense_1/kernel.variable" in changed


def test_every_epoch_is_copied_to_the_same_memory(batches, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(np, "savez", lambda file, **state: written.append(state))
    packed_model().fit(
        batches, epochs=3, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "train", delete_at_end=False)]
    )
    name = "pack/dense_1/kernel.variable"
    assert written[0][name] is written[1][name] is written[2][name]
    assert not any(np.shares_memory(written[0][name], values) for other, values in written[0].items() if other != name)


def test_callbacks_without_state_may_differ(batches, tmp_path):
    """A run that showed its progress can resume in an experiment, which does not, and vice versa."""
    whole = packed_model()
    fit(whole, batches, [])
    backup = tp.EpochBackup(tmp_path / "retrain")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], CrashAt(3), keras.callbacks.LambdaCallback())
    backup.wait()
    resumed = packed_model()
    fit(resumed, batches, [tp.EpochBackup(tmp_path / "retrain")])
    assert_same_state(whole, resumed)


def test_a_callback_with_state_must_be_there(batches, tmp_path):
    backup = tp.EpochBackup(tmp_path / "retrain")
    with pytest.raises(CrashError):
        fit(packed_model(), batches, [backup], CrashAt(3))
    backup.wait()
    with pytest.raises(ArgumentError, match="the backup there is from a fit with the callback PruneRoundScheduler"):
        packed_model().fit(batches, epochs=EPOCHS, verbose=0, callbacks=[tp.EpochBackup(tmp_path / "retrain")])
