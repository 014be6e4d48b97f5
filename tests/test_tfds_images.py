"""Images of TFDS data sets that are resized, or stay on disk."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tf_packnet as tp
from tests.conftest import ROOT
from tf_packnet.prediction import Asked, predict
from tf_packnet.runs.config import Config
from tf_packnet.runs.data import load_stream

# The data sets of Mallya & Lazebnik (2018), and their classes.
FINE_GRAINED = {"cars196": 196, "oxford_flowers102": 102, "caltech_birds2011": 200}
CLASSES = ["cold", "warm", "hot"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that writes a data set, `names` by `sizes` (None: images of any size), and returns its data_dir."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """Random pictures."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("pictures")
        shape, splits, encoding = (None, None, 3), {}, "jpeg"

        def _info(self):
            features = {
                "box": tfds.features.BBoxFeature(),
                "image": tfds.features.Image(shape=self.shape, encoding_format=self.encoding),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(*split) for name, split in self.splits.items()}

        def _generate_examples(self, examples, has_labels=True):
            rng = np.random.default_rng(examples)
            for number in range(examples):
                height, width = (size or int(rng.integers(3, 20)) for size in self.shape[:2])
                image = rng.integers(0, 256, (height, width, self.shape[2]), dtype=np.uint8)
                box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
                label = number % 3 if has_labels else -1
                yield number, {"box": box, "image": image, "label": label}

    def make(splits, shape=(None, None, 3), encoding="jpeg", files=1):
        Pictures.shape, Pictures.splits, Pictures.encoding = shape, splits, encoding
        data_dir = tmp_path_factory.mktemp("data")
        builder = Pictures(data_dir=data_dir)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=files))
        return str(data_dir)

    return make


def load(data_dir, **kwargs):
    return tp.tasks.load("pictures", "all", data_dir=data_dir, batch_size=4, **kwargs)


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize(("shape", "encoding"), [((4, 5, 3), "jpeg"), ((4, 5, 1), "png")])
def test_on_disk_they_are_the_same(make, files, shape, encoding):
    data_dir = make({"train": (61,), "test": (7,)}, shape, encoding, files)
    memory, disk = (load(data_dir, on_disk=on_disk) for on_disk in (False, True))
    assert (memory[0].splits["train"].is_stored, disk[0].splits["train"].is_stored) == (False, True)
    assert memory.fingerprint() == disk.fingerprint()
    for split in memory[0].splits:
        np.testing.assert_array_equal(memory[0].splits[split].x, disk[0].splits[split].x)
        np.testing.assert_array_equal(memory[0].splits[split].y, disk[0].splits[split].y)


@pytest.mark.parametrize("files", [1, 3])
def test_images_of_any_size(make, files):
    data_dir = make({"train": (61,), "test": (7,)}, files=files)
    with pytest.raises(tp.ArgumentError, match="`image_size`: expected a size such as 224, as the images of pictures"):
        load(data_dir)
    memory, disk = (load(data_dir, on_disk=on_disk, image_size=(6, 8), resize="pad") for on_disk in (False, True))
    assert (memory.input_shape, memory[0].resize) == ((6, 8, 3), "pad")
    assert memory.fingerprint() == disk.fingerprint()
    config = Config(dataset="pictures", data_dir=data_dir, image_size="6x8", resize="pad", classes_per_task="all")
    assert load_stream(config).input_shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": (60,), "test": (9,), "validation": (6,)}, (54, 6, 9)),
        ({"train": (60,), "validation": (6,)}, (54, 6, 6)),
        ({"train": (60,), "test": (9, False), "validation": (6,)}, (54, 6, 6)),
        ({"train": (60,), "test": (9, False)}, (42, 6, 12)),
        ({"train": (60,), "unlabelled": (9,)}, (42, 6, 12)),
        ({"everything": (60,)}, (42, 6, 12)),
    ],
)
def test_splits(make, splits, sizes):
    for image_size in (None, 5):
        task = load(make(splits, shape=(4, 5, 3)), image_size=image_size)[0]
        assert tuple(len(task.splits[name]) for name in ("train", "validation", "test")) == sizes


def test_no_training_examples(make):
    with pytest.raises(tp.ArgumentError, match=r"a split of training examples, `train` \(this one has: one, other\)"):
        load(make({"one": (9,), "other": (9,)}), image_size=4)


