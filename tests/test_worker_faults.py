"""Faults in worker processes are detected, and no run is lost.

The test processes use the protocol of `worker_process` without TensorFlow. The code that they execute in a run is
selected by its seed.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tf_packnet.errors import ArgumentError, DivergedError
from tf_packnet.experiments import faults, worker
from tf_packnet.experiments.run_queue import MOST_FAULTS
from tf_packnet.experiments.worker import Layout, process_state
from tf_packnet.experiments.worker_pool import Pool
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system.storage import is_storage_fault

PROCESS = """
import ctypes, json, os, pathlib, signal, subprocess, sys, time

def reply(**values):
    os.write(1, json.dumps(values).encode() + b"\\n")

def first_time(name):
    try:
        return not (folder / name).mkdir()
    except FileExistsError:
        return False

folder = pathlib.Path(os.environ["FOLDER"])
behaviour = json.loads(os.environ["BEHAVIOUR"])
exec(behaviour.get("start", ""))
reply(ready=int(behaviour.get("gpus", "0")) - (folder / "lost").exists())
for line in sys.stdin:
    seed = json.loads(line)["config"]["seed"]
    with open(folder / "log", "a") as log:
        log.write(f"{seed} {os.getpid()}\\n")
    exec(behaviour.get(str(seed), behaviour.get("every", "")))
    reply(epochs=1)
    reply(results={"seed": seed})
