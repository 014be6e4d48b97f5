import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_packnet as tp
from tf_packnet.errors import ArgumentError
from tf_packnet.tasks import ResidentBatches, Split, StreamedBatches, sources, split_into_tasks
from tf_packnet.tasks.sources import check_name


def numbered(per_class=10, classes=6):
    """Distinct examples: each image is its own index."""
    count = per_class * classes
    return Split(np.arange(count).reshape(-1, 1), np.arange(count) % classes)


def make_stream(**kwargs):
    arguments = {"classes_per_task": 2, "batch_size": 4, **kwargs}
    return split_into_tasks("numbers", numbered(), numbered(5), list("abcdef"), **arguments)


@given(st.integers(2, 6), st.floats(0, 0.9), st.integers(0, 1000))
def test_every_example_is_in_one_split_of_one_task(classes_per_task, fraction, seed):
    train = numbered()
    stream = split_into_tasks(
        "numbers", train, numbered(5), list("abcdef"), classes_per_task, None, fraction, batch_size=1, seed=seed
    )
    seen = [int(i) for task in stream for split in ("train", "validation") for i in task.splits[split].images[:, 0]]
    taken = classes_per_task * len(stream)
    assert sorted(seen) == [i for i in range(60) if i % 6 < taken]
    for task in stream:
        for split in task.splits.values():
            first = (task.number - 1) * classes_per_task
            np.testing.assert_array_equal(split.labels, split.images[:, 0] % 6 - first)
        assert len(task.splits["validation"]) == classes_per_task * round(10 * fraction)


def test_names_and_numbers():
    stream = make_stream()
    assert [(task.number, task.name, task.class_names) for task in stream] == [
        (1, "a-b", ("a", "b")),
        (2, "c-d", ("c", "d")),
        (3, "e-f", ("e", "f")),
    ]
    assert (len(stream), stream.num_classes, stream.input_shape, stream[1].num_classes) == (3, 2, (1,), 2)


def test_batches_are_full_shuffled_and_reproducible():
    (task, *_) = make_stream(validation_fraction=0.1)
    batches = task.train
    epochs = [[x.numpy().ravel().tolist() for x, _ in batches] for _ in range(2)]
    assert all(len(batch) == 4 for epoch in epochs for batch in epoch)
    assert len(epochs[0]) == 18 // 4
    assert epochs[0] != epochs[1]
    again = make_stream(validation_fraction=0.1)[0].train
    assert [[x.numpy().ravel().tolist() for x, _ in again] for _ in range(2)] == epochs


def test_training_batches_have_the_examples_of_the_task():
    (_, task, _) = make_stream()
    for resident, kind in ((True, ResidentBatches), (False, StreamedBatches)):
        batches = task.training_batches(5, resident)
        assert type(batches) is kind
        assert (batches.seed, batches.batch_size, batches.steps) == (5, 4, len(task.splits["train"]) // 4)
        assert batches.room == max(len(each.splits["train"]) for each in make_stream())
        np.testing.assert_array_equal(batches.images, task.splits["train"].images)
        np.testing.assert_array_equal(batches.labels, task.splits["train"].y)
        assert task.training_batches(5, resident, steps_per_call=3).steps_per_call == 3


def test_labels_stay_with_their_images():
    (_, task, _) = make_stream()
    for x, y in task.train:
        np.testing.assert_array_equal(x.numpy().ravel() % 6 - 2, y)


def test_evaluation_batches_are_in_order():
    (task, *_) = make_stream()
    x = np.concatenate([x.numpy() for x, _ in task.evaluation_batches("test")])
    np.testing.assert_array_equal(x, task.splits["test"].x)


def test_digits():
    stream = tp.tasks.load("digits", classes_per_task=2, seed=1)
    assert [task.name for task in stream] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    assert stream.input_shape == (8, 8, 1)
    total = sum(len(split) for task in stream for split in task.splits.values())
    assert total == 1797
    for task in stream:
        for split in task.splits.values():
            assert split.x.dtype == np.float32
            assert 0 <= split.x.min() < 0.1 < 0.9 < split.x.max() <= 1
            assert set(split.y) == {0, 1}


def test_the_test_split_does_not_depend_on_the_seed():
    one, other = (tp.tasks.load("digits", seed=seed) for seed in (0, 1))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.splits["test"].images, b.splits["test"].images)
        assert not np.array_equal(a.splits["validation"].images, b.splits["validation"].images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_tasks": 4},
            r"`num_tasks`: expected at most 3 \(numbers has 6 classes, 2 per task\). Received: num_tasks=4",
        ),
        ({"classes_per_task": 7}, "`classes_per_task`: expected at most the 6 classes of numbers"),
        ({"num_tasks": 0}, "`num_tasks`: expected at least 1"),
        ({"classes_per_task": 0}, "`classes_per_task`: expected at least 1"),
        ({"validation_fraction": 1.0}, "`validation_fraction`: expected a fraction from 0 up to"),
        ({"batch_size": 0}, "`batch_size`: expected at least 1"),
        ({"batch_size": 19}, r"at most the 18 training examples of task 1 \(a-b\). Received: batch_size=19"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        make_stream(**arguments)


def test_unknown_data_sets_get_a_suggestion():
    with pytest.raises(ArgumentError, match="did you mean .*mnist.*Received: dataset='mnits'"):
        check_name("mnits")


def test_a_data_set_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="an image classification data set, with the features image and label"):
        tp.tasks.load("imdb_reviews", data_dir=str(tmp_path))


