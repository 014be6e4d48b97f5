"""Orders of classes and tasks, and tasks with permuted or rotated images."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import tf_packnet as tp
from tests.conftest import launch
from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config
from tf_packnet.tasks import Split, Task, TaskStream, split_into_tasks
from tf_packnet.tasks.scenarios import PERMUTED, ROTATED, vary

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


def stream(**kwargs):
    """Each example is its class and its number."""
    labels = np.repeat(np.arange(6), 10)
    data = Split(np.stack([labels, np.arange(60)], axis=1), labels.astype(np.uint8))
    return split_into_tasks("animals", data, data, NAMES, **{"batch_size": 4, **kwargs})


def images(shape=(6, 4, 3), examples=20, dtype="uint8", **kwargs):
    """A task of random images."""
    rng = np.random.default_rng(0)

    def split(count):
        return Split(rng.integers(1, 255, (count, *shape)).astype(dtype), np.arange(count) % 2, 1 / 255)

    return Task(1, "a-b", ("a", "b"), {"train": split(examples), "validation": split(3), "test": split(6)}, 4, **kwargs)


def contents(tasks):
    return [[each.images.tobytes() for each in task.splits.values()] for task in tasks]


class TestOrders:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, ["ant-bee", "cat-dog", "eel-fox"]),
            ({"class_order": "natural", "task_order": ["natural"]}, ["ant-bee", "cat-dog", "eel-fox"]),
            ({"class_order": "5,0,4,1,3,2"}, ["fox-ant", "eel-bee", "dog-cat"]),
            ({"class_order": np.array([5, 0, 4, 1])}, ["fox-ant", "eel-bee"]),
            ({"class_order": ("fox", "ant", "bee")}, ["fox-ant"]),
            ({"class_order": "fox, ant,bee ,cat", "classes_per_task": 4}, ["fox-ant-bee-cat"]),
            ({"task_order": "3,1,2"}, ["eel-fox", "ant-bee", "cat-dog"]),
            ({"task_order": "3,1,2", "num_tasks": 2}, ["eel-fox", "ant-bee"]),
            ({"task_order": ["cat-dog"]}, ["cat-dog"]),
            ({"class_order": "5,0,4,1,3,2", "task_order": "dog-cat,fox-ant"}, ["dog-cat", "fox-ant"]),
        ],
    )
    def test_listed(self, arguments, expected):
        tasks = stream(**arguments)
        assert [task.name for task in tasks] == expected
        assert [task.number for task in tasks] == list(range(1, len(expected) + 1))
        for task in tasks:
            assert "-".join(task.class_names) == task.name
            for split in task.splits.values():
                named = [NAMES.index(task.class_names[label]) for label in split.y]
                np.testing.assert_array_equal(named, split.images[:, 0])

    @pytest.mark.parametrize("order", ["class_order", "task_order"])
    def test_shuffled_by_the_seed(self, order):
        def classes(seed):
            return [name for task in stream(seed=seed, **{order: "shuffled"}) for name in task.class_names]

        orders = {seed: classes(seed) for seed in range(8)}
        assert all(sorted(order) == NAMES for order in orders.values())
        assert len({tuple(order) for order in orders.values()}) > 3
        assert all(classes(seed) == order for seed, order in orders.items())

    def test_class_and_task_order_are_shuffled_independently(self):
        names = [str(label) for label in range(10)]
        data = Split(np.arange(100).reshape(-1, 1), np.arange(100) % 10)
        tasks, classes = (
            [task.name for task in split_into_tasks("a", data, data, names, 1, batch_size=1, **{order: "shuffled"})]
            for order in ("task_order", "class_order")
        )
        assert tasks != classes

    def test_the_examples_of_a_task_do_not_depend_on_the_order_of_its_classes(self):
        for one, other in zip(stream(), stream(class_order="1,0,3,2,5,4"), strict=True):
            for name, split in one.splits.items():
                if name == "test":  # which validation examples are drawn depends on the order
                    np.testing.assert_array_equal(split.images, other.splits[name].images)
                    np.testing.assert_array_equal(split.labels, 1 - other.splits[name].labels)

    def test_numbers_as_names_count_as_names(self):
        data = Split(np.arange(40).reshape(-1, 1), np.arange(40) % 4)
        tasks = split_into_tasks("a", data, data, ["3", "2", "1", "0"], batch_size=4, class_order="3,2,0,1")
        assert [task.name for task in tasks] == ["3-2", "0-1"]
        assert tasks[0].splits["test"].images[0] % 4 == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"class_order": "0,6"}, "`class_order`: expected natural, shuffled, or different ones of ant, .* 0 to 5"),
            ({"class_order": [0, 1, 0]}, "`class_order`.*Received: class_order='0,1,0'"),
            ({"class_order": "ant,1"}, "`class_order`"),
            ({"class_order": "ant,,bee"}, "`class_order`"),
            ({"class_order": "Shuffled"}, "`class_order`"),
            ({"class_order": [0.5, 1.0]}, "`class_order`"),
            ({"class_order": ""}, "`class_order`"),
            ({"class_order": []}, "`class_order`"),
            ({"class_order": None}, "`class_order`"),
            ({"class_order": 3}, "`class_order`"),
            ({"class_order": "-1,0"}, "`class_order`"),
            ({"class_order": "2"}, "`classes_per_task`: expected at most the 1 classes of animals"),
            ({"task_order": "0,1"}, "`task_order`: .*different ones of ant-bee, cat-dog, eel-fox or .* 1 to 3"),
            ({"task_order": "4"}, "`task_order`"),
            ({"task_order": "2,1", "num_tasks": 3}, "`num_tasks`: expected at most the 2 tasks of task_order"),
            ({"class_order": "0,1,2,3", "num_tasks": 3}, r"`num_tasks`: expected at most 2 \(animals has 4 classes"),
        ],
    )
    def test_refused(self, arguments, message):
        with pytest.raises(ArgumentError, match=message) as caught:
            stream(**arguments)
        assert "\n" not in str(caught.value)

    def test_streams_in_natural_order_have_the_fingerprint_of_earlier_versions(self):
        fingerprint = tp.tasks.load("digits", classes_per_task=3, num_tasks=2, seed=3).fingerprint()
        assert fingerprint.startswith("aee98f2d560493435ec2dec20964daef")


class TestScenarios:
    @pytest.mark.parametrize(("shape", "pixels"), [((6, 4, 3), 24), ((6, 4), 24), ((5,), 5), ((2, 3, 2, 3), 12)])
    def test_one_permutation_holds_for_all_examples_of_a_task(self, shape, pixels):
        task = images(shape)
        first, *others = vary(task, PERMUTED, 4, seed=5)
        assert contents([first]) == contents([task])
        seen = []
        for other in others:
            seen.append(other.splits["train"].source.tolist())
            assert sorted(seen[-1]) == list(range(pixels))
            for name, split in other.splits.items():
                before = task.splits[name].images.reshape(len(split), pixels, -1)
                np.testing.assert_array_equal(split.images.reshape(before.shape), before[:, seen[-1]])
                np.testing.assert_array_equal(split.y, task.splits[name].y)
                assert (split.scale, split.images.dtype) == (1 / 255, np.uint8)
        assert len({tuple(each) for each in seen}) == 3

    @pytest.mark.parametrize("scenario", [PERMUTED, ROTATED])
    def test_a_task_depends_only_on_its_number_and_the_seed(self, scenario):
        task = images()
        tasks = contents(vary(task, scenario, 5, seed=1))
        assert contents(vary(task, scenario, 3, seed=1)) == tasks[:3]
        assert contents(vary(task, scenario, seed=1, task_order="5,2")) == [tasks[4], tasks[1]]
        shuffled = contents(vary(task, scenario, 5, seed=1, task_order="shuffled"))
        assert sorted(shuffled) == sorted(tasks) != shuffled
        assert contents(vary(task, scenario, 5, seed=2))[1] != tasks[1]
        assert len(vary(task, scenario)) == 10
        assert len({name for seed in (0, 1) for name in [each.name for each in vary(task, scenario, 254, seed)]}) >= 254

    @pytest.mark.parametrize("shape", [(8, 8), (9, 9, 3), (6, 10, 1), (28, 28), (1, 7)])
    def test_rotations_are_those_of_pillow(self, shape):
        task = images(shape)
        stream = vary(task, ROTATED, 40, seed=1)
        assert stream[0].name == "rotated-0"
        for rotated in stream:
            angle = int(rotated.name.split("-")[1])
            for before, after in zip(task.splits["test"].images, rotated.splits["test"].images, strict=True):
                expected = np.asarray(Image.fromarray(before.squeeze()).rotate(angle)).reshape(shape)
                assert (after != expected).mean() <= 0.05  # a tie between two pixels, at an edge of the image too

    @pytest.mark.parametrize("shape", [(8, 8), (9, 9, 3)])
    def test_right_angles_move_pixels_exactly(self, shape):
        task = images(shape)
        names = [each.name for each in vary(task, ROTATED, 360)]
        for turns in range(4):
            number = names.index(f"rotated-{90 * turns}") + 1
            (rotated,) = vary(task, ROTATED, task_order=[number])
            for name, split in rotated.splits.items():
                np.testing.assert_array_equal(split.images, np.rot90(task.splits[name].images, turns, axes=(1, 2)))

    def test_batches_and_fingerprint_are_those_of_the_same_examples_in_memory(self):
        tasks = vary(images(dtype="float32"), ROTATED, 3)
        in_memory = [
            {name: Split(split.images.copy(), split.labels, split.scale) for name, split in task.splits.items()}
            for task in tasks
        ]
        copies = TaskStream(
            "a", [dataclasses.replace(task, splits=each) for task, each in zip(tasks, in_memory, strict=True)]
        )
        assert tasks.fingerprint() == copies.fingerprint()
        for one, other in zip(tasks, copies, strict=True):
            for resident in (True, False):
                batches = [next(iter(task.training_batches(3, resident).single_batches())) for task in (one, other)]
                for a, b in zip(*batches, strict=True):
                    np.testing.assert_array_equal(a, b)
            for a, b in zip(next(iter(one.test)), next(iter(other.test)), strict=True):
                np.testing.assert_array_equal(a, b)
            taken = one.splits["train"].take(np.array([3, 1]))
            np.testing.assert_array_equal(taken.images, other.splits["train"].images[[3, 1]])

    @pytest.mark.parametrize("scenario", [PERMUTED, ROTATED])
    def test_the_images_of_most_tasks_take_no_memory(self, scenario):
        task = images((32, 32), examples=2000)
        size = task.splits["train"].images.nbytes
        tracemalloc.start()
        try:
            stream = vary(task, scenario, 20)
            stream.fingerprint()
            assert tracemalloc.get_traced_memory()[1] < 6 * size
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("shape", "arguments", "message"),
        [
            ((4,), {"scenario": ROTATED}, r"`scenario`: expected split or permuted for examples of shape \(4,\)"),
            ((4, 4), {"scenario": "split"}, "`scenario`: expected permuted or rotated"),
            ((4, 4), {"scenario": PERMUTED, "num_tasks": 0}, "`num_tasks`: expected 1 to 360"),
            ((4, 4), {"scenario": PERMUTED, "num_tasks": 361}, "`num_tasks`: expected 1 to 360"),
            ((4, 4), {"scenario": PERMUTED, "task_order": "2,2"}, "`task_order`: expected natural, .* permuted-1, "),
            (
                (4, 4),
                {"scenario": PERMUTED, "task_order": "2,3", "num_tasks": 3},
                "`num_tasks`: expected at most the 2",
            ),
        ],
    )
    def test_refused(self, shape, arguments, message):
        with pytest.raises(ArgumentError, match=message) as caught:
            vary(images(shape), **arguments)
        assert "\n" not in str(caught.value)

    def test_without_validation_examples(self):
        stream = tp.tasks.load("digits", scenario=ROTATED, num_tasks=2, validation_fraction=0)
        assert [len(task.splits["validation"]) for task in stream] == [0, 0]
        assert stream[1].splits["validation"].images.shape == (0, 8, 8, 1)


class TestLoad:
    def test_all_tasks_have_all_classes(self):
        stream = tp.tasks.load("digits", scenario=PERMUTED, num_tasks=3, class_order="4,3,2", seed=2)
        assert [(task.name, task.class_names) for task in stream] == [
            (f"permuted-{number}", ("4", "3", "2")) for number in (1, 2, 3)
        ]
        assert stream.name == "digits"
        for task in stream:
            assert set(task.splits["test"].y) == {0, 1, 2}

    def test_folders(self, tmp_path):
        for task, classes in {"b": ("x", "y"), "a": ("x", "z")}.items():
            for number, name in enumerate(classes):
                (tmp_path / task / name).mkdir(parents=True)
                for index in range(8):
                    image = np.random.default_rng([number, index]).integers(0, 255, (5, 5), dtype=np.uint8)
                    Image.fromarray(image).save(tmp_path / task / name / f"{index}.png")
        load = lambda **kwargs: tp.tasks.load(str(tmp_path), batch_size=2, **kwargs)  # noqa: E731
        assert [task.name for task in load(task_order="b,a")] == ["b", "a"]
        assert [task.name for task in load(task_order="2,1", num_tasks=1)] == ["b"]
        for arguments, message in (
            ({"class_order": "shuffled"}, "`class_order`: expected natural, as the folders in"),
            ({"scenario": "new"}, "`scenario`: expected one of split, permuted, rotated"),
            ({"task_order": "b,c"}, "`task_order`: expected natural, shuffled, or different ones of a, b"),
            ({"task_order": "b", "num_tasks": 2}, "`num_tasks`: expected at most the 1 tasks of task_order"),
        ):
            with pytest.raises(ArgumentError, match=message):
                load(**arguments)
        stream = load(scenario=PERMUTED, num_tasks=3, seed=1)
        assert [task.name for task in stream] == ["a-permuted-1", "b-permuted-1", "a-permuted-2"]
        alone = vary(load(seed=1)[0], PERMUTED, 2, seed=1)
        for task, expected in ((stream[0], alone[0]), (stream[2], alone[1])):
            np.testing.assert_array_equal(task.splits["train"].images, expected.splits["train"].images)
        assert len(load(scenario=PERMUTED)) == 20
        assert [task.name for task in load(scenario=PERMUTED, task_order="b-permuted-3")] == ["b-permuted-3"]
        (tmp_path / "a").rename(tmp_path.parent / "a")
        assert [task.name for task in load(scenario=PERMUTED, num_tasks=2)] == ["permuted-1", "permuted-2"]

    def test_a_run(self, tmp_path):
        flags = ["--scenario=permuted", "--task_order=2,1", "--class_order=shuffled", "--num_tasks=2", "--seed=3"]
        flags += ["--train_epochs=1", "--retrain_epochs=1", "--prune_rounds=1", "--jit=off", "--noexport"]
        done = launch(*flags, f"--output_dir={tmp_path}")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "results.json").read_text())
        assert [task["name"] for task in results["tasks"]] == ["permuted-2", "permuted-1"]
        expected = tp.tasks.load(
            "digits", scenario=PERMUTED, task_order="2,1", class_order="shuffled", seed=3, batch_size=32
        )
        assert results["data_fingerprint"] == expected.fingerprint()

    def test_contradicting_flags(self):
        with pytest.raises(ArgumentError, match="`classes_per_task`: expected all with scenario=rotated"):
            Config(scenario=ROTATED, classes_per_task=5)
