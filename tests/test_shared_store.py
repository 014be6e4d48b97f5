"""Stores without a shared disk or without locks: what hosts share, what is computed again, and that nothing is damaged.

Each test of objects runs on a folder and on a local S3 server.
"""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest

from tests.conftest import ROOT, launch
from tests.test_stages import EXECUTION, FakeApproach, state_of, take_through
from tf_packnet.command_line import program
from tf_packnet.errors import ArgumentError, CorruptionError
from tf_packnet.runs import corruption, learning, output, platforms, single_run, stage_folder
from tf_packnet.runs.config import Config
from tf_packnet.runs.shared_store import SharedResults, SharedStore, open_results
from tf_packnet.runs.stages import chain, results_key
from tf_packnet.runs.store import StageStore, StoredStages
from tf_packnet.runs.workers import Workers
from tf_packnet.system import locks, objects
from tf_packnet.system.extras import MissingExtraError
from tf_packnet.system.objects import Bucket, Folder, Found

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3_server():
    """The address of a server of S3, which this process and those that it starts use."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield server
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3_server):
    import s3fs

    name = f"bucket-{next(NUMBERS)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/some/prefix"


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path):
    return f"file://{tmp_path}/shared" if request.param == "file" else request.getfixturevalue("bucket")


@pytest.fixture
def shared(url):
    return objects.open_url("stages_dir", url)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(objects, "DELAYS", (0, 0))


class Contents:
    """Direct access to the objects at a URL, for tests."""

    def __init__(self, url):
        fsspec = pytest.importorskip("fsspec")
        options = {"auto_mkdir": True} if url.startswith("file") else {"use_listings_cache": False}
        self._files, self._root = fsspec.core.url_to_fs(url, **options)

    def names(self):
        found = self._files.find(self._root)
        return sorted(name.removeprefix(self._root).strip("/") for name in found)

    def read(self, name):
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name, content):
        self._files.pipe_file(f"{self._root}/{name}", content)


@pytest.fixture
def contents(url):
    return Contents(url)


CHAIN = chain(Config(), (1, 2), "data", EXECUTION)


class Log(list):
    """The lines that a store has logged."""

    def __call__(self, line):
        self.append(str(line))

    def __bool__(self):
        return True


def host(tmp_path, name, shared, policy=corruption.RECOMPUTE):
    """Return the store of a host with a disk of its own, and what it logs."""
    log = Log()
    return SharedStore(tmp_path / name, shared, corruption.handler(policy, log), log), log


class TestURLs:
    @pytest.mark.parametrize("text", ["s3://bucket", "gs://b/c", "file:///x", "memory://x", "s3:/bucket", "a::s3://b"])
    def test_what_is_a_url(self, text):
        assert objects.is_url(text)

    @pytest.mark.parametrize("text", ["stages", "/a/b", "./s3:/b", "a/s3://b", "~/x", "a:b", "..", ":"])
    def test_what_is_a_folder(self, text):
        assert not objects.is_url(text)

    @pytest.mark.parametrize(
        "url",
        [
            *("memory://x", "http://host/x", "ftp://host/x", "az://x", "simplecache::s3://bucket", "S3://bucket"),
            *("s3://", "s3:///x", "s3:/bucket/x", "s3://b", "s3://bucket//x", "s3://bucket/../x", "s3://bucket/./x"),
            *("s3://bucket/x?versionId=1", "s3://user:secret@bucket/x", "s3://bucket/a\nb", "gs://", "gs://-/x"),
            *("file://", "file:///", "file://relative/x", "file:/x", "file:///a//b", "file:///a/../b"),
        ],
    )
    def test_others_are_refused_before_anything_is_done(self, url, tmp_path):
        with pytest.raises(ArgumentError, match="expected a folder, or a URL: s3://BUCKET/PREFIX") as refused:
            output.check_stages_dir(url, tmp_path / "stages")
        assert "secret" not in str(refused.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["run", "experiment", "launch"])
    @pytest.mark.parametrize("url", ["memory://x", "s3://u:secret@bucket", "file://x"])
    def test_the_commands_refuse_them_in_one_line(self, command, url, tmp_path, capsys):
        seeds = ["--seeds=2"] if command == "experiment" else []
        code = program.run_program(command, [command, *seeds, f"--stages_dir={url}", f"--output_dir={tmp_path}/out"])
        lines = capsys.readouterr().err.splitlines()
        assert (code, len(lines)) == (2, 1)
        assert "expected a folder, or a URL: s3://BUCKET/PREFIX" in lines[0]

    @pytest.mark.parametrize(("url", "extra"), [("s3://bucket/x", "s3"), ("gs://bucket/x", "gcs")])
    def test_a_missing_library_is_named(self, url, extra, monkeypatch, tmp_path):
        monkeypatch.setattr("tf_packnet.system.extras.find_spec", lambda module: None)
        with pytest.raises(MissingExtraError, match=rf"fs: pip install 'tf_packnet\[{extra}\]'"):
            output.check_stages_dir(url, tmp_path / "stages")

    def test_a_final_slash_makes_no_difference(self, tmp_path):
        place = output.check_stages_dir(f"file://{tmp_path}/x/", tmp_path)
        assert place.stages == place.results == f"file://{tmp_path}/x"

    def test_a_folder_shares_results_with_all_that_use_it(self, tmp_path):
        place = output.check_stages_dir(f"{tmp_path}/x", tmp_path / "stages")
        assert place == (tmp_path / "x", None, f"{tmp_path}/x")
        results = open_results(output.check_stages_dir(f"{tmp_path}/x/../a?b//c", tmp_path / "stages"))
        results.write("key", TestResults.RESULTS)
        assert (tmp_path / "a?b/c/results/key.json").exists()
        assert output.check_stages_dir(None, tmp_path / "stages") == (tmp_path / "stages", None, None)


class TestObjects:
    def test_what_is_written_is_read_back(self, shared, contents, tmp_path):
        path, copy = tmp_path / "path", tmp_path / "copy"
        assert shared.download("a/b", copy, lambda: True) is Found.MISSING
        assert not copy.exists()
        path.write_bytes(b"first")
        assert shared.upload(path, "a/b")
        assert shared.download("a/b", copy, lambda: copy.read_bytes() == b"first") is Found.WHOLE
        assert shared.download("a/b", copy, lambda: False) is Found.DAMAGED
        path.write_bytes(b"second")
        assert not shared.upload(path, "a/b", once=True)
        assert contents.read("a/b") == b"first"
        assert shared.upload(path, "a/b")
        assert shared.upload(path, "a/b", once=True)  # the same content
        assert contents.read("a/b") == b"second"
        assert contents.names() == ["a/b"]
        for _ in range(2):
            shared.delete("a/b")
        assert contents.names() == []

    def test_buckets_are_used_through_the_interface_of_fsspec_alone(self, tmp_path, monkeypatch):
        """So Google's, of which there is no server here, are used as those of S3 are."""
        memory = pytest.importorskip("fsspec").filesystem("memory", skip_instance_cache=True)
        monkeypatch.setattr(Bucket, "_files", memory)
        path, copy, shared = tmp_path / "path", tmp_path / "copy", Bucket("gs", "bucket/prefix")
        assert shared.download("a/b", copy, lambda: True) is Found.MISSING
        for content, is_first in ((b"1", True), (b"2", False), (b"1", True)):
            path.write_bytes(content)
            assert shared.upload(path, "a/b", once=True) == is_first
        path.write_bytes(b"3")
        assert shared.upload(path, "a/b")
        assert shared.download("a/b", copy, lambda: copy.read_bytes() == b"3") is Found.WHOLE
        assert memory.find("bucket/prefix") == ["/bucket/prefix/a/b"]
        for _ in range(2):
            shared.delete("a/b")
        assert memory.find("bucket/prefix") == []

    def test_of_several_first_writers_one_wins(self, shared, contents, tmp_path):
        paths = [tmp_path / str(number) for number in range(6)]
        wins = {}
        for path in paths:
            path.write_text(path.name)
        threads = [
            threading.Thread(target=lambda path=path: wins.update({path: shared.upload(path, "x", once=True)}))
            for path in paths
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [path.name.encode() for path in paths if wins[path]] == [contents.read("x")]

    def test_a_folder_without_hard_links(self, tmp_path, monkeypatch):
        def refused(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refused)
        path, shared = tmp_path / "path", Folder(tmp_path / "shared")
        for content, is_first in ((b"1", True), (b"2", False)):
            path.write_bytes(content)
            assert shared.upload(path, "a/b", once=True) == is_first
        assert (tmp_path / "shared/a/b").read_bytes() == b"1"
        assert os.listdir(tmp_path / "shared/a") == ["b"]

    def test_a_place_that_does_not_exist_is_refused(self, s3_server, tmp_path):
        with pytest.raises(ArgumentError, match=r"written and read \(The specified bucket does not exist\)"):
            objects.check("stages_dir", objects.open_url("stages_dir", "s3://no-such-bucket/x"))
        (tmp_path / "file").write_text("")
        with pytest.raises(ArgumentError, match="expected a place that can be written and read"):
            objects.check("stages_dir", objects.open_url("stages_dir", f"file://{tmp_path}/file/x"))


class FailingFiles:
    """An fsspec file system that fails `times` times before each operation works, or writes damaged bytes."""

    def __init__(self, real, error, times):
        self._real, self._error, self._left = real, error, times
        self.calls = 0

    def __getattr__(self, name):
        def operation(*args, **kwargs):
            self.calls += 1
            if self._left:
                self._left -= 1
                raise self._error
            return getattr(self._real, name)(*args, **kwargs)

        return operation


class TestFaultsOfTheNetwork:
    @pytest.fixture
    def failing(self, bucket, no_waiting, monkeypatch):
        def make(error, times):
            shared = objects.open_url("stages_dir", bucket)
            monkeypatch.setattr(Bucket, "_files", FailingFiles(shared._files, error, times))
            return shared

        return make

    ERRORS = (ConnectionResetError(), TimeoutError("slow"), OSError(errno.EBUSY, "SlowDown"), RuntimeError("closed"))

    @pytest.mark.parametrize("error", ERRORS, ids=repr)
    def test_a_passing_one_is_not_noticed(self, failing, tmp_path, error):
        shared, path = failing(error, 2), tmp_path / "path"
        path.write_bytes(b"x")
        assert shared.upload(path, "a")
        assert Contents(shared.url).read("a") == b"x"

    @pytest.mark.parametrize("error", ERRORS, ids=repr)
    def test_a_lasting_one_ends_with_one_line(self, failing, tmp_path, error):
        from tf_packnet.system.storage import is_storage_fault

        for operation in (
            lambda shared: shared.upload(tmp_path / "path", "a"),
            lambda shared: shared.download("a", tmp_path / "copy", lambda: True),
            lambda shared: shared.delete("a"),
        ):
            shared = failing(error, 100)
            (tmp_path / "path").write_bytes(b"x")
            with pytest.raises(OSError, match="no connection") as ended:
                operation(shared)
            assert is_storage_fault(ended.value)  # no run can go on: an experiment stops
            assert ended.value.filename == f"{shared.url}/a"
            assert "\n" not in str(ended.value)
            assert shared._files.calls == 3

    def test_one_that_cannot_pass_is_not_tried_again(self, failing, tmp_path):
        shared = failing(PermissionError(errno.EACCES, "Access Denied"), 100)
        (tmp_path / "path").write_bytes(b"x")
        with pytest.raises(ArgumentError, match=r"written and read \(Access Denied\)"):
            objects.check("stages_dir", shared)
        assert shared._files.calls == 1

    def test_no_server(self, s3_server, no_waiting, monkeypatch, tmp_path):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setitem(objects._OPTIONS, "s3", {**objects._OPTIONS["s3"], "skip_instance_cache": True})
        with pytest.raises(OSError, match=r"no connection \(Could not connect"):
            objects.check("stages_dir", objects.open_url("stages_dir", "s3://bucket/x"))

    def test_an_object_that_is_damaged_on_its_way_is_sent_again(self, bucket, no_waiting, monkeypatch, tmp_path):
        shared = objects.open_url("stages_dir", bucket)
        real, damaged = shared._files, []

        class Damaging:
            def put_file(self, path, name):
                content = Path(path).read_bytes()
                real.pipe_file(name, content if damaged else content[:-1])
                damaged.append(name)

            def __getattr__(self, name):
                return getattr(real, name)

        monkeypatch.setattr(Bucket, "_files", Damaging())
        (tmp_path / "path").write_bytes(b"content")
        assert shared.upload(tmp_path / "path", "a")
        assert len(damaged) == 2
        assert Contents(bucket).read("a") == b"content"


class TestTwoHosts:
    def test_one_continues_what_the_other_began(self, tmp_path, shared):
        first, _ = host(tmp_path, "first", shared)
        assert take_through(first, CHAIN, 2)[1] == [False, False]
        second, _ = host(tmp_path, "second", shared)
        assert take_through(second, CHAIN, 4)[1] == [True, True, False, False]
        third, log = host(tmp_path, "third", shared)
        approach, reused = take_through(third, CHAIN, 4)
        assert (approach.number, reused) == (3, [True] * 4)
        assert log == []
        shutil.rmtree(tmp_path / "third")
        assert sorted(os.listdir(tmp_path / "second")) == sorted([*(stage.key for stage in CHAIN), "locks"])

    @pytest.mark.parametrize(("with_state", "kept"), [(True, [0, 3]), (False, [0])])
    def test_states_that_no_stage_needs_are_deleted(self, tmp_path, shared, contents, with_state, kept):
        take_through(host(tmp_path, "first", shared)[0], CHAIN, 4, with_state)
        names = contents.names()
        assert [name for name in names if name.endswith("stage.json")] == sorted(f"{s.key}/stage.json" for s in CHAIN)
        states = {name.split("/")[0] for name in names if name.endswith(".npz")}
        assert states == {CHAIN[index].key for index in kept}

    def test_a_state_that_is_deleted_while_another_host_looks_for_it(self, tmp_path, shared, monkeypatch):
        first, second = host(tmp_path, "first", shared)[0], host(tmp_path, "second", shared)[0]
        ahead = FakeApproach()
        stored = StoredStages(first, CHAIN, ahead, with_state=True)
        for stage in CHAIN[:2]:
            stored.finish(stage, ahead.learn)
        fetch = SharedStore._fetch_state

        def after_the_other(self, stage):
            if self is second and ahead.number == 1:
                for stage_ahead in CHAIN[2:]:
                    stored.finish(stage_ahead, ahead.learn)
            return fetch(self, stage)

        monkeypatch.setattr(SharedStore, "_fetch_state", after_the_other)
        assert take_through(second, CHAIN, 4)[1] == [True] * 4

    def test_the_same_result_of_both_is_fine(self, tmp_path, shared, contents):
        stores = [host(tmp_path, name, shared) for name in ("first", "second")]
        for store, log in stores:
            assert store.put(CHAIN[0], {"seconds": len(log)}, state_of(1))
            assert log == []
        assert json.loads(contents.read(f"{CHAIN[0].key}/stage.json"))["record"] == {"seconds": 0}

    def test_of_different_results_the_first_stays(self, tmp_path, shared, contents):
        (first, _), (second, log) = (host(tmp_path, name, shared) for name in ("first", "second"))
        stored = StoredStages(second, CHAIN, FakeApproach(), with_state=True)
        take_through(first, CHAIN, 1)
        stored._is_stored = lambda stage: False  # it has looked before
        names = contents.names()

        def learn(backup):
            stored._approach.number = 5
            return {"number": 5}

        finished = stored.finish(CHAIN[0], learn)
        assert (finished.record, finished.reused) == ({"number": 0}, True)
        assert stored._approach.number == 0
        assert log == [f"{shared.url}/{CHAIN[0].key}: another host has stored another result, which is kept"]
        assert contents.names() == names
        assert take_through(second, CHAIN, 4)[1] == [True, False, False, False]

    @pytest.mark.parametrize(
        ("what", "damage"),
        [
            *(("record", b""), ("record", b"[]"), ("record", b'{"key": "x", "sha256": "", "record": {}}')),
            *(("state", b""), ("state", b"\xff\n")),
        ],
    )
    def test_a_damaged_object_is_computed_and_written_again(self, tmp_path, shared, contents, what, damage):
        take_through(host(tmp_path, "first", shared)[0], CHAIN, 2)
        suffix = ".json" if what == "record" else ".npz"
        (name,) = [name for name in contents.names() if name.startswith(CHAIN[1].key) and name.endswith(suffix)]
        whole = contents.read(name)
        contents.write(name, damage)
        failing, _ = host(tmp_path, "failing", shared, corruption.FAIL)
        with pytest.raises(CorruptionError, match=f"{shared.url}/{name} is damaged"):
            take_through(failing, CHAIN, 4)
        second, log = host(tmp_path, "second", shared)
        assert take_through(second, CHAIN, 2)[1] == [True, False]
        assert log == [f"{shared.url}/{name} is damaged and will be recomputed"]
        assert contents.read(name) == whole
        assert take_through(host(tmp_path, "third", shared)[0], CHAIN, 2)[1] == [True, True]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOTCONN, "no connection")], ids=repr)
    @pytest.mark.parametrize("at_record", [False, True])
    def test_what_ends_while_it_is_published_is_nowhere(self, tmp_path, shared, monkeypatch, error, at_record):
        store, _ = host(tmp_path, "first", shared)
        upload = type(shared).upload

        def ended(self, path, name, once=False):
            if once == at_record:
                raise error
            return upload(self, path, name, once)

        monkeypatch.setattr(type(shared), "upload", ended)
        with pytest.raises(type(error)):
            take_through(store, CHAIN, 1)
        monkeypatch.undo()
        for name in ("first", "second"):
            assert host(tmp_path, name, shared)[0].record(CHAIN[0]) is None
        assert take_through(host(tmp_path, "first", shared)[0], CHAIN, 2)[1] == [False, False]


