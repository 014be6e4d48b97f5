"""Several data sets as tasks, images of any size, and images that stay on disk."""

import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image

import tf_packnet as tp
from tf_packnet.packfile import info_of
from tf_packnet.prediction import examples
from tf_packnet.prediction.predicting import choose
from tf_packnet.runs.config import Config
from tf_packnet.runs.data import load_stream
from tf_packnet.system.images import RESIZES, read_image
from tf_packnet.system.limits import Bound
from tf_packnet.tasks import stored_images
from tf_packnet.tasks.sources import check_name, names_in


def write(folder, classes, number=8, size=None, mode="RGB", suffix=".png"):
    """Write images of random pixels and, unless `size` is given, of random sizes."""
    rng = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for image in range(number):
            height, width = size or rng.integers(3, 24, 2)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{image}{suffix}")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write(root / "birds", ["jay", "owl", "wren"], suffix=".jpg")
    write(root / "a,b" / "first", ["c", "d"], mode="L")
    write(root / "a,b" / "second", ["c", "d"], mode="P")
    write(root / "grey", ["e", "f"], size=(6, 5), mode="L")
    write(root / "other" / "birds", ["emu", "hen"], mode="CMYK", suffix=".jpg")
    return root


def load(name, **kwargs):
    return tp.tasks.load(name, **{"batch_size": 2, "image_size": 8, **kwargs})


