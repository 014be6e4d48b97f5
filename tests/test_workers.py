"""Parallel runs: sweeps, distribution of runs to workers, and runs that fail or whose process dies."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from tests.conftest import launch
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.run_command import Command, parse_command
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import gpus, worker, worker_pool
from tf_packnet.experiments.definitions import run_name
from tf_packnet.experiments.worker import FinishedRun, Layout
from tf_packnet.experiments.worker_pool import Pool, best_layout
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system import memory


def test_every_combination_is_a_run():
    command = parse_command(["main.py", "--sweep=seed=0,1", "--sweep=final_prune=0.5,0.9,0.95", "--workers=3"])
    assert command.experiment.axes == {"final_prune": [0.5, 0.9, 0.95]}
    assert command.experiment.seeds == (0, 1)
    assert command.workers == 3
    assert [(config.seed, config.final_prune) for config in command.experiment.configs] == [
        (seed, final_prune) for seed in (0, 1) for final_prune in (0.5, 0.9, 0.95)
    ]
    assert run_name(command.experiment.configs[1], ["final_prune"]) == "final_prune=0.9,seed=0"


def test_without_a_sweep_there_is_one_run():
    assert parse_command(["main.py"]) == Command(Config(), experiment=None, dry_run=False)


def test_seeds_are_a_count_or_a_list():
    def seeds(*flags):
        return parse_command(["main.py", "--sweep=final_prune=0.5", *flags]).experiment.seeds

    assert seeds() == (0,)
    assert seeds("--seeds=3") == (0, 1, 2)
    assert seeds("--seeds=3", "--seed=7") == (7, 8, 9)
    assert seeds("--seeds=3,") == (3,)
    assert seeds("--seeds=5,2") == (5, 2)
    assert len(parse_command(["main.py", "--seeds=4"]).experiment.configs) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep=seed=1,x"], "--sweep=seed=1,x: x: expected an integer"),
        (["--sweep=seed=1,-1"], "--sweep=seed=1,-1: -1: expected 0 to 2147483647"),
        (["--sweep=seed="], "--sweep=seed=: nothing: expected an integer"),
        (["--sweep=head=none,shared"], "none: expected one of per_task, shared"),
        (["--sweep=seed=1,1"], "--sweep=seed=1,1: expected every value once"),
        (["--sweep=seed=1", "--sweep=seed=2"], "--sweep: expected a different flag each time it is given"),
        (["--sweep=seed=1", "--seeds=2"], "--seeds: expected no --sweep=seed=... with it"),
        (["--workers=2"], "--workers: expected an --experiment or a --sweep with it"),
        (["--threads=2"], "--threads: expected an --experiment or a --sweep with it"),
        (["--sweep=seed=1,2", "--workers=0"], "--workers=0: expected at least 1"),
        (["--seeds=0"], "--seeds=0: expected at least 1 and at most 10,000, or comma-separated seeds such as 3,5,8"),
        (["--seeds=1,1"], "--seeds=1,1: expected different seeds"),
        (["--seeds=a"], "--seeds=a: expected a number of seeds, or comma-separated seeds such as 3,5,8"),
        (["--experiment=figure5"], "--experiment=figure5: value should be one of"),
    ],
)
def test_invalid_sweeps_are_refused(flags, message):
    with pytest.raises(UsageError) as refused:
        parse_command(["main.py", *flags])
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["sed", "", "output_dir", "hidden_units"])
def test_an_invalid_axis_is_refused_with_the_valid_ones(name):
    with pytest.raises(ArgumentError, match="NAME=VALUE,VALUE with a NAME among dataset, .*seed"):
        parse_command(["main.py", f"--sweep={name}=1,2"])


def test_an_invalid_combination_is_refused_before_any_run(tmp_path):
    done = launch("--sweep=prune_rounds=1,7", f"--output_dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr == (
        "main.py: --prune_rounds=7: expected a divisor of --retrain_epochs=30 (1, 2, 3, 5, 6, 10, 15, 30)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set_is_refused_before_any_run(tmp_path):
    done = launch("--sweep=dataset=digits,mnits", f"--output_dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("main.py: --dataset=mnits: expected digits, or the name of a TFDS")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [("--seeds=2",), ("--experiment=table1",)])
def test_a_run_that_the_data_does_not_allow_is_refused(flags, tmp_path):
    done = launch("--num_tasks=6", *flags, f"--output_dir={tmp_path}/out", "--workers=1")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "main.py: --num_tasks=6: expected at most 5 (digits has 10 classes, 2 per task)"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_stages_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for flags in ((), ("--seeds=2",)):
        done = launch(*flags, f"--stages_dir={tmp_path}/file", f"--output_dir={tmp_path}/out")
        assert done.returncode == 2
        assert done.stderr.startswith(f"main.py: --stages_dir={tmp_path}/file: expected a folder (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("cores", "asked", "threads", "expected"),
    [(2, None, 1, Layout(2, 1)), (16, None, 5, Layout(3, 5)), (4, 2, 1, Layout(2, 1)), (2, None, 4, Layout(1, 4))],
)
def test_the_layout_uses_all_cores(monkeypatch, cores, asked, threads, expected):
    monkeypatch.setattr(worker_pool.os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(gpus, "count", lambda: 0)
    assert best_layout(asked, threads) == expected
    assert expected.environment()["TF_NUM_INTRAOP_THREADS"] == str(expected.threads)


class TestGpus:
    """Which GPUs each worker sees. There need be none here: CUDA's count is given."""

    @pytest.fixture
    def machine(self, monkeypatch):
        def with_gpus(count, visible=None, cores=8):
            monkeypatch.setattr(gpus, "count", lambda: count)
            monkeypatch.setattr(worker_pool.os, "sched_getaffinity", lambda pid: set(range(cores)))
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            if visible is not None:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        return with_gpus

    @pytest.mark.parametrize(
        ("count", "visible", "expected"),
        [
            (2, None, ["0", "1"]),
            (1, "3", ["3"]),
            (2, "1,0", ["1", "0"]),
            (2, "GPU-8932f937-d72c, MIG-4f0a ", ["GPU-8932f937-d72c", "MIG-4f0a"]),
            (1, "1,-1,0", ["1"]),  # CUDA ignores what comes after an unknown one
            (0, "", []),
            (0, "-1", []),
            (0, "7", []),
            (0, None, []),
        ],
    )
    def test_the_visible_gpus_are_those_of_cuda(self, machine, count, visible, expected):
        machine(count, visible)
        assert gpus.visible() == expected

    @pytest.mark.parametrize(
        ("found", "options", "expected"),
        [
            (1, {}, ["0"]),
            (3, {}, ["0", "1", "2"]),
            (2, {"gpus_per_run": 0.5}, ["0", "1", "0", "1"]),
            (1, {"gpus_per_run": 0.3}, ["0"] * 3),
            (1, {"gpus_per_run": 1 / 3}, ["0"] * 3),
            (1, {"gpus_per_run": 0.001}, ["0"] * 1000),
            (5, {"gpus_per_run": 2}, ["0,1", "2,3"]),
            (4, {"mirrored": True}, ["0,1,2,3"]),
            (4, {"mirrored": True, "gpus_per_run": 1, "workers": 2}, ["0", "1"]),
            (2, {"workers": 3}, ["0", "1", "0"]),
            (2, {"gpus_per_run": 0, "workers": 2}, ["-1", "-1"]),
        ],
    )
    def test_each_worker_sees_its_gpus_alone(self, machine, found, options, expected):
        machine(found)
        layout = best_layout(**options)
        assert list(layout.gpus) == expected
        assert layout.workers == len(expected)
        seen = [layout.of(number).environment()["CUDA_VISIBLE_DEVICES"] for number in range(layout.workers)]
        assert seen == expected

    def test_without_gpus_there_is_a_worker_per_core_that_sees_what_the_launcher_sees(self, machine):
        machine(0)
        assert best_layout() == Layout(8, 1)
        assert "CUDA_VISIBLE_DEVICES" not in best_layout().of(3).environment()
        machine(2)
        assert best_layout(gpus_per_run=0).workers == 8

    @pytest.mark.parametrize(("found", "asked"), [(0, 1), (0, 0.5), (1, 2), (3, 4)])
    def test_more_gpus_than_there_are(self, machine, found, asked):
        machine(found)
        with pytest.raises(ArgumentError, match=f"at most the {found} GPUs" if found else "CUDA shows none"):
            best_layout(gpus_per_run=asked)

    def test_the_count_without_a_driver(self, monkeypatch):
        def no_library(name):
            raise OSError(name)

        monkeypatch.setattr(gpus.ctypes, "CDLL", no_library)
        assert gpus.count() == 0

    def test_memory_limits_the_workers(self, machine, monkeypatch):
        machine(0)
        monkeypatch.setattr(memory, "available", lambda: 10 * 2**30)
        assert best_layout(memory_per_run=3).workers == 3
        assert best_layout(memory_per_run=0.5).workers == 8
        assert best_layout(workers=5, memory_per_run=3).workers == 5
        with pytest.raises(ArgumentError, match="memory_per_run.*at most the 10.0 GiB that are available"):
            best_layout(memory_per_run=11)


