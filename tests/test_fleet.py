"""Runs that train together in a fleet give the same results as runs that train alone."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import ROOT
from tf_packnet.callbacks import epoch_backup
from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.experiments import fleet_worker, fleets, gpus, worker
from tf_packnet.experiments.definitions import define
from tf_packnet.experiments.worker import Layout
from tf_packnet.experiments.worker_pool import Pool
from tf_packnet.runs.config import Config
from tf_packnet.runs.learning import Run, learn_only
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system import locks, turns
from tf_packnet.system.archives import read_state
from tf_packnet.training import acceleration, fleet_program
from tf_packnet.training.fleet import Fleet
from tf_packnet.training.step_check import Problem

TINY = {"classes_per_task": 5, "hidden_units": (24, 16), "train_epochs": 2, "retrain_epochs": 4, "prune_rounds": 2}
CONFIGS = (
    Config(**TINY),
    Config(**{**TINY, "prune_rounds": 4, "prune_scope": "global", "freed_weights": "reinit"}),  # begins as the first
    Config(**TINY, seed=1, learning_rate=3e-3, final_prune=0.6),
)


def outcomes(configs, stages_dir, slots=3, stacked=None):
    """Do runs side by side; returns the results or the error of each."""
    found: dict[int, object] = {}

    def run(number):
        try:
            found[number] = learn_only(configs[number], StorePlace(stages_dir), lambda task, stage: ())
        except Exception as error:
            found[number] = error

    fleet = Fleet(slots, stacked)
    for number in range(len(configs)):
        fleet.start(lambda number=number: run(number))
    while fleet.size:
        fleet.advance()
    return [found[number] for number in range(len(configs))], fleet


def untimed(results):
    stages = [{name: value for name, value in stage.items() if name != "seconds"} for stage in results["seconds"]]
    return {**results, "seconds": stages, "other_seconds": None}


def stored(stages_dir):
    """Return the states in a store, each array as bytes, by the key of the stage and the name of the array."""
    return {
        (path.parent.name, name): values.tobytes()
        for path in sorted(stages_dir.glob("*/state.npz"))
        for name, values in read_state(path).items()
    }


OTHERS = (
    {"bias_policy": "per_task", "optimizer": "nadam", "jit": "off"},
    {"model": "conv", "hidden_units": (256, 256), "dropout": 0.2, "optimizer": "adamw"},
    {"approach": "memory", "head": "shared"},
)


@pytest.mark.parametrize("more", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)], ids=str)
def test_runs_side_by_side_are_what_they_are_alone(tmp_path, more):
    configs = [Config(**{**config.to_json(), **more}) for config in CONFIGS]
    alone = [learn_only(config, StorePlace(tmp_path / "alone"), lambda task, stage: ()) for config in configs]
    diverging = Config(**{**TINY, **more, "learning_rate": 3e38})
    (*beside, failed), fleet = outcomes([*configs, diverging], tmp_path / "beside")
    assert isinstance(failed, tp.DivergedError)
    assert [*map(untimed, beside)] == [*map(untimed, alone)]
    assert [stage["reused"] for stage in beside[1]["seconds"]] == [True, False, False, False]
    assert len(fleet._programs) == 1 or more
    assert len(stored(tmp_path / "alone")) > 40
    assert stored(tmp_path / "beside") == stored(tmp_path / "alone")


def test_stages_of_stacked_steps_have_keys_of_their_own(tmp_path):
    keys = {}

    def prepare(stacked):
        run = Run.prepare(CONFIGS[0])
        keys[stacked] = [stage.key for stage in run.stages(run.build_approach(None, lambda task, stage: ()))]

    for stacked in (False, True):
        fleet = Fleet(1, stacked)
        fleet.start(lambda stacked=stacked: prepare(stacked))
        fleet.advance()
    prepare(None)
    assert keys[None] == keys[False]
    assert not set(keys[None]) & set(keys[True])


LAYERS = {
    "dense": lambda: [keras.layers.Dense(12, "relu"), keras.layers.Dense(8, "relu")],
    "dropout": lambda: [keras.layers.Dense(12, "relu"), keras.layers.Dropout(0.3)],
    "normalized": lambda: [keras.layers.Dense(12), keras.layers.BatchNormalization(), keras.layers.ReLU()],
    "convolution": lambda: [keras.layers.Reshape((4, 4, 1)), keras.layers.Conv2D(3, 3), keras.layers.Flatten()],
}
X = np.random.default_rng(0).integers(0, 256, (40, 16), dtype=np.uint8)
Y = (X[:, 0] > 127).astype(np.int32)


def trained(layers, seed, optimizer):
    """A model in its second task, some of whose weights are pruned, and a call for steps of it."""
    keras.utils.set_random_seed(seed)
    model = tp.pack(keras.Sequential([keras.Input((16,)), *LAYERS[layers](), keras.layers.Dense(2)]))
    rate = {"class_name": optimizer, "config": {"learning_rate": 1e-3 * (1 + seed)}}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.get(rate), loss, metrics=["accuracy"], jit_compile=False)
    batches = tp.tasks.ResidentBatches(X, Y, 1 / 255, 8, seed=seed)
    schedule = tp.EqualShare(0.3 + 0.2 * seed, 2, 1)
    model.begin_task("first")
    callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot()]
    model.fit(batches, epochs=1, callbacks=callbacks, verbose=0)
    model.begin_task("second")
    model.fit(batches, epochs=1, verbose=0)
    model.xla = acceleration.STEP  # also with op determinism, which a test may have set
    return model, fleet_program.Call(model, next(iter(batches.dataset(1))))


def values_of(model):
    return [variable.numpy() for variable in fleet_program._Variables(model).all]


@pytest.mark.parametrize(
    ("layers", "optimizer"),
    [
        ("dropout", "nadam"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("dense", "adamw"), ("normalized", "sgd"), ("convolution", "rmsprop")]
        ),
    ],
)
def test_stacked_steps_are_those_of_single_models(layers, optimizer):
    models, calls = zip(*(trained(layers, seed, optimizer) for seed in range(3)), strict=True)
    calls[1].data["steps"] = tf.constant(3)  # of 5
    broken = models[2].trainable_variables[0]
    broken.assign(np.full(broken.shape, np.inf, np.float32))
    before = [values_of(model) for model in models]
    fleet_program.StackedProgram(models[0], slots=4).take(calls)
    stacked, logs = [values_of(model) for model in models], [call.logs for call in calls]
    assert [Problem(int(model.step_record.problem)) for model in models] == [Problem.NONE, Problem.NONE, Problem.LOSS]
    changing = len(fleet_program._Variables(models[2]).changing) - len(models[2].metrics_variables)
    for old, new in zip(before[2][:changing], stacked[2][:changing], strict=True):  # it has stopped alone
        np.testing.assert_array_equal(old, new)
    for model, values in zip(models, before, strict=True):
        fleet_program._assign(fleet_program._Variables(model).all, values)
    fleet_program.SharedProgram(models[0]).take(calls[:2])
    for model, call, values, own_logs, old in zip(models[:2], calls, stacked, logs, before, strict=False):
        for value, alone in zip(values, values_of(model), strict=True):
            np.testing.assert_allclose(value, alone, rtol=2e-5, atol=2e-6)
        assert call.logs.keys() == own_logs.keys()
        for name, value in call.logs.items():
            np.testing.assert_allclose(own_logs[name], value, rtol=1e-5)
        assert not np.array_equal(values[0], old[0])


def test_an_error_in_a_program_reaches_its_runs_alone(tmp_path, monkeypatch):
    def fail(self, calls):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(fleet_program.SharedProgram, "take", fail)
    (first, second), _ = outcomes(CONFIGS[1:], tmp_path)
    assert "no memory" in str(first)
    assert "no memory" in str(second)


class TestTurns:
    def test_members_have_random_numbers_of_their_own(self):
        drawn: dict[int, list] = {0: [], 1: []}

        def draw(number):
            keras.utils.set_random_seed(number)
            for step in range(3):
                drawn[number].append((random.random(), np.random.rand(), float(tf.random.uniform(()))))
                waited.append((number, step))
                turns.wait_until(lambda all_of_step=2 * step + 2: len(waited) >= all_of_step)

        waited: list[tuple[int, int]] = []
        fleet = Fleet(2)
        for number in drawn:
            fleet.start(lambda number=number: draw(number))
        keras.utils.set_random_seed(7)
        expected = random.random(), np.random.rand()
        keras.utils.set_random_seed(7)
        while fleet.size:
            fleet.advance()
        assert (random.random(), np.random.rand()) == expected
        assert [step for _, step in waited] == [0, 0, 1, 1, 2, 2]
        for number, numbers in drawn.items():
            keras.utils.set_random_seed(number)
            assert numbers == [(random.random(), np.random.rand(), float(tf.random.uniform(()))) for _ in range(3)]

    def test_members_wait_for_a_lock_of_another_process_without_stopping_others(self, tmp_path):
        events: list[str] = []
        other = contextlib.ExitStack()
        other.enter_context(locks.locked(tmp_path / "lock"))

        def wait():
            with locks.locked(tmp_path / "lock") as is_locked:
                events.append(f"locked: {is_locked}")

        fleet = Fleet(2)
        fleet.start(wait)
        fleet.start(lambda: events.append("other"))
        fleet.advance()
        assert events == ["other"]
        threading.Timer(0.1, other.close).start()
        while fleet.size:
            fleet.advance()
        assert events == ["other", "locked: True"]
        with locks.locked(tmp_path / "lock", wait=False) as is_locked:  # it was released
            assert is_locked


PROCESS = """
import json, os, pathlib, signal, sys, time
def reply(**values):
    os.write(1, json.dumps(values).encode() + b"\\n")
