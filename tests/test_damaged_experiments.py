"""Damage in the folder of an experiment is detected, and the damaged file is named, and repaired or refused."""

import contextlib
import io
import random
import re
import shutil

import pytest

from tests import damage
from tests.conftest import ROOT, launch
from tests.damage import Damage
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


def all_files(root):
    return [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]


def one_of_each_kind(root):
    kinds = {(name.parts[0], re.sub(r"[\d.]+", "#", name.name)): name for name in all_files(root)}
    return sorted(kinds.values())


def unchanged(root):
    """The files whose content contains no durations."""
    return {
        name: (root / name).read_bytes()
        for name in all_files(root)
        if name.name not in ("checksums.json", "report.html") and name.parts[0] != "runs"
    }


@pytest.mark.parametrize("way", damage.WAYS)
@pytest.mark.parametrize("complete", [True, False])
def test_fail_names_each_damaged_file_and_changes_nothing(finished, way, complete, tmp_path):
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(finished, root)
    if not complete:
        manifest = Manifest.read(root / "checksums.json", pytest.fail)
        Manifest(manifest.identity, {}).write(root / "checksums.json")
    whole = damage.snapshot(root)
    damages = Damage(root, elsewhere, random.Random(way))
    names = one_of_each_kind(finished) if complete else read_again(finished)
    assert len(names) >= (10 if complete else 5)
    for name in names:
        if way == "deleted" and not complete and name.parts[0] == "runs":  # a run that was not done yet
            continue
        getattr(damages, way)(root / name)
        before = damage.snapshot(root, elsewhere)
        code, stderr = experiment(root, "--on_corruption=fail")
        assert (code, stderr.partition(" is damaged")[0]) == (1, f"experiment: {root / name}")
        assert damage.snapshot(root, elsewhere) == before
        damage.remove(root / name)
        (root / name).write_bytes(whole[str(root / name)])


def read_again(root):
    """The files that are read when an interrupted experiment continues."""
    return [name for name in one_of_each_kind(root) if name.parts[0] in FIRST]


FIRST = ("experiment.json", "checksums.json", "runs", "stages")


def check_repaired(finished, tmp_path, name, way, rng):
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(finished, root)
    getattr(Damage(root, elsewhere, rng), way)(root / name)
    before, outside = damage.snapshot(root, elsewhere), damage.snapshot(elsewhere)
    code, stderr = experiment(root)
    if way == "folder_with_a_users_file":
        assert code == 1
        assert f"{root / name} is damaged (a folder, not a file); move this folder away" in stderr
        assert damage.snapshot(root, elsewhere) == before
    else:
        assert code == 0, stderr
        reported = [line for line in stderr.splitlines() if "is damaged" in line]
        assert len(reported) == 1, reported
        assert reported[0].startswith(f"{root / name} is damaged")
        assert unchanged(root) == unchanged(finished)
        assert damage.snapshot(elsewhere) == outside
        code, stderr = experiment(root, "--on_corruption=fail")
        assert code == 0, stderr
    shutil.rmtree(root)
    shutil.rmtree(elsewhere)


def test_recompute_repairs_or_refuses(finished, tmp_path):
    rng = random.Random(0)
    names = [name for name in one_of_each_kind(finished) if name.parts[0] != "runs"]
    for way, name in zip(rng.sample(damage.WAYS, 3), rng.sample(names, 3), strict=True):
        check_repaired(finished, tmp_path, name, way, rng)


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
def test_recompute_repairs_or_refuses_each_file(finished, way, tmp_path):
    rng = random.Random(way)
    for name in one_of_each_kind(finished):
        check_repaired(finished, tmp_path, name, way, rng)
