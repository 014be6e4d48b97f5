"""Runs on images that stay on disk: bit-identical results, resuming, and memory."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, launch
from tests.test_datasets import write
from tf_packnet.system import memory

pytestmark = pytest.mark.slow

NETWORK = """
import keras

def network(shape, classes):
    x = image = keras.Input(shape)
    for layer in (keras.layers.AveragePooling2D(16), keras.layers.Flatten(), keras.layers.Dense(8, "relu")):
        x = layer(x)
    return keras.Model(image, keras.layers.Dense(classes)(x))
"""
FLAGS = ["--train_epochs=2", "--retrain_epochs=2", "--prune_rounds=1"]


def test_a_run_has_the_same_bits_and_resumes(tmp_path):
    for number, name in enumerate(["birds", "cars"]):
        write(tmp_path / name, ["a", "b", "c"][: 2 + number], number=30)
    flags = [f"--dataset={tmp_path}/birds,digits,{tmp_path}/cars", "--image_size=12", "--batch_size=4", *FLAGS]
    folders = {}
    for residency in ("stream", "disk"):
        folders[residency] = tmp_path / residency
        done = launch(*flags, f"--data_residency={residency}", f"--output_dir={folders[residency]}", "--noexport")
        assert done.returncode == 0, done.stderr
    stages = {name: sorted(path.name for path in (folder / "stages").iterdir()) for name, folder in folders.items()}
    assert stages["disk"] == stages["stream"]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders.values()]
    for key in ("tasks", "accuracy", "validation_accuracy", "data_fingerprint", "weights"):
        assert results[0][key] == results[1][key]
    for mask in (folders["stream"] / "masks").iterdir():
        assert mask.read_bytes() == (folders["disk"] / "masks" / mask.name).read_bytes()
    # Stages that were computed with data in memory are read.
    stored = f"--stages_dir={folders['stream'] / 'stages'}"
    done = launch(*flags, "--data_residency=disk", f"--output_dir={tmp_path / 'again'}", "--noexport", stored)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert all(stage["reused"] for stage in again["seconds"])


def test_memory_stays_flat(tmp_path):
    """Images that take ten times the memory that is left beside TensorFlow."""
    (tmp_path / "network.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    examples, side, left = 8192, 256, 150 * 2**20
    for shade, name in enumerate("ab"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(examples // 2):
            file = tmp_path / "data" / name / f"{number}.jpg"
            if number < 16:
                pixels = rng.integers(0, 200, (16, 16, 3)) + 50 * shade
                Image.fromarray(pixels.astype(np.uint8)).resize((side, side)).save(file)
            else:
                os.link(file.with_name(f"{number % 16}.jpg"), file)
    assert examples * side * side * 3 >= 10 * left
    limit = memory.DATA + left
    flags = [f"--dataset={tmp_path / 'data'}", f"--model={tmp_path / 'network.py'}:network", *FLAGS, "--noexport"]
    done = subprocess.run(
        [sys.executable, ROOT / "launch/main.py", *flags, f"--output_dir={tmp_path / 'out'}"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