class FakeWorker:
    """Takes 0.1 s per run, and logs its start and end."""

    log: list = []

    def __init__(self, layout, stages_dir):
        pass

    def fits(self, config):
        return True

    def end(self, timeout=None):
        pass

    def run(self, config, on_epochs, log):
        self.log.append(("started", config.seed, config.final_prune))
        time.sleep(0.1)
        self.log.append(("ended", config.seed, config.final_prune))
        return FinishedRun(config, {}, "", 0.1)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeWorker, "log", [])
    monkeypatch.setattr(worker_pool, "Worker", FakeWorker)
    return FakeWorker.log


def test_runs_with_the_same_first_stage_do_not_run_in_parallel_if_others_wait(fake, tmp_path):
    configs = [Config(seed=seed, final_prune=p) for seed in (0, 1) for p in (0.5, 0.9)]
    with Pool(Layout(2, 1), StorePlace(tmp_path)) as pool:
        futures = [pool.submit(config) for config in configs]
        assert [future.result(10).config for future in futures] == configs
    assert {seed for event, seed, _ in fake[:2] if event == "started"} == {0, 1}


def test_an_error_in_on_end_stops_the_pool_and_is_raised_by_all_futures(fake, tmp_path):
    def full_disk(finished):
        raise OSError("no space left")

    with Pool(Layout(1, 1), StorePlace(tmp_path), on_end=full_disk) as pool:
        futures = [pool.submit(Config(seed=seed)) for seed in (0, 1)]
        for future in [*futures, pool.submit(Config(seed=2))]:
            with pytest.raises(OSError, match="no space left"):
                future.result(10)
    assert len([entry for entry in fake if entry[0] == "started"]) == 1