class TestResults:
    RESULTS = {
        "config": Config(output_dir="far").to_json(), "complete": True, "seconds": [{"epochs": 3, "reused": False}],
        "tasks": [{"number": 1, "name": "a", "class_names": ["0"], "examples": {}}], "accuracy": [[0.5]],
        "validation_accuracy": [], "average_accuracy": 0.5, "free_fraction": {"overall": 0.5, "layers": {}},
        "weights": {"prunable": 4, "owned": [2]}, "environment": {"packages": {}}, "computed_on": {"host": "far"},
    }  # fmt: skip

    def test_those_of_another_host_are_accepted_and_labelled(self, shared, contents):
        log = Log()
        results = SharedResults(shared, log)
        ours = Config(output_dir="here")
        assert results.read("key", ours) is None
        results.write("key", self.RESULTS)
        results.write("key", {**self.RESULTS, "average_accuracy": 0.25})  # the first ones stay
        found = results.read("key", ours)
        assert found["config"] == ours.to_json()
        assert found["seconds"] == [{"epochs": 3, "reused": True}]
        assert (found["average_accuracy"], found["computed_on"]) == (0.5, {"host": "far"})
        assert log == []

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"complete": true}', b"\x00"], ids=repr)
    def test_damaged_ones_are_written_again(self, shared, contents, content):
        log = Log()
        results = SharedResults(shared, log)
        contents.write("results/key.json", content)
        assert results.read("key", Config()) is None
        results.write("key", self.RESULTS)
        assert log == [f"{shared.url}/results/key.json"]
        assert results.read("key", Config()) is not None

    def test_those_of_a_newer_version_are_left_alone(self, shared):
        results = SharedResults(shared, pytest.fail)
        results.write("key", {**self.RESULTS, "schema_version": 99})
        assert results.read("key", Config()) is None


