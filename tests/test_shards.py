"""Shards of an experiment: together they do every run once, and merged they give the report of a single command."""

import errno
import fcntl
import shutil
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from tests.conftest import ROOT, launch
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import suite
from tf_packnet.experiments.shards import Shard
from tf_packnet.runs import output, shared_folder
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.runs.stages import shared_beginning

SMOKE = f"--flagfile={ROOT}/flags/presets/smoke.flags"
REPORTED = ("results.csv", "summary.json", "summary.md", "report.html")


def defined(*flags):
    return parse_command(["main.py", SMOKE, *flags]).experiment


def runs_by_shard(experiment, parts):
    return [Shard(number, parts).runs(experiment) for number in range(1, parts + 1)]


@hypothesis.given(costs=st.lists(st.integers(1, 1000), min_size=1, max_size=60), parts=st.integers(1, 70))
def test_shards_have_every_item_once_and_equal_costs(costs, parts):
    items = list(range(len(costs)))
    shards = [Shard(number, parts).part(items, costs) for number in range(1, parts + 1)]
    assert [item for shard in shards for item in shard] == items
    for shard in shards:
        assert abs(sum(costs[item] for item in shard) - sum(costs) / parts) <= max(costs)
    if len(set(costs)) == 1:
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 18, 40])
@pytest.mark.parametrize(
    "flags",
    [
        ["--experiment=figure2", "--seeds=5"],
        ["--experiment=figure1"],
        ["--experiment=figure4"],
        ["--sweep=final_prune=0.5,0.6", "--sweep=batch_size=8,16,32", "--seeds=3"],
        ["--seeds=4,9,2"],
    ],
)
def test_shards_keep_runs_with_equal_first_stages_together(flags, parts):
    experiment = defined(*flags)
    shards = runs_by_shard(experiment, parts)
    names = [repr(config) for shard in shards for config in shard]
    assert sorted(names) == sorted(map(repr, experiment.configs))
    groups = [{shared_beginning(config) for config in shard} for shard in shards]
    assert sum(map(len, groups)) - len(set().union(*groups)) <= parts - 1  # so many of them are in two shards
    assert shards == runs_by_shard(experiment, parts)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 9])
def test_shards_of_a_matching_have_every_search_once(parts):
    experiment = defined("--experiment=table1")
    searches = [search for number in range(parts) for search in Shard(number + 1, parts).searches(experiment)]
    assert searches == [(p, name) for p in (0.95, 0.99, 0.995) for name in ("memory", "multinet")]


@pytest.mark.parametrize("value", ["0/3", "4/3", "1", "1/", "/3", "a/b", "1/2/3", "-1/3", "1.0/3", "1/10001", ""])
def test_other_shards_are_refused(value):
    with pytest.raises(Exception, match="expected I/M with 1 <= I <= M"):
        defined("--seeds=2", f"--shard={value}")


def test_the_values_of_merge():
    def merge(*flags):
        return parse_command(["main.py", "--seeds=2", *flags]).merge

    assert merge() is merge("--nomerge") is None
    assert merge("--merge") == ()
    assert merge("--merge=a,b/c") == ("a", "b/c")
    for flags in (["--merge", "--shard=1/2"], ["--merge="], ["--merge=a,"], ["--merge=a\0b"]):
        with pytest.raises(Exception, match="--merge(=.*)?: expected"):
            merge(*flags)
    with pytest.raises(Exception, match="--merge: expected an --experiment"):
        parse_command(["main.py", "--merge"])


