"""A run of the launcher from end to end, on the embedded digits."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tf_packnet as tp
from tests.conftest import ROOT, launch
from tf_packnet.system import files
from tf_packnet.training import acceleration

FLAGS = ("--train_epochs=4", "--retrain_epochs=4", "--prune_rounds=2", "--final_prune=0.5", "--num_tasks=3", "--seed=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run") / "out"
    done = launch(*FLAGS, f"--output_dir={root}")
    assert done.returncode == 0, done.stderr
    return root, done, json.loads((root / "results.json").read_text())


def test_it_prints_the_results_and_the_paths(run):
    root, done, results = run
    assert f"{results['average_accuracy']:.4f}" in done.stdout
    assert "Free weights  50.0" in done.stdout
    transfer = f"(backward transfer +0.0000  forward transfer {results['forward_transfer']:+.4f})"
    assert f"Forgetting    0.0000  {transfer}" in done.stdout
    assert f"tensorboard --logdir {root / 'tensorboard'}" in done.stdout.replace("\n", "")
    assert "Traceback" not in done.stderr
    noise = [line for line in done.stderr.splitlines() if not line.startswith(("task ", "XLA "))]
    assert noise == []


def test_results(run):
    _, _, results = run
    assert results["complete"] is True
    assert results["config"]["final_prune"] == 0.5
    assert [len(row) for row in results["accuracy"]] == [1, 2, 3]
    assert results["average_accuracy"] == pytest.approx(np.mean(results["accuracy"][-1]))
    assert results["average_accuracy"] > 0.9
    for row in results["accuracy"]:  # no accuracy ever changes
        assert row == [results["accuracy"][i][i] for i in range(len(row))]
    assert [row[:number] for number, row in enumerate(results["accuracy_matrix"])] == [[], *results["accuracy"]]
    assert [len(row) for row in results["accuracy_matrix"]] == [3] * 4
    assert results["free_fraction"]["overall"] == pytest.approx(0.5, abs=1e-4)
    assert set(results["free_fraction"]["layers"]) == {"dense_1/kernel", "dense_2/kernel"}
    assert [(s["task"], s["stage"]) for s in results["seconds"]] == [
        (task, stage) for task in (1, 2, 3) for stage in ("train", "prune+retrain")
    ]
    assert set(results["other_seconds"]) == {"load", "evaluate", "store", "save"}
    assert results["environment"]["packages"]["tensorflow"]
    assert sum(results["weights"]["owned"]) == results["weights"]["prunable"] - round(
        results["free_fraction"]["overall"] * results["weights"]["prunable"]
    )


def test_the_git_commit_is_recorded(run):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert run[2]["environment"]["git_commit"] == head.stdout.strip()


def test_owner_maps(run):
    root, _, results = run
    r = 0.5 ** (1 / 3)
    free = {"dense_1/kernel": 64 * 256, "dense_2/kernel": 256 * 256}
    for number in (1, 2, 3):
        maps = tp.load_owner_maps(root / f"masks/task_{number}.npz")
        for path, owner in maps.items():
            z = 1 - (1 - r) ** (1 / 2)
            kept = round(free[path] * (1 - z) ** 2)
            assert int((owner == number).sum()) == kept == results["weights"]["owned_by_layer"][path][number - 1]
            free[path] -= kept


def test_exports_serve_the_packs_logits(run):
    import keras
    import tensorflow as tf

    root, _, results = run
    packed = keras.models.load_model(root / "pack.keras")
    stream = tp.tasks.load("digits", num_tasks=3, batch_size=32, seed=1)
    for task in stream:
        loaded = tf.saved_model.load(str(root / f"export/task_{task.number}"))
        served = loaded.serve(task.splits["test"].x).numpy()
        packed.select_task(task.name)
        np.testing.assert_allclose(served, packed.predict(task.splits["test"].x, verbose=0), rtol=1e-5, atol=1e-6)
        accuracy = np.mean(served.argmax(1) == task.splits["test"].y)
        assert accuracy == pytest.approx(results["accuracy"][-1][task.number - 1])


def test_export_report(run):
    root, _, results = run
    rows = json.loads((root / "export/report.json").read_text())["tasks"]
    assert [row["name"] for row in rows] == [task["name"] for task in results["tasks"]]
    for number, row in enumerate(rows, start=1):
        on_disk = sum(path.stat().st_size for path in (root / f"export/task_{number}").rglob("*") if path.is_file())
        assert row["bytes"]["exported"] == on_disk < row["bytes"]["dense"]
        assert row["weights"]["exported"] < row["weights"]["dense"]
        assert row["latency"].keys() == {"1", "256"}
        assert min(row["latency"].values()) > 0


def test_the_pack_file_computes_the_same_as_the_keras_file(run):
    import keras

    root, _, results = run
    loaded, kept = tp.load_pack(root / "pack.packnet"), keras.models.load_model(root / "pack.keras")
    contents = tp.read_contents(root / "pack.packnet")
    stream = tp.tasks.load("digits", num_tasks=3, batch_size=32, seed=1)
    for task, found in zip(stream, contents.tasks, strict=True):
        for packed in (loaded, kept):
            packed.select_task(task.name)
        x = task.splits["test"].x
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), kept.predict(x, verbose=0))
        assert found.accuracy == results["accuracy"][-1][task.number - 1]


def events(path):
    accumulator = EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(accumulator, tag):
    import tensorflow as tf

    return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)]


def test_tensorboard_curves(run):
    root, _, results = run
    for number, name in enumerate(["0-1", "2-3", "4-5"], start=1):
        task = events(root / f"tensorboard/task_{number}_{name}")
        for tag in ("loss/train", "loss/validation", "accuracy/train", "accuracy/validation"):
            assert [step for step, _ in scalars(task, tag)] == list(range(1, 9))  # both stages on one axis
        sparsity = [value for _, value in scalars(task, "sparsity")]
        z = 1 - (1 - 0.5 ** (1 / 3)) ** (1 / 2)
        tested = scalars(task, "accuracy/test_after_n_tasks")
        assert [step for step, _ in tested] == list(range(number, 4))
        np.testing.assert_allclose([score for _, score in tested], results["accuracy"][-1][number - 1], rtol=1e-6)
        expected = [0] * 4 + [z] * 2 + [1 - (1 - z) ** 2] * 2
        np.testing.assert_allclose(sparsity, expected, atol=1e-3)


def test_tensorboard_pack(run):
    root, _, results = run
    pack = events(root / "tensorboard/pack")
    overall = scalars(pack, "free_share/overall")
    assert [step for step, _ in overall] == [0, 1, 2, 3]
    np.testing.assert_allclose([v for _, v in overall], [1, *(f["overall"] for f in results["free_fraction_by_task"])])
    images = [tag for tag in pack.Tags()["tensors"] if tag.startswith("owner_map/")]
    assert sorted(images) == ["owner_map/dense_1/kernel", "owner_map/dense_2/kernel"]
    assert [e.step for e in pack.Tensors(images[0])] == [1, 2, 3]
    for name in ("learning_accuracy", "forgetting", "backward_transfer", "forward_transfer", "capacity_used"):
        points = scalars(pack, f"measures/{name}")
        assert [step for step, _ in points] == ([2, 3] if "transfer" in name or name == "forgetting" else [1, 2, 3])
        assert points[-1][1] == pytest.approx(results[name])


def test_tensorboard_hyperparameters(run):
    from tensorboard.plugins.hparams import plugin_data_pb2

    root, _, results = run
    board = events(root / "tensorboard")
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    flags = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert flags["final_prune"].number_value == 0.5
    no_effect = {"data_dir", "output_dir", "on_corruption", "max_bytes", "hosts", "host_index"}
    assert set(flags) == set(results["config"]) - no_effect
    for name in ("average_accuracy", "learning_accuracy", "forgetting", "forward_transfer", "capacity_used"):
        assert scalars(board, f"score/{name}") == [(3, pytest.approx(results[name]))]


def test_the_same_command_again_computes_nothing(run):
    root, first, _ = run
    before = (root / "results.json").stat().st_mtime_ns
    again = launch(*FLAGS, f"--output_dir={root}")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "nothing to compute" in again.stderr
    assert (root / "results.json").stat().st_mtime_ns == before


def test_another_run_in_the_same_directory_is_refused(run):
    root, _, _ = run
    other = launch(*FLAGS, "--final_prune=0.6", f"--output_dir={root}")
    assert other.returncode == 2
    assert "has another run, with --final_prune=0.5" in other.stderr


def comparable(root):
    results = json.loads((root / "results.json").read_text())
    for key in ("seconds", "other_seconds", "environment", "checksum"):
        del results[key]
    del results["config"]["output_dir"]
    return results


CONVOLUTIONS = ("--model=conv", "--num_tasks=1", "--train_epochs=1", "--retrain_epochs=2")


def assert_same_pack(*paths):
    import keras

    packs = [keras.models.load_model(path) for path in paths]
    for one, two in zip(*(pack.variables for pack in packs), strict=True):
        if "seed_generator" not in one.path:  # each stage reseeds dropout, and Keras draws a new seed on loading
            np.testing.assert_array_equal(one, two)


# The killed run below covers XLA.
@pytest.mark.parametrize(
    "flags", [("--jit=off",), pytest.param(CONVOLUTIONS, marks=pytest.mark.slow)], ids=["no jit", "convolutions"]
)
def test_same_seed_same_bits(flags, tmp_path):
    for name in ("one", "two"):
        done = launch(*FLAGS, "--num_tasks=2", "--noexport", *flags, f"--output_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert comparable(tmp_path / "one") == comparable(tmp_path / "two")
    assert_same_pack(tmp_path / "one/pack.keras", tmp_path / "two/pack.keras")


@pytest.mark.slow
def test_the_fast_paths_agree_with_the_slow_plain_one_on_a_full_run(tmp_path):
    """With momentum: Adam would turn rounding errors of zero gradients into full steps."""
    preset = (f"--flagfile={ROOT / 'flags/presets/digits.flags'}", "--optimizer=momentum", "--learning_rate=0.05")
    logged = {}
    for name, flags in {"fast": (), "plain": ("--jit=off", "--data_residency=stream")}.items():
        done = launch(*preset, "--noexport", *flags, f"--output_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        logged[name] = done.stderr.splitlines()[0]
    assert logged == {
        "fast": "XLA compiles whole gradient steps; training data on the device",
        "plain": "XLA is off; training data streamed",
    }
    for number in range(1, 6):
        fast, plain = (tp.load_owner_maps(tmp_path / name / f"masks/task_{number}.npz") for name in logged)
        for path, owner in plain.items():
            np.testing.assert_array_equal(fast[path], owner)
    fast, plain = (comparable(tmp_path / name) for name in logged)
    for results in (fast, plain):
        del results["config"]
    assert fast == plain


def test_an_incomplete_run_is_finished(run, tmp_path):
    root, _, results = run
    shutil.copytree(root, tmp_path / "out")
    results = json.loads((root / "results.json").read_text())
    results["complete"] = False
    del results[files.CHECKSUM]
    files.write_json(tmp_path / "out/results.json", results)
    (tmp_path / "out/.pack.keras.abc.unfinished").mkdir()  # as a killed process leaves it
    done = launch(*FLAGS, f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert comparable(tmp_path / "out") == comparable(root)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in root.iterdir())


def test_a_killed_run_resumes_after_its_last_stage_and_gives_the_same_results(run, tmp_path):
    root = tmp_path / "out"
    command = [sys.executable, str(ROOT / "launch/main.py"), *FLAGS, f"--output_dir={root}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(root.glob("stages/*/stage.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    found = len(list(root.glob("stages/*/stage.json")))
    assert found >= 3
    done = launch(*FLAGS, f"--output_dir={root}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused from the store") == found
    assert comparable(root) == comparable(run[0])
    assert_same_pack(root / "pack.keras", run[0] / "pack.keras")
    assert sorted(path.name for path in root.iterdir()) == sorted(path.name for path in run[0].iterdir())
    for number in (1, 2, 3):
        for path, owner in tp.load_owner_maps(run[0] / f"masks/task_{number}.npz").items():
            np.testing.assert_array_equal(tp.load_owner_maps(root / f"masks/task_{number}.npz")[path], owner)
    for name in ("task_1_0-1", "task_2_2-3", "task_3_4-5"):
        ours, theirs = (events(folder / "tensorboard" / name) for folder in (root, run[0]))
        for tag in ("loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "sparsity"):
            assert scalars(ours, tag) == scalars(theirs, tag)


@pytest.mark.parametrize("approach", ["memory", "multinet"])
def test_the_baselines_from_the_command_line(approach, tmp_path):
    done = launch(*FLAGS, "--jit=off", f"--approach={approach}", f"--output_dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["average_accuracy"] > 0.9
    assert [len(row) for row in results["accuracy"]] == ([3] if approach == "multinet" else [1, 2, 3])
    assert results["free_fraction"]["overall"] == pytest.approx(0.5, abs=1e-4)
    assert not (tmp_path / "out/export").exists()
    assert "SavedModels" not in done.stdout
    assert f"{results['average_accuracy']:.4f}" in done.stdout


def test_convolutions_every_policy_and_mixed_precision_from_the_command_line(tmp_path):
    done = launch(
        *("--model=conv", "--num_tasks=2", "--train_epochs=1", "--retrain_epochs=2", "--prune_rounds=2", "--noexport"),
        *("--freed_weights=reinit", "--head=shared", "--bias_policy=per_task", "--prune_scope=erk"),
        *(
            "--optimizer=momentum",
            "--precision=mixed_bfloat16",
            "--validation_fraction=0",
            f"--output_dir={tmp_path}/out",
        ),
    )
    assert done.returncode == 0, done.stderr
    slow = "this CPU has no instructions for --precision=mixed_bfloat16: expect float32 to be faster"
    assert (slow in done.stderr) != acceleration.computes_in("mixed_bfloat16")
    assert not (tmp_path / "out/export").exists()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["accuracy"][1][0] == results["accuracy"][0][0]


def test_training_that_diverges_ends_in_one_line(tmp_path):
    flags = ("--learning_rate=1e30", "--optimizer=sgd", "--train_epochs=1", "--jit=off")
    done = launch(*flags, f"--output_dir={tmp_path}/out")
    assert done.returncode == 1
    message = r"main\.py: task 1, train: .* in epoch 1, the training has diverged\. Try"
    assert re.match(message, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_a_validation_fraction_too_small_for_one_example(tmp_path):
    flags = ("--num_tasks=1", "--validation_fraction=0.001", "--noexport", "--jit=off")
    done = launch(*FLAGS, *flags, f"--output_dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/results.json").read_text())["validation_accuracy"] == []


@pytest.mark.real_data
def test_split_mnist_with_few_epochs(real_mnist, tmp_path):
    preset = ROOT / "flags/presets/mnist.flags"
    done = launch(
        f"--flagfile={preset}",
        *("--train_epochs=4", "--retrain_epochs=4", "--noexport", f"--output_dir={tmp_path}/out"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["average_accuracy"] > 0.985
    assert results["free_fraction"]["overall"] == pytest.approx(0.95, abs=1e-4)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(("final_prune", "at_least"), [(0.95, 0.990), (0.995, 0.965)])
def test_split_mnist_as_in_the_paper(real_mnist, tmp_path, final_prune, at_least):
    preset = ROOT / "flags/presets/mnist.flags"
    done = launch(f"--flagfile={preset}", f"--final_prune={final_prune}", f"--output_dir={tmp_path}/out", timeout=1800)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/results.json").read_text())["average_accuracy"] >= at_least


def test_a_second_process_in_the_output_directory_is_refused_and_a_terminated_run_resumes(tmp_path):
    flags = ["--noexport", "--num_tasks=1", "--hidden_units=16", "--prune_rounds=1", "--jit=off"]
    flags += ["--train_epochs=20", "--retrain_epochs=100000", f"--output_dir={tmp_path / 'out'}"]

    def start_and_wait_for(words):
        command = [sys.executable, str(ROOT / "launch/main.py"), *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert any(words in line for line in process.stderr), words
        return process

    def terminated(process):
        process.terminate()
        _, stderr = process.communicate(timeout=10)
        assert process.returncode == 143
        assert "the same command continues after the last finished epoch" in stderr
        assert "Traceback" not in stderr

    first = start_and_wait_for("task 1/1  0-1  train")  # the stage that follows is long
    second = launch(*flags)
    assert second.returncode == 2
    assert "a folder that no other process is writing to" in second.stderr
    assert second.stderr.splitlines()[-1].startswith("main.py: --output_dir=")
    terminated(first)
    terminated(start_and_wait_for("train: reused from the store"))  # the lock ended with the first process


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "out").mkdir()
    code = (
        "import sys; sys.argv = ['main.py', '--dataset=digits', '--output_dir=out']\n"
        "import runpy, pathlib\n"
        "from tf_packnet.runs import results\n"
        "results.Results.write = lambda self, path: open('/dev/full', 'w').write('x' * 10**6)\n"
        f"runpy.run_path({str(ROOT / 'launch/main.py')!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_PACKNET_LAZY": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "main.py: No space left on device" in done.stderr
    assert "fix this and run the same command again to continue" in done.stderr
    assert "Traceback" not in done.stderr
