"""A pool of workers: a thread for each worker, which takes runs from the queue that they share."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from subprocess import TimeoutExpired
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import gpus
from tf_packnet.experiments.fleet_worker import MakeWorker, workers_of
from tf_packnet.experiments.run_queue import MOST_FAULTS, Job, RunQueue, RunState, WorkerState
from tf_packnet.experiments.worker import FinishedRun, Layout, Worker, WorkerFault
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.runs.stages import shared_beginning
from tf_packnet.system import memory

# How long to wait for a killed process when the pool is closed.
CLOSE_SECONDS = 10.0


_RETIRED = f"is retired after {MOST_FAULTS} faults in a row"


def best_layout(
    workers: int | None = None,
    threads: int = 1,
    gpus_per_run: float | None = None,
    memory_per_run: float | None = None,
    mirrored: bool = False,
    fleet: int = 1,
) -> Layout:
    """Return a layout with one worker per GPU or, without GPUs, as many workers as there are cores for their threads.

    One thread per worker is fastest, since no thread waits for another. It also makes results independent of the number
    of cores: sums that are split between threads may differ in their last bits.

    Args:
        workers: Number of workers; default as above. More workers than there is room for share the GPUs evenly.
        threads: Threads of each worker.
        gpus_per_run: GPUs of each worker, which sees no others; a fraction if workers share them; 0 for none. Default:
            one, if there are any.
        memory_per_run: Memory of each worker in GiB, which limits their number.
        mirrored: Whether a run uses all GPUs that it sees. Then the default for `gpus_per_run` is all.
        fleet: Runs of each worker at the same time.

    Raises:
        ArgumentError: If the machine has too few GPUs, or too little memory, for one worker.
    """
    found = [] if gpus_per_run == 0 else gpus.visible()
    slots: list[str] = []
    if gpus_per_run == 0:
        slots = [gpus.NONE]
    elif found or gpus_per_run:
        slots = gpus.divide(found, gpus_per_run or (len(found) if mirrored else 1))
    most = len(slots) if found else max(1, len(os.sched_getaffinity(0)) // threads)
    if memory_per_run is not None:
        available = memory.available() / 2**30
        if memory_per_run > available:
            expected = f"at most the {available:.1f} GiB that are available"
            raise ArgumentError("memory_per_run", expected, memory_per_run)
        most = min(most, int(available / memory_per_run))
    workers = workers or most
    return Layout(workers, threads, tuple(slots[number % len(slots)] for number in range(workers) if slots), fleet)


class Pool:
    """Workers that take runs from a queue. Neither a failed run nor a retired worker stops the others.

    The callbacks are called from the threads of the workers, one at a time. An error that they raise stops the pool, as
    does a folder that can no longer be written: the futures of all runs that have not ended raise it.

    Args:
        layout: Number of workers and their threads.
        place: Where stages and results are stored, which all runs share.
        name: Names a run in messages.
        on_start: Called with a config when its run starts.
        on_epochs: Called with a config and the number of epochs that are newly done.
        on_requeue: Called with a config when its run is queued again, after a fault of the machine.
        on_end: Called with each finished run.
        log: Called with lines to show.
        make_worker: Makes a worker from its layout and `place`; default: one in a process of this machine.
    """

    def __init__(
        self,
        layout: Layout,
        place: StorePlace,
        name: Callable[[Config], str] = lambda config: f"seed={config.seed}",
        on_start: Callable[[Config], None] = lambda config: None,
        on_epochs: Callable[[Config, int], None] = lambda config, epochs: None,
        on_requeue: Callable[[Config], None] = lambda config: None,
        on_end: Callable[[FinishedRun], None] = lambda finished: None,
        log: Callable[[str], None] = lambda line: None,
        make_worker: MakeWorker | None = None,
    ):
        self._name, self._on_start, self._on_epochs = name, on_start, on_epochs
        self._on_requeue, self._on_end, self._log = on_requeue, on_end, log
        self._queue = RunQueue(layout.runs, layout.gpus * layout.fleet)
        self._jobs: list[Job] = []
        self._last_faults: dict[int, str] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._workers = workers_of(layout, place, make_worker or Worker)
        for number in range(layout.runs):
            threading.Thread(target=self._work, args=(number,), daemon=True).start()

    def submit(self, config: Config) -> "Future[FinishedRun]":
        """Queue a run; the result of the future is a `FinishedRun`."""
        with self._changed:
            job = Job(config, shared_beginning(config))
            self._jobs.append(job)
            if self._closed:
                self._abandon(job)
            else:
                self._queue.add(job)
                self._give_up_without_workers()
            self._changed.notify_all()
            return job.future

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and cancel all runs that are not finished."""
        self._stop(None)
        for worker in self._workers:
            with contextlib.suppress(TimeoutExpired):  # its process waits for a device, and ends after that
                worker.end(CLOSE_SECONDS)

    def _work(self, number: int) -> None:
        while (job := self._next(number)) is not None:
            try:
                self._step(number, job)
            except BaseException as error:  # for example a full disk: raised by the futures
                self._stop(error)
            with self._changed:
                self._changed.notify_all()
        self._workers[number].end()

    def _next(self, number: int) -> Job | None:
        """Wait for a run. The worker is then `BUSY` with it, or `STARTING` a process while the run is still queued."""
        with self._changed:
            while not self._closed and self._queue.state(number) != WorkerState.RETIRED:
                job = self._queue.next_for(number)
                if job is not None and self._workers[number].fits(job.config):
                    return self._queue.take(number)
                if job is not None and self._queue.may_start(number):
                    self._queue.start(number)
                    return job
                self._changed.wait()
            return None

    def _step(self, number: int, job: Job) -> None:
        try:
            if self._queue.state(number) == WorkerState.BUSY:
                self._do(number, job)
            else:
                shared = self._workers[number].start()
                with self._changed:
                    self._queue.started(number, shared or "")
        except WorkerFault as fault:
            self._note_fault(number, fault)

    def _do(self, number: int, job: Job) -> None:
        job.began = time.perf_counter()
        self._call(self._on_start, job.config)
        finished = self._workers[number].run(
            job.config,
            lambda epochs: self._call(self._on_epochs, job.config, epochs),
            lambda line: self._call(self._log, line),
        )
        with self._changed:
            if not self._closed:
                self._queue.end(number, failed=finished.results is None)
                self._on_end(finished)
                job.future.set_result(finished)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with self._changed:
            callback(*arguments)

    def _note_fault(self, number: int, fault: WorkerFault) -> None:
        with self._changed:
            if self._closed:  # the pool has killed the process
                return
            sharing = self._queue.sharing(number)
            job, retired = self._queue.fault(number, fault.from_outside, fault.gpu_memory)
            self._last_faults[number] = reason = str(fault)
            where = f"worker {number + 1}" + (f", {self._name(job.config)}" if job else "")
            if job is None:
                run = ""
            elif job.state == RunState.FAILED:
                run = "the run has failed: this is its second fault, alone on a worker that works well; "
            else:
                run = f"the run is queued again{', to be done alone at the end' if job.suspect else ''}; "
            most = self._queue.most_sharing(number)
            if fault.gpu_memory and most < sharing:
                then = f"at most {most} of {sharing} workers go on sharing the memory of this GPU"
            else:
                then = f"the worker {_RETIRED if retired else 'starts a new process'}"
            self._log(f"{where}: {reason}; {run}{then}")
            if job is not None and job.state == RunState.FAILED:
                finished = FinishedRun(job.config, None, reason, time.perf_counter() - job.began)
                self._on_end(finished)
                job.future.set_result(finished)
            elif job is not None:
                self._on_requeue(job.config)
            self._give_up_without_workers()

    def _give_up_without_workers(self) -> None:
        if self._queue.has_workers:
            return
        workers: dict[str, list[str]] = {}
        for number, reason in sorted(self._last_faults.items()):
            workers.setdefault(reason, []).append(str(number + 1))
        reasons = [f"worker {' and '.join(numbers)}: {reason}" for reason, numbers in workers.items()]
        error = f"no worker is left; {'; '.join(reasons)}"
        for job in self._queue.queued:
            if not job.future.done():
                job.future.set_result(FinishedRun(job.config, None, error, 0.0, queued=True))

    def _stop(self, error: BaseException | None) -> None:
        """Start no more runs. The futures of those that have not ended raise `error`, or are cancelled."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                for job in self._jobs:
                    self._abandon(job)
            self._changed.notify_all()

    def _abandon(self, job: Job) -> None:
        if self._error is None:
            job.future.cancel()
        elif not job.future.done():
            job.future.set_exception(self._error)
