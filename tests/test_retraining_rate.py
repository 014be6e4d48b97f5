"""The learning rates of a fit that prunes and retrains."""

import json
import math

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet.runs import learning
from tf_packnet.runs.config import Config
from tf_packnet.runs.store import StageStore

RATE, EPOCHS = 0.01, 6
BOUNDS = ("memory", "multinet")
COSINE_DECAY = keras.optimizers.schedules.CosineDecay(0.1, 9)


def cosine(t):
    return (1 + math.cos(math.pi * t)) / 2


# Rounds at epochs 0 and 2 of 6: they last two and four epochs.
FACTORS = {
    "constant": [1] * 6,
    "linear": [1 - e / 6 for e in range(6)],
    "cosine": [cosine(e / 6) for e in range(6)],
    "linear_restarts": [1, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4],
    "cosine_restarts": [1, cosine(1 / 2), 1, cosine(1 / 4), cosine(1 / 2), cosine(3 / 4)],
}


class DiesAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch > self.epoch:
            raise InterruptedError


def begun(optimizer=None):
    keras.utils.set_random_seed(1)
    packed = compile_model(tp.pack(make_mlp()), optimizer or keras.optimizers.Adam(RATE))
    packed.begin_task()
    return packed


def callbacks(schedule, train_epochs=10, **rounds):
    rounds = rounds or {"round_epochs": (2, 4)}
    scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, **rounds))
    return [scheduler, tp.GradientMask(), tp.RetrainingRate(schedule, train_epochs)]


def fit(packed, more, epochs=EPOCHS, first=0):
    return packed.fit(
        *blobs(1), batch_size=16, shuffle=False, epochs=epochs, initial_epoch=first, verbose=0, callbacks=more
    )


def test_the_rates_by_hand():
    packed = begun()
    for schedule, factors in FACTORS.items():
        history = fit(packed, callbacks(schedule), EPOCHS + 3, first=3).history
        assert history["learning_rate"] == pytest.approx([RATE * factor for factor in factors]), schedule
        assert float(packed.optimizer.learning_rate) == np.float32(RATE)


class Norms(keras.callbacks.Callback):
    """Computes `d1` from the weights before and after the callbacks that surround it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        weights = tp.lifecycle.masked_weights(self.model).values()
        kernels = [np.where(each.owner_map() == 255, each.values(), 0).ravel() for each in weights]
        self.seen.append(np.concatenate(kernels))


def test_the_adaptive_rate_follows_the_pruned_weights():
    before, after = Norms(), Norms()
    scheduler, mask, rate = callbacks("adaptive")
    history = fit(begun(), [before, scheduler, mask, after, rate]).history
    expected = []
    for epoch, first, length in ((0, 0, 2), (1, 0, 2), (2, 2, 4), (3, 2, 4), (4, 2, 4), (5, 2, 4)):
        old, new = before.seen[first], after.seen[first]
        pruned = (old != 0) & (new == 0)
        share = pruned.sum() / np.count_nonzero(old)
        d1 = np.linalg.norm(old[pruned]) / np.linalg.norm(old) / math.sqrt(share)
        assert 0 < d1 < 1
        expected.append(RATE * max(d1, length / 10) * (1 - (epoch - first) / length))
    assert history["learning_rate"] == pytest.approx(expected, rel=1e-5)
    longer = fit(begun(), callbacks("adaptive", train_epochs=1)).history["learning_rate"]
    assert longer == pytest.approx([RATE * factor for factor in FACTORS["linear_restarts"]])


@pytest.mark.parametrize(("schedule", "dies"), [("cosine", 0), ("adaptive", 3)])
def test_a_resumed_fit_has_the_same_rates_and_bits(schedule, dies, tmp_path):
    expected = begun()
    history = fit(expected, callbacks(schedule)).history
    for more in ([DiesAfter(dies)], []):
        resumed = begun()
        backup = tp.EpochBackup(tmp_path / "backup")
        try:
            fit(resumed, [*callbacks(schedule), *more, backup])
        except InterruptedError:
            continue
    assert backup.history["learning_rate"] == history["learning_rate"]
    for one, other in zip(resumed.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(resumed.optimizer.learning_rate) == np.float32(RATE)


def test_a_round_that_begins_later():
    class Late(tp.EqualShare):
        def round_at(self, epoch):
            return {3: 1}.get(epoch)

    scheduler = tp.PruneRoundScheduler(Late(0.5, 2, 1))
    history = fit(begun(), [scheduler, tp.RetrainingRate("linear_restarts")]).history
    assert history["learning_rate"] == pytest.approx([RATE * f for f in (1, 1, 1, 1, 2 / 3, 1 / 3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tp.RetrainingRate("exponential"), "`schedule`: expected one of constant, linear"),
        (lambda: tp.RetrainingRate("adaptive"), "`train_epochs`: expected the number of epochs"),
        (lambda: tp.RetrainingRate("adaptive", 0), "`train_epochs`: expected at least 1"),
        (lambda: fit(begun(), [tp.RetrainingRate("linear")]), "a PruneRoundScheduler before RetrainingRate"),
        (lambda: fit(begun(), callbacks("linear")[::-1]), "a PruneRoundScheduler before RetrainingRate"),
        (
            lambda: fit(
                begun(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9))), callbacks("linear")
            ),
            "a number as its learning rate, with RetrainingRate. Received: optimizer='CosineDecay'",
        ),
        (
            lambda: fit(begun(), [*callbacks("linear"), keras.callbacks.BackupAndRestore("b")]),
            "tp.EpochBackup with RetrainingRate",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(tp.ArgumentError, match=message):
        make()


@pytest.mark.parametrize("approach", ["packnet", *(pytest.param(n, marks=pytest.mark.slow) for n in BOUNDS)])
def test_runs(approach, tmp_path):
    fields = {"num_tasks": 1, "hidden_units": (4,), "train_epochs": 1, "retrain_epochs": 4, "prune_rounds": 2}
    keys = set()
    for rate in ("constant", "adaptive"):
        config = Config(dataset="digits", approach=approach, retrain_rate=rate, **fields)
        run = learning.Run.prepare(config)
        keys.add(run.stages(run.build_approach(None, lambda task, stage: ()))[-1].key)
    assert len(keys) == 2
    trained = run.build_approach(None, lambda task, stage: ())
    assert list(learning.learn(run, trained, StageStore(tmp_path), with_state=False)) == [1]
    records = [json.loads(path.read_text())["record"] for path in tmp_path.glob("*/stage.json")]
    (rates,) = [record["history"]["learning_rate"] for record in records if record["stage"] == "prune+retrain"]
    assert rates[1] == pytest.approx(rates[0] / 2)
