"""Several runs of one command: every combination, side by side, and what happens when one fails."""

import json
import time

import pytest

from flags.parsing import UsageError, parse_command
from tests.conftest import launch
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import sweep, workers
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.workers import Layout, best_layout


def test_every_combination_has_a_folder_of_its_own():
    command = parse_command(["main.py", "--sweep=seed=0,1", "--sweep=final_prune=0.5,0.9,0.95", "--workers=3"])
    assert command.axes == {"seed": [0, 1], "final_prune": [0.5, 0.9, 0.95]}
    assert command.workers == 3
    configs = sweep.combinations(command.config, command.axes)
    assert [(config.seed, config.final_prune) for config in configs] == [
        (seed, final_prune) for seed in (0, 1) for final_prune in (0.5, 0.9, 0.95)
    ]
    assert configs[1].where() == "out/digits/seed=0,final_prune=0.9"
    assert len({config.where() for config in configs}) == 6


def test_without_a_sweep_there_is_one_run():
    assert parse_command(["main.py"]) == (Config(), {}, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep=seed=1,x"], "--sweep=seed=1,x: x: expected a whole number"),
        (["--sweep=seed=1,-1"], "--sweep=seed=1,-1: -1: expected 0 to 2147483647"),
        (["--sweep=seed="], "--sweep=seed=: nothing: expected a whole number"),
        (["--sweep=head=none,shared"], "none: expected one of per_task, shared"),
        (["--sweep=seed=1,1"], "--sweep=seed=1,1: expected every value once"),
        (["--sweep=seed=1", "--sweep=seed=2"], "--sweep: expected another flag each time it is given"),
        (["--workers=2"], "--workers: expected a --sweep whose runs to share out"),
        (["--sweep=seed=1,2", "--workers=0"], "--workers=0: expected at least 1"),
    ],
)
def test_sweeps_that_cannot_be(flags, message):
    with pytest.raises(UsageError, match="^.*" + message.replace("(", r"\(")):
        parse_command(["main.py", *flags])


@pytest.mark.parametrize("name", ["sed", "", "output_dir", "hidden_units"])
def test_what_cannot_be_swept_is_told_with_what_can(name):
    with pytest.raises(ArgumentError, match="NAME=VALUE,VALUE with a NAME among dataset, .*seed"):
        parse_command(["main.py", f"--sweep={name}=1,2"])


def test_a_combination_that_cannot_be_stops_all_before_any_work(tmp_path):
    done = launch("--sweep=prune_rounds=1,7", f"--output_dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr == (
        "main.py: --prune_rounds=7: expected a divisor of --retrain_epochs=30: 1, 2, 3, 5, 6, 10, 15, 30\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cores", "runs", "asked", "expected"),
    [
        (2, 10, None, Layout(2, 1)),
        (2, 1, None, Layout(1, 2)),
        (16, 3, None, Layout(3, 5)),
        (4, 10, 2, Layout(2, 2)),
        (2, 10, 8, Layout(8, 1)),
    ],
)
def test_the_layout_fills_the_cores_and_no_more(monkeypatch, cores, runs, asked, expected):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(workers.Path, "exists", lambda self: False)
    assert best_layout(runs, asked) == expected
    assert expected.environment()["TF_NUM_INTRAOP_THREADS"] == str(expected.threads)


def test_a_gpu_is_not_shared(monkeypatch):
    monkeypatch.setattr(workers.Path, "exists", lambda self: True)
    assert best_layout(10).workers == 1


def test_an_unknown_data_set_stops_all_before_any_work(tmp_path):
    done = launch("--sweep=dataset=digits,mnits", f"--output_dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("main.py: --dataset=mnits: expected digits, or the name of a TFDS")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_sweep_begins_nothing_more(monkeypatch):
    begun = []

    def run(config, layout):
        begun.append(config.seed)
        time.sleep(0.2)
        return workers.Outcome(config, 0, 0.2, "")

    def interrupt(outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_run", run)
    configs = sweep.combinations(Config(), {"seed": range(50)})
    with pytest.raises(KeyboardInterrupt):
        workers.run_all(configs, Layout(1, 1), interrupt)
    assert len(begun) <= 3  # the first, and what had begun before its outcome was seen


FLAGS = ("--num_tasks=1", "--train_epochs=2", "--retrain_epochs=2", "--prune_rounds=2", "--optimizer=sgd", "--noexport")


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
    command = (*FLAGS, "--sweep=learning_rate=0.1,1e30,0.2", f"--output_dir={tmp_path}/out")
    done = launch(*command)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("3 runs, ")
    assert "learning_rate=1e+30" in next(line for line in lines if "failed: " in line)
    assert "cannot rank weights that are not a number" in done.stderr
    assert lines[-1] == ("main.py: 1 of 3 runs failed (learning_rate=1e+30); the same command tries them again")
    assert "failed" in done.stdout
    good = [tmp_path / f"out/learning_rate={rate}/results.json" for rate in (0.1, 0.2)]
    results = [json.loads(path.read_text()) for path in good]
    for each in results:
        assert each["complete"]
        assert f"{each['average_accuracy']:.4f}" in done.stdout
    before = [path.stat().st_mtime_ns for path in good]
    assert launch(*command).returncode == 1
    assert [path.stat().st_mtime_ns for path in good] == before
