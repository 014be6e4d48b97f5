"""Starts processes in which TensorFlow is already imported: the import takes longer than most runs in the tests.

The processes are forked from a server that has not yet initialized devices or started threads of TensorFlow.
"""

import atexit
import functools
import gc
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

_PRELOADED = ["tensorflow", "keras", "pandas", "scipy.stats", "matplotlib.pyplot", "tensorboard.summary"]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(_PRELOADED)


def run(
    script: Path, arguments: Sequence[str], cwd: Path, timeout: float, environment: Mapping[str, str]
) -> subprocess.CompletedProcess:
    """Do the same as `subprocess.run([sys.executable, script, *arguments], ...)`; the output is text."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        command = [str(script), *arguments]
        process = _server.Process(target=_main, args=(command, str(cwd), dict(environment), outputs))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        written = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *written)


def _main(command: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    for number, (name, path) in enumerate(zip(("stdout", "stderr"), outputs, strict=True), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  instead of the server's
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    gc.freeze()  # what was imported before
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without


class Outcome(NamedTuple):
    """`error` is None or the exception; `grown` the highest memory above that at the start, in bytes."""

    error: Exception | None
    grown: int
    seconds: float


def outcome(function: Callable[..., object], *arguments: object, timeout: float = 120) -> Outcome:
    """What `function`, of a module, comes to in a process of its own, and the memory that it takes there."""
    connection = _measuring()
    connection.send((function, arguments))
    if not connection.poll(timeout):
        raise subprocess.TimeoutExpired([function.__name__], timeout)
    return connection.recv()


@functools.cache
def _measuring() -> Connection:
    """A process that forks another for each function, after it has imported the package."""
    ours, theirs = multiprocessing.Pipe()
    _server.Process(target=_serve, args=(theirs,), daemon=True).start()
    return ours


def _serve(connection: Connection) -> None:
    importlib.import_module("tf_packnet.prediction")
    importlib.import_module("tf_packnet.packfile.loading")
    while True:
        function, arguments = connection.recv()
        child = os.fork()
        if not child:
            connection.send(_measured(function, arguments))
            os._exit(0)
        os.waitpid(child, 0)


def _measured(function: Callable[..., object], arguments: tuple) -> Outcome:
    before, start, error = _kilobytes("VmRSS"), time.monotonic(), None
    try:
        function(*arguments)
    except Exception as raised:
        error = raised
    return Outcome(error, (_kilobytes("VmHWM") - before) * 1024, time.monotonic() - start)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
