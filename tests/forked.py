"""Processes that begin with TensorFlow imported, which takes longer than most runs that the tests launch.

They are forked from a server in which nothing was computed yet: no device looked for, no thread of TensorFlow's.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without
