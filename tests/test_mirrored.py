"""`MirroredStrategy` on one device, and on two logical CPU devices, which need a separate process."""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import ROOT, blobs, compile_model, launch, make_mlp


def test_a_strategy_with_one_device_gives_the_same_results():
    packs = []
    for scope in (
        contextlib.nullcontext(),
        tf.distribute.MirroredStrategy(tf.config.list_logical_devices()[-1:]).scope(),
    ):
        keras.utils.set_random_seed(1)
        with scope:
            packed = compile_model(tp.pack(make_mlp()), keras.optimizers.SGD(0.05, momentum=0.9), "auto")
        for task in (1, 2):
            x, y = blobs(task)
            data = tp.tasks.ResidentBatches(x, y, 1.0, batch_size=16, seed=task)
            packed.begin_task()
            packed.fit(data, epochs=2, verbose=0)
            callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
            packed.fit(data, epochs=2, verbose=0, callbacks=callbacks)
        packs.append(packed)
    assert packs[0].xla == packs[1].xla != "off"  # with op determinism, which a test may have set: "update"
    one, other = (packed.owner_maps() for packed in packs)
    assert all(np.array_equal(one[path], other[path]) for path in one)
    np.testing.assert_allclose(*(packed.predict(x, verbose=0) for packed in packs), rtol=1e-4, atol=1e-6)


def on_four_devices(folder, marker):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", marker]
    command += [f"--basetemp={folder}/four", str(ROOT / "tests/four_devices.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=without_xdist())
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def without_xdist():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def test_two_to_four_replicas(tmp_path):
    on_four_devices(tmp_path, "not slow")


@pytest.mark.slow
def test_two_to_four_replicas_of_many_kinds_of_models(tmp_path):
    on_four_devices(tmp_path, "slow")


def test_mirrored_on_one_device(tmp_path):
    done = launch(
        "--strategy=mirrored", "--num_tasks=1", "--train_epochs=1", f"--output_dir={tmp_path}/out", "--noexport"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/results.json").read_text())["environment"]["replicas"] == 1


def test_from_the_command_line(tmp_path):
    done = launch(
        *("--strategy=mirrored", "--logical_devices=2", "--num_tasks=2", "--train_epochs=2", "--retrain_epochs=2"),
        *("--prune_rounds=1", "--batch_size=16", "--noexport", f"--output_dir={tmp_path}/out"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["environment"]["replicas"] == 2
    assert results["average_accuracy"] > 0.8
    noise = [line for line in done.stderr.splitlines() if not line.startswith(("task ", "XLA "))]
    assert noise == []
