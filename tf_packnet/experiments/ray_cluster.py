"""Workers on a Ray cluster: connects to a cluster or starts one, and computes how many workers it has room for.

Each worker is a Ray actor, see `ray_worker`. The launcher assigns runs and handles faults as it does for local
processes, see `worker_pool` and `run_queue`.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.experiments import gpus
from tf_packnet.experiments.worker import Layout
from tf_packnet.system import interruption
from tf_packnet.system.extras import require_extra

LOCAL, RAY, CLIENT = "local", "ray", "ray://"
CLIENT_PORT = 10001
CONNECT_SECONDS = 10.0
# Each worker needs a thread in the launcher.
MAX_WORKERS = 1000
# Object store of a cluster that is started here: Ray's minimum, since results are small.
_OBJECT_STORE_BYTES = 100 * 2**20
_HOST_PORT = re.compile(r"(?P<host>[^\s/:\[\]]+|\[[0-9a-fA-F:.]+\])(:(?P<port>\d{1,5}))?")


class Needs(NamedTuple):
    """The resources that a worker needs on its node.

    Attributes:
        threads: CPUs.
        gpus: GPUs, or a fraction of one.
        memory: Bytes of RAM; 0 for no requirement.
    """

    threads: int
    gpus: float
    memory: int

    def room(self, resources: Mapping[str, float]) -> int:
        """Return how many workers a node with these Ray resources has room for."""
        rooms = [resources.get("CPU", 0) // self.threads]
        if self.gpus:
            cards = resources.get("GPU", 0)
            rooms.append(cards // self.gpus if self.gpus >= 1 else cards * gpus.runs_per_gpu(self.gpus))
        if self.memory:
            rooms.append(resources.get("memory", 0) // self.memory)
        return int(min(rooms))

    def options(self) -> dict[str, Any]:
        """Return these needs as options of a Ray actor."""
        memory = {"memory": self.memory} if self.memory else {}
        return {"num_cpus": self.threads, "num_gpus": self.gpus, **memory}

    def __str__(self) -> str:
        parts = [f"{self.threads} CPU{'s' if self.threads > 1 else ''}"]
        parts += [f"{self.gpus:g} GPU{'s' if self.gpus > 1 else ''}"] if self.gpus else []
        parts += [f"{self.memory / 2**30:.1f} GiB of memory"] if self.memory else []
        return ", ".join(parts)


def check_address(cluster: str) -> str:
    """Return the value of `--cluster`, with a port.

    Raises:
        ArgumentError: If it is not one.
    """
    if cluster in (LOCAL, RAY):
        return cluster
    match = _HOST_PORT.fullmatch(cluster.removeprefix(CLIENT))
    if not cluster.startswith(CLIENT) or match is None or not 0 < int(match["port"] or CLIENT_PORT) < 2**16:
        raise ArgumentError("cluster", "local, ray, or ray://HOST:PORT", cluster)
    return cluster if match["port"] else f"{cluster}:{CLIENT_PORT}"


def needs(
    nodes: Sequence[Mapping[str, float]],
    threads: int,
    gpus_per_run: float | None,
    memory_per_run: float | None,
    mirrored: bool = False,
) -> Needs:
    """Return what each worker needs.

    Args:
        nodes: The resources of each node.
        threads: Threads of each worker.
        gpus_per_run: GPUs of each worker. Default: one if a node has any; all of a node if `mirrored`.
        memory_per_run: Memory of each worker in GiB.
        mirrored: Whether a run uses all GPUs that it sees.
    """
    if gpus_per_run is None:
        most = int(max((resources.get("GPU", 0) for resources in nodes), default=0))
        gpus_per_run = most if mirrored else min(1, most)
    return Needs(threads, round(gpus_per_run, 4), int((memory_per_run or 0) * 2**30))


def layout(cluster: str, workers: int | None, needs: Needs) -> Layout:
    """Return a layout with as many workers as the current nodes have room for.

    Args:
        cluster: The value of `--cluster`, for messages.
        workers: Number of workers; default as above. Workers for which there is no room wait for new nodes.
        needs: What each worker needs.

    Raises:
        ArgumentError: If no node has room for a worker, and `workers` is not given.
    """
    room = sum(needs.room(node["Resources"]) for node in nodes())
    if not room and workers is None:
        raise ArgumentError("cluster", f"a cluster with a node that has {needs}", cluster)
    return Layout(workers or min(room, MAX_WORKERS), needs.threads)


@contextlib.contextmanager
def connected(cluster: str, cpus: int) -> Iterator[None]:
    """Connect this process to a Ray cluster.

    Args:
        cluster: `ray` for the cluster in the environment variable `RAY_ADDRESS`, else the one that `ray start` has
            started on this machine, else one that is started on this machine for this process alone. Or
            `ray://HOST:PORT` of a cluster elsewhere.
        cpus: The number of CPUs of a cluster that is started here.

    Raises:
        MissingExtraError: If Ray is not installed.
        ArgumentError: If the cluster cannot be reached.
    """
    require_extra(f"--cluster={cluster}", "ray", "grpc", extra="ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster if cluster != RAY else os.environ.get("RAY_ADDRESS", "") or _started_here()
    if address:
        _check_reachable(cluster, address)
    folder = None if address else tempfile.mkdtemp(prefix="tf_packnet-ray-", dir="/tmp")  # paths of sockets are short
    handlers = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    try:
        with interruption.nothing_to_save():
            import ray

        _silence(ray)
        try:
            with _handlers(handlers):
                ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **_options(address, folder, cpus))
        except Exception as error:  # of many types: versions that differ, no access, a port of another program
            expected = f"a Ray cluster that can be used ({first_line(error)})"
            raise ArgumentError("cluster", expected, address or cluster) from error
        yield
    finally:
        with _handlers(handlers):
            import ray

            ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def nodes() -> list[dict[str, Any]]:
    """Return Ray's description of each node that is alive; none if the cluster cannot be reached any more."""
    import ray

    with contextlib.suppress(Exception):
        return [node for node in ray.nodes() if node["Alive"]]
    return []


