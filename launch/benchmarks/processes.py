"""Benchmarks of whole processes: startup, a run with its memory, and a sweep."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from launch.benchmarks import Row, floors, shortest_seconds

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = [sys.executable, "-m", "launch.main"]
MNIST = f"--flagfile={ROOT / 'flags/presets/mnist.flags'}"


def start() -> list[Row]:
    """Measure startup times and what importing the package writes to stderr."""

    def call(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], capture_output=True, cwd=ROOT, check=True)

    stderr = call("-c", "import tf_packnet").stderr
    return [
        Row("start", "--help", shortest_seconds(lambda: call(*LAUNCHER[1:], "--help"), 5), "s", bound=("at most", 0.5)),
        Row("start", "import tf_packnet", shortest_seconds(lambda: call("-c", "import tf_packnet"), 3), "s"),
        Row("start", "import keras", shortest_seconds(lambda: call("-c", "import keras"), 3), "s"),
        Row("start", "output of import tf_packnet", float(len(stderr)), "bytes", bound=("at most", 0.0)),
    ]


def run(epochs: int) -> list[Row]:
    """Measure a complete run of the MNIST preset: five tasks, all files written."""
    products = floors.dense_products(every_product=True)
    before = products()
    with tempfile.TemporaryDirectory() as folder:
        flags = [MNIST, f"--train_epochs={epochs}", f"--retrain_epochs={epochs}", f"--output_dir={folder}/run"]
        seconds, peak, after_stage = run_and_watch_memory([*LAUNCHER, *flags])
        results = json.loads(Path(folder, "run/results.json").read_text())
    floor = (before + products()) / 2
    batch = results["config"]["batch_size"]
    steps = 2 * epochs * sum(task["examples"]["train"] // batch for task in results["tasks"])
    stages = [stage["seconds"] for stage in results["seconds"]]
    parts = {
        "stages": sum(stages),
        **results["other_seconds"],
        "startup and other": seconds - sum(stages) - sum(results["other_seconds"].values()),
    }
    note = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
    # Minimum over several stages, because resident memory varies by up to 40 MiB from stage to stage.
    growth = (min(after_stage[6:]) - min(after_stage[2:6])) / 2**20
    return [
        Row("run", f"MNIST, 5 tasks, {steps:,} steps", seconds, "s", steps * floor, ("at most", 1.35), note),
        Row("run", "peak memory", peak / 2**30, "GiB", bound=("at most", 1.2)),
        Row("run", "growth of resident memory from tasks 2-3 to tasks 4-5", growth, "MiB", bound=("at most", 32.0)),
        *(Row("run", name, value, "s") for name, value in parts.items()),
    ]


def sweep(epochs: int) -> list[Row]:
    """Measure two runs of the MNIST preset: in parallel (the default of a sweep), and one after the other on all cores.

    The lower limit for any layout is the time that the parallel runs would take if no core were ever idle.
    """
    flags = [MNIST, f"--train_epochs={epochs}", f"--retrain_epochs={epochs}", "--sweep=seed=0,1", "--noexport"]
    cores = len(os.sched_getaffinity(0))
    consecutive_flags = ["--workers=1", f"--threads={cores}"]
    timings: dict[str, list[tuple[float, float]]] = {"parallel": [], "consecutive": []}
    for name, extra_flags in [("parallel", []), ("consecutive", consecutive_flags)] * 2:
        with tempfile.TemporaryDirectory() as folder:
            timings[name].append(time_command([*LAUNCHER, *flags, *extra_flags, f"--output_dir={folder}/sweep"]))
    parallel, parallel_work = min(timings["parallel"])
    consecutive, consecutive_work = min(timings["consecutive"])
    without_waiting = parallel_work / cores
    return [
        Row("sweep", f"two consecutive runs, {cores} threads", consecutive, "s", parallel, ("at least", 1.3)),
        Row("sweep", "the same, compared with parallel runs if no core ever waited", consecutive, "s", without_waiting),
        Row("sweep", "two parallel runs, the default layout", parallel, "s", without_waiting),
        Row("sweep", "CPU time of two consecutive runs", consecutive_work, "core s", cores * consecutive),
        Row("sweep", "CPU time of two parallel runs", parallel_work, "core s", cores * parallel),
    ]


def time_command(command: list[str]) -> tuple[float, float]:
    """Run a command and return its wall-clock time and the CPU time of all its processes, in seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_and_watch_memory(command: list[str]) -> tuple[float, int, list[int]]:
    """Run a command and watch its memory.

    Returns:
        Wall-clock time in seconds, peak memory in bytes, and the resident memory in bytes at each log line of a stage.

    Raises:
        RuntimeError: The command failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, after_stage = 0, []

    def status_bytes(field: str) -> int:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
        return 0

    def record_memory() -> None:
        for line in process.stderr:
            if line.startswith("task "):
                after_stage.append(status_bytes("VmRSS"))

    reader = threading.Thread(target=record_memory)
    reader.start()
    while process.poll() is None:
        peak = max(peak, status_bytes("VmHWM"))
        time.sleep(0.05)
    reader.join()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    return seconds, peak, after_stage