@pytest.mark.parametrize(
    ("classes", "examples"),
    [({"eurosat": 10, "emnist-mnist": 10}, 300), pytest.param(FINE_GRAINED, 1500, marks=pytest.mark.slow)],
)
def test_mock_data(classes, examples):
    """Data sets as TFDS mocks them, which are not on disk."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=examples):
        name = ",".join(classes).replace("-", "/")
        stream = tp.tasks.load(name, image_size=8, validation_fraction=0.0, batch_size=8)
    assert {task.name: task.num_classes for task in stream} == classes
    assert stream.input_shape == (8, 8, 3)


def test_mock_data_of_their_own_size():
    """TFDS does not know how many examples there are."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=700):
        stream = tp.tasks.load("emnist/mnist", validation_fraction=0.0, batch_size=8)
    assert sum(len(task.splits["train"]) for task in stream) == 700


# The weights are random, as those of ImageNet have to be downloaded, and the network is smaller than the preset's.
FINE_GRAINED_RUN = """
import sys
import keras
import tensorflow_datasets as tfds
from tf_packnet.command_line.program import run_program

folder = sys.argv[1]
shape = (32, 32, 3)
network = keras.applications.MobileNet(shape, alpha=0.25, weights=None, include_top=False, pooling="avg")
network.save(f"{folder}/w.keras")
model = ["--model=keras.applications:MobileNet", '--model_args={"alpha": 0.25}', f"--weights={folder}/w.keras"]
flags = [*model, "--image_size=32", "--train_epochs=1", "--retrain_epochs=1", "--batch_size=128", "--jit=off"]
with tfds.testing.mock_data(num_examples=1500):
    sys.exit(run_program("run", ["run", "--flagfile=fine_grained", *flags, f"--output_dir={folder}/out"]))
"""


@pytest.mark.slow
def test_the_preset_fine_grained(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FINE_GRAINED_RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [task["name"] for task in results["tasks"]] == list(FINE_GRAINED)
    assert all((tmp_path / f"out/export/task_{number}/saved_model.pb").exists() for number in (1, 2, 3))
    for number in (1, 2):  # what a task can do when it is learned, it can do for ever
        assert {row[number - 1] for row in results["accuracy"][number - 1 :]} == {results["accuracy"][-1][number - 1]}
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / "bird.png")
    output = tmp_path / "predicted.json"
    predict(Asked(str(tmp_path / "out/pack.packnet"), (str(tmp_path / "bird.png"),), "3", "json", str(output)))
    assert json.loads(output.read_text())["task"] == "caltech_birds2011"


# The network is smaller than that of the preset.
SPLIT_CIFAR100_RUN = """
import sys
import tensorflow_datasets as tfds
from tf_packnet.command_line.program import run_program

folder = sys.argv[1]
flags = [f"--model={folder}/own.py:small", "--train_epochs=1", "--retrain_epochs=1", "--noexport"]
with tfds.testing.mock_data(num_examples=2000):
    sys.exit(run_program("run", ["run", "--flagfile=split_cifar100", *flags, f"--output_dir={folder}/out"]))
"""

SMALL = """
import keras
from keras import layers as L


def small(input_shape, outputs):
    x = inputs = keras.Input(input_shape)
    for filters in (8, 16):
        x = L.MaxPooling2D()(L.Conv2D(filters, 3, activation="relu")(x))
    return keras.Model(inputs, L.Dense(outputs)(L.Flatten()(x)))
"""


@pytest.mark.slow
def test_the_preset_split_cifar100(tmp_path):
    (tmp_path / "own.py").write_text(SMALL)
    command = [sys.executable, "-c", SPLIT_CIFAR100_RUN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["complete"]
    assert [len(task["class_names"]) for task in results["tasks"]] == [5] * 20
    assert [len(row) for row in results["accuracy"]] == list(range(1, 21))
    assert [len(row) for row in results["accuracy_matrix"]] == [20] * 21  # the first row is before all tasks
    for number in range(1, 20):
        assert {row[number - 1] for row in results["accuracy"][number - 1 :]} == {results["accuracy"][-1][number - 1]}
    assert results["forgetting"] == results["backward_transfer"] == 0
    assert results["capacity_used"] == pytest.approx(0.8, abs=1e-3)  # --final_prune=0.2
    assert sum(results["weights"]["owned"]) == round(results["capacity_used"] * results["weights"]["prunable"])
