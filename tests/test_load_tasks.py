"""Loading is complete or raises an error: no committed task, name or prune round is lost."""

import copy
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.stateful import learn, outputs, pack_stateful, prune_and_commit
from tf_packnet import lifecycle

X, Y = blobs(0)


@pytest.fixture(scope="module")
def packed():
    keras.utils.set_random_seed(0)
    made = pack_stateful()
    learn(made, "a", X, Y)
    learn(made, "b", X + 3, 1 - Y)
    return made


def assert_whole(loaded, packed):
    assert loaded.task_names == ["a", "b"]
    assert loaded.committed_tasks == 2
    for task, expected in outputs(packed, X).items():
        np.testing.assert_array_equal(outputs(loaded, X)[task], expected)
    learn(loaded, "c", X - 3, Y)
    for task, expected in outputs(packed, X).items():
        np.testing.assert_array_equal(outputs(loaded, X)[task], expected)


class TestAccepted:
    @pytest.mark.parametrize("selected", ["a", pytest.param("b", marks=pytest.mark.slow)])
    def test_keras_files(self, packed, tmp_path, selected):
        packed.select_task(selected)
        packed.save(tmp_path / "pack.keras")
        assert_whole(keras.models.load_model(tmp_path / "pack.keras"), packed)

    def test_weights_files(self, packed, tmp_path):
        packed.save_weights(tmp_path / "pack.weights.h5")
        loaded = pack_stateful()
        loaded.load_weights(tmp_path / "pack.weights.h5")
        assert_whole(loaded, packed)

    def test_weights_of_a_keras_file(self, packed, tmp_path):
        packed.save(tmp_path / "pack.keras")
        loaded = pack_stateful()
        loaded.load_weights(tmp_path / "pack.keras")
        assert_whole(loaded, packed)

    def test_pack_files(self, packed, tmp_path):
        tp.save_pack(packed, tmp_path / "pack.packnet")
        assert_whole(compile_model(tp.load_pack(tmp_path / "pack.packnet")), packed)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))])
    def test_copies(self, packed, way):
        assert_whole(way(packed), packed)

    def test_an_open_task_with_another_one_selected(self, packed, tmp_path):
        packed = copy.deepcopy(packed)
        packed.begin_task("c")
        packed.fit(X, Y, verbose=0)
        expected = packed.predict(X, verbose=0)
        packed.select_task("a")
        packed.save(tmp_path / "pack.keras")
        loaded = keras.models.load_model(tmp_path / "pack.keras")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), packed.predict(X, verbose=0))
        loaded.select_task("c")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)

    def test_weights_of_the_best_epoch(self, tmp_path):
        packed = pack_stateful()
        packed.begin_task("a")
        path = tmp_path / "best.weights.h5"
        best = keras.callbacks.ModelCheckpoint(path, monitor="loss", save_best_only=True, save_weights_only=True)
        packed.fit(X, Y, epochs=3, verbose=0, callbacks=[best])
        packed.load_weights(path)
        packed.fit(X, Y, verbose=0, callbacks=prune_and_commit())
        assert packed.task_names == ["a"]

    def test_early_stopping_brings_the_best_weights_back(self):
        packed = pack_stateful()
        packed.begin_task("a")
        stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
        packed.fit(X, Y, epochs=4, verbose=0, callbacks=[stop, *prune_and_commit()])
        assert packed.committed_tasks == 1

    def test_the_architecture_alone(self, packed):
        for made in (keras.models.model_from_json(packed.to_json()), tp.PackedModel.from_config(packed.get_config())):
            assert (made.task_names, made.committed_tasks) == ([], 0)
            learn(compile_model(made), "first", X, Y)
            assert made.task_names == ["first"]


