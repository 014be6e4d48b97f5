"""A worker on a node of a Ray cluster: an actor that controls a worker process, as on one machine."""

import contextlib
import importlib.metadata
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.experiments import ray_cluster
from tf_packnet.experiments.gpus import NONE
from tf_packnet.experiments.ray_cluster import Needs
from tf_packnet.experiments.worker import RUNS_PER_PROCESS, FinishedRun, Layout, Worker, WorkerFault, settings_of
from tf_packnet.runs import network_files
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system.extras import require_extra
from tf_packnet.version import __version__

require_extra("a worker of a Ray cluster", "ray", extra="ray")

# How long a node waits for news before it answers, and how long it collects them after the first.
POLL_SECONDS, COLLECT_SECONDS = 10.0, 0.2
# How often, and for how long, to check whether the cluster has a node for a waiting worker.
CHECK_SECONDS, NODE_SECONDS = 1.0, 600.0
# How long a node may be out of reach. Ray declares a node lost after about 20 s.
LOST_SECONDS = 120.0
_PACKAGES = ("tensorflow", "keras", "numpy")
# Environment variables of the launcher with these prefixes are set on all nodes, because libraries read them.
_PREFIXES = ("TF_", "TFDS_", "XLA_", "KERAS_")


class NodeWorker:
    """The actor on the node: a `Worker` whose events can be polled.

    Args:
        layout: The threads of its process.
        place: Where stages and results are stored.
        folder: The current folder of the launcher, to which paths may be relative.
        environment: Environment variables of the launcher.
    """

    def __init__(self, layout: Layout, place: StorePlace, folder: str, environment: Mapping[str, str]):
        os.environ.update(environment)
        if os.path.isdir(folder):
            os.chdir(folder)
        self._worker = Worker(layout, place)
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()

    def start(self) -> dict[str, Any]:
        """Start the process.

        Return the node, its GPUs and its versions, or the `fault` or `folder` error that occurred.
        """
        import ray

        context = ray.get_runtime_context()
        try:
            self._worker.start()
        except WorkerFault as fault:
            return {"fault": (str(fault), fault.from_outside, fault.gpu_memory)}
        except OSError as error:
            return {"folder": (error.errno, error.strerror, error.filename)}
        cards = ",".join(context.get_accelerator_ids().get("GPU", []))
        return {"node": context.get_node_id(), "gpus": cards, "versions": versions()}

    def begin(self, config: dict[str, Any], network: dict[str, str]) -> None:
        """Begin a run."""
        threading.Thread(target=self._run, args=(Config.from_json(config), network), daemon=True).start()

    def events(self) -> list[tuple[str, Any]]:
        """Wait for events of the run and return them: `epochs`, `log`, and one that ends the run."""
        try:
            events = [self._events.get(timeout=POLL_SECONDS)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + COLLECT_SECONDS
        while events[-1][0] in ("epochs", "log"):
            try:
                kind, value = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if kind == events[-1][0] == "epochs":
                events[-1] = (kind, events[-1][1] + value)
            else:
                events.append((kind, value))
        return events

    def ping(self) -> None:
        """Show that the actor lives."""

    def _run(self, config: Config, network: dict[str, str]) -> None:
        try:
            finished = self._worker.run(
                config,
                lambda epochs: self._events.put(("epochs", epochs)),
                lambda line: self._events.put(("log", line)),
                network,
            )
            self._events.put(("finished", (finished.results, finished.error, finished.refused)))
        except WorkerFault as fault:
            self._events.put(("fault", (str(fault), fault.from_outside, fault.gpu_memory)))
        except OSError as error:
            self._events.put(("folder", (error.errno, error.strerror, error.filename)))
        except Exception as error:
            self._events.put(("fault", (one_line(repr(error), 300), False, False)))


class RayWorker:
    """A worker of a Ray cluster, as a `worker_pool.Pool` uses it.

    Args:
        layout: The threads of its process.
        place: Where stages and results are stored.
        needs: The resources that it needs on its node.
    """

    def __init__(self, layout: Layout, place: StorePlace, needs: Needs):
        self._layout, self._place, self._needs = layout, place, needs
        self._actor: Any = None
        self._node = ""
        self._settings: tuple[Any, ...] | None = None
        self._runs, self._last_room = 0, 0.0

    def fits(self, config: Config) -> bool:
        """Whether there is an actor whose process can do a run of `config`. If not, `start` makes one."""
        fits = self._settings in (None, settings_of(config)) and self._runs < RUNS_PER_PROCESS
        return self._actor is not None and bool(self._node) and fits

    def start(self) -> str:
        """Start a process on the node, with a new actor if there is none. Waits for a node with room for it.

        Returns:
            Text that is equal for workers that use the same GPUs.

        Raises:
            WorkerFault: If it does not become ready.
            ArgumentError: If the node has other versions of libraries.
        """
        import ray

        self._settings, self._runs, self._last_room = None, 0, time.monotonic()
        if self._actor is None and ray.is_initialized():  # else Ray would start another cluster
            self._node = ""
            root = str(Path(__file__).resolve().parents[2])
            hidden = self._layout if self._needs.gpus else Layout(1, self._layout.threads, (NONE,))
            environment = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
            environment.pop("TF_CONFIG", None)
            importing = {"PYTHONPATH": f"{root}:${{PYTHONPATH}}", "TF_PACKNET_LAZY": "1"}
            actor = ray.remote(NodeWorker).options(**self._needs.options(), runtime_env={"env_vars": importing})
            self._actor = actor.remote(hidden, self._place, os.getcwd(), environment)
        started = self._call("start", wait=self._check_nodes)
        self._raise_fault(started)
        if started["versions"] != versions():
            self.end()
            differences = [f"{name} {version}" for name, version in versions().items()]
            theirs = ", ".join(f"{name} {version}" for name, version in started["versions"].items())
            raise ArgumentError("cluster", f"nodes with {', '.join(differences)}", f"{self._address()} with {theirs}")
        self._node = started["node"]
        return f"{self._node} {started['gpus']}"

    def run(self, config: Config, on_epochs: Callable[[int], None], log: Callable[[str], None]) -> FinishedRun:
        """Do a run on the node. An error of the run is part of the result.

        Raises:
            WorkerFault: If the node is lost, or its machine is the cause of an error.
            OSError: If the store of stages cannot be written there.
        """
        began = time.perf_counter()
        self._settings, self._runs = settings_of(config), self._runs + 1
        network = network_files.first_fingerprint(config.model, config.weights)
        self._call("begin", config.to_json(), network)
        while True:
            for kind, value in self._call("events"):
                if kind == "epochs":
                    on_epochs(value)
                elif kind == "log":
                    log(value)
                elif kind == "finished":
                    results, error, refused = value
                    return FinishedRun(config, results, error, time.perf_counter() - began, refused)
                else:
                    self._raise_fault({kind: value})

    def end(self, timeout: float | None = None) -> None:
        """Kill the actor, and with it its process."""
        import ray

        actor, self._actor = self._actor, None
        with contextlib.suppress(Exception):  # the cluster cannot be reached, or is left already
            if actor is not None and ray.is_initialized():
                ray.kill(actor)

    def _call(self, method: str, *arguments: Any, wait: Callable[[], None] = lambda: None) -> Any:
        """Call a method of the actor; raises WorkerFault if the actor or its node is lost.

        Args:
            method: Its name.
            *arguments: Its arguments.
            wait: Called every `CHECK_SECONDS` until the method has returned.
        """
        import ray

        actor = self._actor
        try:
            if actor is None or not ray.is_initialized():
                raise ConnectionError("the worker was ended")
            result = getattr(actor, method).remote(*arguments)
            while not ray.wait([result], timeout=CHECK_SECONDS)[0]:
                wait()
            return ray.get(result)
        except WorkerFault:
            self.end()
            raise
        except Exception as error:  # the actor has died, or the cluster cannot be reached
            fault = self._fault(error)
            self.end()
            raise fault from error

    def _fault(self, error: Exception) -> WorkerFault:
        """Return the fault that an error of Ray stands for."""
        import ray

        address, deadline = self._address(), time.monotonic() + LOST_SECONDS
        while isinstance(error, ray.exceptions.ActorUnavailableError) and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS)  # until the cluster knows why
            try:
                ray.get(self._actor.ping.remote(), timeout=CHECK_SECONDS)
                break
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception as later:
                error = later
        if self._node and self._node not in {node["NodeID"] for node in ray_cluster.nodes()}:
            return WorkerFault(f"its node {address} was lost", from_outside=True)
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            return WorkerFault(f"the connection to its node {address} was lost", from_outside=True)
        reason = str(error).rpartition("The actor is dead because ")[2].partition("Some common causes")[0]
        where = f"its actor on {address}" if address else "its actor"
        return WorkerFault(one_line(f"{where} has ended: {reason or repr(error)}", 300))

    def _address(self) -> str:
        import ray

        with contextlib.suppress(Exception):  # the cluster cannot be reached
            return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}.get(self._node, "")
        return ""

    def _check_nodes(self) -> None:
        """Raise WorkerFault if no node has had room for this worker for `NODE_SECONDS`."""
        if any(self._needs.room(node["Resources"]) for node in ray_cluster.nodes()):
            self._last_room = time.monotonic()
        elif time.monotonic() - self._last_room > NODE_SECONDS:
            raise WorkerFault(f"no node of the cluster has {self._needs}")

    def _raise_fault(self, reply: Mapping[str, Any]) -> None:
        if "fault" in reply:
            self._node = ""  # the actor is alive, its process is not
            reason, from_outside, gpu_memory = reply["fault"]
            raise WorkerFault(reason, from_outside, gpu_memory)
        if "folder" in reply:
            raise OSError(*reply["folder"])


def versions() -> dict[str, str]:
    """Return the versions that all nodes must have."""
    return {"tf_packnet": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}