folder, jobs = pathlib.Path(os.environ["FOLDER"]), []
reply(ready=0)
for line in sys.stdin:
    jobs.append(json.loads(line))
    if len(jobs) == min(2, int(os.environ["LEFT"])):
        exec(os.environ["CODE"])
        for job in jobs:
            reply(job=job["job"], epochs=1)
            reply(job=job["job"], results={"seed": job["config"]["seed"], "pid": os.getpid()})
        jobs = []
"""
KILL_ONCE = "(folder / 'killed').exists() or ((folder / 'killed').mkdir(), os.kill(os.getpid(), signal.SIGKILL))"


@pytest.mark.parametrize(("code", "lines"), [("", 0), (KILL_ONCE, 2)], ids=["done", "killed once"])
def test_workers_share_a_process_and_its_faults(tmp_path, monkeypatch, code, lines):
    monkeypatch.setattr(fleet_worker, "_COMMAND", ("-c", PROCESS))
    monkeypatch.setattr(worker, "RUNS_PER_PROCESS", 2)  # for each of the two workers
    for name, value in {"FOLDER": str(tmp_path), "CODE": code, "LEFT": "2"}.items():
        monkeypatch.setenv(name, value)
    logged: list[str] = []
    with Pool(Layout(1, 1, fleet=2), StorePlace(tmp_path / "stages"), log=logged.append) as pool:
        futures = [pool.submit(Config(seed=seed)) for seed in range(8)]
        finished = [future.result(60) for future in futures]
    results = [each.results for each in finished]
    assert [each.error for each in finished] == [""] * 8
    assert [each["seed"] for each in results] == list(range(8))
    assert len({each["pid"] for each in results}) == 2
    assert len(logged) == lines
    assert all("SIGKILL" in line and "alone" not in line for line in logged)


FULL_GPU = """
import json, os, pathlib, sys
def reply(**values):
    os.write(1, json.dumps(values).encode() + b"\\n")