def test_without_a_network_the_error_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "is_online", lambda: False)
    expected = f"on disk in {tmp_path}/fashion_mnist/.*cannot be reached.*tfds.load.'fashion_mnist'.*--data_dir"
    with pytest.raises(ArgumentError, match=expected):
        tp.tasks.load("fashion_mnist", data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_failed_download_gives_the_reason(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def broken(self, *args, **kwargs):
        print("Downloading and preparing")
        raise OSError("checksum mismatch\nand more")

    monkeypatch.setattr(sources, "is_online", lambda: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", broken)
    with pytest.raises(ArgumentError, match=r"\(checksum mismatch\). Where there is a network, run"):
        tp.tasks.load("fashion_mnist", data_dir=str(tmp_path))


def test_is_online(monkeypatch):
    def refused(*args):
        raise OSError("Name or service not known")

    monkeypatch.setattr(sources.socket, "create_connection", refused)
    monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
    assert not sources.is_online()
    monkeypatch.setattr(sources.urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert sources.is_online()


@pytest.mark.parametrize("name", ["mnist:9.9.9", "mnist/no_such_config"])
def test_unknown_versions_and_configs(name):
    with pytest.raises(ArgumentError, match="a data set that TFDS can build"):
        tp.tasks.load(name)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "first"),
    [("mnist", (28, 28, 1), 60_000, 10_000, "0-1"), ("cifar10", (32, 32, 3), 50_000, 10_000, "airplane-automobile")],
)
def test_real_data(name, shape, train, test, first, request):
    request.getfixturevalue(f"real_{name}")
    stream = tp.tasks.load(name)
    assert stream.input_shape == shape
    assert stream[0].name == first
    assert sum(len(task.splits["test"]) for task in stream) == test
    assert sum(len(task.splits[split]) for task in stream for split in ("train", "validation")) == train
    images = stream[4].splits["test"].x
    assert images.max() == 1
    assert images.min() == 0


@pytest.fixture(scope="module")
def make_colored(tmp_path_factory):
    """A function that makes a TFDS data set with a given number of files."""
    import tensorflow_datasets as tfds

    class Colored(tfds.core.GeneratorBasedBuilder):
        """Random pictures."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("colored")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(4, 5, 3)),
                "label": tfds.features.ClassLabel(names=["cold", "warm", "hot"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(1203), "test": self._generate_examples(7)}

        def _generate_examples(self, examples):
            rng = np.random.default_rng(examples)
            for number in range(examples):
                image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                yield number, {"id": str(number), "image": image, "label": number % 3}

    def make(files):
        builder = Colored(data_dir=tmp_path_factory.mktemp("data"))
        download = tfds.download.DownloadConfig(num_shards=files)
        builder.download_and_prepare(download_config=download)
        assert len(builder.info.splits["train"].filepaths) == files
        return builder

    return make


@pytest.mark.parametrize("files", [1, 2])
def test_records_are_read_like_by_tfds(make_colored, files):
    import tensorflow_datasets as tfds

    builder = make_colored(files)
    for split in ("train", "test"):
        expected = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
        actual = sources._read(builder, split)
        for one, other in ((actual.images, expected["image"]), (actual.labels, expected["label"])):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
