"""Killed at random moments, again and again, a run ends in the bytes of one that was never interrupted."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, launch

MLP = ("--dataset=digits", "--num_tasks=2", "--hidden_units=48,32", "--train_epochs=60", "--retrain_epochs=60")
MLP += ("--prune_rounds=6", "--freed_weights=reinit", "--bias_policy=per_task", "--final_prune=0.6", "--seed=4")
CONV = ("--dataset=digits", "--num_tasks=2", "--model=conv", "--dropout=0.5", "--train_epochs=3", "--retrain_epochs=4")
CONV += ("--prune_rounds=2", "--optimizer=adamw", "--final_prune=0.6", "--noexport")
# The stages have seconds in them, results and the checksums of such files too, the curves when they were written.
REPORT = Path("export/report.json")  # but for the latency in it
OTHERWISE = ("stages", "tensorboard", "results.json", "checksums.json", ".lock")


def contents(root):
    """Every file by its path below `root`, with its bytes where these must be the same."""
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    timed = {name for name in files if name.parts[0] in OTHERWISE}
    same = {name: files[name].read_bytes() for name in files if name not in timed}
    if REPORT in same:
        report = json.loads(same[REPORT])
        assert all(row.pop("latency").keys() == {"1", "256"} for row in report["tasks"])
        del report["checksum"]
        same[REPORT] = report
    return same, {name.parts[0] for name in timed}


def interrupt(flags, longest, rng):
    """Starts a run and ends it after a while; None if it was done before, else the signal that ended it."""
    how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    command = [sys.executable, str(ROOT / "launch/main.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if rng.random() < 0.8:  # the others die while they start
        next((line for line in process.stderr if line.startswith("XLA")), None)
    time.sleep(rng.uniform(0.0, longest))
    process.send_signal(how)
    began = time.monotonic()
    _, said = process.communicate()
    if process.returncode == 0:
        return None
    assert "Traceback" not in said, said
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:  # or before it had a handler, or any output
        assert process.returncode in (143, -signal.SIGTERM)
        assert time.monotonic() - began < 10
    return how


def kill_and_compare(flags, kills, tmp_path, longest):
    done = launch(*flags, f"--output_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    rng, times, folders = random.Random(7), 0, itertools.count()
    while times < kills:
        root = tmp_path / f"killed_{next(folders)}"  # a run that was done before it was killed needs no more kills
        while times < kills and interrupt([*flags, f"--output_dir={root}"], longest, rng) is not None:
            times += 1
        done = launch(*flags, f"--output_dir={root}")  # the last kills may leave it unfinished
        assert done.returncode == 0, done.stderr
        assert contents(root) == contents(tmp_path / "whole")


def test_three_kills(tmp_path):
    kill_and_compare(MLP, 3, tmp_path, longest=2.0)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "kills", "longest"), [(MLP, 50, 4.0), (CONV, 20, 12.0)], ids=["mlp", "conv"])
def test_many_kills(flags, kills, longest, tmp_path):
    kill_and_compare(flags, kills, tmp_path, longest)


@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again(tmp_path):
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