"""


@pytest.fixture
def do_runs(monkeypatch, tmp_path):
    """Does runs, one for each seed, in processes with the given behaviour. Returns what ended, and the lines logged."""
    monkeypatch.setattr(worker, "_COMMAND", ("-c", PROCESS))
    monkeypatch.setattr(worker, "CHECK_SECONDS", 0.05)
    monkeypatch.setenv("FOLDER", str(tmp_path))

    def do(runs, workers=2, broken=None, shared_gpu=None, **behaviour):
        monkeypatch.setenv("BEHAVIOUR", json.dumps({name.strip("_"): code for name, code in behaviour.items()}))
        lines: list[str] = []
        layout = Layout(workers, 1, () if shared_gpu is None else (shared_gpu,) * workers)
        with Pool(layout, StorePlace(tmp_path / "stages"), log=lines.append) as pool:
            if broken:
                pool._workers[1]._layout = broken
            futures = [pool.submit(Config(seed=seed)) for seed in range(runs)]
            return [future.result(60) for future in futures], lines

    return do


def done_by(tmp_path):
    """Returns the seeds that the processes have begun, in order."""
    return [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]


ONCE = "first_time('once') and "
# What happens to a process in its first run with the seed 1, and what is said about it.
HAPPENS = {
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        "was killed by SIGKILL, as the system does when memory runs out",
    ),
    "segmentation fault": ("ctypes.string_at(0)", "was ended by SIGSEGV"),
    "bus error": ("os.kill(os.getpid(), signal.SIGBUS)", "was ended by SIGBUS"),
    "illegal instruction": ("os.kill(os.getpid(), signal.SIGILL)", "was ended by SIGILL"),
    "abort": ("(os.write(2, b'std::bad_alloc\\n'), os.abort())", "was ended by SIGABRT: std::bad_alloc"),
    "terminated": ("os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM"),
    "realtime signal": ("os.kill(os.getpid(), 35)", "was ended by signal 35"),
    "exit": ("(os.write(2, b'no libcuda\\n'), os._exit(3))", "exited with 3: no libcuda"),
    "exit with 0": ("os._exit(0)", "exited with 0"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "was stopped by a signal or a debugger, and was ended"),
    "output closed": ("(os.close(1), time.sleep(60))", "was killed by SIGKILL"),
    "reply cut off": ("(os.write(1, b'{\"resu'), os._exit(1))", "exited with 1"),
    "no reply": ("os.write(1, b'Segmentation fault\\n')", "sent an invalid reply"),
    "a child holds its output": ("(subprocess.Popen(['sleep', '60'], stdout=1), os._exit(4))", "exited with 4"),
    "reported": ("(reply(machine='MemoryError'), time.sleep(60))", "MemoryError"),
}


@pytest.mark.parametrize(("code", "said"), HAPPENS.values(), ids=HAPPENS)
def test_a_run_that_meets_a_fault_once_is_done_in_the_end(do_runs, monkeypatch, tmp_path, code, said):
    if "os.close(1)" in code:
        monkeypatch.setattr(worker, "END_SECONDS", 0.3)
    finished, lines = do_runs(6, _1=ONCE + code)
    assert [run.results for run in finished] == [{"seed": seed} for seed in range(6)]
    assert len(lines) == 1
    assert said in lines[0]
    assert lines[0].startswith("worker ")
    assert ", seed=1: " in lines[0]
    again = "" if "SIGSTOP" in code or "SIGTERM" in code else ", to be done alone at the end"
    assert lines[0].endswith(f"; the run is queued again{again}; the worker starts a new process")
    assert sorted(done_by(tmp_path)) == [0, 1, 1, 2, 3, 4, 5]
    assert done_by(tmp_path)[-1] == 1


@pytest.mark.parametrize("code", ["os.kill(os.getpid(), signal.SIGKILL)", "reply(machine='MemoryError')"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_always_needs_too_much_memory_fails_alone(do_runs, code, workers, tmp_path):
    finished, lines = do_runs(8, workers, _3=code)
    assert [run.results is None for run in finished] == [seed == 3 for seed in range(8)]
    assert "MemoryError" in finished[3].error or "SIGKILL" in finished[3].error
    assert not finished[3].queued
    assert done_by(tmp_path).count(3) == 2
    assert "the run has failed: this is its second fault, alone on a worker that works well" in lines[-1]


class Broken(Layout):
    def environment(self):
        return {**super().environment(), "BROKEN": "1"}


@pytest.mark.parametrize("code", ["reply(machine='ResourceExhaustedError: OOM')", "os.abort()"])
def test_one_of_two_workers_that_fails_every_run_does_not_drain_the_queue(do_runs, code):
    finished, lines = do_runs(12, broken=Broken(1, 1), every=f"os.environ.get('BROKEN') and {code} or time.sleep(0.1)")
    assert [run.results for run in finished] == [{"seed": seed} for seed in range(12)]
    assert len(lines) == MOST_FAULTS
    assert all(line.startswith("worker 2, ") for line in lines)
    assert lines[-1].endswith("the worker is retired after 3 faults in a row")


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"every": "reply(machine='InternalError: CUDA_ERROR_ILLEGAL_ADDRESS')"}, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ({"every": "os.kill(os.getpid(), signal.SIGSEGV)"}, "was ended by SIGSEGV"),
        ({"start": "import no_such_library"}, "exited with 1: ModuleNotFoundError: No module named 'no_such_library'"),
        ({"start": "sys.exit('no device')"}, "exited with 1: no device"),
        ({"start": "os.kill(os.getpid(), signal.SIGSTOP)"}, "was stopped by a signal"),
    ],
)
def test_without_a_worker_that_works_all_runs_stay_queued(do_runs, workers, behaviour, said):
    finished, lines = do_runs(7, workers, **behaviour)
    assert all(run.queued and run.results is None for run in finished)
    assert finished[0].error.startswith("no worker is left; worker 1")
    assert said in finished[0].error
    assert len({run.error for run in finished}) == 1
    assert len(lines) == workers * MOST_FAULTS
    assert len([line for line in lines if line.endswith("the worker is retired after 3 faults in a row")]) == workers


def test_a_run_whose_processes_are_stopped_twice_is_done(do_runs):
    """Somebody has stopped them: the run is not to blame, however often."""
    finished, lines = do_runs(1, 1, _0="(first_time('1') or first_time('2')) and os.kill(os.getpid(), signal.SIGSTOP)")
    assert finished[0].results
    assert len(lines) == 2


def test_a_process_that_hangs_at_its_start_holds_no_run(do_runs, monkeypatch, tmp_path):
    finished, _ = do_runs(6, start="first_time('hangs') and time.sleep(600)")
    assert all(run.results for run in finished)
    monkeypatch.setattr(worker, "START_SECONDS", 0.3)
    finished, lines = do_runs(2, 1, start="time.sleep(600)")
    assert all(run.queued for run in finished)
    assert "its process was not ready within 0 s" in lines[0]


def test_processes_that_cannot_be_started(do_runs, monkeypatch):
    monkeypatch.setattr(worker.sys, "executable", "/no/python")
    finished, _ = do_runs(2, 1)
    assert "its process cannot be started: FileNotFoundError: " in finished[0].error

    def too_many(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(worker.tempfile, "TemporaryFile", too_many)
    finished, _ = do_runs(2, 1)
    assert "OSError: [Errno 24] Too many open files" in finished[1].error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_folder_that_cannot_be_written_stops_all_runs(do_runs, code, tmp_path):
    with pytest.raises(OSError, match="why") as raised:
        do_runs(30, every=f"reply(folder=[{code}, 'why', '/full'])")
    assert (raised.value.errno, raised.value.filename) == (code, "/full")
    assert len(done_by(tmp_path)) <= 4


def test_slow_processes_are_left_alone(do_runs, monkeypatch):
    """Asleep for many checks, or stopped for a moment, as by a profiler."""
    monkeypatch.setattr(worker, "STOPPED_CHECKS", 200)
    stops = "(subprocess.Popen(['sh', '-c', f'sleep 0.1; kill -CONT {os.getpid()}']), os.kill(os.getpid(), 19))"
    finished, lines = do_runs(3, _0="time.sleep(1.5)", _1=stops)
    assert all(run.results for run in finished)
    assert lines == []


@pytest.mark.parametrize(("state", "lines"), [("D", 0), ("R", 0), ("t", 1)])
def test_only_stopped_and_traced_processes_are_ended(do_runs, monkeypatch, tmp_path, state, lines):
    def state_of(pid):
        first = tmp_path / "first"
        real = process_state(pid)
        return state if real not in "ZX" and first.exists() and first.read_text() == str(pid) else real

    monkeypatch.setattr(worker, "process_state", state_of)
    first = "((folder / 'first').write_text(str(os.getpid())), time.sleep(1))"
    finished, logged = do_runs(1, _0=f"first_time('once') and {first}")
    assert finished[0].results
    assert len(logged) == lines


def test_a_process_that_no_longer_finds_its_gpu_does_no_run(do_runs, tmp_path):
    finished, lines = do_runs(3, 1, gpus="1", _1="((folder / 'lost').touch(), os.abort())")
    assert finished[0].results == {"seed": 0}
    assert [run.queued for run in finished] == [False, True, True]
    assert "worker 1: its process found 0 GPUs; there were 1 before" in lines[-1]
    assert done_by(tmp_path) == [0, 1]


@pytest.mark.parametrize(
    "said",
    [
        "ResourceExhaustedError: {{function_node a}} OOM when allocating tensor with shape[9,9]",
        "ResourceExhaustedError: Out of memory while trying to allocate 1073741824 bytes.",
        "InternalError: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "InternalError: cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED",
        "FailedPreconditionError: DNN library initialization failed: CUDNN_STATUS_NOT_INITIALIZED",
        "InternalError: RESOURCE_EXHAUSTED: 2 GiB",
    ],
)
def test_half_as_many_runs_share_a_gpu_whose_memory_has_run_out(do_runs, tmp_path, said):
    seen = "(folder / f'gpu{os.environ[\"CUDA_VISIBLE_DEVICES\"]}').touch(), time.sleep(0.1)"
    code = f"first_time('once') and reply(machine={said!r}) or ({seen})"
    finished, lines = do_runs(12, 4, shared_gpu="0", gpus="1", _2=code, every=seen)
    assert [run.results for run in finished] == [{"seed": seed} for seed in range(12)]
    assert (tmp_path / "gpu0").exists()
    assert done_by(tmp_path).count(2) == 2
    assert len(lines) == 1
    assert ", seed=2: " in lines[0]
    assert lines[0].endswith("the run is queued again; at most 2 of 4 workers go on sharing the memory of this GPU")


def test_other_faults_on_a_gpu_halve_nothing(do_runs):
    code = ONCE + "reply(machine='InternalError: CUDA_ERROR_ILLEGAL_ADDRESS')"
    finished, lines = do_runs(12, 4, shared_gpu="0", gpus="1", _2=code)
    assert all(run.results for run in finished)
    assert lines[0].endswith("to be done alone at the end; the worker starts a new process")


def test_an_error_of_a_callback_stops_the_pool(do_runs, monkeypatch):
    def nobody_reads(*_):
        raise BrokenPipeError(errno.EPIPE, "nobody reads this")

    monkeypatch.setattr(Pool, "_note_fault", nobody_reads)
    with pytest.raises(BrokenPipeError):
        do_runs(2, every="os.abort()")


ALONE = """
try:
    (folder / "holder").mkdir() or (folder / "holder" / "pid").write_text(str(os.getpid()))