def start(*flags):
    command = [sys.executable, ROOT / "launch/main.py", SMOKE, "--workers=1", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_equal_ways(flags, tmp_path, extra=()):
    """Two shards share a folder, at the same time, and a third has its own. Returns the output of each command."""
    shards = [start(*flags, f"--shard={number}/3", f"--output_dir={tmp_path}/shared") for number in (1, 2)]
    whole = launch(SMOKE, "--workers=1", *flags, f"--output_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    for number, shard in enumerate(shards, 1):
        stdout, stderr = shard.communicate(timeout=300)
        assert shard.returncode == 0, stderr
        assert f"shard {number}/3 is complete" in stdout
        assert not (tmp_path / "shared/report.html").exists()
    incomplete = launch(SMOKE, *flags, "--merge", f"--output_dir={tmp_path}/shared")
    assert incomplete.returncode == 1
    assert "no shard has completed them; the command of their shard retries them" in incomplete.stderr
    third = launch(SMOKE, "--workers=1", *flags, "--shard=3/3", f"--output_dir={tmp_path}/own")
    assert third.returncode == 0, third.stderr
    sources = f"--merge={tmp_path}/shared,{tmp_path}/own"
    merged = launch(SMOKE, *flags, sources, f"--output_dir={tmp_path}/merged")
    assert merged.returncode == 0, merged.stderr
    assert "0 runs done: 0 epochs computed, 0 reused" in merged.stdout
    for name in (*REPORTED, *extra):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    return incomplete, sources


def test_three_shards_merged_give_the_report_of_one_command(tmp_path):
    flags = ["--experiment=figure2", "--sweep=final_prune=0.9", "--sweep=prune_rounds=1,2,4", "--seeds=1"]
    incomplete, sources = check_equal_ways(flags, tmp_path, ["figure2.png", "figure2.pdf"])
    missing = "1 of 3 runs were not done (final_prune=0.9,prune_rounds=4,seed=0): no shard has completed them"
    assert missing in incomplete.stderr
    again = launch(SMOKE, *flags, f"--output_dir={tmp_path}/merged", "--on_corruption=fail")
    assert "3 runs were complete before" in again.stdout  # without --merge, the same folder is complete
    csv = tmp_path / "merged/results.csv"
    csv.write_bytes(csv.read_bytes() + b"x")
    damaged = launch(SMOKE, *flags, f"--output_dir={tmp_path}/merged", "--on_corruption=fail", "--merge")
    assert (damaged.returncode, "results.csv is damaged" in damaged.stderr) == (1, True)  # the checksums cover it
    (damaged_run,) = (tmp_path / "own/runs").glob("*.json")
    damaged_run.write_bytes(b"x")
    again = launch(SMOKE, *flags, f"--output_dir={tmp_path}/merged2", sources)
    assert again.returncode == 1
    assert f"{damaged_run} is damaged; its run counts as missing" in again.stderr
    assert missing in again.stderr
    other = launch(SMOKE, *flags, f"--output_dir={tmp_path}/other", f"--merge={tmp_path}/own", "--train_epochs=5")
    assert (other.returncode, "these are of another one, with --train_epochs=4" in other.stderr) == (2, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure1", "table1"])
def test_three_shards_of_other_experiments(name, tmp_path):
    flags = [f"--experiment={name}", "--sweep=final_prune=0.9", "--seeds=1"]
    check_equal_ways(flags, tmp_path, [f"{name}.png"])


def test_refused_shards_leave_no_files(tmp_path):
    for number in (1, 2):
        flags = [SMOKE, "--num_tasks=6", "--seeds=2", f"--shard={number}/2", f"--output_dir={tmp_path}/out"]
        done = launch(*flags)
        assert done.returncode == 2
        assert "expected at most 5 (digits has 10 classes, 2 per task)" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = launch(SMOKE, "--seeds=2", "--num_tasks=6", "--shard=2/3", f"--output_dir={tmp_path}/out")  # it has no run
    assert (done.returncode, "shard 2/3 is complete" in done.stdout) == (0, True)
    (tmp_path / "out/mine").write_text("")
    launch(*flags)
    assert (tmp_path / "out/mine").exists()
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "mine").write_text("")
    for flag, message in (("--shard=1/2", "a new or empty folder"), ("--merge", "folders with the results of shards")):
        done = launch(SMOKE, "--seeds=2", flag, f"--output_dir={tmp_path}")
        assert (done.returncode, message in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_shard_goes_on_where_another_was_killed_before_it_had_prepared_the_folder(tmp_path, capsys):
    experiment = defined("--seeds=2", f"--output_dir={tmp_path}/out")
    paths = ExperimentPaths(tmp_path / "out")
    with shared_folder.shared(paths.root) as other:
        other.share()  # it was the first, and nothing is there but its lock
        suite.main(experiment, workers=1, shard=Shard(2, 3))
        assert paths.manifest.exists()
        assert paths.experiment.exists()
        leftover = paths.root / ".results.csv.x.unfinished"
        leftover.mkdir()  # of a command that is writing
        suite.main(experiment, workers=1, shard=Shard(2, 3))
        assert leftover.exists()
    suite.main(experiment, workers=1, shard=Shard(2, 3))
    assert not leftover.exists()
    paths.runs.mkdir()
    paths.run("seed=0").write_text("x")
    suite.main(experiment, workers=1, shard=Shard(2, 3))
    assert f"{paths.run('seed=0')} is damaged and will be recomputed" in capsys.readouterr().err


class TestSharedFolder:
    def test_the_first_holds_the_lock_alone_until_it_shares_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shared_folder, "PREPARE_SECONDS", 0.2)
        with shared_folder.shared(tmp_path) as first:
            assert first.alone
            with pytest.raises(ArgumentError, match="no other process is writing to"), shared_folder.shared(tmp_path):
                pass
            first.share()
            with shared_folder.shared(tmp_path) as second:
                assert not second.alone
                assert not second.try_alone()
            with pytest.raises(ArgumentError, match="no other process is writing to"), output.locked(tmp_path):
                pass
            assert first.try_alone()
        with output.locked(tmp_path), pytest.raises(ArgumentError), shared_folder.shared(tmp_path):
            pass

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_without_locks_nobody_is_alone(self, tmp_path, monkeypatch, number):
        def no_locks(*_):
            raise OSError(number, "no locks")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        with shared_folder.shared(tmp_path) as lock:
            assert not lock.alone

    def test_other_errors_are_reported(self, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(ArgumentError, match="a folder that can be written"),
            shared_folder.shared(tmp_path / "file"),
        ):
            pass