def test_a_run_that_another_worker_takes_during_a_start_is_not_done_twice(fake, monkeypatch, tmp_path):
    class Starting(FakeWorker):
        ready = False

        def fits(self, config):
            return self.ready

        def start(self):
            self.ready = True

        def run(self, *args):
            finished = super().run(*args)
            time.sleep(0.5)
            return finished

    class Late(Pool):
        def _next(self, number):
            job = super()._next(number)
            time.sleep(0.2 * number)  # the first worker has taken this run by now
            return job

    monkeypatch.setattr(worker_pool, "Worker", Starting)
    with Late(Layout(2, 1), tmp_path) as pool:
        for future in [pool.submit(Config(seed=seed)) for seed in range(3)]:
            assert future.result(30).results == {}
    assert sorted(seed for event, seed, _ in fake if event == "started") == list(range(3))


def test_a_closed_pool_starts_no_more_runs(fake, tmp_path):
    with Pool(Layout(1, 1), StorePlace(tmp_path)) as pool:
        for seed in range(50):
            pool.submit(Config(seed=seed))
        time.sleep(0.15)
    time.sleep(0.3)
    assert len([entry for entry in fake if entry[0] == "started"]) <= 3


TINY = {"num_tasks": 1, "train_epochs": 1, "retrain_epochs": 1, "prune_rounds": 1, "hidden_units": (8,), "jit": "off"}


def test_a_run_whose_process_is_killed_goes_on_in_a_new_process(tmp_path):
    killed, lines = [], []

    def kill_the_first(config, epochs):
        if config.seed == 0 and not killed:
            killed.append(pool._workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with Pool(Layout(1, 1), StorePlace(tmp_path / "stages"), on_epochs=kill_the_first, log=lines.append) as pool:
        futures = [pool.submit(Config(**TINY, seed=seed)) for seed in (0, 1)]
        assert all(future.result(120).results["complete"] for future in futures)
        assert pool._workers[0].pid != killed[0]
    assert lines == [
        "worker 1, seed=0: its process was killed by SIGKILL, as the system does when memory runs out; "
        "the run is queued again, to be done alone at the end; the worker starts a new process"
    ]


def test_worker_processes_are_replaced_and_leave_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "RUNS_PER_PROCESS", 1)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Pool(Layout(1, 1), StorePlace(tmp_path / "stages")) as pool:
        processes = []
        for seed in (0, 1):
            assert pool.submit(Config(**TINY, seed=seed)).result(120).results["complete"]
            processes.append(pool._workers[0]._process)
    assert processes[0].pid != processes[1].pid
    assert processes[0].returncode is not None
    assert not list((tmp_path / "tmp").iterdir())  # a worker leaves no files, however it ends


