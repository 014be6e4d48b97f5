"""Tasks from the user's own data."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

import tf_packnet as tp
from tests.conftest import blobs, compile_model, launch, make_mlp


def arrays(examples=100):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, 6)).astype("float32"), np.resize(["cat", "dog", "eel"], examples)


class TestArrays:
    def test_every_example_is_in_one_split(self):
        x, y = arrays()
        task = tp.tasks.from_arrays("pets", x, y, batch_size=8, test_fraction=0.3, validation_fraction=0.2)
        assert task.class_names == ("cat", "dog", "eel")
        sizes = {name: len(split) for name, split in task.splits.items()}
        assert sizes == {"train": 55, "validation": 15, "test": 30}
        rows = np.concatenate([split.images for split in task.splits.values()])
        np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(x, axis=0))
        names = {tuple(row): name for row, name in zip(x, y, strict=True)}
        for split in task.splits.values():
            for row, label in zip(split.images, split.labels, strict=True):
                assert names[tuple(row)] == task.class_names[label]

    def test_the_seed_determines_what_is_held_out(self):
        first, again = (tp.tasks.from_arrays("a", *arrays(), batch_size=8, seed=3) for _ in range(2))
        other = tp.tasks.from_arrays("a", *arrays(), batch_size=8, seed=4)
        np.testing.assert_array_equal(first.splits["test"].images, again.splits["test"].images)
        assert not np.array_equal(first.splits["test"].images, other.splits["test"].images)

    def test_given_test_examples(self):
        x, y = arrays()
        task = tp.tasks.from_arrays("pets", x[:90], y[:90], (x[90:], y[90:]), batch_size=8)
        np.testing.assert_array_equal(task.splits["test"].images, x[90:])
        assert [task.class_names[label] for label in task.splits["test"].labels] == list(y[90:])

    def test_bytes_are_scaled(self):
        images = np.full((20, 4, 4, 1), 255, np.uint8)
        images[0] = 0
        task = tp.tasks.from_arrays("a", images, np.arange(20) % 2, batch_size=4)
        assert next(iter(task.train))[0].numpy().max() == 1.0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.full((100, 6), np.nan, "float32")}, "`x`: expected finite numbers.*NaN or infinity in example 0"),
            ({"x": np.array(["a"] * 100)}, "`x`: expected an array of numbers"),
            ({"x": np.zeros((0, 6)), "y": np.zeros(0)}, "`x`: expected at least one example"),
            ({"y": np.zeros(99)}, "`y`: expected labels of shape .100,., or values of shape"),
            ({"class_names": ["a"]}, "`class_names`: expected 3, one for each label"),
            ({"test": (np.zeros((5, 7), "float32"), np.zeros(5))}, "`test`: expected float32 examples of shape"),
            (
                {"test": (np.zeros((1, 6), "float32"), ["fox"])},
                r"only labels also in y. Received: test=\['fox'\]",
            ),
            ({"test_fraction": 0.0}, "`test_fraction`: expected a fraction between"),
            ({"validation_fraction": 1.0}, "`validation_fraction`: expected a fraction from 0"),
            ({"batch_size": 1000}, "1 to the 70 training examples of task 'pets'"),
        ],
    )
    def test_invalid_arguments(self, change, message):
        x, y = arrays()
        given = {"x": x, "y": y, "batch_size": 8, **change}
        with pytest.raises(tp.ArgumentError, match=message):
            tp.tasks.from_arrays("pets", **given)


class TestDataSets:
    @pytest.mark.parametrize("batch", [None, 7])
    def test_the_same_as_from_arrays(self, batch):
        x, y = blobs(0)
        dataset = tf.data.Dataset.from_tensor_slices((x, y))
        task = tp.tasks.from_dataset("a", dataset if batch is None else dataset.batch(batch), batch_size=8)
        expected = tp.tasks.from_arrays("a", x, y, batch_size=8)
        for name, split in expected.splits.items():
            np.testing.assert_array_equal(task.splits[name].images, split.images)
            np.testing.assert_array_equal(task.splits[name].labels, split.labels)

    def test_data_sets_that_are_infinite_or_not_pairs(self):
        pairs = tf.data.Dataset.from_tensor_slices(blobs(0))
        with pytest.raises(tp.ArgumentError, match="a finite data set"):
            tp.tasks.from_dataset("a", pairs.repeat())
        with pytest.raises(tp.ArgumentError, match="of pairs"):
            tp.tasks.from_dataset("a", tf.data.Dataset.range(3))
        with pytest.raises(tp.ArgumentError, match="of pairs"):
            tp.tasks.from_dataset("a", blobs(0))


def write_images(folder, classes, number=30, size=(8, 8)):
    rng = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(number):
            pixels = rng.integers(0, 120, (*size, 3)) + 120 * (index % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{image}.png")


class TestFolders:
    def test_pixels_and_names(self, tmp_path):
        write_images(tmp_path / "pets", ["cat", "dog"])
        (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
        task = tp.tasks.from_folder(tmp_path / "pets", batch_size=8)
        assert (task.name, task.class_names) == ("pets", ("cat", "dog"))
        assert task.splits["train"].images.shape[1:] == (8, 8, 3)
        images = {path.read_bytes(): np.asarray(Image.open(path)) for path in (tmp_path / "pets" / "dog").iterdir()}
        dogs = {array.tobytes() for array in images.values()}
        for split in task.splits.values():
            for image, label in zip(split.images, split.labels, strict=True):
                assert (image.tobytes() in dogs) == (label == 1)

    def test_folders_for_train_and_test(self, tmp_path):
        write_images(tmp_path / "pets" / "train", ["cat", "dog"])
        write_images(tmp_path / "pets" / "test", ["cat", "dog"], number=5)
        assert len(tp.tasks.from_folder(tmp_path / "pets", batch_size=8).splits["test"]) == 10

    def test_sizes(self, tmp_path):
        write_images(tmp_path / "pets", ["cat", "dog"])
        write_images(tmp_path / "pets", ["eel"], size=(6, 8))
        with pytest.raises(
            tp.ArgumentError, match=r"`image_size`: expected a size, as the images have 2 sizes from \(6, 8\)"
        ):
            tp.tasks.from_folder(tmp_path / "pets", batch_size=8)
        assert tp.tasks.from_folder(tmp_path / "pets", (4, 5), batch_size=8).splits["test"].images.shape[1:] == (
            4,
            5,
            3,
        )

    def test_missing_or_empty_folders(self, tmp_path):
        with pytest.raises(tp.ArgumentError, match="`path`: expected a folder, or a table .*Received"):
            tp.tasks.from_folder(tmp_path / "none")
        with pytest.raises(tp.ArgumentError, match="a folder with one folder per class"):
            tp.tasks.from_folder(tmp_path)
        (tmp_path / "cat").mkdir()
        with pytest.raises(tp.ArgumentError, match=r"images \(.png, .*\) in .*cat"):
            tp.tasks.from_folder(tmp_path)
        (tmp_path / "cat" / "1.png").write_bytes(b"no image")
        with pytest.raises(tp.ArgumentError, match="images that can be read. Received: .*1.png"):
            tp.tasks.from_folder(tmp_path)

    def test_the_launcher_learns_one_task_per_folder(self, tmp_path):
        write_images(tmp_path / "data" / "first", ["a", "b"])
        write_images(tmp_path / "data" / "second", ["c", "d", "e"])
        flags = [
            "--train_epochs=1",
            "--retrain_epochs=1",
            "--prune_rounds=1",
            "--batch_size=8",
            "--hidden_units=8",
            "--jit=off",
        ]
        done = launch(f"--dataset={tmp_path / 'data'}", f"--output_dir={tmp_path / 'out'}", "--noexport", *flags)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert [task["class_names"] for task in results["tasks"]] == [["a", "b"], ["c", "d", "e"]]

    def test_the_launcher_refuses_invalid_folders(self, tmp_path):
        done = launch(f"--dataset={tmp_path / 'none'}", f"--output_dir={tmp_path / 'out'}")
        assert (done.returncode, done.stdout) == (2, "")
        assert "expected an existing folder, with one folder per task" in done.stderr
        (tmp_path / "data" / "task" / "a").mkdir(parents=True)
        done = launch(f"--dataset={tmp_path / 'data'}", f"--output_dir={tmp_path / 'out'}")
        assert done.returncode == 2
        assert "main.py: --dataset=" in done.stderr
        assert "in " + str(tmp_path / "data" / "task" / "a") in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_stream_of_own_tasks():
    tasks = [tp.tasks.from_arrays(name, *blobs(seed, examples=80), batch_size=8) for seed, name in enumerate("ab")]
    stream = tp.tasks.TaskStream("mine", tasks)
    assert [(task.number, task.room) for task in stream] == [(1, 57), (2, 57)]
    with pytest.raises(tp.ArgumentError, match="tasks with different names"):
        tp.tasks.TaskStream("mine", [tasks[0], tasks[0]])
    other = tp.tasks.from_arrays("c", *blobs(0, (7,)), batch_size=8)
    with pytest.raises(tp.ArgumentError, match="of one shape"):
        tp.tasks.TaskStream("mine", [tasks[0], other])
    with pytest.raises(tp.ArgumentError, match="at least one"):
        tp.tasks.TaskStream("mine", [])


def test_tasks_learned_in_different_processes(tmp_path):
    """To load a pack, learn a task and save the pack gives the same bits as learning all tasks in one process."""

    def learn(packed, number):
        keras.utils.set_random_seed(number)
        task = tp.tasks.from_arrays(f"task {number}", *blobs(number), batch_size=16)
        packed.begin_task(task.name, task.num_classes)
        retrain_callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(task.training_batches(seed=number), epochs=2, verbose=0)
        packed.fit(task.training_batches(seed=number), epochs=2, verbose=0, callbacks=retrain_callbacks)

    at_once = compile_model(tp.pack(make_mlp()), keras.optimizers.Adam(0.01))
    saved_and_loaded = compile_model(tp.pack(make_mlp()), keras.optimizers.Adam(0.01))
    saved_and_loaded.set_weights(at_once.get_weights())
    for number in (1, 2, 3):
        learn(at_once, number)
        learn(saved_and_loaded, number)
        saved_and_loaded.save(tmp_path / "pack.keras")
        saved_and_loaded = keras.models.load_model(tmp_path / "pack.keras")
    assert saved_and_loaded.task_names == ["task 1", "task 2", "task 3"]
    x = blobs(9)[0]
    for number in (1, 2, 3):
        for packed in (at_once, saved_and_loaded):
            packed.select_task(number)
        np.testing.assert_array_equal(at_once.predict(x, verbose=0), saved_and_loaded.predict(x, verbose=0))


def test_arrays_may_be_lists_frames_and_tensors():
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    settings = {"batch_size": 4, "validation_fraction": 0.1, "test_fraction": 0.2}
    expected = tp.tasks.from_arrays("a", x, y, (x, y), **settings)
    for convert in (np.ndarray.tolist, pd.DataFrame, tf.constant):
        labels = pd.Series(y) if convert is pd.DataFrame else convert(y)
        task = tp.tasks.from_arrays("a", convert(x), labels, [convert(x), labels], **settings)
        for name, split in expected.splits.items():
            np.testing.assert_array_equal(task.splits[name].images, split.images)
            np.testing.assert_array_equal(task.splits[name].labels, split.labels)


def test_the_smallest_integer_of_a_type_is_not_scaled():
    x = np.zeros((40, 4, 4), np.int16)
    x[::2, 0, 0] = -32768
    with pytest.warns(UserWarning, match="int16 values up to 32,768, which are not scaled"):
        tp.tasks.from_arrays("a", x, np.arange(40) % 2, batch_size=4)
