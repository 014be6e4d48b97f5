"""Damage to files in the folder of an experiment is detected; the file is named, and repaired or refused."""

import contextlib
import io
import random
import shutil

import pytest

from tests import damage
from tests.conftest import ROOT, launch
from tf_packnet.command_line import exit_codes
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.experiments import suite
from tf_packnet.runs.corruption import Manifest

FLAGS = ("--sweep=final_prune=0.6,0.9", f"--flagfile={ROOT}/flags/presets/smoke.flags", "--seeds=1", "--workers=1")


def experiment(root, *flags):
    """Repeats the command in this process; returns exit code and standard error."""
    command = parse_command(["main.py", *FLAGS, f"--output_dir={root}", *flags])
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = exit_codes.exit_code(lambda: suite.main(command.experiment, 1), "experiment", resumable=True)
    return code, stderr.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "out"
    done = launch(*FLAGS, f"--output_dir={root}")
    assert done.returncode == 0, done.stderr
    return root


def unchanged(root):
    """The files whose content contains no durations."""
    return {
        name: (root / name).read_bytes()
        for name in damage.all_files(root)
        if name.name not in ("checksums.json", "report.html") and name.parts[0] != "runs"
    }


@pytest.mark.parametrize("way", damage.WAYS)
@pytest.mark.parametrize("complete", [True, False])
def test_fail_names_each_damaged_file_and_changes_nothing(finished, way, complete, tmp_path):
    original, root = tmp_path / "original", tmp_path / "out"
    shutil.copytree(finished, original)
    names = damage.one_of_each_kind(finished)
    if not complete:
        manifest = Manifest.read(original / "checksums.json", pytest.fail)
        Manifest(manifest.identity, {}).write(original / "checksums.json")
        names = read_again(finished)
        if way == "deleted":  # a run without results was not done yet
            names = [name for name in names if name.parts[0] != "runs"]
    assert len(names) >= (10 if complete else 4)
    shutil.copytree(original, root)
    damage.check_fail(names, way, original, root, "experiment", lambda: experiment(root, "--on_corruption=fail"))


def read_again(root):
    """The files that are read when an interrupted experiment continues."""
    return [name for name in damage.one_of_each_kind(root) if name.parts[0] in FIRST]


FIRST = ("experiment.json", "checksums.json", "runs", "stages")


def check_repaired(finished, tmp_path, name, way, rng):
    root = tmp_path / "out"
    if damage.check_recompute(name, way, finished, root, rng, lambda: experiment(root)):
        assert unchanged(root) == unchanged(finished)
        code, stderr = experiment(root, "--on_corruption=fail")
        assert code == 0, stderr
    shutil.rmtree(root)
    shutil.rmtree(tmp_path / "elsewhere")


def test_recompute_repairs_or_refuses(finished, tmp_path):
    rng = random.Random(0)
    names = [name for name in damage.one_of_each_kind(finished) if name.parts[0] != "runs"]
    for way, name in zip(rng.sample(damage.WAYS, 3), rng.sample(names, 3), strict=True):
        check_repaired(finished, tmp_path, name, way, rng)


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
def test_recompute_repairs_or_refuses_each_file(finished, way, tmp_path):
    rng = random.Random(way)
    for name in damage.one_of_each_kind(finished):
        check_repaired(finished, tmp_path, name, way, rng)
