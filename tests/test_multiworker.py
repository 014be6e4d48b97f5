"""`--strategy=multiworker`: finding the workers, their messages, and runs in two processes."""

import concurrent.futures
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ROOT, launch
from tests.test_launcher import refusal
from tf_packnet.errors import ArgumentError, StoppedError
from tf_packnet.runs import hosts, meeting
from tf_packnet.runs.config import Config
from tf_packnet.runs.hosts import Hosts
from tf_packnet.runs.workers import ConnectedWorkers, Workers
from tf_packnet.system import collectives
from tf_packnet.system.links import Link

TWO = {"worker": ["a:1", "b:1"]}


def free_addresses(count: int = 2) -> tuple[str, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    return addresses


class TestHosts:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--strategy=mirrored", "--hosts=a:1,b:1"], "--hosts=a:1,b:1: expected no value without --strategy=multi"),
            (["--host_index=0"], "--host_index=0: expected no value without --hosts"),
            (["--strategy=multiworker", "--hosts=a:1,b:1"], "--host_index=None: expected 0 to 1: which of the 2"),
            (["--strategy=multiworker", "--hosts=a:1,b:1", "--host_index=2"], "--host_index=2: expected 0 to 1"),
            *(
                (["--strategy=multiworker", "--host_index=0", f"--hosts={bad}"], "--hosts: expected the HOST:PORT")
                for bad in ("a:1", "a,b", "a:1,a:1", "a:0,b:1", "a:65536,b:1", "a:1,:1", "a:1,b:x", "a:1,b c:1", "a:1,")
                + ("::1:1,b:1", "[::1]:1,b:²", "http://a:1,b:1")
            ),
            (["--strategy=multiworker", "--experiment=figure2"], "expected auto, none or mirrored for an experiment"),
        ],
    )
    def test_bad_flags(self, flags, message):
        assert message.partition(":")[0] in refusal(*flags)
        assert message.rpartition("expected ")[2] in refusal(*flags)

    @pytest.mark.parametrize(
        "addresses", ["a:1,b:1", "10.0.0.1:2222,10.0.0.2:2222", "[::1]:1,[fe80::1%eth0]:65535", "a-b.c_d:1,a-b.c_d:2"]
    )
    def test_good_flags(self, addresses, monkeypatch):
        monkeypatch.delenv("TF_CONFIG", raising=False)
        config = Config(strategy="multiworker", hosts=tuple(addresses.split(",")), host_index=1)
        assert hosts.find(config) == Hosts(tuple(addresses.split(",")), 1)
        assert Config.from_json(config.to_json()) == config
        assert config.identity() == Config(strategy="multiworker").identity()  # the same run after a host was replaced

    @pytest.mark.parametrize(
        ("cluster", "task", "found"),
        [
            (TWO, {"type": "worker", "index": 1}, Hosts(("a:1", "b:1"), 1)),
            (TWO, {"type": "worker", "index": "0"}, Hosts(("a:1", "b:1"), 0)),
            ({"chief": ["c:1"], **TWO}, {"type": "worker", "index": 1}, Hosts(("c:1", "a:1", "b:1"), 2)),
            ({"chief": ["c:1"], **TWO}, {"type": "chief", "index": 0}, Hosts(("c:1", "a:1", "b:1"), 0)),
        ],
    )
    def test_the_environment(self, cluster, task, found, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        assert hosts.find(Config(strategy="multiworker")) == found
        assert hosts.find(Config(strategy="none")) is None
        assert hosts.find(Config(strategy="multiworker", hosts=found.addresses, host_index=found.index)) == found
        with pytest.raises(ArgumentError, match="the same workers as in TF_CONFIG"):
            hosts.find(Config(strategy="multiworker", hosts=("x:1", "y:1"), host_index=0))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the HOST:PORT of every worker, or TF_CONFIG in the environment"),
            *(
                (text, "TF_CONFIG to have an object like")
                for text in ("{", "[]", "{}", "null", '{"cluster": {"worker": ["a:1", "b:1"]}}', "[" * 10**5)
                + ('{"cluster": 1, "task": {"type": "worker", "index": 0}}', '{"cluster": {}, "task": []}')
                + ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',)
            ),
            *(
                (json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}), message)
                for cluster, kind, index, message in [
                    ({"worker": ["a:1"]}, "worker", 0, "2 to 256 workers"),
                    (TWO, "worker", 2, "a task that is in its cluster"),
                    (TWO, "worker", -1, "a task that is in its cluster"),
                    (TWO, "worker", True, "a task that is in its cluster"),
                    (TWO, "chief", 0, "a task that is in its cluster"),
                    (TWO, ["worker"], 0, "a task that is in its cluster"),
                    ({**TWO, "ps": ["c:1"]}, "worker", 0, "workers and a chief only"),
                    ({**TWO, "chief": ["c:1", "d:1"]}, "worker", 0, "one chief"),
                    ({"worker": ["a:1", "a:1"]}, "worker", 0, "a different HOST:PORT"),
                    ({"worker": ["a:1", "b"]}, "worker", 0, "a different HOST:PORT"),
                ]
            ),
        ],
    )
    def test_a_bad_environment(self, text, message, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ArgumentError) as caught:
            hosts.find(Config(strategy="multiworker"))
        assert message in caught.value.expected
        assert len(str(caught.value)) < 400


