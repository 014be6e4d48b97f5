"""Whole processes: start-up, a run from end to end with its memory, and a sweep."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from launch.benchmarks import Row, floors, quickest

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = [sys.executable, "-m", "launch.main"]
MNIST = f"--flagfile={ROOT / 'flags/presets/mnist.flags'}"


def start() -> list[Row]:
    """How long it takes until something is said, and whether that is noise."""

    def call(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], capture_output=True, cwd=ROOT, check=True)

    noise = call("-c", "import tf_packnet").stderr
    return [
        Row("start", "--help", quickest(lambda: call(*LAUNCHER[1:], "--help"), 5), "s", bound=("at most", 0.5)),
        Row("start", "import tf_packnet", quickest(lambda: call("-c", "import tf_packnet"), 3), "s"),
        Row("start", "import keras", quickest(lambda: call("-c", "import keras"), 3), "s"),
        Row("start", "noise of import tf_packnet", float(len(noise)), "bytes", bound=("at most", 0.0)),
    ]


def run(epochs: int) -> list[Row]:
    """The MNIST preset from end to end: five tasks, every file written."""
    products = floors.dense_products(every_product=True)
    before = products()
    with tempfile.TemporaryDirectory() as folder:
        flags = [MNIST, f"--train_epochs={epochs}", f"--retrain_epochs={epochs}", f"--output_dir={folder}/run"]
        seconds, peak, after_stage = watched([*LAUNCHER, *flags])
        results = json.loads(Path(folder, "run/results.json").read_text())
    floor = (before + products()) / 2
    batch = results["config"]["batch_size"]
    steps = 2 * epochs * sum(task["examples"]["train"] // batch for task in results["tasks"])
    stages = [stage["seconds"] for stage in results["seconds"]]
    parts = {
        "stages": sum(stages),
        **results["other_seconds"],
        "start and the rest": seconds - sum(stages) - sum(results["other_seconds"].values()),
    }
    note = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
    # The least of several: between two stages up to 40 MiB come and go.
    growth = (min(after_stage[6:]) - min(after_stage[2:6])) / 2**20
    return [
        Row("run", f"MNIST, 5 tasks, {steps:,} steps", seconds, "s", steps * floor, ("at most", 1.35), note),
        Row("run", "peak memory", peak / 2**30, "GiB", bound=("at most", 1.2)),
        Row("run", "memory at rest, tasks 4 and 5 less tasks 2 and 3", growth, "MiB", bound=("at most", 32.0)),
        *(Row("run", f"of it {name}", value, "s") for name, value in parts.items()),
    ]


def sweep(epochs: int) -> list[Row]:
    """Two runs of the MNIST preset: side by side as a sweep lays them out, and one after another on all cores.

    Any other layout has the same work to do: none can be faster than the default's work with no core ever waiting.
    """
    flags = [MNIST, f"--train_epochs={epochs}", f"--retrain_epochs={epochs}", "--sweep=seed=0,1", "--noexport"]
    cores = len(os.sched_getaffinity(0))
    one = ["--workers=1", f"--threads={cores}"]
    took: dict[str, list[tuple[float, float]]] = {"side by side": [], "one by one": []}
    for name, extra in [("side by side", []), ("one by one", one)] * 2:
        with tempfile.TemporaryDirectory() as folder:
            took[name].append(timed([*LAUNCHER, *flags, *extra, f"--output_dir={folder}/sweep"]))
    (side_by_side, work), (one_by_one, work_there) = (min(took[name]) for name in took)
    never_waiting = work / cores
    return [
        Row("sweep", f"two runs one after another, {cores} threads", one_by_one, "s", side_by_side, ("at least", 1.3)),
        Row("sweep", "the same, against their work if no core ever waited", one_by_one, "s", never_waiting),
        Row("sweep", "two runs side by side, the default layout", side_by_side, "s", never_waiting),
        Row("sweep", "work of two runs one after another", work_there, "core s", cores * one_by_one),
        Row("sweep", "work of two runs side by side", work, "core s", cores * side_by_side),
    ]


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and seconds that it and its processes kept cores busy."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def watched(command: list[str]) -> tuple[float, int, list[int]]:
    """Runs a command.

    Returns:
        Its seconds, its peak memory in bytes, and the memory resident at each line that it says of a stage.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, at_stages = 0, []

    def status(field: str) -> int:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
        return 0

    def listen() -> None:
        for line in process.stderr:
            if line.startswith("task "):
                at_stages.append(status("VmRSS"))

    listener = threading.Thread(target=listen)
    listener.start()
    while process.poll() is None:
        peak = max(peak, status("VmHWM"))
        time.sleep(0.05)
    listener.join()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return seconds, peak, at_stages
