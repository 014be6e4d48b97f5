"""Runs side by side: how many at once with how many threads each, and who does which."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config
from tf_packnet.runs.stages import shared_beginning

# Compiled programs stay in memory after their run, 30 MB for the paper's MLP: now and then a worker starts afresh.
RUNS_A_PROCESS = 20
# Of each worker. With PYTHONSAFEPATH (Python 3.11) `python -m` imports no modules from the current folder.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TF_PACKNET_LAZY": "1"}


@dataclass(frozen=True)
class Layout:
    """How a machine is shared: `workers` processes with `threads` threads each."""

    workers: int
    threads: int

    def environment(self) -> dict[str, str]:
        """What tells TensorFlow, NumPy and OpenMP to keep to it. Not pinned to cores: that was slower."""
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(names, str(self.threads))


def best_layout(workers: int | None = None, threads: int = 1) -> Layout:
    """As many workers as the cores can feed; where there is a GPU, one, which has it to itself.

    One thread each is fastest, since nothing waits for another thread, and keeps the results independent of the number
    of cores: sums that threads share may differ in their last bits.

    Args:
        workers: How many shall go on at once; default as above.
        threads: Threads of each.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = 1 if Path("/dev/nvidia0").exists() else max(1, cores // threads)
    return Layout(workers, threads)


@dataclass(frozen=True)
class Outcome:
    """What came of one run: its results, or what it failed of; `refused` if its config cannot be had."""

    config: Config
    results: dict[str, Any] | None
    error: str
    seconds: float
    refused: ArgumentError | None = None


@dataclass
class Job:
    """A run that was asked for."""

    config: Config
    beginning: str
    outcome: Future = field(default_factory=Future)


class Pool:
    """Workers that take the runs they are given, each in a process of its own; one that fails does not stop the others.

    Args:
        layout: How many at once.
        stages_dir: The store that they share.
        begun: Called with a config when its run begins.
        advanced: Called with a config and a number of epochs as they are done.
        ended: Called with each outcome.
        said: Called with lines for a person. All are called from the workers' threads, one at a time.
    """

    def __init__(
        self,
        layout: Layout,
        stages_dir: Path,
        begun: Callable[[Config], None] = lambda config: None,
        advanced: Callable[[Config, int], None] = lambda config, epochs: None,
        ended: Callable[[Outcome], None] = lambda outcome: None,
        said: Callable[[str], None] = lambda line: None,
    ):
        self._layout, self._stages_dir = layout, stages_dir
        self._begun, self._advanced, self._ended, self._said = begun, advanced, ended, said
        self._waiting: list[Job] = []
        self._busy: list[str] = []  # beginnings that runs are computing, or have computed in a run that goes on
        self._changed = threading.Condition()
        self._closed = False
        self._processes: list[subprocess.Popen | None] = [None] * layout.workers
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(layout.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, config: Config) -> Future:
        """Asks for a run; the future's result is its `Outcome`."""
        with self._changed:
            self._waiting.append(Job(config, shared_beginning(config)))
            self._changed.notify_all()
            return self._waiting[-1].outcome

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, whatever they are at; what was asked for and is not there is cancelled."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.outcome.cancel()
            self._changed.notify_all()
        for process in self._processes:
            if process is not None:
                process.kill()
                process.wait()

    def _work(self, number: int) -> None:
        worker = _Worker(self._layout, self._stages_dir)
        while (job := self._next()) is not None:
            try:
                outcome = self._do(worker, number, job)
            except Exception as error:  # a full disk, say: whoever waits for the run shall hear of it
                job.outcome.set_exception(error)
                continue
            if outcome is None:
                job.outcome.cancel()
            else:
                job.outcome.set_result(outcome)

    def _do(self, worker: "_Worker", number: int, job: Job) -> Outcome | None:
        """Runs a job; None if the pool was closed meanwhile."""
        try:
            self._processes[number] = worker.ready_for(job.config)
            self._tell(self._begun, job.config)
            outcome = worker.run(
                job.config,
                lambda epochs: self._tell(self._advanced, job.config, epochs),
                lambda line: self._tell(self._said, line),
            )
        finally:
            with self._changed:
                self._busy.remove(job.beginning)
        with self._changed:
            if self._closed:
                return None
            self._ended(outcome)
        return outcome

    def _tell(self, listener: Callable, *arguments: Any) -> None:
        with self._changed:
            listener(*arguments)

    def _next(self) -> Job | None:
        """The first run that begins with nothing another one is computing; any, if there is no such."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            apart = [job for job in self._waiting if job.beginning not in self._busy]
            job = (apart or self._waiting)[0]
            self._waiting.remove(job)
            self._busy.append(job.beginning)
            return job


class _Worker:
    """A process that takes job after job; another takes its place if it dies, or cannot be what the next job needs."""

    def __init__(self, layout: Layout, stages_dir: Path):
        self._layout, self._stages_dir = layout, stages_dir
        self._process: subprocess.Popen | None = None
        self._settings: tuple = ()
        self._runs = 0

    def ready_for(self, config: Config) -> subprocess.Popen:
        """The process for `config`, started if need be."""
        settings = (config.model, config.jit, config.strategy, config.logical_devices)  # for the whole of a process
        fit = settings == self._settings and self._runs < RUNS_A_PROCESS
        if self._process is None or self._process.poll() is not None or not fit:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._settings, self._runs = settings, 0
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tf_packnet.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for whoever gave the jobs
                env={**os.environ, **_ENVIRONMENT, **self._layout.environment(), "PYTHONPATH": path},
            )
        return self._process

    def run(self, config: Config, advanced: Callable[[int], None], said: Callable[[str], None]) -> Outcome:
        """Runs `config`, whatever comes of it."""
        began = time.perf_counter()
        process = self._process
        self._runs += 1
        reply: dict[str, Any] = {}
        try:
            job = {"config": config.to_json(), "stages_dir": str(self._stages_dir)}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                reply = json.loads(line)
                if "said" in reply:
                    said(reply["said"])
                elif "epochs" in reply:
                    advanced(reply["epochs"])
                else:
                    break
        except OSError:  # it is gone
            pass
        error = reply.get("error") or ("" if "results" in reply else self._died())
        refused = ArgumentError(*reply["refused"]) if "refused" in reply else None
        return Outcome(config, reply.get("results"), error, time.perf_counter() - began, refused)

    def _died(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["nothing said"]
        return f"its process ended with {code}: {lines[-1]}"