class TestSeveralDataSets:
    def test_each_is_one_task(self, root):
        stream = load(f"{root}/birds,digits,{root}/a,b,{root}/other/birds")
        assert [(task.name, task.num_classes, task.number) for task in stream] == [
            ("birds", 3, 1),
            ("digits", 10, 2),
            ("a,b-first", 2, 3),
            ("a,b-second", 2, 4),
            ("birds_2", 2, 5),
        ]
        assert stream.input_shape == (8, 8, 3)
        for task in stream:
            assert all(split.images.dtype == np.uint8 and split.scale == 1 / 255 for split in task.splits.values())
        digits = stream[1].splits["train"]
        np.testing.assert_array_equal(digits.images[..., 0], digits.images[..., 2])
        alone = tp.tasks.load("digits", classes_per_task="all")[0].splits["train"]
        np.testing.assert_array_equal(digits.images[..., :1], np.round(alone.images * (255 / 16)))

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            (2, {"birds": [2], "digits": [2] * 5}),
            ("all", {"birds": [3], "digits": [10]}),
            ((3, 4, 6), {"birds": [3], "digits": [4, 6]}),
            ((2, 3, 4), {"birds": [2], "digits": [3, 4]}),
        ],
    )
    def test_sizes_of_tasks(self, root, sizes, expected):
        stream = load(f"{root}/birds,digits", classes_per_task=sizes)
        wanted = [(name, size) for name, several in expected.items() for size in several]
        assert [(task.name.split("-")[0], task.num_classes) for task in stream] == wanted
        assert len({task.name for task in stream}) == len(stream)
        assert load(f"{root}/birds,digits", classes_per_task=sizes, num_tasks=2)[1].name == stream[1].name

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((4, 4), "the number of classes of a task of birds, which has 3 classes"),
            ((3,), "the number of classes of a task of digits"),
            ((3, 6, 6), "at most the 10 classes of digits"),
            ((3, 0), "at least 1"),
            (4, "at most the 3 classes of birds"),
            ("some", "a number, several numbers, or all"),
        ],
    )
    def test_sizes_that_do_not_fit(self, root, sizes, message):
        with pytest.raises(tp.ArgumentError, match=f"`classes_per_task`: expected .*{message}"):
            load(f"{root}/birds,digits", classes_per_task=sizes)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"task_order": "2,1"}, ["digits", "birds"]),
            ({"task_order": "digits"}, ["digits"]),
            ({"task_order": "6,1,2", "classes_per_task": (2, 2, 2, 2, 2, 2)}, ["digits-8-9", "birds", "digits-0-1"]),
            ({"task_order": "birds,digits", "num_tasks": 1, "class_order": "shuffled"}, ["birds"]),
        ],
    )
    def test_orders(self, root, arguments, expected):
        stream = load(f"{root}/birds,digits", **arguments)
        assert [task.name for task in stream] == expected
        arguments = {key: value for key, value in arguments.items() if key not in ("task_order", "num_tasks")}
        natural = {task.name: task for task in load(f"{root}/birds,digits", **arguments)}
        for number, task in enumerate(stream, start=1):
            assert task.number == number
            for name, split in task.splits.items():
                same = natural[task.name].splits[name]
                np.testing.assert_array_equal(split.x, same.x)
                np.testing.assert_array_equal(split.y, same.y)

    def test_classes_of_several_are_shuffled_by_the_seed(self, root):
        orders = {
            tuple(task.class_names for task in load(f"{root}/birds,digits", class_order="shuffled", seed=seed))
            for seed in range(6)
        }
        assert all(
            (sorted(birds), sorted(digits)) == (["jay", "owl", "wren"], list("0123456789")) for birds, digits in orders
        )
        assert len(orders) > 2

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            (
                "birds,digits",
                {"class_order": "0,1"},
                "`class_order`: expected natural or shuffled for several data sets",
            ),
            (
                "a,b",
                {"class_order": "shuffled"},
                "`class_order`: expected natural, as the folders in a,b are the tasks",
            ),
            (
                "birds,digits",
                {"task_order": "birds,grey"},
                "`task_order`: .* different ones of birds, digits or .* 1 to 2",
            ),
            ("birds,digits", {"num_tasks": 3}, r"`num_tasks`: expected at most 2 \(all tasks in "),
            (
                "birds,digits",
                {"task_order": "2", "num_tasks": 2},
                "`num_tasks`: expected at most the 1 tasks of task_order",
            ),
            (
                "birds",
                {"scenario": "rotated", "classes_per_task": 3},
                "`classes_per_task`: expected all with scenario=",
            ),
            ("birds", {"classes_per_task": (1, 1), "class_order": "owl"}, "`classes_per_task`: expected at most the 1"),
        ],
    )
    def test_refused_orders(self, root, name, arguments, message):
        with pytest.raises(tp.ArgumentError, match=message):
            load(f"{root}/{name}", **arguments)

    def test_lists_of_sizes_and_of_classes(self, root):
        stream = load("digits", classes_per_task=(1, 3), class_order="9,7,5,3,1", task_order="2,1")
        assert [task.class_names for task in stream] == [("7", "5", "3"), ("9",)]
        birds = load(f"{root}/birds", classes_per_task="all", class_order="wren,jay", on_disk=True)
        assert [task.class_names for task in birds] == [("wren", "jay")]

    def test_sizes_in_one_data_set(self):
        stream = tp.tasks.load("digits", classes_per_task=(5, 3, 2))
        assert [task.class_names for task in stream] == [tuple("01234"), tuple("567"), tuple("89")]
        with pytest.raises(tp.ArgumentError, match="at most the 10 classes of digits"):
            tp.tasks.load("digits", classes_per_task=(5, 6))

    def test_folders_of_tasks_keep_their_classes(self, root):
        stream = load(f"{root}/a,b", classes_per_task=2)
        assert [task.name for task in stream] == ["first", "second"]
        with pytest.raises(tp.ArgumentError, match="one number or all, as the folders in a,b are the tasks"):
            load(f"{root}/a,b,digits", classes_per_task=(2, 2, 10))

    def test_commas(self, root):
        assert names_in(f"mnist,{root}/a,b,digits") == ("mnist", f"{root}/a,b", "digits")
        assert names_in("a,,b") == ("a", "", "b")
        for name, message in (("digits,", "digits, or"), ("digits,digits", "different data sets")):
            with pytest.raises(tp.ArgumentError, match=message):
                check_name(name)

    def test_long_names(self, tmp_path):
        write(tmp_path / "long", [letter * 90 for letter in "abcdef"], size=(4, 4))
        assert [task.name for task in load(str(tmp_path / "long"), classes_per_task=3)] == ["long_1", "long_2"]
        assert load(str(tmp_path / "long"), classes_per_task="all")[0].name == "long"

    def test_configs(self, root):
        assert (Config().classes_per_task, Config(dataset="digits,mnist").classes_per_task) == (2, "all")
        assert Config(dataset=f"{root}/a,b").classes_per_task == 2
        config = Config(dataset=f"digits,{root}/birds", image_size="8x8", classes_per_task=[5, 5, 3], batch_size=2)
        assert (config.image_size, config.pixels()) == ("8", (8, 8))
        assert Config.from_json(config.to_json()) == config
        before = {
            key: value
            for key, value in Config().to_json().items()
            if key not in ("image_size", "resize", "test_fraction")
        }
        assert Config.from_json(before) == Config()
        assert [task.num_classes for task in load_stream(config)] == [5, 5, 3]
        with pytest.raises(tp.ArgumentError, match="stretch without --image_size"):
            Config(resize="pad")