class TestPlatforms:
    def keys(self, **changes):
        platform = {"tensorflow": "2.21.0", "keras": "3.15.1", "cpu": ["x86_64", "avx2"], **changes}
        return [stage.key for stage in chain(Config(), (1, 2), "data", EXECUTION, platform=platform)]

    @pytest.mark.parametrize("change", [{"tensorflow": "2.22.0"}, {"keras": "3.16.0"}, {"cpu": ["x86_64", "avx512f"]}])
    def test_another_platform_has_stages_of_its_own(self, change):
        assert not set(self.keys()) & set(self.keys(**change))

    def test_results_have_the_same_key_everywhere(self):
        assert results_key(Config(data_dir="a"), "data", {}) == results_key(Config(output_dir="b"), "data", {})
        assert results_key(Config(), "data", {}) != results_key(Config(), "other", {})
        assert results_key(Config(), "data", {}) != results_key(Config(), "data", {"weights": "x"})
        for change in (
            {"seed": 1},
            {"jit": "off"},
            {"final_prune": 0.5},
            {"prune_rounds": 1},
            {"freed_weights": "keep"},
        ):
            assert results_key(Config(**change), "data", {}) != results_key(Config(), "data", {})

    def test_only_instructions_that_change_numbers_count(self, tmp_path, monkeypatch):
        monkeypatch.setattr(platforms, "CPUINFO", tmp_path / "cpuinfo")
        names = []
        for flags in ("fpu avx avx2 fma", "sse avx2 avx fma erms", "avx avx2 fma avx512f amx_bf16", "asimd sve", None):
            if flags is None:
                platforms.CPUINFO.unlink()
            else:
                platforms.CPUINFO.write_text(f"processor: 0\nflags : {flags}\n")
            names.append(platforms.instructions()[1:])
        assert names[0] == names[1] == ["avx", "avx2", "fma"]
        assert names[2:] == [["amx_bf16", "avx", "avx2", "avx512f", "fma"], ["asimd", "sve"], []]