class TestLinks:
    @pytest.fixture
    def link(self):
        """A link, the other end of it, and why the other end has ended."""
        own, other = _connected_pair()
        ended: list[bytes | None] = []
        called = threading.Event()
        link = Link(own, lambda reason: (ended.append(reason), called.set()))
        yield link, other, ended, called
        link.close()
        other.close()

    def test_messages_of_any_size_in_order(self):
        own, other = _connected_pair()
        links = [Link(each, lambda reason: pytest.fail(str(reason))) for each in (own, other)]
        messages = [b"", b"a", bytes(range(256)) * 2**14]
        for message in messages:
            links[0].send(message)
        assert [links[1].receive(10) for _ in messages] == messages
        assert links[1].receive(0.01) is None
        for link in links:
            link.leave()
        assert all(link.has_left(10) for link in links)
        for link in links:
            link.close()

    def test_the_end_of_the_other_process(self, link):
        _, other, ended, called = link
        other.close()
        assert called.wait(10)
        assert ended == [None]

    def test_its_reason(self):
        own, other = _connected_pair()
        ended, called = [], threading.Event()
        link = Link(own, lambda reason: (ended.append(reason), called.set()))
        threading.Thread(target=Link(other, lambda reason: None).end, args=(b"why",)).start()
        assert called.wait(10)
        assert ended == [b"why"]
        link.close()

    def test_silence(self, monkeypatch):
        monkeypatch.setattr("tf_packnet.system.links.SILENCE_SECONDS", 0.1)
        own, other = _connected_pair()
        ended, called = [], threading.Event()
        link = Link(own, lambda reason: (ended.append(reason), called.set()))
        assert called.wait(10)
        assert ended == [None]
        other.close()
        link.close()


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