except FileExistsError:
    other = int((folder / "holder" / "pid").read_text())
    if os.path.exists(f"/proc/{other}") and other != os.getpid():
        (folder / "overlap").touch()
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_stopped_process_has_ended_before_its_run_is_given_to_another(do_runs, tmp_path):
    finished, lines = do_runs(1, 3, every=ALONE)
    assert finished[0].queued
    assert len(lines) == len(done_by(tmp_path)) == 3 * MOST_FAULTS
    assert not (tmp_path / "overlap").exists()


def test_states_of_processes():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process_state(process.pid) in "RSD"
        process.send_signal(signal.SIGSTOP)
        while process_state(process.pid) != "T":
            time.sleep(0.01)
        process.kill()
        while process_state(process.pid) != "Z":
            time.sleep(0.01)
    assert process_state(process.pid) == "X"


def from_library(kind, cause):
    error = kind("a library")
    error.__cause__ = cause
    return error


def tf_error(kind, text="a message"):
    return kind(None, None, text)


MACHINE = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((10,), np.dtype("float32")),
    ImportError("libcudart.so.12: cannot open shared object file"),
    ModuleNotFoundError("No module named 'tensorflow_datasets'"),
    RuntimeError("can't start new thread"),
    RuntimeError("CUDA runtime implicit initialization on GPU:0 failed. Status: out of memory"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    OSError("libcublas.so.12: cannot open shared object file: No such file or directory"),
    tf_error(tf.errors.ResourceExhaustedError, "OOM when allocating tensor with shape[100000,100000]"),
    tf_error(tf.errors.InternalError, "Failed to call ThenBlasGemm; CUDA_ERROR_LAUNCH_FAILED"),
    tf_error(tf.errors.InternalError, "XLA compilation"),
    tf_error(tf.errors.UnknownError, "Failed to get convolution algorithm"),
    tf_error(tf.errors.UnavailableError),
    tf_error(tf.errors.AbortedError),
    tf_error(tf.errors.NotFoundError, "No registered 'Conv2D' OpKernel for 'GPU' devices; unknown device"),
    tf_error(tf.errors.InvalidArgumentError, "Cannot assign a device for operation dense/MatMul"),
    tf_error(tf.errors.FailedPreconditionError, "DNN library initialization failed"),
    ValueError("Layer dense: OOM when allocating tensor"),
    from_library(ValueError, MemoryError()),
    1,
    0,
    -signal.SIGKILL,
    -signal.SIGSEGV,
]
RUN = [
    ArgumentError("batch_size", "at most 10 (else the machine is out of memory)", 11),
    DivergedError("task 1: the loss is NaN"),
    ValueError("shapes (3,) and (4,) do not match"),
    TypeError("unsupported operand"),
    KeyError("kernel"),
    IndexError("list index out of range"),
    ZeroDivisionError("division by zero"),
    FloatingPointError("overflow"),
    AssertionError(),
    NotImplementedError("a layer"),
    RecursionError("maximum recursion depth exceeded"),
    AttributeError("no attribute"),
    tf_error(tf.errors.InvalidArgumentError, "Incompatible shapes: [2] vs. [3]"),
    tf_error(tf.errors.OutOfRangeError, "End of sequence"),
    tf_error(tf.errors.UnimplementedError),
]
FOLDER = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied", "/stages"),
    OSError("Unable to write: errno = 28, error message = 'No space left on device'"),
    tf_error(tf.errors.ResourceExhaustedError, "/stages/x; No space left on device"),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_faults_of_the_machine(error):
    assert faults.is_machine_fault(error)
    assert isinstance(error, int) or not is_storage_fault(error)


@pytest.mark.parametrize("error", RUN, ids=repr)
def test_faults_of_the_run(error):
    assert not faults.is_machine_fault(error)
    assert not is_storage_fault(error)


@pytest.mark.parametrize("error", FOLDER, ids=repr)
def test_faults_of_the_folder(error):
    assert is_storage_fault(error)
    assert not faults.is_machine_fault(error)
