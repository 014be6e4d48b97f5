"""Compares serving a pack with serving one plain Keras model: `python -m launch.benchmarks.serving`.

Both are served by `tf-packnet serve`: a pack of five tasks, exported by `tp.export_for_serving`, and a model of the
same network, exported by Keras. The clients run in this process, on the same cores. Rounds alternate between servers.
"""

import asyncio
import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
from absl import app, flags, logging

from launch.benchmarks.processes import ROOT

SECONDS = flags.DEFINE_float("seconds", 5, "Length of a round.", 0.1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each server; the median is printed.", 1)
CLIENTS = flags.DEFINE_list("clients", "1,16", "Numbers of clients that send requests one after another.")
NETWORKS = flags.DEFINE_list("networks", "dense,conv", "Networks to measure.")
TASKS = 5


def main(argv: list[str]) -> None:
    """Export the networks, serve them, and print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from tf_packnet.system.extras import require_extra
    from tf_packnet.system.quiet import start_tensorflow

    require_extra("Serving", "aiohttp", extra="serve")
    start_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        print("| network, request | clients | server | p50 | p99 | requests/s | CPU per request |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in NETWORKS.value:
            _compare(name, Path(folder, name), *_export(name, Path(folder, name)))


def _export(name: str, folder: Path) -> tuple[str, list[bytes]]:
    """Write the pack and the plain model; returns the verb of requests, and one body for each task."""
    import tf_packnet as tp
    from launch.benchmarks.exports import fill
    from tf_packnet.approaches import networks

    rng = np.random.default_rng(0)
    if name == "dense":
        model, verb = networks.mlp((28, 28, 1), 2, (256, 256)), "predict"
        example: Any = rng.random((28, 28, 1)).round(3).tolist()
    else:
        from PIL import Image

        model, verb, file = networks.conv((32, 32, 3), 2), "classify", io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(file, "PNG")
        example = {"b64": base64.b64encode(file.getvalue()).decode()}
    model.export(str(folder / "plain/1"), verbose=False)
    packed = fill(tp.pack(model), final_prune=0.5, num_tasks=TASKS)
    tp.export_for_serving(packed, folder, name="pack")
    tp.export_for_serving(packed, folder, name="pack_fast", per_task_kernels=True)
    return verb, [json.dumps({"task": task, "instances": [example]}).encode() for task in range(1, TASKS + 1)]


def _compare(name: str, folder: Path, verb: str, bodies: list[bytes]) -> None:
    what = {"dense": "784:256:256:2, JSON", "conv": "convolutional, PNG"}[name]
    variants = {
        "plain": ("plain", []),
        "pack": ("pack", []),
        "pack, `per_task_kernels=True`": ("pack_fast", []),
        "plain, `--max_batch=1`": ("plain", ["--max_batch=1"]),
    }
    servers = {key: Served(folder / model, verb, *more) for key, (model, more) in variants.items()}
    try:
        for clients in map(int, CLIENTS.value):
            found: dict[str, list[np.ndarray]] = {key: [] for key in servers}
            for key, server in list(servers.items()) * (ROUNDS.value + 1):
                found[key].append(
                    _round(server, bodies if "pack" in key else bodies[:1], clients, _after(SECONDS.value))
                )
            medians = {key: np.median(rounds[1:], axis=0) for key, rounds in found.items()}  # the first is a warm-up
            for key, figures in medians.items():
                _print_row(what, clients, key, figures, figures / medians["plain"])
        figures = _switching(servers["pack"], folder / "pack", bodies, clients)  # raises an error if a request fails
        _print_row(what, clients, "pack, three new versions", figures, figures / medians["plain"])
    finally:
        for server in servers.values():
            server.end()


def _print_row(*cells: Any) -> None:
    what, clients, server, figures, ratios = cells
    units = (" ms", " ms", "", " ms")
    shown = [f"{figure:.2f}{unit} ({ratio:.2f})" for figure, unit, ratio in zip(figures, units, ratios, strict=True)]
    print(f"| {what} | {clients} | {server} | {' | '.join(shown)} |", flush=True)


class Served:
    """A server as a process."""

    def __init__(self, model: Path, verb: str, *more: str):
        command = [sys.executable, str(ROOT / "launch/serve.py"), f"--pack={model}", "--port=0", "--scale=1/255", *more]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = next(line for line in self._process.stderr if "listening" in line)
        self.address = f"{line.split()[-1]}:{verb}"

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def version(self) -> str:
        """Return the version of the model that the server uses."""
        with urlopen(self.address.rpartition(":")[0]) as response:
            return json.load(response)["model_version_status"][0]["version"]

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()


def _after(seconds: float) -> Callable[[], bool]:
    """Return a function that returns True once `seconds` have passed."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def _round(server: Served, bodies: list[bytes], clients: int, is_over: Callable[[], bool]) -> np.ndarray:
    """Send requests until the round is over.

    Returns:
        p50 and p99 in milliseconds, requests per second, and CPU milliseconds of the server per request.
    """
    began, cpu = time.perf_counter(), server.cpu_seconds()
    latencies = asyncio.run(_latencies(server.address, bodies, clients, is_over))
    rate = len(latencies) / (time.perf_counter() - began)
    p50, p99 = np.percentile(latencies, [50, 99])
    return np.array([1e3 * p50, 1e3 * p99, rate, 1e3 * (server.cpu_seconds() - cpu) / len(latencies)])


async def _latencies(address: str, bodies: list[bytes], clients: int, is_over: Callable[[], bool]) -> list[float]:
    import aiohttp

    latencies: list[float] = []

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for body in itertools.islice(itertools.cycle(bodies), number, None):
            if is_over():
                return
            start = time.perf_counter()
            async with session.post(address, data=body, headers={"Content-Type": "application/json"}) as response:
                text = await response.text()
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {text}")
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return latencies


def _switching(server: Served, folder: Path, bodies: list[bytes], clients: int) -> np.ndarray:
    """Measure while three new versions are added, until the last one is served. Every request must succeed."""

    def add_versions() -> None:
        for version in "234":
            time.sleep(3)
            shutil.copytree(folder / "1", folder / f"{version}.part")
            (folder / f"{version}.part").rename(folder / version)
            while server.version() != version:
                time.sleep(0.1)

    adding = threading.Thread(target=add_versions)
    adding.start()
    figures = _round(server, bodies, clients, lambda: not adding.is_alive())
    assert server.version() == "4"
    return figures


if __name__ == "__main__":
    app.run(main)
