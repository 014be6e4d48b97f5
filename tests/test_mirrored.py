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

LEARN = """
import json, sys
from pathlib import Path
import keras
import numpy as np
from tf_packnet import lifecycle
from tf_packnet.runs import learning, runner, setup
from tf_packnet.runs.config import Config

mirrored = sys.argv[1] == "mirrored"
config = Config(strategy=sys.argv[1], logical_devices=2 if mirrored else None, jit="off", num_tasks=2,
                train_epochs=4, retrain_epochs=4, prune_rounds=2, final_prune=0.5)
strategy = setup.choose_strategy(config)
keras.utils.set_random_seed(config.seed)
setup.make_deterministic("off")
stream = learning.load_stream(config)
steps = []

class Steps(keras.callbacks.Callback):
    def on_train_end(self, logs=None):
        steps.append(int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)))

with strategy.scope():
    approach = setup.build_approach(
        setup.build_model(config, stream),
        config, stream, "off", False, Path(sys.argv[2]), lambda task, stage: [Steps()]
    )
    for task in stream:
        approach.learn(task)
    maps = 0
    for weight in lifecycle.masked_weights(approach.packed).values():
        for replica in strategy.experimental_local_results(weight.owner.value):
            np.testing.assert_array_equal(replica.numpy(), weight.owner_map())
            maps += 1
    owned = [int((owner == 2).sum()) for owner in approach.packed.owner_maps().values()]
    print(json.dumps({"replicas": strategy.num_replicas_in_sync, "maps": maps, "steps": steps, "owned": owned,
                      "accuracy": [approach.accuracy(task) for task in stream]}))
"""


def learn(strategy, folder):
    arguments = [sys.executable, "-c", LEARN, strategy, str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_two_replicas_give_the_same_results_as_one_device(tmp_path):
    one, two = (learn(strategy, tmp_path / strategy) for strategy in ("none", "mirrored"))
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert (one["maps"], two["maps"]) == (2, 4)  # the same map on every replica, of two kernels
    assert two["steps"] == one["steps"]
    assert two["owned"] == one["owned"]
    np.testing.assert_allclose(two["accuracy"], one["accuracy"], atol=0.03)


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
    assert [packed.xla for packed in packs] == ["step", "step"]
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
