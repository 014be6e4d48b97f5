"""Helpers of all tests: small models, small data sets, and fixtures that skip tests if real data sets are missing."""

import gc
import os
import subprocess
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
# Tests that compare bits run on CPU, because results on GPUs vary between runs. Tests for GPUs are in test_gpu.py.
os.environ.setdefault("TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", ""))  # pytest-xdist imports this file twice
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Processes that tests start import this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from tests import forked  # noqa: E402


def pytest_collection_finish(session):
    """Takes the objects of TensorFlow out of garbage collection, which would search them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def mlp():
    """A plain network with 6 inputs, two hidden layers and 2 logits."""
    return make_mlp()


def make_mlp(**dense) -> keras.Model:
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(12, activation="relu", name="dense_1", **dense)(inputs)
    hidden = keras.layers.Dense(10, activation="relu", name="dense_2", **dense)(hidden)
    return keras.Model(inputs, keras.layers.Dense(2, name="head", dtype="float32")(hidden), name="mlp")


def make_convnet(dropout: float = 0.1) -> keras.Model:
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv_1")(inputs)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(8, activation="relu", name="dense_1")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head", dtype="float32")(x), name="convnet")


def blobs(seed: int, shape=(6,), examples: int = 64, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Create a small classification problem with one cloud of points per class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, examples)
    centres = rng.normal(size=(classes, *shape))
    return (centres[y] + 0.3 * rng.normal(size=(examples, *shape))).astype("float32"), y.astype("int32")


def compile_model(model, optimizer="adam", jit_compile=False, **kwargs):
    """Without XLA, which takes three times as long to compile a small model as TensorFlow to trace and train it.

    Tests of what XLA comes to ask for "auto", which is what users have by default.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=jit_compile, **kwargs)
    return model


def launch(*arguments: str, cwd=ROOT, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run the launcher in a separate process."""
    environment = {**os.environ, "COLUMNS": "120"}
    return forked.run(ROOT / "launch/main.py", arguments, cwd, timeout, environment)


def is_prepared(name: str) -> bool:
    import tensorflow_datasets as tfds

    return tfds.builder(name).is_prepared()


@pytest.fixture
def real_mnist():
    if not is_prepared("mnist"):
        pytest.skip("MNIST is not prepared for TFDS on this machine")


@pytest.fixture
def real_cifar10():
    if not is_prepared("cifar10"):
        pytest.skip("CIFAR-10 is not prepared for TFDS on this machine")