class TestWorkers:
    def together(self, work, count=3):
        """Run `work(workers)` on several workers at the same time, and return what each returns."""
        addresses = free_addresses(count)

        def one(index):
            workers = ConnectedWorkers(Hosts(addresses, index))
            try:
                return work(workers)
            finally:
                workers.leave()

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    def test_the_first_tells_the_others(self):
        arrays = {"a/b": np.arange(6, dtype=np.uint8).reshape(2, 3), "s": np.array(["é", ""]), "e": np.zeros((0, 2))}

        def work(workers):
            told = workers.tell_arrays(lambda: arrays if workers.first else pytest.fail("called"))
            assert all(np.array_equal(told[name], arrays[name]) for name in arrays)
            assert {name: each.dtype for name, each in told.items()} == {n: each.dtype for n, each in arrays.items()}
            return workers.tell(lambda: [1, None, "x"] if workers.first else pytest.fail("called"))

        assert self.together(work) == [[1, None, "x"]] * 3

    def test_different_values_end_all(self):
        def work(workers):
            workers.check_equal("the values", {"same": 0.1 + 0.2, "list": (1, 2), "nan": [float("nan")]})
            with pytest.raises(StoppedError) as caught:
                workers.check_equal("the values", {"same": 1, "other": workers.index // 2})
            return str(caught.value)

        message, *others = self.together(work)
        assert others == [message] * 2
        assert message.startswith("the values of worker 2 (127.0.0.1:")
        assert message.endswith("differ from those of the first worker, in other: 0 on the first and 1 on worker 2")

    def test_a_worker_that_does_not_belong(self):
        addresses = free_addresses(3)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            first = pool.submit(meeting.meet, Hosts(addresses, 0))
            one = pool.submit(meeting.meet, Hosts(addresses, 1))
            one.result(10)
            with socket.create_connection(("127.0.0.1", int(addresses[0].rpartition(":")[2]))) as stranger:
                stranger.sendall(b"\0\0\0\2[]")
            other_list = (addresses[0], addresses[2])
            with pytest.raises(ArgumentError, match="Invalid `hosts`: expected the same on every host"):
                meeting.meet(Hosts(other_list, 1))
            with pytest.raises(ArgumentError, match="another worker has this one"):
                meeting.meet(Hosts(addresses, 1))
            meeting.meet(Hosts(addresses, 2))[0].close()
            assert sorted(first.result(10)) == [1, 2]

    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            taken = f"127.0.0.1:{server.getsockname()[1]}"
            with pytest.raises(ArgumentError, match="a free port on this host for worker 1"):
                meeting.meet(Hosts(("127.0.0.1:1", taken), 1))

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_worker_that_does_not_come_up(self, index, monkeypatch):
        monkeypatch.setattr(meeting, "MEET_SECONDS", 0.2)
        addresses = free_addresses()
        with pytest.raises(StoppedError, match=f"{addresses[1 - index]}.* did not come up within 0 s"):
            meeting.meet(Hosts(addresses, index))

    @pytest.mark.parametrize(
        ("victim", "end", "busy"),
        [
            (0, "kill", "time.sleep(100)"),
            (2, "kill", "workers.tell(lambda: time.sleep(100))"),
            (1, "raise", "workers.tell(lambda: time.sleep(100))"),
        ],
    )
    def test_all_end_with_one(self, victim, end, busy):
        addresses = free_addresses(3)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ENDING, busy, "raise" if (index, end) == (victim, "raise") else ""],
                env={**os.environ, "TF_CONFIG": Hosts(addresses, index).tf_config, "TF_PACKNET_LAZY": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(3)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        if end == "kill":
            processes[victim].kill()
        results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
        why = "has ended or does not answer" if end == "kill" else "has ended: no space"
        for _, stderr, code in results[:victim] + results[victim + 1 :]:
            assert code == 75
            line, *more = stderr.splitlines()
            assert more == []
            continues = "run the same command again on every host to continue"
            assert line.endswith(f"worker {victim} ({addresses[victim]}) {why}; {continues}")
        assert results[victim][2] == (-9 if end == "kill" else 1)

    def test_one_process(self):
        workers = Workers()
        assert workers.first
        assert workers.tell(lambda: workers) is workers
        with pytest.raises(ArgumentError, match="multiworker"):
            workers.strategy()


ENDING = """
import os, sys, time
from tf_packnet.command_line.exit_codes import exit_code
from tf_packnet.runs import workers as module
from tf_packnet.runs.config import Config

def work():
    with module.joined(Config(strategy="multiworker")) as workers:
        print("ready", flush=True)
        if sys.argv[2]:
            raise OSError(28, "no space")
        exec(sys.argv[1])

module.GRACE_SECONDS = 0.5
sys.exit(exit_code(work, "test"))
"""


@pytest.mark.parametrize(
    "dtype", ["bool", "int4", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_broadcasts_of_integers_keep_their_bits(dtype):
    values = tf.cast(tf.constant([0, 1, -1, 127, -128, 255, 70_000, -(2**31)], tf.int64), dtype)
    _check_broadcast(values)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float16", "bfloat16", "float32", "complex64", "complex128"])
def test_broadcasts_of_floats_keep_their_bits(dtype):
    _check_broadcast(tf.cast(tf.constant([[0.0, -0.0, 1.5], [np.nan, 440.0, 1e-30]]), dtype))
    _check_broadcast(tf.cast(tf.zeros((0, 3)), dtype))
    _check_broadcast(tf.cast(tf.constant(1.5), dtype))


def _check_broadcast(values: tf.Tensor) -> None:
    """Send `values` with an operation that accepts what TensorFlow's does."""
    sent = []

    def send(value, shape, dtype):
        assert dtype in (tf.bool, tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
        assert (value.shape, value.dtype) == (shape, dtype)
        sent.append(value)
        return value

    def receive(shape, dtype):
        assert (shape, dtype) == (sent[0].shape, sent[0].dtype)
        return sent[0]

    collectives._sending(send)(values, values.shape, values.dtype)
    received = collectives._receiving(receive)(values.shape, values.dtype)
    assert (received.shape, received.dtype) == (values.shape, values.dtype)
    assert received.numpy().tobytes() == values.numpy().tobytes()


def two_workers(folder: Path, *flags: str, each=((), ())) -> list[subprocess.CompletedProcess]:
    """Run the launcher on two workers, each with a folder of its own."""
    common = ["--strategy=multiworker", f"--hosts={','.join(free_addresses())}", *flags]
    arguments = [[*common, f"--host_index={i}", f"--output_dir={folder}/{i}", *each[i]] for i in (0, 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda flags: launch(*flags), arguments))


SMALL = ("--num_tasks=2", "--train_epochs=2", "--retrain_epochs=2", "--prune_rounds=2", "--hidden_units=16,16")


def test_two_processes(tmp_path):
    flags = (*SMALL, "--batch_size=33", "--bias_policy=per_task", "--precision=mixed_bfloat16")
    first, other = two_workers(tmp_path, *flags)
    assert (first.returncode, other.returncode) == (0, 0), first.stderr + other.stderr
    results = json.loads((tmp_path / "0/results.json").read_text())
    assert (results["environment"]["workers"], results["environment"]["replicas"]) == (2, 2)
    assert results["average_accuracy"] > 0.7
    assert (tmp_path / "0/export/task_2/saved_model.pb").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]  # the other worker has written nothing
    assert other.stdout == ""
    assert all("; 2 replicas of 2 workers" in each.stderr for each in (first, other))
    again = two_workers(tmp_path, *flags)
    assert [each.returncode for each in again] == [0, 0]
    assert "nothing to compute" in again[0].stderr


@pytest.mark.parametrize(
    ("each", "code", "message"),
    [
        ([["--seed=1"], ["--seed=2"]], 1, "differ from those of the first worker, in seed: 1 on the first and 2"),
        ([["--dataset=mnits"], ["--dataset=mnits"]], 2, "did you mean"),
        ([["--output_dir=/proc/x"], []], (2, 75), "--output_dir"),
    ],
)
def test_an_error_before_training_ends_both(each, code, message, tmp_path):
    done = two_workers(tmp_path, *SMALL, each=each)
    assert [one.returncode for one in done] == (list(code) if isinstance(code, tuple) else [code] * 2)
    for one in done:
        assert one.stderr.count("\n") == 1, one.stderr
        assert message in one.stderr


class TestSlow:
    def start(self, folder: Path, *flags: str) -> list[subprocess.Popen]:
        addresses = ",".join(free_addresses())
        self.errors = [folder.parent / f"stderr-{i}" for i in (0, 1)]
        processes = []
        for i in (0, 1):
            command = [sys.executable, ROOT / "launch/main.py", "--strategy=multiworker", f"--hosts={addresses}"]
            command += [f"--host_index={i}", f"--output_dir={folder if i == 0 else folder.parent / 'none'}", *flags]
            with self.errors[i].open("w") as stderr:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT)
            processes.append(process)
        return processes

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("number", "victim", "after", "code", "message"),
        [
            (signal.SIGKILL, 1, "XLA ", -9, "worker 1 ({}) has ended or does not answer"),
            (signal.SIGKILL, 0, "prune+retrain", -9, "worker 0 ({}) has ended or does not answer"),
            (signal.SIGINT, 1, "prune+retrain", 130, "worker 1 ({}) has ended: interrupted"),
            (signal.SIGTERM, 0, "XLA ", 143, "worker 0 ({}) has ended: interrupted"),
        ],
    )
    def test_all_end_with_one_and_the_same_command_resumes(self, number, victim, after, code, message, tmp_path):
        flags = (*SMALL[:1], "--train_epochs=40", "--retrain_epochs=40", "--prune_rounds=2", "--noexport")
        assert [each.wait(300) for each in self.start(tmp_path / "whole", *flags)] == [0, 0]
        processes = self.start(tmp_path / "killed", *flags)
        while after not in self.errors[0].read_text():
            assert processes[0].poll() is None
            time.sleep(0.05)
        time.sleep(3.0)
        processes[victim].send_signal(number)
        assert processes[1 - victim].wait(60) == 75
        assert processes[victim].wait(60) == code
        line = self.errors[1 - victim].read_text().splitlines()[-1]
        address = line.partition("(")[2].partition(")")[0]
        assert line == f"main.py: {message.format(address)}; run the same command again on every host to continue"
        assert "Traceback" not in self.errors[0].read_text() + self.errors[1].read_text()
        assert [each.wait(300) for each in self.start(tmp_path / "killed", *flags)] == [0, 0]
        whole, resumed = (self.digests(tmp_path / name) for name in ("whole", "killed"))
        assert len(whole) == 12
        assert resumed == whole
        assert not (tmp_path / "none").exists()

    def digests(self, folder: Path) -> dict[str, str]:
        """Checksums of the files without times in them."""
        timed = ("results.json", "checksums.json", "stage.json", "stage.copy.json", ".lock")
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in timed]
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if "tensorboard" not in path.parts
        }

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["resident", "stream", "dataset"])
    def test_fit_in_the_scope_of_a_strategy(self, kind):
        addresses = free_addresses()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", LIBRARY, kind],
                env={**os.environ, "TF_CONFIG": Hosts(addresses, index).tf_config},
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in (0, 1)
        ]
        outputs = [each.communicate(timeout=300)[0].splitlines()[-1] for each in processes]
        assert [each.returncode for each in processes] == [0, 0]
        assert outputs[0] == outputs[1]
        assert json.loads(outputs[0])["same"] is True


