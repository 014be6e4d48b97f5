"""Assigns runs to workers, and decides what follows from a machine fault. Only rules: no processes, no threads.

A machine fault ends the process of a worker, but not the run:

1. The run is queued again. If it may have caused the fault, it is a suspect: it runs after all others, alone, so that
   no other run competes for memory. A worker prefers suspects that have not faulted on it.
2. The worker starts a new process. It is retired after `MOST_FAULTS` faults without a completed run in between.
3. A suspect fails if it faults on a worker that works well: one that has completed a run since its last fault. This
   fault does not count against the worker.
4. When all workers are retired, the remaining runs stay queued.
5. If memory runs out on a GPU that several workers share, sharing is the cause. The run is queued again, and half of
   these workers are retired as soon as they are idle. When one worker is left, rules 1 to 4 apply.

So a worker on which every run faults delays at most `MOST_FAULTS` runs, and a run that needs more memory than there is
costs no worker.
"""

import enum
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from tf_packnet.runs.config import Config

MOST_FAULTS = 3


class RunState(enum.Enum):
    """The state of a run. After a machine fault, a running run is queued again."""

    QUEUED = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class WorkerState(enum.Enum):
    """A worker is idle, starts a process, or does a run. Once retired, it does nothing any more."""

    IDLE = enum.auto()
    STARTING = enum.auto()
    BUSY = enum.auto()
    RETIRED = enum.auto()


@dataclass(eq=False)
class Job:
    """A run to do.

    Attributes:
        config: Its config.
        beginning: Equal for runs that start with the same stage, see `stages.shared_beginning`.
        future: Gets the `FinishedRun`.
        state: Its state.
        suspect: Whether it had a machine fault that it may have caused.
        tried_by: The workers on which it had a fault.
        began: When it last started, by `time.perf_counter()`.
    """

    config: Config
    beginning: str
    future: Future = field(default_factory=Future)
    state: RunState = RunState.QUEUED
    suspect: bool = False
    tried_by: set[int] = field(default_factory=set)
    began: float = 0.0


@dataclass(eq=False)
class _Worker:
    state: WorkerState = WorkerState.IDLE
    job: Job | None = None
    faults: int = 0  # since its last completed run
    works_well: bool = False
    gpus: str = ""  # equal for workers that share GPUs


class Consequence(NamedTuple):
    """Consequences of a fault: the job in which it occurred, None while starting, and whether the worker is retired."""

    job: Job | None
    retired: bool


