"""Commands end with an exit code and at most one line on standard error, for any kind of output stream."""

import errno
import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import ROOT, make_mlp
from tests.test_packfile import commit
from tf_packnet.command_line.exit_codes import exit_code
from tf_packnet.errors import StoppedError
from tf_packnet.system import memory
from tf_packnet.system.streams import OutputStream, any_output

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
BAD_SIZES = ({"COLUMNS": "0"}, {"COLUMNS": "²"}, {"COLUMNS": "9" * 30}, {"COLUMNS": "-1", "LINES": "0"})
ENVIRONMENTS = ({}, ASCII, {"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, *BAD_SIZES)
NO_SPACE = os.strerror(errno.ENOSPC)
# Redirections, with the exit code of a command that succeeds and prints, and what is printed on standard error.
REDIRECTIONS = {
    "": (0, ""),
    ">&-": (0, ""),
    "2>&-": (0, ""),
    "<&- >&- 2>&-": (0, ""),
    ">/dev/full": (1, f"{NO_SPACE}: standard output"),
    ">/dev/full 2>&1": (1, ""),
    "2>/dev/full": (0, ""),
    "| true": (141, ""),
    "2>&1 | true": (141, ""),
}


def shell(command, redirection="", limits="", **environment):
    """Run a command in a shell; the exit code is that of the command itself in a pipe, too."""
    # A reader that has ended already: the command waits for it.
    waits = "sleep 0.3; " if "|" in redirection else ""
    line = f"{limits} ({waits}exec {command}) {redirection}; exit ${{PIPESTATUS[0]}}"
    everywhere = {**os.environ, "TF_PACKNET_LAZY": "1", **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, cwd=ROOT, env=everywhere, timeout=300)


def check(done, code, message=""):
    stderr = done.stderr.decode()
    assert done.returncode == code, stderr
    assert "Traceback" not in stderr
    assert message in stderr
    assert stderr.count("\n") == bool(message), stderr


@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_help(redirection):
    check(shell(f"{sys.executable} launch/main.py --help", redirection), *REDIRECTIONS[redirection])


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "2>/dev/full", "2>&1 | true"])
def test_errors(redirection):
    done = shell(f"{sys.executable} launch/main.py --final_prune=2", redirection)
    check(done, 2, "--final_prune=2" if redirection == ">&-" else "")


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_errors_in_ascii(environment):
    done = shell(f"{sys.executable} launch/main.py --dataset=$'./\\xff\\x1b]0;owned\\x07猫'", **environment)
    check(done, 2, r"--dataset=./")
    assert r"\x1b]0;owned\x07" in done.stderr.decode("ascii")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack with a class that is not ASCII, and examples in a file whose name is not UTF-8."""
    folder = tmp_path_factory.mktemp("streams")
    packed = commit(tp.pack(make_mlp()), "猫", 1)
    tp.save_pack(packed, folder / "pack.packnet", info={"tasks": {"猫": {"class_names": ["\ud800", "=1+1"]}}})
    np.save(folder / "x.npy", np.ones((300, 6), np.float32))
    (folder / "x.npy").rename(os.fsdecode(os.fsencode(folder / "x") + b"\xff\x1b[2J.npy"))
    return folder


@pytest.mark.parametrize("format", ["table", "csv", "json"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_predictions_in_any_encoding(pack, format, encoding, monkeypatch):
    from tf_packnet.command_line import predict

    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stdout)
    (examples,) = map(str, pack.glob("x*.npy"))
    arguments = ["predict", f"--pack={pack}/pack.packnet", f"--format={format}", examples, examples]
    assert exit_code(lambda: predict.main(arguments), "predict") == 0
    shown = stdout.buffer.getvalue().decode(encoding)
    assert all(line.isprintable() for line in shown.split("\n"))
    if format == "json":
        found = json.loads(shown)
        assert (found["task"], found["predictions"][0]["example"]) == ("猫", f"{examples}[0]")
    if format == "csv":
        assert len(shown.splitlines()) == 601
        assert r"x\udcff\x1b[2J.npy[0],1," in shown
        assert ",=1+1," not in shown


def command_lines(pack):
    (examples,) = pack.glob("x*.npy")
    examples = "$'" + os.fsencode(examples).replace(b"\xff", b"\\xff").replace(b"\x1b", b"\\x1b").decode() + "'"
    named = f"--pack={pack}/pack.packnet"
    return {
        "--help": f"{sys.executable} launch/main.py --help",
        "plan": f"{sys.executable} launch/main.py --dry_run",
        "inspect": f"{sys.executable} launch/inspect_pack.py {named}",
        "inspect as JSON": f"{sys.executable} launch/inspect_pack.py {named} --format=json",
        "inspect as HTML": f"{sys.executable} launch/inspect_pack.py {named} --html={pack}/$'\\xff'.html",
        **{
            f"predict as {format}": f"{sys.executable} launch/predict.py {named} --format={format} {examples}"
            for format in ("table", "csv", "json")
        },
    }


@pytest.mark.parametrize("environment", [ASCII], ids=str)
def test_a_command_in_ascii(pack, environment):
    done = shell(command_lines(pack)["inspect as HTML"], **environment)
    assert done.returncode == 0, done.stderr
    assert r"\ud800" in (pack / os.fsdecode(b"\xff.html")).read_bytes().decode("utf-8")
    done.stdout.decode("ascii")


@pytest.mark.slow
def test_all_commands_with_all_streams(pack):
    lines = command_lines(pack)
    for name, redirection in itertools.product(lines, REDIRECTIONS):
        done = shell(lines[name], redirection)
        if "HTML" in name:
            assert done.returncode == REDIRECTIONS[redirection][0], (name, redirection, done.stderr)
            assert b"Traceback" not in done.stderr
        else:
            check(done, *REDIRECTIONS[redirection])


@pytest.mark.slow
def test_all_commands_in_all_environments(pack):
    lines = command_lines(pack)
    for name, environment in itertools.product(lines, ENVIRONMENTS):
        done = shell(lines[name], **environment)
        assert done.returncode == 0, (name, environment, done.stderr)
        assert b"Traceback" not in done.stderr
        if "ascii" in environment.values() or environment is ASCII:
            assert done.stdout.isascii()
        assert all(line.isprintable() for line in done.stdout.decode().split("\n")), (name, environment)
        assert max(map(len, done.stdout.decode().splitlines())) < 1000 or "JSON" in name


class TestOutputStream:
    def test_makes_text_printable_unless_it_was_rendered(self):
        stream = OutputStream(io.StringIO(), "standard output", True)
        print("a\x1b[2J\r\n\u202eb", file=stream)
        stream.rendered.write("\x1b[1mbold\x1b[0m")
        assert stream._stream.getvalue() == "a\\x1b[2J\\r\n\\u202eb\n\x1b[1mbold\x1b[0m"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE])
    @pytest.mark.parametrize("required", [True, False])
    def test_a_full_disk_ends_a_command_only_on_standard_output(self, number, required, tmp_path):
        class Broken(io.StringIO):
            def write(self, text):
                raise OSError(number, os.strerror(number))

        stream = OutputStream(Broken(), "the stream", required)
        if required or number == errno.EPIPE:
            with pytest.raises(OSError, match=f"{os.strerror(number)}: 'the stream'"):
                stream.write("text")
        else:
            assert stream.write("text") == 4

    def test_streams_are_restored(self):
        before = sys.stdout, sys.stderr
        with any_output():
            assert sys.stdout is not before[0]
        assert (sys.stdout, sys.stderr) == before


class TestErrors:
    def test_of_files_that_tensorflow_writes(self, capfd):
        def work():
            raise tf.errors.ResourceExhaustedError(
                None, None, "{{node x}} /disk/out/tensorboard; No space left on device"
            )

        assert exit_code(work, "main.py", resumable=True) == 1
        advice = "fix this and run the same command again to continue"
        assert capfd.readouterr().err == f"main.py: No space left on device: /disk/out/tensorboard; {advice}\n"

    def test_real_ones(self, capfd):
        def work():
            tf.io.write_file("/dev/full", "text" * 10_000)

        assert exit_code(work, "main.py") == 1
        assert capfd.readouterr().err == "main.py: No space left on device: /dev/full\n"

    def test_others_of_tensorflow_are_bugs(self):
        def work():
            tf.matmul(tf.zeros((2, 3)), tf.zeros((2, 3)))

        with pytest.raises(tf.errors.InvalidArgumentError):
            exit_code(work, "main.py")

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("OOM when allocating 9 TiB"),
            tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\n\nOOM when allocating 9 TiB\n"),
        ],
        ids=repr,
    )
    def test_out_of_memory(self, error, capfd):
        def work():
            raise error

        assert exit_code(work, "main.py") == 1
        assert capfd.readouterr().err == "main.py: out of memory: OOM when allocating 9 TiB\n"


class TestMemory:
    @pytest.mark.parametrize("limit", ["-v 60000", "-v 200000", "-v 1500000", "-d 300000"])
    def test_a_limit_that_is_too_low(self, limit, tmp_path):
        done = shell(f"{sys.executable} launch/main.py --output_dir={tmp_path / 'out'}", limits=f"ulimit {limit};")
        check(done, 1, "main.py: not enough memory for TensorFlow: the ")
        assert "MB; expected at least" in done.stderr.decode()
        assert list(tmp_path.iterdir()) == []

    def test_help_needs_little(self):
        check(shell(f"{sys.executable} launch/main.py --help", limits="ulimit -v 400000;"), 0)

    GROUPS = [
        ("0::/user/app\n", "sys/fs/cgroup/user/app/memory.max", "100000000\n", True),
        ("0::/user/app\n", "sys/fs/cgroup/user/memory.max", "100000000\n", True),
        ("0::/not/seen/here\n", "sys/fs/cgroup/memory.max", "100000000\n", True),
        ("0::/user/app\n", "sys/fs/cgroup/user/app/memory.max", "max\n", False),
        ("0::/user/app\n", "sys/fs/cgroup/user/app/memory.max", "8000000000\n", False),
        ("0::/\n4:cpu:/x\n3:cpu,memory:/app\n", "sys/fs/cgroup/memory/app/memory.limit_in_bytes", "100000000\n", True),
        ("4:memory:/app\n", "sys/fs/cgroup/memory/app/memory.limit_in_bytes", "9223372036854771712\n", False),
        ("4:memory:/app\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", "100000000\n", True),
        ("not that of Linux\n", "proc/meminfo", "MemAvailable:  100000 kB\nSwapFree: 100 kB\n", True),
        ("0::/\n", "proc/meminfo", "MemAvailable:  100000 kB\nSwapFree: 4000000 kB\n", False),
        ("0::/\n", "proc/meminfo", "MemTotal:  100000 kB\n", False),
    ]

    @pytest.mark.parametrize(("groups", "file", "content", "is_low"), GROUPS)
    def test_of_a_container(self, groups, file, content, is_low, tmp_path, monkeypatch):
        for path, text in (("proc/self/cgroup", groups), (file, content)):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        low = [name for name, limit, needed in memory.limits(tmp_path) if limit < needed]
        assert len(low) == is_low
        assert (memory.available(tmp_path) < memory.RESIDENT) == is_low
        found = list(memory.limits(tmp_path))
        monkeypatch.setattr(memory, "limits", lambda: found)
        if is_low:
            with pytest.raises(StoppedError, match="is 10. MB; expected at least 500 MB"):
                memory.check()
        else:
            memory.check()


RUN = "--flagfile=digits --num_tasks=2 --train_epochs=2 --retrain_epochs=2 --prune_rounds=2"


@pytest.mark.slow
def test_a_disk_without_free_inodes(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    try:
        for inodes in (2, 8, 16, 32, 48, 1000):
            subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", disk], check=True)
            done = shell(f"{sys.executable} launch/main.py {RUN} --output_dir={disk}/out")
            assert b"Traceback" not in done.stderr, done.stderr
            if inodes < 1000:
                assert done.returncode in (1, 2)
                assert NO_SPACE in done.stderr.decode().splitlines()[-1]
                assert str(disk) in done.stderr.decode().splitlines()[-1]
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_no_folder_for_temporary_files(pack, monkeypatch, capfd):
    from tf_packnet.command_line import inspect_pack

    with monkeypatch.context() as patch:  # pytest needs the folder again for what was printed
        patch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere"])
        patch.setattr("tempfile.tempdir", None)
        code = exit_code(lambda: inspect_pack.main(["inspect", f"--pack={pack}/pack.packnet"]), "inspect")
    said = capfd.readouterr().err
    assert (code, said) in ((0, ""), (1, "inspect: No usable temporary directory found in ['/nowhere']\n"))