class TestRefused:
    def refused(self, packed, message, load):
        before = {**outputs(packed, X)}
        names, committed = packed.task_names, packed.committed_tasks
        with pytest.raises(tp.ArgumentError, match=message) as caught:
            load(packed)
        assert "\n" not in str(caught.value)
        assert (packed.task_names, packed.committed_tasks) == (names, committed)
        for task, now in outputs(packed, X).items():
            np.testing.assert_array_equal(now, before[task])

    def test_weights_with_fewer_tasks(self, packed, tmp_path):
        early = pack_stateful()
        early.begin_task("a")
        for name in ("none", "one"):
            early.save_weights(tmp_path / f"{name}.weights.h5")
            self.refused(
                packed, "committed tasks", lambda p, name=name: p.load_weights(tmp_path / f"{name}.weights.h5")
            )
            if name == "none":
                early.fit(X, Y, verbose=0, callbacks=prune_and_commit())

    def test_weights_of_other_tasks(self, packed, tmp_path):
        other = pack_stateful()
        for task in ("a", "b"):
            learn(other, task, X - 1, Y)
        other.save_weights(tmp_path / "other.weights.h5")
        self.refused(packed, "the same values as in this pack", lambda p: p.load_weights(tmp_path / "other.weights.h5"))

    def test_tasks_of_other_names(self, packed, tmp_path):
        named = copy.deepcopy(packed)
        lifecycle.records(named).names = ["a", "z"]
        named.save_weights(tmp_path / "named.weights.h5")
        self.refused(packed, r"the tasks \['a', 'b'\]", lambda p: p.load_weights(tmp_path / "named.weights.h5"))

    def test_fewer_prune_rounds(self, tmp_path):
        packed = pack_stateful()
        packed.begin_task("a")
        packed.save_weights(tmp_path / "early.weights.h5")
        packed.fit(X, Y, verbose=0, callbacks=prune_and_commit()[:2])
        self.refused(packed, "all prune rounds", lambda p: p.load_weights(tmp_path / "early.weights.h5"))
        with pytest.raises(tp.ArgumentError, match="all prune rounds"):
            packed.set_weights(
                [np.full_like(w, 255) if w.dtype == np.uint8 and w.ndim else w for w in packed.get_weights()]
            )
        packed.save_weights(tmp_path / "now.weights.h5")
        packed.load_weights(tmp_path / "now.weights.h5")

    def test_a_task_that_is_not_open_there(self, packed, tmp_path):
        packed.save_weights(tmp_path / "two.weights.h5")
        going_on = copy.deepcopy(packed)
        going_on.begin_task("c")
        self.refused(going_on, "", lambda p: p.load_weights(tmp_path / "two.weights.h5"))

    def test_variables_alone(self, packed):
        fresh = pack_stateful()
        self.refused(fresh, "variables alone do not contain the tasks", lambda p: p.set_weights(packed.get_weights()))
        packed.set_weights(packed.get_weights())

    @pytest.mark.parametrize("name", ["pack.h5", "pack.hdf5"])
    def test_legacy_files(self, packed, tmp_path, name):
        self.refused(packed, "use save and keras.models.load_model", lambda p: p.save(tmp_path / name))
        self.refused(packed, "ends in .weights.h5", lambda p: p.load_weights(tmp_path / name))

    def test_checkpoints_of_tensorflow(self, packed, tmp_path):
        self.refused(packed, "does not contain tasks", lambda p: tf.train.Checkpoint(model=p).save(str(tmp_path / "c")))

    def test_parts_of_a_file(self, packed, tmp_path):
        self.refused(packed, "partially", lambda p: p.load_weights(tmp_path / "x.weights.h5", skip_mismatch=True))

    def test_weights_of_another_network(self, packed, tmp_path):
        other = compile_model(tp.pack(make_mlp()))
        other.save_weights(tmp_path / "other.weights.h5")
        self.refused(packed, "a pack like this one", lambda p: p.load_weights(tmp_path / "other.weights.h5"))

    def test_no_file(self, packed, tmp_path):
        with pytest.raises(OSError, match=r"No such file|unable to open"):
            packed.load_weights(tmp_path / "none.weights.h5")
        (tmp_path / "no.weights.h5").write_bytes(b"nothing")
        with pytest.raises(OSError, match="signature"):
            packed.load_weights(tmp_path / "no.weights.h5")

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("kernel.frozen", lambda v: v + 0.1),
            ("kernel.owner", lambda v: np.where(v == 1, 2, v)),
            ("bias.task_1", lambda v: v + 1),
            ("moving_mean.task_2", lambda v: v + 1),
            ("records.", lambda v: v + 1),
        ],
    )
    def test_a_file_that_was_changed(self, packed, tmp_path, part, change):
        packed.save(tmp_path / "pack.keras")
        with zipfile.ZipFile(tmp_path / "pack.keras") as archive:
            archive.extractall(tmp_path / "content")
        with h5py.File(tmp_path / "content/model.weights.h5", "r+") as file:
            found = []
            file.visititems(lambda name, each: found.append(name) if part in name and "head" not in name else None)
            file[found[0]][...] = change(file[found[0]][()])
        with zipfile.ZipFile(tmp_path / "changed.keras", "w") as archive:
            for path in (tmp_path / "content").iterdir():
                archive.write(path, path.name)
        with pytest.raises(tp.FreezeError, match="task|selected"):
            keras.models.load_model(tmp_path / "changed.keras")
        fresh = pack_stateful()
        with pytest.raises(tp.FreezeError, match="task|selected"):
            fresh.load_weights(tmp_path / "changed.keras")
        assert fresh.committed_tasks == 0


