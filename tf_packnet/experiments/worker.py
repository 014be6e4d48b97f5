"""The launcher's side of a worker: starts a worker process, sends it runs, reads its replies, and ends it.

Whether a process is still alive is read from `/proc`, not guessed from its speed: an epoch may take hours.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.experiments import faults
from tf_packnet.experiments.gpus import VISIBLE
from tf_packnet.runs import network_files
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import MODELS
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system.storage import is_storage_fault

# A worker process is replaced after this many runs: compiled programs stay in RAM, 30 MB each for the paper's MLP.
RUNS_PER_PROCESS = 20
# A process that is stopped (by SIGSTOP or a debugger) in this many checks in a row is ended. Checks are counted, not
# timed: if the launcher was stopped too, the process gets time to continue.
CHECK_SECONDS, STOPPED_CHECKS = 1.0, 5
# Limit on the start of a process. It has no run by then; importing TensorFlow takes 4 s, from a slow disk minutes.
START_SECONDS = 600.0
# How long to wait for a process to end by itself, after it has closed its output: it may write a core file.
END_SECONDS = 10.0
# Environment of each worker process. With PYTHONSAFEPATH (Python 3.11) `python -m` imports no modules from the current
# folder.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TF_PACKNET_LAZY": "1"}
# Set unless the user has set it: by default, TensorFlow allocates all memory of a GPU, which other workers may share.
_DEFAULTS = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
_COMMAND = ("-m", "tf_packnet.experiments.worker_process")


@dataclass(frozen=True)
class Layout:
    """How the machine is shared between workers.

    Attributes:
        workers: Number of processes.
        threads: Threads of each.
        gpus: The value of `CUDA_VISIBLE_DEVICES` for each process; empty if all see the same devices as the launcher.
        fleet: Runs of each process at the same time.
    """

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()
    fleet: int = 1

    @property
    def runs(self) -> int:
        """The number of runs at the same time."""
        return self.workers * self.fleet

    def of(self, number: int) -> "Layout":
        """Return the layout of one process."""
        return dataclasses.replace(self, gpus=self.gpus[number : number + 1])

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a worker. Pinning processes to cores was slower."""
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = dict.fromkeys(names, str(self.threads))
        if self.gpus:
            environment[VISIBLE] = self.gpus[0]
        return environment


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, or for which no worker is left.

    Attributes:
        config: Its config.
        results: The content of its `results.json`; None if it failed.
        error: Why there are no results, in one line; empty if there are.
        seconds: Wall time; 0 if it was complete before.
        refused: The error in its config, data or machine, if it failed because of one.
        queued: Whether it did not fail, but was left in the queue.
    """

    config: Config
    results: dict[str, Any] | None
    error: str
    seconds: float
    refused: ArgumentError | None = None
    queued: bool = False


class WorkerFault(Exception):  # noqa: N818  the machine's, see `faults`
    """The process of a worker has ended, or could not be started. The message says why, in one line.

    Attributes:
        from_outside: Whether no run can be the cause.
        gpu_memory: Whether the memory of a GPU has run out.
    """

    def __init__(self, reason: str, from_outside: bool = False, gpu_memory: bool = False):
        super().__init__(reason)
        self.from_outside, self.gpu_memory = from_outside, gpu_memory


class Worker:
    """One worker process at a time.

    Args:
        layout: The threads and the GPUs of the process.
        place: Where stages and results are stored, which all runs share.
    """

    def __init__(self, layout: Layout, place: StorePlace):
        self._layout, self._place = layout, place
        self._command: tuple[str, ...] = _COMMAND
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: tuple[Any, ...] | None = None
        self._runs = self._gpus = 0

    @property
    def pid(self) -> int | None:
        """Id of the process, if there is one."""
        return self._process.pid if self._process else None

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None  # `start` comes first
        return self._process

    def fits(self, config: Config) -> bool:
        """Whether the process is alive and can do a run of `config`. If not, `start` replaces it."""
        if self._has_ended() or self._runs >= RUNS_PER_PROCESS * self._layout.fleet:
            return False
        return self._settings in (None, settings_of(config))

    def start(self) -> str:
        """End the process, if there is one, and start another; returns when it is ready.

        Returns:
            Text that is equal for workers that use the same GPUs.

        Raises:
            WorkerFault: If it does not become ready.
            OSError: If no temporary file can be written.
        """
        self.end()
        self._settings, self._runs = None, 0
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  used as long as the process lives
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,  # Ctrl-C goes to the launcher alone
                env={**_DEFAULTS, **os.environ, **_ENVIRONMENT, **self._layout.environment(), "PYTHONPATH": path},
            )
        except OSError as error:
            if is_storage_fault(error):
                raise
            raise WorkerFault(f"its process cannot be started: {faults.describe(error)}") from error
        self._replies = self._read(time.monotonic() + START_SECONDS)
        gpus = self._reply()["ready"]
        if gpus < self._gpus:  # TensorFlow would compute on the CPU instead
            self._fail(f"its process found {gpus} GPUs; there were {self._gpus} before")
        self._gpus = gpus
        return ",".join(self._layout.gpus)

    def run(
        self,
        config: Config,
        on_epochs: Callable[[int], None],
        log: Callable[[str], None],
        network: dict[str, str] | None = None,
    ) -> FinishedRun:
        """Do a run in the process. An error of the run is part of the result.

        Args:
            config: The run.
            on_epochs: Called with the number of epochs that are newly done.
            log: Called with lines to show.
            network: The fingerprint that the files of the network must have; default: that of their first run.

        Raises:
            WorkerFault: If the machine is the cause of an error. The process has then ended.
            OSError: If the store of stages cannot be written.
        """
        began = time.perf_counter()
        self._settings, self._runs = settings_of(config), self._runs + 1
        self._send(config, network)
        return self._finished(config, began, self._reply, on_epochs, log)

    def _send(self, config: Config, network: dict[str, str] | None = None, **more: Any) -> None:
        try:
            if network is None:
                network = network_files.first_fingerprint(config.model, config.weights)
            job = {"config": config.to_json(), "place": self._place.to_json(), "network": network, **more}
            _pipe(self._started.stdin).write(json.dumps(job).encode() + b"\n")
        except OSError:  # the process has died
            self._fail()

    def _finished(
        self,
        config: Config,
        began: float,
        next_reply: Callable[[], dict[str, Any]],
        on_epochs: Callable[[int], None],
        log: Callable[[str], None],
    ) -> FinishedRun:
        """Read the replies to a run until its last one."""
        while True:
            reply = next_reply()
            if "log" in reply:
                log(reply["log"])
            elif "epochs" in reply:
                on_epochs(reply["epochs"])
            else:
                break
        if "machine" in reply:
            self._fail(reply["machine"])
        if "folder" in reply:
            raise OSError(*reply["folder"])
        refused = ArgumentError(*reply["refused"]) if "refused" in reply else None
        seconds = time.perf_counter() - began
        return FinishedRun(config, reply.get("results"), reply.get("error", ""), seconds, refused)

    def end(self, timeout: float | None = None) -> int | None:
        """End the process and all processes that it has started. Returns its exit status, None if there was no process.

        Args:
            timeout: Seconds to wait for a process that cannot be killed yet because it waits for a device.
        """
        if self._process is None:
            return None
        if self._process.returncode is None:  # else the number may belong to another process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait(timeout)

    def _has_ended(self) -> bool:
        """Whether there is no process, or it has ended. Leaves its number reserved, so that `end` can use it."""
        return self._process is None or self._process.returncode is not None or process_state(self._process.pid) in "ZX"

    def _reply(self) -> dict[str, Any]:
        """Return the next reply; raises WorkerFault if the process ends before."""
        try:
            reply = next(self._replies, None)
        except ValueError:  # cut off, or written by another library
            self._fail("its process sent an invalid reply")
        return reply or self._fail()

    def _read(self, start_by: float) -> Iterator[dict[str, Any]]:
        """Yield the replies of the process until it ends; ends it if it is stopped or does not start."""
        output, pending, stopped, ready = _pipe(self._started.stdout).fileno(), b"", 0, False
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while True:
            if poll.poll(1000 * CHECK_SECONDS):
                chunk = os.read(output, 65536)
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
                    ready = True
                if not chunk:
                    return
                stopped = 0
                continue
            if self._has_ended():  # a process that it has started holds its output open
                return
            stopped = stopped + 1 if process_state(self._started.pid) in "Tt" else 0
            if stopped == STOPPED_CHECKS:
                self._fail("its process was stopped by a signal or a debugger, and was ended", from_outside=True)
            if not ready and time.monotonic() > start_by:
                self._fail(f"its process was not ready within {START_SECONDS:.0f} s")

    def _fail(self, reason: str | None = None, from_outside: bool = False) -> Any:
        """End the process and raise WorkerFault, by default with its exit status as the reason."""
        deadline = time.monotonic() + END_SECONDS
        while reason is None and not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        status = self.end() or 0
        self._errors.seek(0)
        output = self._errors.read()[-10_000:].decode(errors="replace")
        if reason is None:
            reason, from_outside = faults.describe_exit(status, output), faults.is_from_outside(status)
        raise WorkerFault(one_line(reason), from_outside, self._gpus > 0 and faults.is_gpu_memory(reason))


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # `start` opens pipes
    return stream


def process_state(pid: int) -> str:
    """Return the state of a process as in `/proc`: `T` stopped, `t` traced, `Z` ended, `X` gone, and others."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def settings_of(config: Config) -> tuple[Any, ...]:
    """Return the settings that must be equal for all runs of a process.

    For example, a run with convolutions may make TensorFlow deterministic for the rest of the process.
    """
    own = () if config.model in MODELS else (config.model_args, config.dataset)
    return config.model, *own, config.jit, config.strategy, config.logical_devices