slots = int(sys.argv[1])
with open(os.environ["FOLDER"] + "/slots", "a") as file:
    file.write(f"{slots} ")
reply(ready=1)
for line in sys.stdin:
    job = json.loads(line)
    if slots > 2:
        reply(job=job["job"], machine="ResourceExhaustedError: OOM when allocating on GPU:0 by allocator GPU_0_bfc")
    else:
        reply(job=job["job"], results={"seed": job["config"]["seed"]})
"""


def test_fewer_runs_share_a_gpu_whose_memory_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_worker, "_COMMAND", ("-c", FULL_GPU))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    logged: list[str] = []
    with Pool(Layout(1, 1, ("0",), fleet=8), StorePlace(tmp_path / "stages"), log=logged.append) as pool:
        finished = [each.result(60) for each in [pool.submit(Config(seed=seed)) for seed in range(12)]]
    assert [each.results for each in finished] == [{"seed": seed} for seed in range(12)]
    started = list(map(int, (tmp_path / "slots").read_text().split()))
    assert started[0] == 8
    assert started[-1] <= 2
    assert started == sorted(started, reverse=True)
    assert any("at most 4 of 8 workers go on sharing the memory of this GPU" in line for line in logged)


def test_the_number_of_runs_side_by_side(monkeypatch, capsys):
    def size(value, **settings):
        return fleets.size(value, define("sweep", Config(**settings), {"final_prune": (0.5, 0.6)}))

    monkeypatch.setattr(gpus, "visible", list)
    assert (size("auto"), size("off"), size("7"), size("7", model="conv")) == (1, 1, 7, 7)
    monkeypatch.setattr(gpus, "visible", lambda: ["0"])
    assert (size("auto"), size("off"), size("auto", model="conv")) == (32, 1, 8)
    assert size("auto", data_residency="stream") == 1
    assert not capsys.readouterr().err
    assert size("7", data_residency="stream") == 1
    assert capsys.readouterr().err == "--fleet=7: the runs train one at a time, because of --data_residency=stream\n"
    for value in ("0", "257", "-1", "1.5", "", "on", "\u0663", "9" * 30):
        with pytest.raises(ArgumentError, match="`fleet`: expected auto, off, or a number of runs from 1 to 256"):
            fleets.check(value)


EXPERIMENT = (
    "--dataset=digits",
    "--hidden_units=32",
    "--train_epochs=40",
    "--retrain_epochs=40",
    "--prune_rounds=2",
    "--workers=1",
)
EXPERIMENT += ("--sweep=final_prune=0.5,0.6", "--sweep=learning_rate=1e-3,3e-3", "--seeds=2", "--num_tasks=2")


@pytest.mark.slow
def test_a_killed_experiment_has_the_same_bytes_as_one_without_a_fleet(tmp_path):
    def command(name, fleet):
        flags = (*EXPERIMENT, f"--fleet={fleet}", f"--output_dir={tmp_path / name}")
        return [sys.executable, str(ROOT / "launch/main.py"), *flags]

    subprocess.run(command("alone", "off"), check=True, capture_output=True)
    killed = subprocess.Popen(command("beside", 3), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "beside/stages").glob("*/stage.json")):
        time.sleep(0.1)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run(command("beside", 3), check=True, capture_output=True)
    for name in ("results.csv", "summary.json"):
        assert (tmp_path / "beside" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    states = stored(tmp_path / "alone/stages")
    assert states
    assert stored(tmp_path / "beside/stages") == states


@pytest.mark.slow
def test_a_run_resumes_from_a_backup_of_a_fleet(tmp_path, monkeypatch):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 4:
                raise StoppedError("killed")

    monkeypatch.setattr(epoch_backup, "_SECONDS_IN_FLEET", 0.0)
    config = Config(**{**TINY, "train_epochs": 8})
    fleet = Fleet(1)

    def stop():
        with contextlib.suppress(StoppedError):
            learn_only(config, StorePlace(tmp_path / "beside"), lambda task, stage: [Stop()])

    fleet.start(stop)
    while fleet.size:
        fleet.advance()
    assert [path.suffixes[0] for path in (tmp_path / "beside/progress").glob("[!.]*.npz")] == [".4"]
    (beside,), _ = outcomes([config], tmp_path / "beside")
    alone = learn_only(config, StorePlace(tmp_path / "alone"), lambda task, stage: ())
    assert untimed(beside) == untimed(alone)
    assert stored(tmp_path / "beside") == stored(tmp_path / "alone")
