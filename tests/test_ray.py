"""Experiments on Ray clusters: the same results as on one machine, whatever happens to nodes and workers."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, launch
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import ray_cluster, ray_worker
from tf_packnet.experiments.ray_cluster import Needs
from tf_packnet.experiments.ray_worker import NodeWorker, RayWorker
from tf_packnet.experiments.worker import FinishedRun, Layout, WorkerFault
from tf_packnet.runs.config import Config
from tf_packnet.system.extras import MissingExtraError

SMOKE = f"--flagfile={ROOT}/flags/presets/smoke.flags"
REPORTED = ("results.csv", "summary.json", "summary.md", "report.html", "sweep.png", "sweep.pdf")
GIB = 2**30


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("local", "local"),
        ("ray", "ray"),
        ("ray://head:10001", "ray://head:10001"),
        ("ray://10.0.0.7", "ray://10.0.0.7:10001"),
        ("ray://[fe80::1]:7000", "ray://[fe80::1]:7000"),
    ],
)
def test_the_values_of_cluster(given, address):
    assert parse_command(["main.py", "--seeds=2", f"--cluster={given}"]).cluster == address


@pytest.mark.parametrize("given", ["", "slurm", "ray:", "ray://", "ray://a b", "ray://a:0", "ray://a:70000", "a:6379"])
def test_other_values_of_cluster_are_refused(given):
    with pytest.raises(Exception, match="--cluster=.*: expected local, ray, or ray://HOST:PORT"):
        parse_command(["main.py", "--seeds=2", f"--cluster={given}"])


@pytest.mark.parametrize(
    ("needs", "room"),
    [
        (Needs(1, 0, 0), 8),
        (Needs(3, 0, 0), 2),
        (Needs(1, 1, 0), 2),
        (Needs(1, 0.25, 0), 8),
        (Needs(1, 0.3333, 0), 6),
        (Needs(1, 2, 0), 1),
        (Needs(1, 4, 0), 0),
        (Needs(1, 0, 3 * GIB), 5),
        (Needs(16, 0, 0), 0),
    ],
)
def test_the_room_of_a_node(needs, room):
    assert needs.room({"CPU": 8.0, "GPU": 2.0, "memory": 16.0 * GIB}) == room
    assert needs.room({}) == 0


def test_what_a_worker_needs_by_default():
    cpus, cards = [{"CPU": 4.0}], [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    assert ray_cluster.needs(cpus, 2, None, None) == Needs(2, 0, 0)
    assert ray_cluster.needs(cards, 1, None, None) == Needs(1, 1, 0)
    assert ray_cluster.needs(cards, 1, None, 1.5, mirrored=True) == Needs(1, 2, 3 * GIB // 2)
    assert ray_cluster.needs(cards, 1, 0, None) == Needs(1, 0, 0)
    assert ray_cluster.needs(cards, 1, 1 / 3, None).options() == {"num_cpus": 1, "num_gpus": 0.3333}
    assert str(Needs(2, 0.5, GIB)) == "2 CPUs, 0.5 GPU, 1.0 GiB of memory"


def test_a_cluster_without_room_is_refused(monkeypatch):
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [{"Resources": {"CPU": 2.0}}])
    with pytest.raises(ArgumentError, match="a cluster with a node that has 3 CPUs"):
        ray_cluster.layout("ray", None, Needs(3, 0, 0))
    assert ray_cluster.layout("ray", 5, Needs(3, 0, 0)).workers == 5  # they wait for other nodes


def test_without_ray(monkeypatch):
    monkeypatch.setattr("tf_packnet.system.extras.find_spec", lambda name: None)
    message = r"--cluster=ray needs ray, grpc: pip install 'tf_packnet\[ray\]'"
    with pytest.raises(MissingExtraError, match=message), ray_cluster.connected("ray", 1):
        pass


class TestRayWorker:
    """What a worker makes of the answers of its node; there is none here."""

    @pytest.fixture
    def worker(self, monkeypatch):
        worker = RayWorker(Layout(1, 1), Path("stages"), Needs(1, 0, 0))
        monkeypatch.setattr(worker, "_actor", object())
        monkeypatch.setattr(worker, "_address", lambda: "10.0.0.7")
        monkeypatch.setattr(worker, "end", lambda timeout=None: None)
        return worker

    def answers(self, worker, monkeypatch, *answers):
        left = iter(answers)
        monkeypatch.setattr(worker, "_call", lambda *_, **__: next(left))

    def test_a_node_with_other_versions_is_refused_by_name(self, worker, monkeypatch):
        theirs = {**ray_worker.versions(), "keras": "3.0.1"}
        self.answers(worker, monkeypatch, {"node": "n", "gpus": "", "versions": theirs})
        with pytest.raises(ArgumentError, match=r"nodes with tf_packnet .*10\.0\.0\.7 with .*keras 3\.0\.1"):
            worker.start()

    def test_workers_with_the_same_gpu_of_a_node_share_it(self, worker, monkeypatch):
        self.answers(worker, monkeypatch, {"node": "n", "gpus": "0", "versions": ray_worker.versions()})
        assert not worker.fits(Config())
        assert worker.start() == "n 0"
        assert worker.fits(Config())

    def test_faults_of_the_process_and_the_store(self, worker, monkeypatch):
        self.answers(worker, monkeypatch, {"fault": ("no memory", False, True)})
        with pytest.raises(WorkerFault, match="no memory") as raised:
            worker.start()
        assert (raised.value.from_outside, raised.value.gpu_memory) == (False, True)
        started = {"node": "n", "gpus": "", "versions": ray_worker.versions()}
        self.answers(worker, monkeypatch, started, None, [("fault", ("killed", False, False))])
        worker.start()
        with pytest.raises(WorkerFault, match="killed"):
            worker.run(Config(), print, print)
        assert not worker.fits(Config())  # its process has ended
        self.answers(worker, monkeypatch, None, [("epochs", 2)], [], [("folder", (28, "No space left", "/stages"))])
        epochs = []
        with pytest.raises(OSError, match="No space left"):
            worker.run(Config(), epochs.append, print)
        assert epochs == [2]

    def test_a_run(self, worker, monkeypatch):
        refused = ArgumentError("num_tasks", "at most 5", 6)
        events = [("log", "a line"), ("finished", (None, "refused", refused))]
        self.answers(worker, monkeypatch, None, [("epochs", 2)], events)
        lines = []
        finished = worker.run(Config(), lambda epochs: None, lines.append)
        assert (finished.results, finished.error, finished.refused, lines) == (None, "refused", refused, ["a line"])

    def test_a_worker_waits_for_a_node_but_not_forever(self, worker, monkeypatch):
        monkeypatch.setattr(ray_cluster, "nodes", lambda: [{"Resources": {"CPU": 1.0}}])
        worker._check_nodes()
        monkeypatch.setattr(ray_cluster, "nodes", lambda: [{"Resources": {}}])
        worker._check_nodes()
        monkeypatch.setattr(ray_worker, "NODE_SECONDS", 0.0)
        with pytest.raises(WorkerFault, match="no node of the cluster has 1 CPU"):
            worker._check_nodes()


def test_the_events_of_a_run_on_a_node(monkeypatch, tmp_path):
    node = NodeWorker(Layout(1, 1), tmp_path, str(tmp_path / "missing"), {})

    def run(config, on_epochs, log, network):
        for _ in range(3):
            on_epochs(1)
        log("a line")
        on_epochs(1)
        if config.seed:
            raise WorkerFault("it died", from_outside=True)
        return FinishedRun(config, {"a": 1}, "", 0.0)

    monkeypatch.setattr(node._worker, "run", run)
    before = [("epochs", 3), ("log", "a line"), ("epochs", 1)]
    for seed, last in ((0, ("finished", ({"a": 1}, "", None))), (1, ("fault", ("it died", True, False)))):
        node.begin(Config(seed=seed).to_json(), {})
        events = []
        while not events or events[-1][0] in ("epochs", "log"):
            events += node.events()
        assert events == [*before, last]


def test_clusters_that_cannot_be_reached(monkeypatch, tmp_path):
    done = launch(SMOKE, "--seeds=2", "--cluster=ray://127.0.0.1:1", f"--output_dir={tmp_path}/out")
    assert done.returncode == 2
    expected = "expected the address of a running Ray cluster (Connection refused)"
    assert done.stderr == f"main.py: --cluster=ray://127.0.0.1:1: {expected}\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.5)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)  # does not answer
    for address in ("127.0.0.1:1", "nobody.invalid:6379", "nonsense", f"127.0.0.1:{server.server_port}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ArgumentError, match=f"RAY_ADDRESS={address}: "), ray_cluster.connected("ray", 1):
            pass
    server.server_close()


def reports(root):
    return {name: (root / name).read_bytes() for name in REPORTED}


def test_a_cluster_on_this_machine_gives_the_results_of_local_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where it looks for a cluster that is there already
    flags = [SMOKE, "--sweep=learning_rate=0.001,1e30", "--seeds=1", "--workers=1", "--train_epochs=2"]
    local = launch(*flags, f"--output_dir={tmp_path}/local")
    ray = launch(*flags, "--cluster=ray", cwd=tmp_path)  # the output directory is relative
    assert local.returncode == ray.returncode == 1
    assert "Traceback" not in ray.stderr
    lines = ray.stderr.splitlines()
    assert lines[0] == "sweep: 1 runs in parallel with 1 thread each on 1 node of a Ray cluster"
    assert lines[-1] == local.stderr.splitlines()[-1]  # the run that has diverged
    assert len(lines) == 4, ray.stderr  # Ray itself says nothing
    assert reports(tmp_path / "out/digits-sweep") == reports(tmp_path / "local")


# Long enough to be met by faults in the middle.
LONG = [SMOKE, "--sweep=final_prune=0.6,0.9", "--seeds=2", "--train_epochs=40", "--retrain_epochs=40"]
PROCESS, ACTOR = "tf_packnet.experiments.worker_process", "ray::NodeWorker"


@pytest.fixture
def cluster():
    """A Ray cluster of two nodes with a CPU each, besides the head node."""
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        started.workers = [started.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
        yield started
    finally:
        started.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "out"
    done = launch(*LONG, f"--output_dir={root}")
    assert done.returncode == 0, done.stderr
    return reports(root)


@contextlib.contextmanager
def started(cluster, root):
    """Start the experiment on the cluster; yields the process when epochs of two stages have ended."""
    began = time.time()
    seen = set()

    def is_under_way():
        seen.update(keys_in_progress(root, began))
        return len(seen) >= 2 or process.poll() is not None

    command = [sys.executable, ROOT / "launch/main.py", *LONG, "--cluster=ray", f"--output_dir={root}"]
    process = subprocess.Popen(
        command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_for(is_under_way)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def keys_in_progress(root, since):
    """Return the stages of which an epoch has ended since then."""
    keys = set()
    for path in (root / "stages/progress").glob("*.npz"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > since:
                keys.add(path.name.partition(".")[0])
    return keys


def processes(name):
    """Return the processes of this cluster whose command line has `name`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return set(found)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_lost_node_costs_no_run(cluster, whole, tmp_path):
    with started(cluster, tmp_path / "out") as process:
        cluster.remove_node(cluster.workers[1], allow_graceful=False)
        _, stderr = process.communicate(timeout=300)
    lines = stderr.decode().splitlines()
    assert process.returncode == 0, lines
    assert lines[0] == "sweep: 2 runs in parallel with 1 thread each on 2 nodes of a Ray cluster"
    lost = [line for line in lines if " was lost; the run is queued again; the worker starts a new process" in line]
    assert len(lost) == 1
    assert len(lines) == 1 + 1 + 4, lines  # Ray itself says nothing
    assert reports(tmp_path / "out") == whole


@pytest.mark.slow
def test_killed_workers_and_launchers(cluster, whole, tmp_path):
    for ended_by in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with started(cluster, tmp_path / "out") as process:
            mine = processes(PROCESS)
            process.send_signal(ended_by)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == {2: 130, 15: 143, 9: -9}[ended_by], stderr.decode()
        assert b"Traceback" not in stderr
        wait_for(lambda: not any(each.is_running() for each in mine), 30)  # noqa: B023
    with started(cluster, tmp_path / "out") as process:
        min(processes(ACTOR), key=lambda each: each.pid).kill()
        _, stderr = process.communicate(timeout=300)
    lines = stderr.decode().splitlines()
    assert process.returncode == 0, lines
    killed = [line for line in lines if "the run is queued again, to be done alone at the end" in line]
    assert len(killed) == 1
    assert "its actor on " in killed[0]
    assert reports(tmp_path / "out") == whole