def _options(address: str, folder: str | None, cpus: int) -> dict[str, Any]:
    if address:
        return {"address": address}
    return {
        "address": LOCAL,
        "num_cpus": cpus,
        "num_gpus": len(gpus.visible()),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": folder,  # its logs are deleted at the end
        "_node_ip_address": "127.0.0.1",
    }


def _started_here() -> str:
    """Return the address of the cluster that `ray start` has started on this machine; empty if there is none."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    try:
        address = (folder / "ray_current_cluster").read_text().strip()
        _connect(address)
    except (OSError, ValueError):
        return ""
    return address


def _check_reachable(cluster: str, address: str) -> None:
    """Raise ArgumentError if there is no Ray cluster: Ray itself would wait for minutes, or end the process."""
    if address in ("auto", LOCAL):
        return
    try:
        _connect(address.removeprefix(CLIENT))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        expected = f"the address of a running Ray cluster ({f'RAY_ADDRESS={address}: ' * (cluster == RAY)}{reason})"
        raise ArgumentError("cluster", expected, cluster) from error


def _connect(address: str) -> None:
    """Raise OSError or ValueError unless a server of gRPC, such as Ray's, listens at `HOST:PORT`."""
    import grpc

    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    if os.environ.get("RAY_USE_TLS", "0") == "0":
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
            except grpc.FutureTimeoutError:
                raise ConnectionError("another program listens at this port") from None


def _silence(ray: Any) -> None:
    """Keep Ray's own messages out of the output. The faults of workers report what matters."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with contextlib.suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None  # no setting silences these


@contextlib.contextmanager
def _handlers(handlers: Mapping[Any, Any]) -> Iterator[None]:
    """Restore these signal handlers after the block: Ray installs its own."""
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray installs none
            for number, handler in handlers.items():
                signal.signal(number, handler)
