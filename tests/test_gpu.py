"""Training on a GPU, with resident and streamed data, with and without XLA, changes no bit of committed tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="needs an NVIDIA GPU")

FREEZE = """
import sys
import keras
import numpy as np
import tensorflow as tf
import tf_packnet as tp

if not tf.config.list_physical_devices("GPU"):
    sys.exit("TensorFlow sees no GPU")
from tests.conftest import blobs, compile_model, make_convnet, make_mlp  # hides GPUs, but too late
from tf_packnet import lifecycle

make_model, shape = {"mlp": (make_mlp, (6,)), "conv": (make_convnet, (8, 8, 1))}[sys.argv[1]]
jit, xla = {"off": (False, "off"), "auto": ("auto", "step")}[sys.argv[2]]
packed = compile_model(tp.pack(make_model()), jit_compile=jit)
assert packed.xla == xla, packed.xla
assert all("GPU" in variable.value.device for variable in packed.variables)
kept = {}
for task in (1, 2, 3):
    x, y = blobs(task, shape)
    kinds = {"resident": tp.tasks.ResidentBatches, "streamed": tp.tasks.StreamedBatches}
    data = kinds[sys.argv[3]](x, y, 1.0, batch_size=16, seed=task)
    packed.begin_task()
    packed.fit(data, epochs=3, verbose=0)
    callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 3, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(data, epochs=4, verbose=0, callbacks=callbacks)
    owners = packed.owner_maps()
    kernels = {path: np.array(weight.value()) for path, weight in lifecycle.masked_weights(packed).items()}
    for path, (places, values) in kept.items():
        assert np.array_equal(kernels[path][places], values), path
    kept = {path: (owner > 0, kernels[path][owner > 0]) for path, owner in owners.items()}
    shares = [(owner == 0).mean() for owner in owners.values()]
    assert np.allclose(shares, 0.5 ** (task / 3), atol=0.02), shares
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if os.environ["TEST_GPUS"]:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["TEST_GPUS"]
    environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # other processes may use the GPU
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize(
    ("model", "jit", "data"),
    [
        ("mlp", "auto", "resident"),
        ("mlp", "off", "streamed"),
        ("conv", "auto", "streamed"),
        ("conv", "off", "resident"),
    ],
)
def test_committed_tasks_keep_their_bits(model, jit, data):
    done = run("-c", FREEZE, model, jit, data)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("strategy", ["auto", "mirrored"])
def test_the_main_job(tmp_path, strategy):
    flags = ("--num_tasks=2", "--train_epochs=4", "--retrain_epochs=4", "--prune_rounds=2", "--final_prune=0.5")
    done = run(str(ROOT / "launch/main.py"), *flags, f"--strategy={strategy}", f"--output_dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["environment"]["device"] in done.stderr
    assert results["environment"]["device"] != "CPU"
    assert results["average_accuracy"] > 0.9
    noise = [line for line in done.stderr.splitlines() if not line.startswith(("task ", "XLA "))]
    assert noise == []


TWO_LOGICAL = """
import contextlib
import keras
import numpy as np
import tensorflow as tf

gpu = tf.config.list_physical_devices("GPU")[0]
tf.config.set_visible_devices([gpu], "GPU")
tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=2048)] * 2)
import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tf_packnet.training import replicas

strategy = tf.distribute.MirroredStrategy(["GPU:0", "GPU:1"], tf.distribute.HierarchicalCopyAllReduce())
for make_model, shape in ((make_mlp, (6,)), (lambda: make_convnet(0.0), (8, 8, 1))):
    for kind in (tp.tasks.ResidentBatches, tp.tasks.StreamedBatches):
        losses = []
        for scope in (contextlib.nullcontext(), strategy.scope()):
            keras.utils.set_random_seed(0)
            with scope:
                packed = compile_model(tp.pack(make_model()), keras.optimizers.SGD(0.01), "auto")
            assert packed.xla == "step"
            kept = {}
            for task in (1, 2):
                x, y = blobs(task, shape)
                data = kind(x, y, 1.0, batch_size=16, seed=task)
                packed.begin_task()
                losses.append(packed.fit(data, epochs=3, verbose=0).history["loss"])
                callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
                packed.fit(data, epochs=4, verbose=0, callbacks=callbacks)
                kept = kept or packed.owner_maps()
            replicas.check_equal(packed)
            for path, owner in packed.owner_maps().items():
                assert np.array_equal(owner == 1, kept[path] == 1), path
        np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-3)
"""


def test_two_logical_gpus_compute_what_one_does():
    done = run("-c", TWO_LOGICAL)
    assert done.returncode == 0, done.stderr[-3000:]


COMPACT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from tf_packnet.export import compact_model
from tf_packnet.export.saved_model import write_saved_model

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(256)])
rng = np.random.default_rng(0)
for variable in model.weights:
    variable.assign(rng.normal(size=variable.shape) * (rng.random(variable.shape) < 0.05))
x = rng.normal(size=(8, 64)).astype("float32")
outputs = {}
for sparse in (False, True):
    write_saved_model(compact_model(model, sparse=sparse), f"{sys.argv[1]}/{sparse}")
    loaded = tf.saved_model.load(f"{sys.argv[1]}/{sparse}")
    outputs[sparse] = loaded.serve(x)
assert len(loaded.sparse_weights) == 1
np.testing.assert_allclose(outputs[True], outputs[False], rtol=1e-5, atol=1e-5)
assert "GPU" in outputs[True].device
"""


def test_a_compact_file_predicts_on_a_gpu(tmp_path):
    done = run("-c", COMPACT, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