LAUNCHER = """
import sys, time
from pathlib import Path
from tf_packnet.experiments.worker import Layout, Worker
from tf_packnet.runs.paths import StorePlace
worker = Worker(Layout(1, 1), StorePlace(Path("stages")))
worker.start()
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_a_stopped_worker_process_does_not_outlive_its_launcher(tmp_path):
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, cwd=tmp_path) as launcher:
        process = psutil.Process(int(launcher.stdout.readline()))
        process.send_signal(signal.SIGSTOP)
        launcher.kill()
    process.wait(60)


def test_a_worker_process_exits_when_its_input_ends(tmp_path):
    with Pool(Layout(1, 1), StorePlace(tmp_path)) as pool:
        pool.submit(Config(**TINY)).result(120)
        process = pool._workers[0]._process
        process.stdin.close()  # as when the launcher is killed
        assert process.wait(10) == 0


FLAGS = ("--num_tasks=1", "--train_epochs=2", "--retrain_epochs=2", "--prune_rounds=2", "--optimizer=sgd", "--jit=off")


def test_a_failed_run_does_not_stop_the_others_and_is_retried(tmp_path):
    command = (*FLAGS, "--sweep=learning_rate=0.1,1e30,0.2", f"--output_dir={tmp_path}/out")
    done = launch(*command)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("sweep: ")
    assert "learning_rate=1e+30" in next(line for line in lines if "failed: " in line)
    assert re.search("task 1, train: .* in epoch 1, the training has diverged", done.stderr)
    name = "learning_rate=1e+30,seed=0"
    assert lines[-1] == f"main.py: 1 of 3 runs failed ({name}); the same command retries them"
    assert f"1 of 3 runs failed ({name}). They are missing here; the same command does them." in done.stdout
    assert "3 runs done: 8 epochs computed, 0 reused" in done.stdout  # none of the failed run
    runs = tmp_path / "out/runs"
    before = {path.name: path.stat().st_mtime_ns for path in runs.iterdir()}
    assert sorted(before) == [f"learning_rate={rate},seed=0.json" for rate in (0.1, 0.2)]
    csv = (tmp_path / "out/results.csv").read_bytes()
    again = launch(*command)
    assert again.returncode == 1
    assert "1 runs done: " in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in runs.iterdir()} == before
    assert (tmp_path / "out/results.csv").read_bytes() == csv


@pytest.fixture
def in_workers(tmp_path, monkeypatch):
    """Has code run at the start of every worker process."""

    def at_start(code):
        condition = 'import sys\nif "tf_packnet.experiments.worker_process" in sys.orig_argv:\n'
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(condition + textwrap.indent(code, "    "))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}")

    return at_start


@pytest.mark.slow
def test_an_experiment_without_a_worker_that_works_stops_and_resumes_later(in_workers, tmp_path):
    command = (*FLAGS, "--sweep=learning_rate=0.1,0.2", f"--output_dir={tmp_path}/out", "--workers=2")
    in_workers('sys.modules["keras"] = None')
    done = launch(*command)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    missing = "2 of 2 runs were not done (learning_rate=0.1,seed=0; learning_rate=0.2,seed=0)"
    reason = "its process exited with 1: ModuleNotFoundError: import of keras halted; None in sys.modules"
    assert lines[-1] == (
        f"main.py: {missing}: no worker is left; worker 1 and 2: {reason}; the same command retries them"
    )
    assert lines.count(f"worker 1: {reason}; the worker is retired after 3 faults in a row") == 1
    assert len(lines) == 2 + 2 * 3
    (tmp_path / "site/sitecustomize.py").unlink()
    again = launch(*command)
    assert again.returncode == 0, again.stderr
    assert "2 runs done: " in again.stdout


TOO_LARGE = """\
import tensorflow as tf
from tf_packnet.runs import learning
learn_only = learning.learn_only
def learn_if_small(config, *args):
    if config.learning_rate == 0.2:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    return learn_only(config, *args)
learning.learn_only = learn_if_small"""


def test_a_run_that_needs_more_memory_than_there_is_fails_and_the_report_names_it(in_workers, tmp_path):
    in_workers(TOO_LARGE)
    done = launch(
        *FLAGS, "--sweep=learning_rate=0.1,0.2,0.3", "--seeds=1", f"--output_dir={tmp_path}/out", "--workers=1"
    )
    assert done.returncode == 1
    name = "learning_rate=0.2,seed=0"
    assert done.stderr.splitlines()[-1] == f"main.py: 1 of 3 runs failed ({name}); the same command retries them"
    assert f"worker 1, {name}: ResourceExhaustedError: OOM when allocating tensor; the run is queued" in done.stderr
    assert f"3/3  {name}  failed: ResourceExhaustedError: OOM when allocating tensor  " in done.stderr
    assert f"({name}). They are missing here" in (tmp_path / "out/summary.md").read_text()
    assert len(list((tmp_path / "out/runs").iterdir())) == 2
