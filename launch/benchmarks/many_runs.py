"""Measures the overhead of many runs: scheduling, file operations, and memory of the launcher.

    python -m launch.benchmarks.many_runs                            500 tiny runs in two processes
    python -m launch.benchmarks.many_runs --runs=100 --cluster=ray

CPU seconds are printed in addition to wall-clock seconds, because they are comparable even on a busy machine.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"], os.environ["TF_PACKNET_LAZY"] = "tensorflow", "1"  # as the launcher

from tf_packnet.experiments import suite
from tf_packnet.experiments.definitions import Experiment, define
from tf_packnet.experiments.worker import FinishedRun, Layout
from tf_packnet.experiments.worker_pool import Pool
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace

TINY = {"num_tasks": 1, "train_epochs": 1, "retrain_epochs": 1, "prune_rounds": 1, "hidden_units": (8,), "jit": "off"}
# Python's audit events, with the file operations that they stand for.
EVENTS = {"open": "opened", "os.rename": "renamed", "os.remove": "deleted", "os.rmdir": "deleted", "os.mkdir": "made"}


class NoWork:
    """A worker whose runs take no time."""

    def __init__(self, layout: Layout, place: StorePlace):
        pass

    def fits(self, config: Config) -> bool:
        return True

    def start(self) -> str:
        return ""

    def run(self, config: Config, on_epochs: Callable[[int], None], log: Callable[[str], None]) -> FinishedRun:
        return FinishedRun(config, {}, "", 0.0)

    def end(self, timeout: float | None = None) -> None:
        pass


def tiny(runs: int, folder: str = "") -> Experiment:
    """Define an experiment of tiny runs, five for each seed."""
    config = Config(**TINY, output_dir=folder)
    return define("sweep", config, {"final_prune": [0.5, 0.6, 0.7, 0.8, 0.9]}, range(-(-runs // 5)))


def cpu_seconds(who: int) -> float:
    """Return the CPU time of this process, or of its children."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def scheduling(runs: int, workers: int) -> float:
    """Return the CPU milliseconds per run that the launcher takes if the runs take no time."""
    began = cpu_seconds(resource.RUSAGE_SELF)
    with Pool(Layout(workers, 1), StorePlace(Path()), make_worker=NoWork) as pool:
        wait([pool.submit(config) for config in tiny(runs).configs])
    return 1000 * (cpu_seconds(resource.RUSAGE_SELF) - began) / runs


def file_operations(folder: str) -> list[dict[str, int]]:
    """Count the file operations of two runs: one that computes all stages, and one that shares the first stage."""
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    from tf_packnet.runs.learning import learn_only

    counts: list[collections.Counter[str]] = []

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock":
            counts[-1]["locked"] += 1
        elif event in EVENTS and str(arguments[0]).startswith(folder):
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            counts[-1]["written" if writes else EVENTS[event]] += 1

    for final_prune in (0.5, 0.5, 0.9):  # the first one imports libraries
        counts.append(collections.Counter())
        if len(counts) == 2:
            sys.addaudithook(count)
        store = StorePlace(Path(folder, "first" if len(counts) == 1 else "stages"))
        learn_only(Config(**TINY, final_prune=final_prune), store, lambda task, stage: [])
    return [dict(sorted(each.items())) for each in counts[1:]]


def experiment(runs: int, folder: str, cluster: str) -> None:
    """Execute tiny runs, and print their time, memory and files."""
    began, own, children = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF), cpu_seconds(resource.RUSAGE_CHILDREN)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        suite.main(tiny(runs, folder), workers=2, cluster=cluster)
    own, children = cpu_seconds(resource.RUSAGE_SELF) - own, cpu_seconds(resource.RUSAGE_CHILDREN) - children
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    print(f"{runs} runs, --cluster={cluster}: {seconds:.0f} s, {seconds / runs:.2f} s per run in two processes")
    print(f"  CPU of the launcher, with report: {1000 * own / runs:.1f} ms per run; of workers {children / runs:.2f} s")
    print(f"  memory of the launcher: {before / 1024:.0f} MiB before, {peak / 1024:.0f} MiB at most, with the report")
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"  files: {len(files) / runs:.1f} per run, {size / runs / 1024:.0f} KiB")
    tracemalloc.start()
    kept = [json.loads(path.read_text()) for path in Path(folder, "runs").iterdir()]
    print(f"  memory for results: {tracemalloc.get_traced_memory()[0] / len(kept) / 1024:.0f} KiB per run")
    tracemalloc.stop()


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--cluster", default="local")
    given = parser.parse_args()
    if given.cluster == "local":
        for runs, workers in ((500, 2), (500, 100), (5000, 2), (5000, 100)):
            print(f"scheduling {runs} runs for {workers} workers: {scheduling(runs, workers):.2f} ms of CPU per run")
    with tempfile.TemporaryDirectory() as folder:
        experiment(given.runs, f"{folder}/out", given.cluster)
    if given.cluster == "local":
        with tempfile.TemporaryDirectory() as folder:
            for name, counts in zip(("computes both stages", "shares the first"), file_operations(folder), strict=True):
                print(f"a run that {name}, on files of the store:", ", ".join(f"{n} {k}" for k, n in counts.items()))


if __name__ == "__main__":
    main()