WITHOUT_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EIO, errno.ESTALE]


class TestWithoutLocks:
    @pytest.fixture
    def root(self, tmp_path):
        return tmp_path / "stages"

    @pytest.fixture
    def broken_locks(self, monkeypatch):
        """Lets locks fail in all threads, or in those whose names begin with `of`."""

        def broken(error=errno.ENOSYS, of=""):
            flock = fcntl.flock

            def failing(handle, operation):
                if threading.current_thread().name.startswith(of):
                    raise OSError(error, os.strerror(error))
                flock(handle, operation)

            monkeypatch.setattr(fcntl, "flock", failing)

        return broken

    @pytest.mark.parametrize("error", WITHOUT_LOCKS, ids=errno.errorcode.get)
    def test_each_process_works_in_a_folder_of_its_own(self, root, broken_locks, error):
        broken_locks(error)
        store, seen = StageStore(root), []
        approach = FakeApproach()
        stored = StoredStages(store, CHAIN, approach, with_state=True)

        def learn(backup):
            (own,) = root.glob(".*.unfinished")
            assert backup.path == own / CHAIN[0].key
            seen.append(own)
            return approach.learn(backup)

        assert not stored.finish(CHAIN[0], learn).reused
        assert seen
        assert sorted(os.listdir(root)) == [CHAIN[0].key, "locks"]
        assert take_through(StageStore(root), CHAIN, 4)[1] == [True, False, False, False]

    def test_the_lock_file_of_a_dead_host_is_not_waited_for(self, root, broken_locks):
        """As filelock leaves it, where it replaced missing locks by files that exist."""
        for number, stage in enumerate(CHAIN):
            path = root / "locks" / f"{stage.key}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("4711\nanother-host\n1234\n")
            if number == 2:
                broken_locks()
            assert take_through(StageStore(root), CHAIN, number + 1)[1][-1] is False

    def test_a_lock_whose_holder_shows_no_sign_of_life_is_not_waited_for(self, root, monkeypatch):
        monkeypatch.setattr(locks, "SILENT_SECONDS", 1)
        path = root / "locks" / f"{CHAIN[0].key}.lock"
        path.parent.mkdir(parents=True)
        with open(path, "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert take_through(StageStore(root), CHAIN, 1)[1] == [False]

    def test_a_lock_whose_holder_lives_is_waited_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(locks, "SILENT_SECONDS", 2)
        monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
        got = threading.Event()

        def wait():
            with locks.locked(tmp_path / "lock") as is_locked:
                assert is_locked
                got.set()

        with locks.locked(tmp_path / "lock") as is_locked:
            assert is_locked
            with pytest.raises(BlockingIOError), locks.locked(tmp_path / "lock", wait=False):
                pass
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert not got.wait(4)
        assert got.wait(10)
        waiting.join()

    @pytest.mark.parametrize("kinds", [("without", "without"), ("with", "without"), ("with", "with")])
    @pytest.mark.parametrize("is_shared", [False, True])
    def test_two_processes_at_once_repeat_work_but_damage_nothing(self, tmp_path, broken_locks, kinds, is_shared):
        broken_locks(of="without")
        shared = Folder(tmp_path / "shared")
        began, computed, lines, errors = threading.Barrier(2), [], Log(), []

        def work(number):
            root = tmp_path / "stages"
            store = SharedStore(root, shared, lines, lines) if is_shared else StageStore(root, lines, lines)
            approach = FakeApproach()
            stored = StoredStages(store, CHAIN, approach, with_state=True)

            def learn(backup):
                computed.append(number)
                with contextlib.suppress(threading.BrokenBarrierError):
                    began.wait(0.3)
                return approach.learn(backup)

            try:
                assert [stored.finish(stage, learn).record["number"] for stage in CHAIN] == [0, 1, 2, 3]
                assert approach.number == 3
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,), name=kind) for number, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert errors == []
        assert lines == []
        assert 4 <= len(computed) <= 8
        assert kinds != ("with", "with") or len(computed) == 4
        assert stage_folder.damaged_files(tmp_path / "stages") == []
        assert not list(tmp_path.rglob("*.unfinished"))
        through = StageStore(tmp_path / "through")
        take_through(through, CHAIN, 4)
        for stage in CHAIN:
            for name in sorted(os.listdir(through.root / stage.key)):
                ours = (through.root / stage.key / name).read_bytes()
                assert (tmp_path / "stages" / stage.key / name).read_bytes() == ours

    def test_of_different_results_the_first_stays(self, root, broken_locks):
        broken_locks()
        log = Log()
        take_through(StageStore(root), CHAIN, 1)
        before = {path.name: path.read_bytes() for path in (root / CHAIN[0].key).iterdir()}
        store = StageStore(root, pytest.fail, log)
        with store.working_on(CHAIN[0]) as own:
            assert not store.put(CHAIN[0], {"number": 7}, state_of(7), own)
        assert log == [f"{root / CHAIN[0].key}: another process has stored another result of this stage, which is kept"]
        assert {path.name: path.read_bytes() for path in (root / CHAIN[0].key).iterdir()} == before

    def test_the_backups_of_a_killed_process_are_used(self, root, broken_locks):
        broken_locks()
        store = StageStore(root)
        with store.working_on(CHAIN[0]) as living, store.working_on(CHAIN[0]) as own:
            dead = root / own.name.replace(str(os.getpid()), "999999999")
            dead.mkdir()
            for folder, epochs in ((dead, 3), (living, 2)):
                for stage in CHAIN[:2]:
                    (folder / f"{stage.key}.{epochs}.npz").write_bytes(b"backup")
            with store.working_on(CHAIN[0]) as third:
                assert os.listdir(third) == [f"{CHAIN[0].key}.3.npz"]
            stage_folder.make_place(root)
            assert os.listdir(dead) == [f"{CHAIN[1].key}.3.npz"]  # for the next stage
            (dead / f"{CHAIN[1].key}.3.npz").unlink()
            stage_folder.make_place(root)
            assert not dead.exists()
            assert len(os.listdir(living)) == 2

    def test_two_commands_in_one_output_directory_cannot_be_told_apart(self, tmp_path, broken_locks):
        with output.locked(tmp_path) as is_locked:
            assert is_locked
            with pytest.raises(ArgumentError, match="no other process is writing to"), output.locked(tmp_path):
                pass
        broken_locks()
        with output.locked(tmp_path) as is_locked, output.locked(tmp_path) as others:
            assert (is_locked, others) == (False, False)