class TestBackups:
    def fit(self, folder, backup, dies_at=None):
        class Dies(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == dies_at:
                    raise KeyboardInterrupt

        keras.utils.set_random_seed(3)
        packed = pack_stateful()
        packed.begin_task("a")
        schedule = tp.EqualShare(0.5, 4, rounds=3)
        callbacks = [Dies(), tp.PruneRoundScheduler(schedule), tp.GradientMask(), *backup, tp.TaskMaskSnapshot()]
        try:
            packed.fit(X, Y, epochs=6, shuffle=False, verbose=0, callbacks=callbacks)
        except KeyboardInterrupt:
            return None
        return packed

    @pytest.mark.parametrize("kind", [keras.callbacks.BackupAndRestore, tp.EpochBackup])
    @pytest.mark.parametrize(
        "dies_at", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
    )
    def test_the_first_fit_after_compile_resumes(self, tmp_path, kind, dies_at):
        path = tmp_path / "backup"
        assert self.fit(tmp_path, [kind(path)], dies_at) is None
        resumed, whole = self.fit(tmp_path, [kind(path)]), self.fit(tmp_path, [])
        assert resumed.committed_tasks == 1
        assert resumed.free_fraction() == whole.free_fraction()
        np.testing.assert_array_equal(outputs(resumed, X)["a"], outputs(whole, X)["a"])


class TestRegularizers:
    @pytest.mark.parametrize("policy", ["first_task", "per_task"])
    @pytest.mark.parametrize("jit", ["auto", False])
    def test_the_loss_of_an_old_task_does_not_move(self, policy, jit):
        kinds = {"kernel_regularizer": "l2", "bias_regularizer": "l1"}
        inner = [
            keras.layers.Dense(16, "relu", **kinds),
            keras.layers.BatchNormalization(gamma_regularizer="l2"),
            keras.layers.Dense(2, **kinds),
        ]
        model = keras.Sequential([keras.Input((6,)), *inner])
        packed = compile_model(tp.pack(model, bias_policy=policy), jit_compile=jit)
        compile_model(model)
        assert packed.evaluate(X, Y, verbose=0)[0] == model.evaluate(X, Y, verbose=0)[0]
        losses = []
        for task in "abc":
            learn(packed, task, X + 3 * (task == "b"), Y)
            packed.select_task("a")
            losses.append(packed.evaluate(X, Y, verbose=0)[0])
        assert losses == [losses[0]] * 3
        plain = compile_model(tp.dense_model(packed, "a"))
        assert plain.evaluate(X, Y, verbose=0)[0] == losses[0]


@pytest.mark.parametrize("where", ["frozen", "kept"])
def test_weights_that_are_not_finite_are_neither_saved_nor_exported(packed, tmp_path, where):
    broken = copy.deepcopy(packed)
    if where == "frozen":
        weight = lifecycle.masked_weights(broken)["dense/kernel"]
        weight.frozen.assign(np.full((20, 16), np.nan))
    else:
        broken.get_layer("dense").task_weights[0].kept[1][:] = np.inf
    for refused in (
        lambda: tp.save_pack(broken, tmp_path / "pack.packnet"),
        lambda: tp.export_task(broken, "a", tmp_path / "export"),
    ):
        with pytest.raises(tp.DivergedError, match="NaN or infinite, in dense/"):
            refused()
    assert list(tmp_path.iterdir()) == []
