"""`EqualShare(rounds="auto")`: the validation loss decides when to prune and how much."""

import dataclasses
import json
import random
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, launch, make_mlp
from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments.definitions import define
from tf_packnet.layers import MaskedDense
from tf_packnet.pruning.auto_rounds import STEPS, is_tolerated, pruning_epochs, steps_at
from tf_packnet.reporting.rounds import lines
from tf_packnet.runs import learning
from tf_packnet.runs.config import Config
from tf_packnet.runs.store import StageStore

EPOCHS = 12


def auto(final_prune=0.5, num_tasks=2, **more):
    return tp.EqualShare(final_prune, num_tasks, "auto", **more)


class Records(keras.callbacks.Callback):
    """Sets the validation loss of each epoch, and dies if told to."""

    def __init__(self, losses=None, dies=None):
        super().__init__()
        self.losses, self.dies = losses, dies

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.dies:
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        if self.losses is not None:
            logs["val_loss"] = self.losses[epoch]


def begun(rate=0.01):
    keras.utils.set_random_seed(1)
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.Adam(rate))
    packed.begin_task()
    return packed


def fit(packed, callbacks, epochs=EPOCHS, first=0, **more):
    arguments = {"validation_data": blobs(2), "batch_size": 16, "shuffle": False, "verbose": 0, **more}
    return packed.fit(*blobs(1), epochs=first + epochs, initial_epoch=first, callbacks=callbacks, **arguments)


def driven(losses, schedule=None, scope="layer", first=0, epochs=None):
    """Call a scheduler as a fit with these validation losses does; return it, and its model's counts in each epoch."""
    layers = [MaskedDense(7, name="one"), MaskedDense(5, name="two")]
    model = compile_model(keras.Sequential([keras.Input((16,)), *layers]))
    scheduler = tp.PruneRoundScheduler(schedule or auto(), scope=scope, reset_optimizer=False)
    scheduler.set_params({"epochs": first + (epochs or len(losses))})
    scheduler.set_model(model)
    scheduler.on_train_begin()
    kept = []
    for epoch, loss in enumerate(losses, start=first):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_epoch_end(epoch, {"val_loss": loss})
        weights = lifecycle.masked_weights(model).items()
        kept.append({path: int((each.owner_map() == 255).sum()) for path, each in weights})
    return scheduler, kept


def test_all_steps_are_done_in_time_whatever_the_losses():
    draw = random.Random(0)
    for epochs in (*range(1, 30), 72, 300):
        for kind in (lambda: draw.random(), lambda: 1.0, lambda: draw.choice([0.0, float("nan"), float("inf")])):
            done, losses = 0, []
            for epoch in range(epochs):
                left = pruning_epochs(epochs) - epoch
                steps = steps_at(epoch, epochs, done, losses)
                assert steps == steps_at(epoch, epochs, done, list(losses))
                assert done + (STEPS - done) / max(1, left) <= steps <= STEPS, "slower than an even pace"
                done = steps
                losses.append(kind())
                assert epoch + 1 < pruning_epochs(epochs) or done == STEPS
    assert [pruning_epochs(n) for n in (1, 9, 10, 30, 72)] == [1, 9, 9, 27, 65]


