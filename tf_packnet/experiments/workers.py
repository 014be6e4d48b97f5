"""Runs side by side: how many at once, with how many threads each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import tf_packnet
from tf_packnet.experiments.config import Config


@dataclass(frozen=True)
class Layout:
    """How a machine is shared: `workers` processes with `threads` threads each."""

    workers: int
    threads: int

    def environment(self) -> dict[str, str]:
        """What tells TensorFlow, NumPy and OpenMP to keep to it. Not pinned to cores: that was slower."""
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(names, str(self.threads))


def best_layout(runs: int, workers: int | None = None) -> Layout:
    """One single-threaded worker a core, as long as there are runs for them: nothing waits for another thread.

    Where there is a GPU, one worker, which has it to itself.

    Args:
        runs: How many runs there are.
        workers: How many shall go on at once; default as above.
    """
    cores = len(os.sched_getaffinity(0))
    if workers is None:
        workers = 1 if Path("/dev/nvidia0").exists() else cores
    workers = max(1, min(runs, workers))
    return Layout(workers, max(1, cores // workers))


@dataclass(frozen=True)
class Outcome:
    """What came of one run: its exit code, seconds, and the last line it said."""

    config: Config
    exit_code: int
    seconds: float
    last_line: str


def run_all(configs: Sequence[Config], layout: Layout, finished: Callable[[Outcome], None]) -> list[Outcome]:
    """Runs every config in a process of its own; one that fails does not stop the others.

    Args:
        configs: The runs, in the order to begin them.
        layout: How many at once.
        finished: Called with each outcome as it comes, in this thread.

    Returns:
        The outcomes, in the order of `configs`.
    """
    with ThreadPoolExecutor(layout.workers) as pool:
        futures = {pool.submit(_run, config, layout): config for config in configs}
        outcomes = {}
        try:
            for future in as_completed(futures):
                outcomes[futures[future].where()] = future.result()
                finished(future.result())
        except BaseException:  # interrupted: what waits shall not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcomes[config.where()] for config in configs]


def _run(config: Config, layout: Layout) -> Outcome:
    began = time.perf_counter()
    root = str(Path(tf_packnet.__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        **layout.environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tf_packnet.experiments.worker", json.dumps(config.to_json())],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or [""]
    return Outcome(config, done.returncode, time.perf_counter() - began, lines[-1])
