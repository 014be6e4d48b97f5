"""A pool of worker processes: how many there are, with how many threads, and which run each one gets."""

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

# A worker process is replaced after this many runs: compiled programs stay in RAM, 30 MB each for the paper's MLP.
RUNS_PER_PROCESS = 20
# Of each worker. With PYTHONSAFEPATH (Python 3.11) `python -m` imports no modules from the current folder.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TF_PACKNET_LAZY": "1"}


@dataclass(frozen=True)
class Layout:
    """How the cores are shared: `workers` processes with `threads` threads each."""

    workers: int
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the environment variables that limit the threads. Pinning processes to cores was slower."""
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(names, str(self.threads))


def best_layout(workers: int | None = None, threads: int = 1) -> Layout:
    """Return as many workers as there are cores for their threads; with a GPU one worker, which uses it alone.

    One thread per worker is fastest, since no thread waits for another. It also makes results independent of the number
    of cores: sums that are split between threads may differ in their last bits.

    Args:
        workers: Number of workers; default as above.
        threads: Threads of each worker.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = 1 if Path("/dev/nvidia0").exists() else max(1, cores // threads)
    return Layout(workers, threads)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        config: Its config.
        results: The content of its `results.json`; None if it failed.
        error: Why it failed, in one line; empty if it did not.
        seconds: Wall time; 0 if it was complete before.
        refused: The error in its config, data or machine, if it failed because of one.
    """

    config: Config
    results: dict[str, Any] | None
    error: str
    seconds: float
    refused: ArgumentError | None = None


@dataclass
class Job:
    """A run to do.

    Attributes:
        config: Its config.
        beginning: Equal for runs that start with the same stage, see `stages.shared_beginning`.
        future: Gets the `FinishedRun`.
    """

    config: Config
    beginning: str
    future: Future = field(default_factory=Future)


class Pool:
    """Worker processes that take runs from a queue. A run that fails does not stop the others.

    The callbacks are called from the threads of the workers, one at a time.

    Args:
        layout: Number of workers and their threads.
        stages_dir: The store of stages, which all runs share.
        on_start: Called with a config when its run starts.
        on_epochs: Called with a config and the number of epochs that are newly done.
        on_end: Called with each finished run.
        log: Called with lines to show.
    """

    def __init__(
        self,
        layout: Layout,
        stages_dir: Path,
        on_start: Callable[[Config], None] = lambda config: None,
        on_epochs: Callable[[Config, int], None] = lambda config, epochs: None,
        on_end: Callable[[FinishedRun], None] = lambda finished: None,
        log: Callable[[str], None] = lambda line: None,
    ):
        self._layout, self._stages_dir = layout, stages_dir
        self._on_start, self._on_epochs, self._on_end, self._log = on_start, on_epochs, on_end, log
        self._waiting: list[Job] = []
        self._running: list[str] = []  # the beginnings of the current runs
        self._changed = threading.Condition()
        self._closed = False
        self._processes: list[subprocess.Popen | None] = [None] * layout.workers
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(layout.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, config: Config) -> "Future[FinishedRun]":
        """Queue a run; the result of the future is a `FinishedRun`."""
        with self._changed:
            job = Job(config, shared_beginning(config))
            self._waiting.append(job)
            self._changed.notify_all()
            return job.future

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and cancels all runs that are not finished."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._changed.notify_all()
        for process in self._processes:
            if process is not None:
                process.kill()
                process.wait()

    def _work(self, number: int) -> None:
        worker = _Worker(self._layout, self._stages_dir)
        while (job := self._next()) is not None:
            try:
                finished = self._do(worker, number, job)
            except Exception as error:  # for example a full disk: raised where the result is waited for
                job.future.set_exception(error)
                continue
            if finished is None:
                job.future.cancel()
            else:
                job.future.set_result(finished)

    def _do(self, worker: "_Worker", number: int, job: Job) -> FinishedRun | None:
        """Do a run; returns None if the pool is closed meanwhile."""
        try:
            self._processes[number] = worker.ready_for(job.config)
            self._call(self._on_start, job.config)
            finished = worker.run(
                job.config,
                lambda epochs: self._call(self._on_epochs, job.config, epochs),
                lambda line: self._call(self._log, line),
            )
        finally:
            with self._changed:
                self._running.remove(job.beginning)
        with self._changed:
            if self._closed:
                return None
            self._on_end(finished)
        return finished

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with self._changed:
            callback(*arguments)

    def _next(self) -> Job | None:
        """Take a run from the queue. Prefers one that does not have to wait for the first stage of a current run."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            independent = [job for job in self._waiting if job.beginning not in self._running]
            job = (independent or self._waiting)[0]
            self._waiting.remove(job)
            self._running.append(job.beginning)
            return job


class _Worker:
    """One worker process at a time. It is replaced when it dies, or when a run needs other process-wide settings."""

    def __init__(self, layout: Layout, stages_dir: Path):
        self._layout, self._stages_dir = layout, stages_dir
        self._process: subprocess.Popen | None = None
        self._settings: tuple[Any, ...] = ()
        self._runs = 0

    def ready_for(self, config: Config) -> subprocess.Popen:
        """Return the process for `config`; starts one if necessary."""
        settings = (config.model, config.jit, config.strategy, config.logical_devices)  # cannot change within a process
        reusable = settings == self._settings and self._runs < RUNS_PER_PROCESS
        if self._process is None or self._process.poll() is not None or not reusable:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._settings, self._runs = settings, 0
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  used as long as the process lives
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tf_packnet.experiments.worker_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,  # Ctrl-C goes to the launcher alone
                env={**os.environ, **_ENVIRONMENT, **self._layout.environment(), "PYTHONPATH": path},
            )
        return self._process

    def run(self, config: Config, on_epochs: Callable[[int], None], log: Callable[[str], None]) -> FinishedRun:
        """Do a run in the process; failures are part of the result."""
        began = time.perf_counter()
        process = self._process
        assert process is not None  # `ready_for` has started it, with pipes
        assert process.stdin is not None
        assert process.stdout is not None
        self._runs += 1
        reply: dict[str, Any] = {}
        try:
            job = {"config": config.to_json(), "stages_dir": str(self._stages_dir)}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                reply = json.loads(line)
                if "log" in reply:
                    log(reply["log"])
                elif "epochs" in reply:
                    on_epochs(reply["epochs"])
                else:
                    break
        except OSError:  # the process has died
            pass
        error = reply.get("error") or ("" if "results" in reply else self._cause_of_death(process))
        refused = ArgumentError(*reply["refused"]) if "refused" in reply else None
        return FinishedRun(config, reply.get("results"), error, time.perf_counter() - began, refused)

    def _cause_of_death(self, process: subprocess.Popen) -> str:
        code = process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no output"]
        return f"its process ended with {code}: {lines[-1]}"