def test_the_pace_is_fast_while_the_loss_is_tolerated():
    left = pruning_epochs(72) - 4
    assert steps_at(4, 72, 100, [4.0, 3.0, 2.0, 1.0]) == 100 + -(-900 * left**0.5 // left)
    assert steps_at(4, 72, 100, [1.0, 1.0, 1.0, 1.1]) == 100 + -(-900 // left)
    assert steps_at(0, 72, 0, []) == -(-STEPS // 65**0.5)


@pytest.mark.parametrize(
    ("losses", "tolerated"),
    [
        ([], True),
        ([3.0], True),
        ([3.0, 3.0], True),
        ([3.0, 3.1], False),  # nothing says yet that it is noise
        ([3.0, 2.0, 2.9], True),  # losses differ by 1 from epoch to epoch
        ([3.0, 2.0, 3.1], False),
        ([1.0, 1.2, 1.0, 1.2, 1.0, 1.2], True),
        ([1.0, 1.2, 1.0, 1.2, 1.0, 9.0, 1.0, 1.3], False),  # one leap is not noise
        ([1.0, float("nan")], False),
        ([float("nan"), 1.0], False),
    ],
)
def test_the_noise_of_the_loss_is_tolerated(losses, tolerated):
    assert is_tolerated(losses) == tolerated


RISING, FALLING = ([sign * n for n in range(EPOCHS)] for sign in (1.0, -1.0))


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_the_final_counts_are_those_of_algorithm_2(scope):
    wanted = driven([0.0] * EPOCHS, tp.EqualShare(0.5, 2, 3), scope)[1][-1]
    assert scope != "layer" or list(wanted.values()) == [round(c * (1 - 0.5**0.5)) for c in (112, 35)]
    for losses in (RISING, FALLING, [0.0] * EPOCHS, [1.0], [1.0, 2.0]):
        for first in (0, 5):
            scheduler, kept = driven(losses, scope=scope, first=first)
            assert sum(kept[-1].values()) == sum(wanted.values())
            assert scope == "global" or kept[-1] == wanted
            assert scheduler.rounds[-1]["steps"] == STEPS
            assert scheduler.rounds[-1]["kept"] == kept[-1]
            assert lifecycle.records(scheduler.model).rounds_due == 0


def test_a_falling_loss_prunes_earlier_than_a_rising_one():
    rising, kept_rising = driven(RISING)
    falling, kept_falling = driven(FALLING)
    assert rising.rounds[0] == falling.rounds[0], "there is no loss yet"
    late, early = ([sum(each.values()) for each in kept] for kept in (kept_rising, kept_falling))
    assert late[-1] == early[-1]
    assert all(one > other for one, other in zip(late[2:8], early[2:8], strict=True))
    assert [each["round"] for each in falling.rounds] == list(range(1, len(falling.rounds) + 1))
    assert falling.rounds[-1]["epoch"] <= rising.rounds[-1]["epoch"] == pruning_epochs(EPOCHS) - 1
    assert falling.validation_losses == FALLING


@pytest.mark.parametrize("dies", [4, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (1, EPOCHS - 1))])
def test_a_resumed_fit_decides_the_same(dies, tmp_path):
    results = []
    for deaths in ((None,), (dies, None)):
        for death in deaths:
            packed, scheduler, records = begun(), tp.PruneRoundScheduler(auto()), Records(dies=death)
            try:
                backup = tp.EpochBackup(tmp_path / str(len(deaths)))
                fit(packed, [scheduler, tp.GradientMask(), records, backup, tp.TaskMaskSnapshot()])
            except InterruptedError:
                continue
        history = {name: values for name, values in backup.history.items() if name != "seconds"}
        results.append((history, scheduler.rounds, scheduler.validation_losses, packed))
    *expected, whole = results[0]
    *received, resumed = results[1]
    assert received == expected
    assert len(expected[1]) > 2
    for one, other in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fit_that_stops_early_lacks_rounds_until_all_steps_are_done():
    for sign, complete in ((1.0, False), (-1.0, True)):
        scheduler, _ = driven([sign * n for n in range(60)], epochs=72)
        assert (lifecycle.records(scheduler.model).rounds_due == 0) == complete
        assert (scheduler.rounds[-1]["steps"] == STEPS) == complete


def with_rate(schedule):
    return [tp.PruneRoundScheduler(auto()), tp.RetrainingRate(schedule, train_epochs=3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tp.EqualShare(0.5, 2, "all"), "`rounds`: expected a whole number, 'auto' or None"),
        (lambda: tp.EqualShare(0.5, 2, "auto", round_epochs="growing"), "`round_epochs`: expected uniform with auto"),
        (lambda: tp.EqualShare(0.5, 2, "auto", round_epochs=(1, 2)), "`round_epochs`: expected uniform with auto"),
        (
            lambda: fit(begun(), [tp.PruneRoundScheduler(auto())], validation_data=None),
            "`validation_data`: expected examples whose loss decides",
        ),
        (lambda: fit(begun(), [tp.PruneRoundScheduler(auto())], validation_freq=2), "`validation_freq`: expected 1"),
        (lambda: fit(begun(), with_rate("linear_restarts")), "`schedule`: expected constant, linear or cosine"),
        (lambda: fit(begun(), with_rate("adaptive")), "`schedule`: expected constant, linear or cosine"),
        (
            lambda: fit(begun(), [tp.PruneRoundScheduler(auto()), keras.callbacks.BackupAndRestore("b")]),
            "tp.EpochBackup with rounds='auto'",
        ),
        (
            lambda: define("figure2", Config(), {"prune_rounds": [1, "auto"]}),
            "`prune_rounds`: expected numbers of prune rounds in this figure",
        ),
        (lambda: Config(prune_rounds="all"), "`prune_rounds`: expected at least 1 and at most 1,000,000, or auto"),
        (lambda: Config(prune_rounds="auto", validation_fraction=0.0), "`validation_fraction`: expected more than 0"),
        (lambda: Config(prune_rounds="auto", retrain_rate="cosine_restarts"), "`retrain_rate`: expected constant"),
        (lambda: Config(prune_rounds="auto", round_epochs="growing"), "`round_epochs`: expected uniform"),
        (
            lambda: learning.Run.prepare(Config(prune_rounds="auto", validation_fraction=0.001)),
            "`validation_fraction`: expected enough for a validation example of task '0-1'",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_config_and_plan():
    schedule = auto(epochs=7)
    assert type(schedule)(**schedule.get_config()).get_config() == schedule.get_config()
    assert schedule.kept_fraction(STEPS) == pytest.approx(1 - 0.5**0.5)
    by_hand, planned = (tp.plan(make_mlp(), 3, 0.4, rounds, "erk") for rounds in (1, "auto"))
    assert planned == dataclasses.replace(by_hand, prune_rounds="auto")


FLAGS = {"num_tasks": 2, "hidden_units": (8,), "train_epochs": 1, "retrain_epochs": 6, "prune_rounds": "auto"}


@pytest.mark.parametrize("residency", ["device", pytest.param("stream", marks=pytest.mark.slow)])
def test_runs_record_when_they_pruned(residency, tmp_path):
    config = Config(dataset="digits", data_residency=residency, **{**FLAGS, "num_tasks": 1})
    run = learning.Run.prepare(config)
    approach = run.build_approach(None, lambda task, stage: ())
    assert list(learning.learn(run, approach, StageStore(tmp_path), with_state=False)) == [1]
    (record,) = _retraining(tmp_path)
    sparsity = record["history"]["sparsity"]
    results = run.results.to_json()
    (rounds,) = results["prune_rounds"]
    changes = [epoch for epoch in range(6) if epoch == 0 or sparsity[epoch] != sparsity[epoch - 1]]
    assert rounds == [{"epoch": epoch, "sparsity": sparsity[epoch]} for epoch in changes]
    half = 1 + next(epoch for epoch in changes if 1 - sparsity[epoch] <= (1 - sparsity[-1]) ** 0.5)
    (line,) = lines(results)
    assert line == (
        f"Prune rounds  task 1: {len(rounds)}, halfway by epoch {half}, last in epoch {changes[-1] + 1} of 6"
    )
    done, expected = 0, []
    for epoch in range(6):
        done = steps_at(epoch, 6, done, record["history"]["val_loss"][:epoch])
        expected.append(auto(config.final_prune, 1).kept_fraction(done))
    assert sparsity == pytest.approx([1 - kept for kept in expected], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("approach", ["memory", "multinet"])
def test_the_bounds_end_with_the_same_weights(approach, tmp_path):
    weights = []
    for rounds in (1, "auto"):
        run = learning.Run.prepare(Config(dataset="digits", approach=approach, **{**FLAGS, "prune_rounds": rounds}))
        trained = run.build_approach(None, lambda task, stage: ())
        list(learning.learn(run, trained, StageStore(tmp_path / str(rounds)), with_state=False))
        weights.append(run.results.weights)
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_an_experiment_compares_auto_with_numbers(tmp_path):
    flags = [f"--{name}={value}" for name, value in FLAGS.items() if name not in ("hidden_units", "prune_rounds")]
    more = ["--experiment=sweep", "--sweep=prune_rounds=1,auto,3", "--seeds=2", "--hidden_units=8"]
    assert launch(*flags, *more, f"--output_dir={tmp_path}").returncode == 0
    text = Path(tmp_path, "summary.md").read_text()
    assert "Prune rounds per task that the validation loss has decided" in text
    summary = json.loads(Path(tmp_path, "summary.json").read_text())
    assert [row["prune_rounds"] for row in summary["settings"]] == [1, "auto", 3]


def _retraining(folder):
    records = [json.loads(path.read_text())["record"] for path in Path(folder).glob("*/stage.json")]
    return [record for record in records if record["stage"] == "prune+retrain"]
