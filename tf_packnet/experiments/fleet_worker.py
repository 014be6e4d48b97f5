"""Workers that share a process.

Each has one run at a time; the process trains the runs of all its workers side by side.
"""

import functools
import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from tf_packnet.experiments.worker import FinishedRun, Layout, Worker, WorkerFault, settings_of
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace

_COMMAND = ("-m", "tf_packnet.experiments.fleet_process")


class AnyWorker(Protocol):
    """A worker: a local process (`worker.Worker`), a share of one (`FleetWorker`), or one on a cluster."""

    def fits(self, config: Config) -> bool:
        """Whether it has a process that can do a run of `config`."""

    def start(self) -> str:
        """Start a new process; returns text that is equal for workers that use the same GPUs."""

    def run(self, config: Config, on_epochs: Callable[[int], None], log: Callable[[str], None]) -> FinishedRun:
        """Do a run in the process."""

    def end(self, timeout: float | None = None) -> Any:
        """End the process."""


MakeWorker = Callable[[Layout, StorePlace], AnyWorker]


def workers_of(layout: Layout, place: StorePlace, make_worker: MakeWorker) -> list[AnyWorker]:
    """Return a worker for each run that a layout allows at the same time.

    Args:
        layout: How the machine is shared.
        place: Where stages and results are stored.
        make_worker: Makes a worker that does one run at a time.
    """
    layouts = [layout.of(number) for number in range(layout.workers)]
    if layout.fleet == 1:
        return [make_worker(each, place) for each in layouts]
    processes = [FleetProcess(each, place) for each in layouts]
    # Neighbours use different processes, so that a few runs are spread over all of them.
    return [FleetWorker(process) for _ in range(layout.fleet) for process in processes]


class FleetWorker:
    """One of the workers that share a process. It has the methods of `Worker`.

    Args:
        process: The process.
    """

    def __init__(self, process: "FleetProcess"):
        self._process = process
        self._seen = 0

    @property
    def pid(self) -> int | None:
        """Id of the process, if there is one."""
        return self._process.pid

    def fits(self, config: Config) -> bool:
        """Whether the process is alive and can do a run of `config`. If not, `start` replaces it."""
        return self._process.fits(config)

    def start(self) -> str:
        """Replace the process once no worker uses it, unless another worker has already done so. See `Worker.start`."""
        self._seen = self._process.replace(self._seen)
        return self._process.gpus

    def run(self, config: Config, on_epochs: Callable[[int], None], log: Callable[[str], None]) -> FinishedRun:
        """Do a run in the process, see `Worker.run`."""
        return self._process.run(config, on_epochs, log)

    def end(self, timeout: float | None = None) -> int | None:
        """End the process.

        Without a `timeout`, a process that other workers use continues, and its successor has fewer slots.
        """
        self._process.slots = max(1, self._process.slots - 1)
        return None if timeout is None and self._process.is_busy else self._process.end(timeout)