SMALL = {"num_tasks": 2, "hidden_units": (8,), "train_epochs": 2, "retrain_epochs": 2, "prune_rounds": 1, "jit": "off"}
SMALL |= {"export": False}


def run(root, stages_dir=None):
    """Run in this process; return what it prints on standard error."""
    keras.utils.clear_session()  # gives layers the same names as a new process would
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        single_run.main(Config(**SMALL, output_dir=str(root)), stages_dir)
    return stderr.getvalue()


def test_a_run_reuses_all_stages_of_another_host(tmp_path, url, monkeypatch):
    run(tmp_path / "first", url)
    monkeypatch.setattr(learning, "compute_stage", pytest.fail)
    assert run(tmp_path / "second", url).count(": reused from the store") == 4
    for name in ("pack.keras", "pack.packnet", "masks/task_2.npz"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
    for host_name in ("first", "second"):
        shutil.rmtree(tmp_path / host_name / "masks")
    monkeypatch.setattr(objects, "open_url", pytest.fail)
    assert "nothing to compute" not in run(tmp_path / "second")  # which has all it needs to write its files again
    assert (tmp_path / "second/masks/task_2.npz").exists()


def test_results_of_another_platform_are_accepted_and_its_stages_are_not(tmp_path, monkeypatch):
    place = output.check_stages_dir(f"file://{tmp_path}/shared", tmp_path / "first")
    ours = learning.learn_only(Config(**SMALL), place, lambda task, stage: [])
    assert ours["computed_on"] == {"host": platforms.host(), **platforms.platform(Workers())}
    monkeypatch.setattr(platforms, "instructions", lambda: ["riscv64"])
    monkeypatch.setattr(platforms, "host", lambda: "elsewhere")
    second = place._replace(folder=tmp_path / "second")
    theirs = learning.learn_only(Config(**SMALL, output_dir="x"), second, lambda task, stage: [])
    assert theirs["computed_on"] == ours["computed_on"]
    assert theirs["accuracy_matrix"] == ours["accuracy_matrix"]
    assert not (tmp_path / "second").exists()
    shutil.rmtree(tmp_path / "shared/results")
    again = learning.learn_only(Config(**SMALL), second, lambda task, stage: [])
    assert again["computed_on"]["cpu"] == ["riscv64"]
    assert not any(stage["reused"] for stage in again["seconds"])


EXPERIMENT = (f"--flagfile={ROOT}/flags/presets/smoke.flags", "--experiment=figure2", "--sweep=final_prune=0.95")
REPORT = ("results.csv", "summary.json", "summary.md", "figure2.png", "figure2.pdf")
BREAK_LOCKS = """
import errno, fcntl
def flock(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """The report of an experiment in one folder, without interruption."""
    root = tmp_path_factory.mktemp("through")
    assert launch(*EXPERIMENT, f"--output_dir={root}/out").returncode == 0
    return {name: (root / "out" / name).read_bytes() for name in REPORT}


@pytest.mark.slow
@pytest.mark.parametrize("with_locks", [True, False])
@pytest.mark.parametrize("store", ["s3", "file", "folder"])
def test_two_experiments_at_once_killed_at_random(tmp_path, request, through, with_locks, store):
    rng = random.Random(0)
    stages_dir = {"file": f"file://{tmp_path}/shared", "folder": f"{tmp_path}/shared"}.get(store)
    stages_dir = stages_dir or request.getfixturevalue("bucket")
    environment = dict(os.environ)
    if not with_locks:
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(BREAK_LOCKS)
        environment["PYTHONPATH"] = f"{tmp_path}/site:{environment['PYTHONPATH']}"

    def start(name):
        command = [sys.executable, str(ROOT / "launch/main.py"), *EXPERIMENT, "--workers=1"]
        command += [f"--stages_dir={stages_dir}", f"--output_dir={tmp_path}/{name}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    processes = {name: start(name) for name in ("first", "second")}
    for _ in range(6):
        time.sleep(rng.uniform(1, 8))
        name = rng.choice(sorted(processes))
        processes[name].kill()
        processes[name].communicate()
        processes[name] = start(name)
    for name, process in processes.items():
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert "Traceback" not in printed
        assert "damaged" not in printed
        assert {each: (tmp_path / name / each).read_bytes() for each in REPORT} == through