class RunQueue:
    """The queue of runs and the workers that take them.

    Args:
        workers: Number of workers.
        gpus: For each worker, text that is equal for workers that use the same GPUs; empty if not known yet.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()):
        self._workers = [_Worker(gpus="".join(gpus[number : number + 1])) for number in range(workers)]
        self._queued: list[Job] = []
        self._most_sharing: dict[str, int] = {}  # by `gpus`, once their memory has run out

    @property
    def queued(self) -> tuple[Job, ...]:
        """The runs that wait for a worker, in order."""
        return tuple(self._queued)

    @property
    def has_workers(self) -> bool:
        """Whether a worker is left."""
        return any(worker.state != WorkerState.RETIRED for worker in self._workers)

    def state(self, number: int) -> WorkerState:
        """Return the state of a worker."""
        return self._workers[number].state

    def add(self, job: Job) -> None:
        """Queue a run."""
        self._queued.append(job)

    def next_for(self, number: int) -> Job | None:
        """Return the run that an idle worker may take now, or should start a process for; None if there is none.

        Prefers runs that do not have to wait for the first stage of a current run.
        """
        worker = self._workers[number]
        if worker.state != WorkerState.IDLE:
            return None
        running = [other.job for other in self._workers if other.job is not None]
        if any(job.suspect for job in running):
            return None
        fresh = [job for job in self._queued if not job.suspect]
        if fresh:
            beginnings = {job.beginning for job in running}
            return next((job for job in fresh if job.beginning not in beginnings), fresh[0])
        may_judge = worker.works_well or not any(other.works_well for other in self._workers)
        if not self._queued or running or not may_judge:
            return None
        return min(self._queued, key=lambda job: number in job.tried_by)

    def may_start(self, number: int) -> bool:
        """Whether a worker should start a process: whether more runs are waiting than processes are starting."""
        starting = sum(worker.state == WorkerState.STARTING for worker in self._workers)
        fresh = sum(not job.suspect for job in self._queued)
        return self.next_for(number) is not None and starting < max(1, fresh)

    def start(self, number: int) -> None:
        """Note that an idle worker starts a process."""
        self._change(number, WorkerState.IDLE, WorkerState.STARTING)

    def started(self, number: int, gpus: str = "") -> None:
        """Note that the process of a worker is ready, and which GPUs it uses."""
        self._change(number, WorkerState.STARTING, WorkerState.IDLE)
        self._workers[number].gpus = gpus
        self._retire_surplus(gpus)

    def take(self, number: int) -> Job:
        """Give an idle worker the run of `next_for`."""
        job = self.next_for(number)
        assert job is not None
        self._queued.remove(job)
        job.state = RunState.RUNNING
        self._change(number, WorkerState.IDLE, WorkerState.BUSY)
        self._workers[number].job = job
        return job

    def end(self, number: int, failed: bool) -> None:
        """Note that the run of a worker has ended; `failed` by a fault of its own."""
        worker, job = self._workers[number], self._release(number)
        job.state = RunState.FAILED if failed else RunState.DONE
        if not failed:
            worker.faults, worker.works_well = 0, True
        self._retire_surplus(worker.gpus)

    def fault(self, number: int, from_outside: bool = False, gpu_memory: bool = False) -> Consequence:
        """Note that the process of a worker has ended, or never started, by a fault of the machine.

        Args:
            number: The worker.
            from_outside: Whether no run can be the cause, for example because a user has stopped the process.
            gpu_memory: Whether the memory of its GPUs has run out.
        """
        worker = self._workers[number]
        job = None
        sharing = self.sharing(number)
        if gpu_memory and worker.state == WorkerState.BUSY and sharing > 1:  # rule 5
            job = self._release(number)
            job.state, job.suspect = RunState.QUEUED, job.suspect or sharing // 2 == 1
            self._queued.append(job)
            if sharing <= self._most_sharing.get(worker.gpus, sharing):  # else workers are about to be retired
                self._most_sharing[worker.gpus] = sharing // 2
            self._retire_surplus(worker.gpus)
            return Consequence(job, self.state(number) == WorkerState.RETIRED)
        if worker.state == WorkerState.STARTING:
            self.started(number)
        else:
            job = self._release(number)
            if job.suspect and worker.works_well and not from_outside:  # rule 3
                job.state = RunState.FAILED
                return Consequence(job, retired=False)
            job.state, job.suspect = RunState.QUEUED, job.suspect or not from_outside
            job.tried_by.add(number)
            self._queued.append(job)
        worker.faults, worker.works_well = worker.faults + 1, False
        if worker.faults >= MOST_FAULTS:
            worker.state = WorkerState.RETIRED
        self._retire_surplus(worker.gpus)
        return Consequence(job, worker.state == WorkerState.RETIRED)

    def sharing(self, number: int) -> int:
        """Return how many workers use the GPUs of a worker, itself included."""
        gpus = self._workers[number].gpus
        return sum(other.gpus == gpus and other.state != WorkerState.RETIRED for other in self._workers)

    def most_sharing(self, number: int) -> int:
        """Return how many workers may go on using the GPUs of a worker."""
        return self._most_sharing.get(self._workers[number].gpus, len(self._workers))

    def _retire_surplus(self, gpus: str) -> None:
        for number, worker in enumerate(self._workers):
            idle = worker.gpus == gpus and worker.state == WorkerState.IDLE
            if idle and self.sharing(number) > self.most_sharing(number):
                worker.state, worker.works_well = WorkerState.RETIRED, False  # a retired worker judges no run

    def _release(self, number: int) -> Job:
        self._change(number, WorkerState.BUSY, WorkerState.IDLE)
        job, self._workers[number].job = self._workers[number].job, None
        assert job is not None
        return job

    def _change(self, number: int, before: WorkerState, after: WorkerState) -> None:
        assert self._workers[number].state == before, (number, self._workers[number].state, before)
        self._workers[number].state = after