class TestSizes:
    def test_the_error_names_the_flag(self, root):
        for name in (f"{root}/birds", f"digits,{root}/grey"):
            with pytest.raises(tp.ArgumentError, match="`image_size`: expected a size"):
                tp.tasks.load(name, batch_size=2)

    @pytest.mark.parametrize("size", [0, (8, 8, 3), (8,), 10**5, "8", 2.5])
    def test_sizes_that_are_none(self, root, size):
        with pytest.raises(tp.ArgumentError, match="`image_size`: expected (height and width|a whole number, a list)"):
            load(f"{root}/birds", image_size=size)

    @pytest.mark.parametrize("resize", RESIZES)
    @pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (30, 40)])
    def test_any_proportions(self, tmp_path, resize, shape):
        Image.new("RGB", shape[::-1], "red").save(tmp_path / "x.png")
        pixels = read_image(tmp_path / "x.png", None, 10, 20, Bound(), resize)
        assert pixels.shape == (10, 20, 3)
        red = (pixels == (255, 0, 0)).all(-1)
        if resize == "pad":
            factor = min(10 / shape[0], 20 / shape[1])
            height, width = (max(1, round(factor * side)) for side in shape)
            assert (red.any(1).sum(), red.any(0).sum(), red.sum()) == (height, width, height * width)
            assert (pixels[~red] == 0).all()
            first, last = np.flatnonzero(red.any(1))[[0, -1]]
            assert abs(first - (9 - last)) <= 1
        else:
            assert red.all()

    def test_crop_keeps_the_centre(self, tmp_path):
        pixels = np.zeros((8, 24), np.uint8)
        pixels[:, 8:16] = np.arange(64).reshape(8, 8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png", "L", 8, 8, Bound(), "crop"), pixels[:, 8:16])

    def test_predictions_resize_as_training_did(self, root, tmp_path):
        stream = load(f"{root}/birds", classes_per_task="all", resize="pad")
        layers = [keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.Dense(3)]
        packed = tp.pack(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
        packed.begin_task("birds", num_classes=3)
        packed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        commit = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
        packed.fit(stream[0].train, callbacks=commit, verbose=0)
        info = info_of([dataclasses.replace(stream[0], name="birds")])
        tp.save_pack(packed, tmp_path / "pack.packnet", info=info)
        choice = choose(str(tmp_path / "pack.packnet"), None)
        assert choice.resize == "pad"
        spec = examples.InputSpec((8, 8, 3), "float32", choice.scale, choice.white, choice.resize)
        files = examples.files_of([str(root / "birds" / "owl")])
        found = np.concatenate([x for _, x in examples.read(files, spec)])
        owls = np.concatenate([split.x[split.y == 1] for split in stream[0].splits.values()])
        assert sorted(each.tobytes() for each in found) == sorted(each.tobytes() for each in owls)


class TestTestExamples:
    def test_they_are_held_out_by_seed(self, root):
        first, again, other = (
            load(f"{root}/birds", classes_per_task=3, test_fraction=0.5, seed=seed)[0] for seed in (0, 0, 1)
        )
        assert np.bincount(first.splits["test"].labels).tolist() == [4, 4, 4]
        np.testing.assert_array_equal(first.splits["test"].images, again.splits["test"].images)
        assert not np.array_equal(first.splits["test"].images, other.splits["test"].images)
        pixels = [image.tobytes() for split in first.splits.values() for image in split.images]
        assert len(set(pixels)) == len(pixels) == 24

    @pytest.mark.parametrize("name", ["test", "validation", "val"])
    def test_folders(self, tmp_path, name):
        write(tmp_path / "pets" / "train", ["cat", "dog"], number=5)
        write(tmp_path / "pets" / name, ["cat", "dog"], number=2)
        assert len(load(str(tmp_path / "pets"))[0].splits["test"]) == 4
        write(tmp_path / "pets" / name, ["eel"], number=2)
        with pytest.raises(tp.ArgumentError, match="only classes with training examples in .*eel"):
            load(str(tmp_path / "pets"))

    def test_too_few(self, tmp_path):
        write(tmp_path / "pets", ["cat", "dog"], number=2)
        with pytest.raises(tp.ArgumentError, match="`test_fraction`: expected a fraction that holds out at least one"):
            load(str(tmp_path / "pets"))
        assert len(load(str(tmp_path / "pets"), test_fraction=0.5, batch_size=1)[0].splits["test"]) == 2


class TestOddFolders:
    def test_hidden_files_and_deeper_folders(self, tmp_path):
        folder = write(tmp_path / "pets", ["cat", "dog"])
        (folder / "cat" / "._0.png").write_bytes(b"resource fork")
        (folder / "cat" / "notes.txt").write_text("no image")
        assert sum(map(len, load(str(folder))[0].splits.values())) == 16
        write(folder / "cat", ["kitten"])
        with pytest.raises(tp.ArgumentError, match="the images of each class in one folder"):
            load(str(folder))

    def test_a_class_called_train(self, tmp_path):
        write(tmp_path / "vehicles", ["car", "train"])
        assert load(str(tmp_path / "vehicles"))[0].class_names == ("car", "train")

    def test_classes_of_one_image(self, tmp_path):
        folder = write(tmp_path / "pets", ["cat", "dog"])
        write(folder, ["eel"], number=1)
        assert np.bincount(load(str(folder), classes_per_task=3)[0].splits["train"].labels)[2] == 1


class TestClassesInNoTask:
    @pytest.mark.parametrize(
        ("flags", "line"),
        [
            ({"classes_per_task": 2}, "1 class is in no task: wren. birds has 3, and classes_per_task=2"),
            ({"classes_per_task": 2, "class_order": "wren,owl,jay"}, "1 class is in no task: jay."),
            ({"classes_per_task": 2, "num_tasks": 1}, ""),
            ({"classes_per_task": (2,)}, ""),
            ({"classes_per_task": 3}, ""),
            ({"classes_per_task": "all"}, ""),
        ],
    )
    def test_one_line_names_them(self, root, flags, line, capsys):
        load_stream(Config(dataset=f"{root}/birds", image_size="8", batch_size=2, validation_fraction=0.3, **flags))
        shown = capsys.readouterr().err
        assert shown.startswith(line)
        assert shown.count("\n") == bool(line)

    def test_python_warns(self, root):
        with pytest.warns(UserWarning, match="1 class is in no task: wren"):
            load(f"{root}/birds", classes_per_task=2)


class TestOnDisk:
    @pytest.mark.parametrize("resize", RESIZES)
    def test_the_same_examples(self, root, resize):
        name = f"{root}/birds,{root}/a,b,digits"
        memory, disk = (load(name, resize=resize, on_disk=on_disk) for on_disk in (False, True))
        assert [task.splits["test"].is_stored for task in memory] == [False] * 4
        assert [task.splits["test"].is_stored for task in disk] == [True] * 3 + [False]
        assert memory.fingerprint() == disk.fingerprint()
        for one, other in zip(memory, disk, strict=True):
            for split in one.splits:
                np.testing.assert_array_equal(one.splits[split].x, other.splits[split].x)

    @pytest.mark.parametrize("scenario", ["permuted", "rotated"])
    @pytest.mark.parametrize("name", ["birds", "grey"])
    def test_the_same_scenarios(self, root, name, scenario):
        arguments = {"scenario": scenario, "num_tasks": 3, "class_order": "shuffled", "seed": 2}
        memory, disk = (load(f"{root}/{name}", on_disk=on_disk, **arguments) for on_disk in (False, True))
        assert [task.splits["train"].is_stored for task in (*memory, *disk)] == [False] * 3 + [True] * 3
        assert memory.fingerprint() == disk.fingerprint()
        assert len({task.splits["test"].x.tobytes() for task in disk}) == 3
        for one, other in zip(memory, disk, strict=True):
            for ours, theirs in zip(
                *(task.training_batches(3).single_batches().take(9) for task in (one, other)), strict=True
            ):
                keras.tree.map_structure(np.testing.assert_array_equal, ours, theirs)

    def test_the_same_batches(self, root):
        memory, disk = (load(f"{root}/birds,{root}/a,b", on_disk=on_disk) for on_disk in (False, True))
        for one, other in zip(memory, disk, strict=True):
            for batches in ("dataset", "single_batches"):
                ours, theirs = (
                    getattr(task.training_batches(3), batches)(2).take(5).as_numpy_iterator() for task in (one, other)
                )
                for a, b in zip(ours, theirs, strict=True):
                    keras.tree.map_structure(np.testing.assert_array_equal, a, b)
            for ours, theirs in ((one.train, other.train), (one.test, other.test)):
                x, y = (np.concatenate([x.numpy() for x, _ in batches]) for batches in (ours, theirs))
                np.testing.assert_array_equal(np.sort(x, 0), np.sort(y, 0))

    def test_images_that_take_too_much_memory(self, root, monkeypatch):
        monkeypatch.setattr(stored_images, "room", lambda: 4 * 24 * 8 * 8 * 3 - 1)
        assert load(f"{root}/birds", classes_per_task=3)[0].splits["train"].is_stored
        monkeypatch.setattr(stored_images, "room", lambda: 4 * 24 * 8 * 8 * 3)
        assert not load(f"{root}/birds", classes_per_task=3)[0].splits["train"].is_stored
        assert load(f"{root}/birds", max_bytes=10_000, classes_per_task=3)[0].splits["train"].is_stored
        with pytest.raises(tp.ArgumentError, match=r"smaller images \(.*max_bytes="):
            load(f"{root}/birds", max_bytes=10_000, classes_per_task=3, on_disk=False)
        with pytest.raises(tp.ArgumentError, match=r"smaller images \(.*max_bytes="):
            load(f"{root}/birds", max_bytes=500)

    def test_damaged_images(self, tmp_path):
        folder = write(tmp_path / "pets", ["cat", "dog"])
        content = (folder / "dog" / "7.png").read_bytes()
        (folder / "dog" / "7.png").write_bytes(content[: len(content) // 2])
        for on_disk in (False, True):
            with pytest.raises(tp.ArgumentError, match=r"images that can be read.*dog/7.png"):
                load(str(folder), on_disk=on_disk)
            with pytest.raises(tp.ArgumentError, match=r"images that can be read.*dog/7.png"):
                tp.tasks.from_folder(folder, 8, batch_size=2, on_disk=on_disk)

    def test_a_file_that_is_gone(self, tmp_path):
        folder = write(tmp_path / "pets", ["cat", "dog"])
        task = tp.tasks.from_folder(folder, 8, batch_size=2, on_disk=True)
        packed = tp.pack(keras.Sequential([keras.Input((8, 8, 3)), *(keras.layers.Dense(2) for _ in "ab")]))
        packed.begin_task("pets")
        packed.compile("sgd", "mse")
        for file in (folder / "cat").iterdir():
            file.unlink()
        with pytest.raises(tp.StepError, match=r"images that can be read.*cat/\d.png"):
            packed.fit(task.training_batches(0), verbose=0)
