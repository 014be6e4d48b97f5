"""A run or an experiment that is killed at random moments gives the same bytes as an uninterrupted one."""

import collections
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, launch

MLP = ("--dataset=digits", "--num_tasks=2", "--hidden_units=48,32", "--train_epochs=60", "--retrain_epochs=60")
MLP += ("--prune_rounds=6", "--freed_weights=reinit", "--bias_policy=per_task", "--final_prune=0.6", "--seed=4")
CONV = ("--dataset=digits", "--num_tasks=2", "--model=conv", "--dropout=0.5", "--train_epochs=3", "--retrain_epochs=4")
CONV += ("--prune_rounds=2", "--optimizer=adamw", "--final_prune=0.6", "--noexport")
MIRRORED = (*MLP, "--dropout=0.2", "--strategy=mirrored", "--logical_devices=2")
REPORT = Path("export/report.json")  # compared without latencies
# Not compared: they contain durations or dates, or checksums of files that do.
NOT_COMPARED = ("stages", "tensorboard", "results.json", "checksums.json", ".lock")


def contents(root):
    """Return the bytes of each file that must be the same, by path, and the names of the other files and folders."""
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    timed = {name for name in files if name.parts[0] in NOT_COMPARED}
    same = {name: files[name].read_bytes() for name in files if name not in timed}
    if REPORT in same:
        report = json.loads(same[REPORT])
        assert all(row.pop("latency").keys() == {"1", "256"} for row in report["tasks"])
        del report["checksum"]
        same[REPORT] = report
    return same, {name.parts[0] for name in timed}


def interrupt(flags, longest, rng):
    """Start a run and end it after a random time. Return the signal; None if the run was complete by then."""
    how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    command = [sys.executable, str(ROOT / "launch/main.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if rng.random() < 0.8:  # the others end during startup
        next((line for line in process.stderr if line.startswith("XLA")), None)
    time.sleep(rng.uniform(0.0, longest))
    process.send_signal(how)
    _, stderr = process.communicate(timeout=120)
    if process.returncode == 0:
        return None
    assert "Traceback" not in stderr, stderr
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:  # -SIGTERM if it came before the handler was installed
        assert process.returncode in (143, -signal.SIGTERM)
    return how


def kill_and_compare(flags, kills, tmp_path, longest):
    """Returns how often each signal has ended the run."""
    done = launch(*flags, f"--output_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    rng, ended, folders = random.Random(7), collections.Counter(), itertools.count()
    while ended.total() < kills:
        root = tmp_path / f"killed_{next(folders)}"  # a new one once a run is complete
        while ended.total() < kills and (how := interrupt([*flags, f"--output_dir={root}"], longest, rng)) is not None:
            ended[how.name] += 1
        done = launch(*flags, f"--output_dir={root}")  # completes the run after the last kill
        assert done.returncode == 0, done.stderr
        assert contents(root) == contents(tmp_path / "whole")
    return ended


def show(counts, capsys):
    with capsys.disabled():
        print(f"\n{counts.total()} kills:", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


@pytest.mark.slow
def test_two_kills(tmp_path):
    kill_and_compare(MLP, 2, tmp_path, longest=2.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kills", "longest"),
    [(MLP, 20, 4.0), (CONV, 20, 12.0), (MIRRORED, 20, 8.0)],
    ids=["mlp", "conv", "mirrored"],
)
def test_many_kills(flags, kills, longest, tmp_path, capsys):
    show(kill_and_compare(flags, kills, tmp_path, longest), capsys)


SWEEP = (*MLP, "--sweep=prune_rounds=1,2,3,5", "--seeds=2", "--workers=2")
# The same bytes, whatever was done again. The files of the runs contain durations.
REPORTED = ("results.csv", "summary.json", "summary.md", "report.html", "sweep.png", "sweep.pdf")


def last_written(root):
    """Returns when a file of an unfinished or finished stage was written last, in ns."""
    times = [0]
    for path in (root / "stages").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def kill_in_experiment(flags, root, kills, rng, log):
    """Starts an experiment and kills it or its workers, until it ends or there were enough kills.

    Most kills wait for an epoch that was computed since the one before; the others come during startup, too.

    Returns what was killed: the launcher by SIGKILL or SIGTERM, workers by SIGKILL, SIGSEGV or SIGSTOP.
    """
    with open(log, "w") as stderr:
        command = [sys.executable, str(ROOT / "launch/main.py"), *flags]
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    killed = collections.Counter()
    known = set()
    while process.poll() is None and killed.total() < kills:
        written, startup = last_written(root), rng.random() < 0.2
        while process.poll() is None and not startup and last_written(root) == written:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 3.0))
        workers = process.children() if process.poll() is None else []
        known.update(workers)
        if workers and rng.random() < 0.6:
            number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
            rng.choice(workers).send_signal(number)
            killed[f"worker {number.name}"] += 1
        elif process.poll() is None:
            number = rng.choice([signal.SIGKILL, signal.SIGTERM])
            process.send_signal(number)
            process.wait()
            killed[f"launcher {number.name}"] += 1
    code = process.wait()
    for worker in psutil.wait_procs(known, timeout=1)[1]:  # stopped so early that the system does not know its launcher
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    assert not psutil.wait_procs(known, timeout=60)[1], "workers outlive their launcher"
    written = Path(log).read_text()
    assert "Traceback" not in written, written
    last = written.splitlines()[-1] if written else ""
    # 1 if workers were killed so often that a run failed, or that no worker was left.
    assert code in (0, 143, -signal.SIGKILL, -signal.SIGTERM) or (code == 1 and "the same command retries them" in last)
    return killed


def kill_experiments(kills, tmp_path):
    """Returns how often what was killed, over several experiments: a new one once one is complete."""
    done = launch(*SWEEP, f"--output_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    rng, killed, folders = random.Random(5), collections.Counter(), itertools.count()
    while killed.total() < kills:
        root = tmp_path / f"killed_{next(folders)}"
        flags = [*SWEEP, f"--output_dir={root}"]
        while killed.total() < kills and not (root / "report.html").exists():
            killed += kill_in_experiment(flags, root, kills - killed.total(), rng, tmp_path / "log")
        done = launch(*flags)
        assert done.returncode == 0, done.stderr
        for name in REPORTED:
            assert (root / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    return killed


@pytest.mark.slow
def test_many_kills_of_an_experiment_and_its_workers(tmp_path, capsys):
    show(kill_experiments(24, tmp_path), capsys)


@pytest.mark.slow
def test_a_disk_that_is_full_repeatedly(tmp_path):
    done = launch(*MLP, f"--output_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    disk, full = tmp_path / "disk", 0
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    try:
        for kilobytes in (200, 400, 600, 800, 1000, 1200, 1500, 2000, 8000):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
            done = launch(*MLP, f"--output_dir={disk / 'out'}")
            if done.returncode:
                full += 1
                assert done.returncode == 1
                assert "Traceback" not in done.stderr, done.stderr
                assert "fix this and run the same command again to continue" in done.stderr.splitlines()[-1]
        assert done.returncode == 0, done.stderr
        assert full >= 4
        assert contents(disk / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)
