"""Measures a served pack beside one plain Keras model: `python -m launch.benchmarks.serving`.

Both are served by `tf-packnet serve`: a pack of five tasks, exported by `tp.export_for_serving`, and a model of the same
network, exported by Keras. The clients run in this process, on the same cores. Rounds alternate between the servers.
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
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
from absl import app, flags, logging

from launch.benchmarks.processes import ROOT

SECONDS = flags.DEFINE_float("seconds", 5, "Length of a round.", 0.1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each server; the median is printed.", 1)
CLIENTS = flags.DEFINE_list("clients", "1,16", "Numbers of clients that send requests one after another.")
TASKS = 5


def main(argv: list[str]) -> None:
    """Export the networks, serve them, and print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        print("| network, request | clients | server | p50 | p99 | requests/s | relative to the plain model |")
        print("|---|---|---|---|---|---|---|")
        for name in ("dense", "conv"):
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
    tp.export_for_serving(fill(tp.pack(model), final_prune=0.5, num_tasks=TASKS), folder, name="pack")
    return verb, [json.dumps({"task": task, "instances": [example]}).encode() for task in range(1, TASKS + 1)]


def _compare(name: str, folder: Path, verb: str, bodies: list[bytes]) -> None:
    what = {"dense": "784:256:256:2, JSON", "conv": "convolutional, PNG"}[name]
    variants = {
        "plain": ("plain", []),
        "pack": ("pack", []),
        "plain, `--max_batch=1`": ("plain", ["--max_batch=1"]),
        "pack, `--max_batch=1`": ("pack", ["--max_batch=1"]),
    }
    servers = {key: Served(folder / model, verb, *more) for key, (model, more) in variants.items()}
    try:
        for clients in map(int, CLIENTS.value):
            found: dict[str, list[np.ndarray]] = {key: [] for key in servers}
            for key, server in list(servers.items()) * (ROUNDS.value + 1):
                found[key].append(asyncio.run(_load(server.address, bodies if "pack" in key else bodies[:1], clients)))
            medians = {key: np.median(rounds[1:], axis=0) for key, rounds in found.items()}  # the first is a warm-up
            for key, (p50, p99, rate) in medians.items():
                ratios = medians[key] / medians["plain"]
                print(
                    f"| {what} | {clients} | {key} | {p50:.1f} ms | {p99:.1f} ms | {rate:.0f} | "
                    f"p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}, throughput {ratios[2]:.2f} |",
                    flush=True,
                )
        switching = _switching(servers["pack"], folder / "pack", bodies, clients)
        print(f"| {what} | {clients} | pack, three new versions | {switching}", flush=True)
    finally:
        for server in servers.values():
            server.end()


class Served:
    """A server as a process."""

    def __init__(self, model: Path, verb: str, *more: str):
        command = [sys.executable, str(ROOT / "launch/serve.py"), f"--pack={model}", "--port=0", "--scale=1/255", *more]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = next(line for line in self._process.stderr if "listening" in line)
        self.address = f"{line.split()[-1]}:{verb}"

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()


async def _load(address: str, bodies: list[bytes], clients: int, seconds: float | None = None) -> np.ndarray:
    """Send requests for some seconds; returns p50 and p99 in milliseconds, and requests per second."""
    import aiohttp

    began, latencies = time.perf_counter(), []
    end = began + (seconds or SECONDS.value)

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for body in itertools.islice(itertools.cycle(bodies), number, None):
            start = time.perf_counter()
            if start > end:
                return
            async with session.post(address, data=body, headers={"Content-Type": "application/json"}) as response:
                text = await response.text()
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {text}")
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    p50, p99 = 1000 * np.percentile(latencies, [50, 99])
    return np.array([p50, p99, len(latencies) / (time.perf_counter() - began)])


def _switching(server: Served, folder: Path, bodies: list[bytes], clients: int) -> str:
    """Measure while new versions appear, one every three seconds; every request must succeed."""

    async def work() -> np.ndarray:
        load = asyncio.ensure_future(_load(server.address, bodies, clients, 12))
        for version in range(2, 5):
            await asyncio.sleep(3)
            await asyncio.to_thread(shutil.copytree, folder / "1", folder / f"{version}.part")
            (folder / f"{version}.part").rename(folder / str(version))
        return await load

    p50, p99, rate = asyncio.run(work())
    return f"{p50:.1f} ms | {p99:.1f} ms | {rate:.0f} | no request failed |"


if __name__ == "__main__":
    app.run(main)
