import keras
import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tf_packnet import callbacks, lifecycle
from tf_packnet.layers import MaskedConv2D, MaskedDense
from tf_packnet.pruning import ownership, schedules
from tf_packnet.pruning.ranking import PRUNE_SCOPES


def open_counts(model):
    return {path: int(ownership.candidates(w.owner_map()).sum()) for path, w in lifecycle.masked_weights(model).items()}


class CountCandidates(keras.callbacks.Callback):
    """Records how many candidates are left in every epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(open_counts(self.model))


@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
def test_exact_counts_after_every_round_of_every_task(rounds):
    packed = compile_model(tp.pack(make_convnet()), "adam")
    schedule = tp.EqualShare(0.4, num_tasks=3, rounds=rounds)
    z = schedule.pruned_per_round
    for number in (1, 2, 3):
        packed.begin_task()
        began = open_counts(packed)
        counts = CountCandidates()
        retrain_callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), counts, tp.TaskMaskSnapshot()]
        packed.fit(*blobs(number, (8, 8, 1)), epochs=6, verbose=0, callbacks=retrain_callbacks)
        for epoch, left in enumerate(counts.seen):
            n = epoch // (6 // rounds) + 1
            assert left == {path: round(c * (1 - z) ** n) for path, c in began.items()}
        owned = {path: int((owner == number).sum()) for path, owner in packed.owner_maps().items()}
        assert owned == counts.seen[-1]


def test_the_largest_magnitudes_are_kept():
    packed = compile_model(tp.pack(make_mlp()), "sgd")
    packed.begin_task()
    weight = lifecycle.masked_weights(packed)["dense_1/kernel"]
    values = weight.values().copy()
    scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1, epochs=1))
    scheduler.set_model(packed)
    scheduler.set_params({"epochs": 1})
    scheduler.on_train_begin()
    scheduler.on_epoch_begin(0)
    kept = ownership.candidates(weight.owner_map())
    assert np.abs(values)[kept].min() >= np.abs(values)[~kept].max()
    assert scheduler.rounds == [
        {"round": 1, "epoch": 0, "kept": open_counts(packed), "sparsity": scheduler.rounds[0]["sparsity"]}
    ]


def test_of_equal_magnitudes_the_lowest_indices_are_kept():
    packed = compile_model(tp.pack(make_mlp(kernel_initializer="ones")), "sgd")
    packed.begin_task()
    packed.fit(
        np.zeros((8, 6)), np.zeros(8), epochs=1, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 1, 1))]
    )
    weight = lifecycle.masked_weights(packed)["dense_1/kernel"]
    np.testing.assert_array_equal(weight.owner_map().ravel(), [255] * 36 + [0] * 36)


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
def test_all_scopes_keep_the_same_total(scope):
    packed = compile_model(tp.pack(make_convnet()), "adam")
    packed.begin_task()
    began = sum(open_counts(packed).values())
    schedule = tp.EqualShare(0.5, 2, 2)
    packed.fit(*blobs(1, (8, 8, 1)), epochs=2, verbose=0, callbacks=[tp.PruneRoundScheduler(schedule, scope=scope)])
    assert abs(sum(open_counts(packed).values()) - began * (1 - schedule.released)) <= 1


def test_a_schedule_of_tfmot():
    import tensorflow_model_optimization as tfmot

    polynomial = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.8, begin_step=1, end_step=5, frequency=2)
    packed = compile_model(tp.pack(make_mlp()), "adam")
    packed.begin_task()
    scheduler = tp.PruneRoundScheduler(polynomial)
    history = packed.fit(*blobs(1), epochs=7, verbose=0, callbacks=[scheduler, tp.TaskMaskSnapshot()])
    assert [entry["epoch"] for entry in scheduler.rounds] == [1, 3, 5]
    expected = [float(polynomial(np.int64(step))[1]) for step in (1, 3, 5)]
    np.testing.assert_allclose([entry["sparsity"] for entry in scheduler.rounds], expected, atol=0.01)
    assert history.history["sparsity"][0] == 0
    assert history.history["sparsity"][-1] == pytest.approx(0.8, abs=0.01)


def test_a_subclass_with_another_score():
    class KeepSmallest(tp.PruneRoundScheduler):
        def score(self, path, values):
            return -np.abs(values)

    packed = compile_model(tp.pack(make_mlp()), "sgd")
    packed.begin_task()
    values = lifecycle.masked_weights(packed)["dense_1/kernel"].values().copy()
    packed.fit(np.zeros((8, 6)), np.zeros(8), epochs=1, verbose=0, callbacks=[KeepSmallest(tp.EqualShare(0.5, 1, 1))])
    kept = lifecycle.masked_weights(packed)["dense_1/kernel"].owner_map() == 255
    assert np.abs(values)[kept].max() <= np.abs(values)[~kept].min()


def test_gradient_mask_sets_kernels_and_slots_to_0_outside_the_candidates():
    packed = compile_model(tp.pack(make_mlp()), keras.optimizers.AdamW(0.01, weight_decay=0.1))
    packed.begin_task()
    packed.fit(*blobs(1), epochs=2, verbose=0)
    retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 1, 2), reset_optimizer=False), tp.GradientMask()]
    packed.fit(*blobs(1), epochs=4, verbose=0, callbacks=retrain_callbacks)
    for weight in lifecycle.masked_weights(packed).values():
        pruned = weight.owner_map() == 0
        np.testing.assert_array_equal(weight.values()[pruned], 0)
        slots = [v for v in packed.optimizer.variables if tuple(v.shape) == pruned.shape]
        assert len(slots) == 2  # both of Adam's moments
        for slot in slots:
            np.testing.assert_array_equal(np.array(slot)[pruned], 0)
            assert np.array(slot)[~pruned].any()


@pytest.mark.parametrize("reset", [True, False])
def test_retraining_resets_the_optimizer_by_default(reset):
    packed = compile_model(tp.pack(make_mlp()), "adam")
    packed.begin_task()
    packed.fit(*blobs(1), batch_size=16, epochs=2, verbose=0)
    scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.5, 1, 1), reset_optimizer=reset)
    packed.fit(*blobs(1), batch_size=16, epochs=1, verbose=0, callbacks=[scheduler])
    assert int(packed.optimizer.iterations) == (4 if reset else 12)


def test_snapshot_writes_the_owner_maps(tmp_path):
    packed = compile_model(tp.pack(make_mlp()), "adam")
    for number in (1, 2):
        packed.begin_task()
        retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.TaskMaskSnapshot(tmp_path / "masks")]
        packed.fit(*blobs(number), epochs=1, verbose=0, callbacks=retrain_callbacks)
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["task_1.npz", "task_2.npz"]
    first, second = (tp.load_owner_maps(tmp_path / f"masks/task_{n}.npz") for n in (1, 2))
    assert list(second) == ["dense_1/kernel", "dense_2/kernel"]
    for path, owner in packed.owner_maps().items():
        np.testing.assert_array_equal(second[path], owner)
        np.testing.assert_array_equal(first[path], np.where(owner == 1, 1, 0))


def test_instances_can_be_reused():
    packed = compile_model(tp.pack(make_mlp()), "adam")
    retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    for number in (1, 2):
        packed.begin_task()
        packed.fit(*blobs(number), epochs=2, verbose=0, callbacks=retrain_callbacks)
        assert [entry["round"] for entry in retrain_callbacks[0].rounds] == [1, 2]
    assert packed.committed_tasks == 2


def test_callbacks_work_on_a_plain_keras_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            MaskedConv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            MaskedDense(8, activation="relu"),
            MaskedDense(2),
        ]
    )
    compile_model(model, "adam")
    probe = blobs(7, (8, 8, 1))[0]
    logits = {}
    for number in (1, 2):
        if number > 1:
            assert tp.begin_task(model, freed_weights="keep") == number
        x, y = blobs(number, (8, 8, 1))
        model.fit(x, y, epochs=1, verbose=0)
        retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        model.fit(x, y, epochs=1, verbose=0, callbacks=[*retrain_callbacks, keras.callbacks.ReduceLROnPlateau("loss")])
        logits[number] = model.predict(probe, verbose=0)
    tp.select_task(model, 1)
    np.testing.assert_array_equal(model.predict(probe, verbose=0), logits[1])
    assert tp.free_fraction(model)["overall"] == pytest.approx(0.5, abs=0.01)


class TestMistakes:
    def test_pruning_without_an_open_task(self):
        packed = compile_model(tp.pack(make_mlp()), "adam")
        packed.begin_task()
        packed.commit_task()
        with pytest.raises(RuntimeError, match="no task is open, so there is nothing to train"):
            packed.fit(*blobs(1), verbose=0)

    def test_a_users_model_without_an_open_task(self):
        model = compile_model(keras.Sequential([keras.Input((6,)), MaskedDense(2)]), "adam")
        tp.commit_task(model)
        for callback in (tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.TaskMaskSnapshot()):
            with pytest.raises(RuntimeError, match="no task is open"):
                model.fit(*blobs(1), verbose=0, callbacks=[callback])
        with pytest.raises(RuntimeError, match="no task is open"):
            tp.commit_task(model)

    def test_a_fit_that_stops_before_the_last_round(self):
        packed = compile_model(tp.pack(make_mlp()), "adam")
        packed.begin_task()
        stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
        with pytest.warns(UserWarning, match="2 of its 4 prune rounds did not run before the fit ended"):
            packed.fit(
                *blobs(1), epochs=4, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 4)), stop]
            )

    def test_rounds_that_do_not_divide_the_epochs_of_fit(self):
        packed = compile_model(tp.pack(make_mlp()), "adam")
        packed.begin_task()
        with pytest.raises(tp.ArgumentError, match=r"a divisor of the 4 epochs \(1, 2, 4\). Received: rounds=3"):
            packed.fit(*blobs(1), epochs=4, verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 3))])

    def test_a_model_without_masked_layers(self):
        model = compile_model(make_mlp(), "adam")
        with pytest.raises(tp.ArgumentError, match="a model with task-aware layers"):
            model.fit(*blobs(1), verbose=0, callbacks=[tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1))])

    def test_a_schedule_of_another_type(self):
        with pytest.raises(tp.ArgumentError, match="`schedule`: expected tp.EqualShare or another"):
            tp.PruneRoundScheduler(0.5)

    def test_a_fit_that_raises_commits_nothing(self):
        packed = compile_model(tp.pack(make_mlp()), "adam")
        packed.begin_task()

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                raise InterruptedError

        with pytest.raises(InterruptedError):
            packed.fit(*blobs(1), verbose=0, callbacks=[Stop(), tp.TaskMaskSnapshot()])
        assert packed.committed_tasks == 0


@pytest.mark.parametrize(
    ("name", "replacement"),
    [("EqualShare", "tp.EqualShare"), ("GrowingShare", "tf_packnet.pruning.schedules.GrowingShare")],
)
def test_schedules_can_still_be_imported_from_callbacks_with_a_deprecation_warning(name, replacement):
    with pytest.warns(DeprecationWarning, match=f"tf_packnet.callbacks.{name} is deprecated: use {replacement}"):
        assert getattr(callbacks, name) is getattr(schedules, name)


def test_callbacks_has_no_other_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = callbacks.Nothing