class FleetProcess(Worker):
    """The process of several workers, whose threads use it at the same time.

    Args:
        layout: The threads of the process, and the number of its workers.
        place: Where stages and results are stored, which all runs share.

    Attributes:
        slots: Number of parallel runs of the next process: the number of workers, less those that were retired because
            GPU memory ran out.
    """

    def __init__(self, layout: Layout, place: StorePlace):
        super().__init__(layout, place)
        self.slots = layout.fleet
        self._number = self._jobs = 0  # of processes and of runs so far
        self._inboxes: dict[int, queue.Queue[dict[str, Any] | WorkerFault]] = {}
        self._changed, self._writing = threading.Condition(), threading.Lock()
        self._being_replaced = False
        self._reader: threading.Thread | None = None
        self._fault: WorkerFault | None = None
        self._in_company = False  # whether the process had several runs when the fault occurred
        self._had_fault: set[str] = set()

    @property
    def gpus(self) -> str:
        """Text that is equal for processes that use the same GPUs."""
        return ",".join(self._layout.gpus)

    @property
    def is_busy(self) -> bool:
        """Whether it has a run to do."""
        return bool(self._inboxes)

    def fits(self, config: Config) -> bool:
        fits = not self._being_replaced and super().fits(config)
        if fits:  # the pool gives the run to the worker now, and asks for another one meanwhile
            self._settings = settings_of(config)
        return fits

    def replace(self, seen: int) -> int:
        """Replace the process once no worker uses it, unless another worker has already replaced it.

        Args:
            seen: Number of the process that the calling worker used last.

        Returns:
            The number of the current process.

        Raises:
            WorkerFault: If it does not become ready.
            OSError: If no temporary file can be written.
        """
        with self._changed:
            before = self._number
            if before != seen and not self._has_ended():
                return before
            self._being_replaced = True
            self._changed.wait_for(lambda: not self._inboxes or self._number != before)
            if self._number == before:  # else another worker that waited has replaced it
                try:
                    self.start()
                finally:
                    self._number += 1
                    self._being_replaced = False
                    self._changed.notify_all()
            return self._number

    def start(self) -> str:
        """Start the process from the thread that reads its replies: Linux kills it when that thread ends."""
        self.end()
        self._command = (*_COMMAND, str(self.slots))
        if self._reader is not None:
            self._reader.join()  # it has noticed the end of the process before
        started: queue.Queue[BaseException | None] = queue.Queue()
        self._reader = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._reader.start()
        error = started.get()
        if error is not None:
            raise error
        return self.gpus

    def run(
        self,
        config: Config,
        on_epochs: Callable[[int], None],
        log: Callable[[str], None],
        network: dict[str, str] | None = None,
    ) -> FinishedRun:
        began = time.perf_counter()
        inbox: queue.Queue[dict[str, Any] | WorkerFault] = queue.Queue()
        with self._changed:
            self._jobs += 1
            number = self._jobs
            self._inboxes[number] = inbox
            self._runs += 1
            if self._fault is not None:  # since `fits`
                inbox.put(self._fault)
        try:
            with self._writing:
                self._send(config, network, job=number)
            return self._finished(config, began, functools.partial(_next, inbox), on_epochs, log)
        except WorkerFault as fault:
            from_outside = fault.from_outside or self._is_first(config)
            raise WorkerFault(str(fault), from_outside, fault.gpu_memory) from fault
        finally:
            with self._changed:
                del self._inboxes[number]
                self._changed.notify_all()

    def _is_first(self, config: Config) -> bool:
        """Whether this is the first fault of a run, and another run of the process may have caused it."""
        name = json.dumps(config.to_json())
        is_first = self._in_company and name not in self._had_fault
        self._had_fault.add(name)
        return is_first

    def _serve(self, started: "queue.Queue[BaseException | None]") -> None:
        self._fault = None
        try:
            super().start()
        except BaseException as error:  # raised by `start`
            started.put(error)
            return
        started.put(None)
        try:
            while True:
                reply = self._reply()
                if reply["job"] in self._inboxes:
                    self._inboxes[reply["job"]].put(reply)
        except WorkerFault as fault:
            self._fault = fault  # first: `run` reads it after it has added its inbox
            for inbox in list(self._inboxes.values()):
                inbox.put(fault)

    def _fail(self, reason: str | None = None, from_outside: bool = False) -> Any:
        """End the process as in `Worker`. All workers of the process raise the same reason."""
        if self._fault is None:
            try:
                super()._fail(reason, from_outside)
            except WorkerFault as fault:
                self._in_company = len(self._inboxes) > 1
                self._fault = self._fault or fault
        assert self._fault is not None
        raise WorkerFault(str(self._fault), self._fault.from_outside, self._fault.gpu_memory)


def _next(inbox: "queue.Queue[dict[str, Any] | WorkerFault]") -> dict[str, Any]:
    reply = inbox.get()
    if isinstance(reply, WorkerFault):
        raise reply
    return reply