LIBRARY = """
import hashlib, json, sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras
import numpy as np
import pytest
import tf_packnet as tp
from tests.conftest import blobs

keras.utils.set_random_seed(0)
with strategy.scope():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(12, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.1, seed=1)(x)
    x = keras.layers.Dense(10, activation="relu")(x)
    packed = tp.pack(keras.Model(inputs, keras.layers.Dense(2)(x)), bias_policy="per_task")
outputs = []
for task in (1, 2):
    x, y = blobs(task, examples=70)
    packed.begin_task(num_classes=1 + task)  # creates a head
    with strategy.scope():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        packed.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    data = {
        "resident": tp.tasks.ResidentBatches(x, y, 1.0, batch_size=16, seed=task),
        "stream": tp.tasks.StreamedBatches(x, y, 1.0, batch_size=16, seed=task),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
    }[sys.argv[1]]
    packed.fit(data, epochs=2, verbose=0)
    with pytest.raises(tp.ArgumentError, match="no EpochBackup with several workers"):
        packed.fit(data, epochs=2, verbose=0, callbacks=[tp.EpochBackup("backup")])
    callbacks = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(data, epochs=2, verbose=0, callbacks=callbacks)
    packed.select_task(1)
    outputs.append(packed.predict(blobs(1)[0], verbose=0).tobytes())
values = b"".join(keras.ops.convert_to_numpy(each).tobytes() for each in packed.variables)
maps = {path: np.bincount(owner.ravel()).tolist() for path, owner in packed.owner_maps().items()}
print(json.dumps({"same": outputs[0] == outputs[1], "digest": hashlib.sha256(values).hexdigest(), "maps": maps}))
"""
