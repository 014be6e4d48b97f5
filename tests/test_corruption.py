"""Damage to any file of an output directory is detected; the file is named, and repaired or refused."""

import contextlib
import functools
import io
import itertools
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import keras
import pytest

from tests import damage
from tests.damage import Damage
from tf_packnet.callbacks import EpochBackup
from tf_packnet.command_line import exit_codes
from tf_packnet.errors import CorruptionError
from tf_packnet.runs import learning, output, single_run
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import Manifest, checksums, handler
from tf_packnet.system import files

SMALL = {
    "num_tasks": 2,
    "hidden_units": (16,),
    "train_epochs": 2,
    "retrain_epochs": 2,
    "prune_rounds": 2,
    "final_prune": 0.6,
}


def run(root, stages_dir=None, **more):
    """Runs in this process; returns its standard error."""
    keras.utils.clear_session()  # gives layers the same names as a new process would
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        single_run.main(Config(**SMALL, output_dir=str(root), **more), stages_dir)
    return stderr.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "out"
    run(root)
    return root


@pytest.fixture
def computed(monkeypatch):
    """The stages that are computed, as `(task, name)`."""
    stages = []
    compute_stage = learning.compute_stage

    def counted(run, approach, stage, *others):
        stages.append((stage.task, stage.name))
        return compute_stage(run, approach, stage, *others)

    monkeypatch.setattr(learning, "compute_stage", counted)
    return stages


def exit_code(root, **more):
    """Runs as the command line does; returns exit code and standard error."""
    stderr = io.StringIO()
    printed = []
    with contextlib.redirect_stderr(stderr):
        code = exit_codes.exit_code(lambda: printed.append(run(root, **more)), "run", resumable=True)
    return code, "".join(printed) + stderr.getvalue()


def without_times(path):
    """The content of a file of a run, without durations and the commit, which differ between two runs."""
    if path.name == "report.json":
        return [{**row, "latency": None} for row in files.read_json(path)["tasks"]]
    if path.name == "results.json":
        results = files.read_json(path)
        del results["other_seconds"], results["config"]["output_dir"]
        del results["environment"]["git_commit"], results["environment"]["git_dirty"]
        results["seconds"] = [{**stage, "reused": None} for stage in results["seconds"]]
        return results
    return None if path.name in ("checksums.json", ".lock") else path.read_bytes()


def contents(root, leave_out=()):
    """The contents of the files of a run; of TensorBoard's, whose names and contents contain times, the folders."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if name.parts[0] == "tensorboard":
            found[str(name.parent)] = found.get(str(name.parent), 0) + path.is_file()
        elif path.is_file() and name.parts[0] not in leave_out:
            assert not path.is_symlink()
            found[str(name)] = without_times(path)
    return found


# Contain the seconds that computing took.
TIMED = ("stages", "results.json")


@pytest.mark.parametrize("way", damage.WAYS)
def test_fail_names_each_damaged_file_and_changes_nothing(finished, computed, way, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    names = damage.all_files(finished)
    assert len(names) >= 29
    damage.check_fail(names, way, finished, root, "run", lambda: exit_code(root, on_corruption="fail"))
    assert "nothing to compute" in run(root, on_corruption="fail")
    assert computed == []


def check_recomputed(finished, computed, tmp_path, name, way, rng):
    """Damage a file in a copy of a finished run, repeat the command, and compare all files."""
    root = tmp_path / "out"
    if damage.check_recompute(name, way, finished, root, rng, lambda: exit_code(root)):
        assert contents(root) == contents(finished)
        assert "nothing to compute" in run(root, on_corruption="fail")
    assert computed == []
    shutil.rmtree(root)
    shutil.rmtree(tmp_path / "elsewhere")


def test_recompute_repairs_or_refuses(finished, computed, tmp_path):
    """Some ways, each with another kind of file. The slow tests take each with each."""
    rng = random.Random(0)
    names = damage.one_of_each_kind(finished)
    assert len(names) >= 14
    rng.shuffle(names)
    for way, name in zip(rng.sample(damage.WAYS, 5), names, strict=False):
        check_recomputed(finished, computed, tmp_path, name, way, rng)


@pytest.mark.parametrize("way", ["deleted", "link_to_nothing"])
def test_a_saved_model_without_its_graph_is_exported_again(finished, computed, way, tmp_path):
    name = next(name for name in damage.all_files(finished) if name.name == "saved_model.pb")
    check_recomputed(finished, computed, tmp_path, name, way, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
def test_recompute_repairs_or_refuses_each_file(finished, computed, way, tmp_path):
    rng = random.Random(way)
    for name in damage.all_files(finished):
        check_recomputed(finished, computed, tmp_path, name, way, rng)


@pytest.mark.parametrize("approach", ["memory", "multinet"])
def test_the_folder_of_a_baseline_is_repaired(approach, tmp_path):
    original, root = tmp_path / "original", tmp_path / "out"
    run(original, approach=approach)
    for way, name in (("deleted", "pack.keras"), ("bit_flipped", "results.json")):
        command = functools.partial(exit_code, root, approach=approach)
        shutil.copytree(original, root)
        damage.check_fail([name], way, original, root, "run", functools.partial(command, on_corruption="fail"))
        shutil.rmtree(root)
        assert damage.check_recompute(name, way, original, root, random.Random(0), command)
        assert contents(root) == contents(original)
        shutil.rmtree(root)


@pytest.mark.parametrize("state", range(2))
def test_a_damaged_state_is_stored_twice_again(finished, computed, state, tmp_path):
    """So the next fault costs nothing again, whichever file it hits."""
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    states = sorted(path for path in root.rglob("state*.npz"))
    assert len(states) == 4
    whole = {path: path.read_bytes() for path in states}
    damages = Damage(root, tmp_path / "elsewhere", random.Random(state))
    for path in states[2 * state : 2 * state + 2]:
        damages.bit_flipped(path)
        run(root)
        assert {path: path.read_bytes() for path in sorted(root.rglob("state*.npz"))} == whole
    assert computed == []


def test_a_state_of_which_no_copy_is_left_is_computed_again(finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    last = max(root.glob("stages/*/state.npz"), key=lambda path: path.stat().st_mtime_ns)
    for path in last.parent.glob("state*.npz"):
        path.unlink()
    run(root)
    assert computed == [(1, "prune+retrain"), (2, "train"), (2, "prune+retrain")]
    assert contents(root, leave_out=("stages", "results.json")) == contents(
        finished, leave_out=("stages", "results.json")
    )
    assert last.read_bytes() == (finished / last.relative_to(root)).read_bytes()


class KilledError(BaseException):
    """Ends a run as a kill does, as far as files are concerned."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed in its third stage, after the first epoch."""
    root = tmp_path_factory.mktemp("interrupted") / "out"
    epochs, begin = [], EpochBackup.on_epoch_begin

    def killed(self, epoch, logs=None):
        begin(self, epoch, logs)
        epochs.append(epoch)
        if len(epochs) == 6:
            self.wait()
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochBackup, "on_epoch_begin", killed)
        with pytest.raises(KilledError):
            run(root)
    assert len(list(root.glob("stages/progress/*.1.npz"))) == 1
    return root


def read_again(root):
    """The files of an interrupted run that are read when it resumes."""
    return [name for name in damage.all_files(root) if name.parts[0] in ("results.json", "checksums.json", "stages")]


def test_an_interrupted_run_is_not_damaged(interrupted, finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(interrupted, root)
    assert "is damaged" not in run(root, on_corruption="fail")
    assert computed == [(2, "train"), (2, "prune+retrain")]
    assert contents(root, leave_out=("stages", "results.json")) == contents(
        finished, leave_out=("stages", "results.json")
    )


@pytest.mark.parametrize("way", damage.WAYS)
def test_fail_names_each_damaged_file_of_an_interrupted_run(interrupted, computed, way, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(interrupted, root)
    names = read_again(interrupted)
    assert len(names) >= 11
    if way in ("deleted", "bit_flipped"):  # a backup costs an epoch; the bit may be in an unused field of the archive
        names = [name for name in names if name.parent.name != "progress"]
    damage.check_fail(names, way, interrupted, root, "run", lambda: exit_code(root, on_corruption="fail"))
    assert computed == []


def check_resumed(interrupted, finished, tmp_path, name, way, rng):
    """Damages a file of an interrupted run, resumes it, and compares the results."""
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(interrupted, root)
    getattr(Damage(root, elsewhere, rng), way)(root / name)
    before, outside = damage.snapshot(root, elsewhere), damage.snapshot(elsewhere)
    code, stderr = exit_code(root)
    if way == "folder_with_a_users_file":
        assert code == 1
        assert str(root / name) in stderr
        assert {**damage.snapshot(root, elsewhere), str(root / ".lock"): b""} == before
    else:
        assert code == 0, stderr
        assert contents(root, TIMED) == contents(finished, TIMED)
        assert damage.snapshot(elsewhere) == outside
    shutil.rmtree(root)
    shutil.rmtree(elsewhere)


def test_an_interrupted_run_with_a_damaged_file_is_finished(interrupted, finished, tmp_path):
    rng = random.Random(3)
    names = damage.one_of_each_kind(interrupted)
    rng.shuffle(names)
    for way, name in zip(rng.sample(damage.WAYS, 3), names, strict=False):
        check_resumed(interrupted, finished, tmp_path, name, way, rng)


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
def test_an_interrupted_run_with_each_file_damaged_is_finished(interrupted, finished, way, tmp_path):
    rng = random.Random(way)
    for name in damage.all_files(interrupted):
        check_resumed(interrupted, finished, tmp_path, name, way, rng)


@pytest.mark.parametrize("name", ["export/task_1/notes.txt", "export/task_1/variables/notes.txt"])
def test_a_users_file_in_a_folder_that_is_replaced_is_refused(interrupted, name, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(interrupted, root)
    (root / name).write_bytes(damage.USERS)
    before = damage.snapshot(root)
    code, stderr = exit_code(root)
    assert code == 1
    assert f"move this away, its folder is written again: {root / name}" in stderr
    assert damage.snapshot(root) == before


@pytest.mark.parametrize("name", ["masks/notes.txt", "tensorboard/pack/notes.txt", "export/mine.keras", "notes.txt"])
def test_other_files_of_the_user_stay(finished, name, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    (root / name).write_bytes(damage.USERS)
    assert "nothing to compute" in run(root, on_corruption="fail")
    (root / "pack.keras").unlink()
    run(root)
    assert (root / name).read_bytes() == damage.USERS
    (root / name).write_bytes(b"changed")
    assert "nothing to compute" in run(root, on_corruption="fail")


def test_links_in_the_place_of_folders_are_replaced_and_their_targets_stay(finished, tmp_path):
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(finished, root)
    for name in ("masks", "tensorboard", "export"):
        shutil.move(root / name, elsewhere / name)
        (root / name).symlink_to(elsewhere / name)
    before = damage.snapshot(elsewhere)
    (root / "pack.keras").unlink()
    run(root)
    assert contents(root) == contents(finished)
    assert damage.snapshot(elsewhere) == before


@pytest.mark.parametrize("name", ["masks", "tensorboard", "export", "stages", "tensorboard/pack"])
def test_a_file_in_the_place_of_a_folder_is_refused(finished, name, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    shutil.rmtree(root / name)
    (root / name).write_bytes(damage.USERS)
    before = damage.snapshot(root)
    code, stderr = exit_code(root)
    assert code == 1
    assert f"move this file away, a folder belongs there: {root / name}" in stderr
    assert damage.snapshot(root) == before


@pytest.mark.parametrize("name", ["results.json", "checksums.json"])
def test_a_file_of_another_run_is_named(finished, name, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    config = Config(**SMALL, seed=5)
    if name == "results.json":
        files.write_json(root / name, files.read_json(root / name) | {"config": config.to_json()})
    else:
        Manifest(config.to_json(), {"pack.keras": ""}).write(root / name)
    with pytest.raises(CorruptionError, match=f"{name} is damaged"):
        run(root, on_corruption="fail")
    run(root)
    assert contents(root) == contents(finished)


def test_a_lock_that_is_no_file(finished, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    (tmp_path / "users").write_bytes(damage.USERS)
    (root / ".lock").unlink()
    (root / ".lock").symlink_to(tmp_path / "users")
    with pytest.raises(CorruptionError, match="lock is damaged"):
        run(root, on_corruption="fail")
    run(root)
    assert (root / ".lock").read_bytes() == b""
    assert (tmp_path / "users").read_bytes() == damage.USERS


def test_a_shared_store_is_checked_too(computed, tmp_path):
    root, store = tmp_path / "out", tmp_path / "store"
    run(root, stages_dir=str(store))
    computed.clear()
    whole = damage.snapshot(store)
    damages = Damage(store, tmp_path / "elsewhere", random.Random(0))
    for name in damage.all_files(store):
        damages.bit_flipped(store / name)
        before = damage.snapshot(root, store)
        code, stderr = exit_code(root, on_corruption="fail", stages_dir=str(store))
        assert (code, stderr.partition(" is damaged")[0]) == (1, f"run: {store / name}")
        assert damage.snapshot(root, store) == before
        if name == damage.all_files(store)[-1]:
            run(root, stages_dir=str(store))
        else:
            (store / name).write_bytes(whole[str(store / name)])
        assert damage.snapshot(store) == whole
    shutil.rmtree(store)
    assert "nothing to compute" in run(root, on_corruption="fail", stages_dir=str(store))
    assert computed == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be someone else")
def test_files_that_cannot_be_read(finished):
    with tempfile.TemporaryDirectory() as folder:  # others cannot read in pytest's
        check_unreadable_files(finished, Path(folder))


def check_unreadable_files(finished, folder):
    root = folder / "out"
    shutil.copytree(finished, root)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        for name in ("results.json", "checksums.json", "masks/task_1.npz"):
            (root / name).chmod(0)
            code, stderr = exit_code(root, on_corruption="fail")
            assert code == 1
            assert f"{root / name} is damaged (Permission denied)" in stderr
            (root / name).chmod(0o644)
        (root / "masks").chmod(0)
        code, stderr = exit_code(root)
        assert code == 1
        assert f"Permission denied: {root}/masks/task_1.npz; fix this" in stderr
        (root / "masks").chmod(0o755)
        assert "nothing to compute" in run(root, on_corruption="fail")
    finally:
        os.seteuid(0)


def test_a_complete_run_stays_complete_without_its_stages(finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "stages")
    stderr = run(root)
    assert "nothing to compute" in stderr
    assert "is damaged" not in stderr
    assert computed == []


def test_an_unfinished_run_with_damaged_results_is_finished(finished, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    Manifest(Config(**SMALL).to_json(), {}).write(root / "checksums.json")  # as while a run is in progress
    (root / "results.json").write_bytes(b"{")
    assert "results.json is damaged" in run(root)
    assert "nothing to compute" in run(root)


def test_results_of_an_earlier_version_are_accepted(finished, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    (root / "checksums.json").unlink()
    results = json.loads((root / "results.json").read_text())
    results["schema_version"] = 1
    del results[files.CHECKSUM]
    (root / "results.json").write_text(json.dumps(results))
    assert output.check(Config(**SMALL, output_dir=str(root)))["complete"]


def test_checksums_detect_changed_and_missing_files(tmp_path):
    for name in ("a", "b/c", "b/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    manifest = Manifest({"seed": 0}, checksums(tmp_path, [tmp_path / "a", tmp_path / "b", tmp_path / "none"]))
    assert set(manifest.files) == {"a", "b/c", "b/d"}
    manifest.write(tmp_path / "checksums.json")
    again = Manifest.read(tmp_path / "checksums.json", handler("fail"))
    assert again == manifest
    (tmp_path / "b/c").write_text("x")
    (tmp_path / "a").unlink()
    assert again.damaged_files(tmp_path) == [tmp_path / "a", tmp_path / "b/c"]


CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink")


def run_until(change, root, monkeypatch, **more):
    """Runs until a number of changes were made to folders; as after a kill, nothing is cleaned up.

    Returns:
        The number of changes made.
    """
    count = itertools.count()

    def counted(original):
        def changes(*arguments, **options):
            if next(count) >= change:
                raise KilledError
            return original(*arguments, **options)

        return changes

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(KilledError):
            run(root, **more)
    return next(count)


def check_killed(finished, changes, tmp_path, monkeypatch):
    for change in changes:
        root = tmp_path / f"killed_{change}"
        assert run_until(change, root, monkeypatch) > change
        assert "is damaged" not in run(root, on_corruption="fail"), change
        assert contents(root, TIMED) == contents(finished, TIMED), change
        assert not [path for path in root.rglob("*") if files.is_unfinished(path)]
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def number_of_changes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        number = run_until(10**6, tmp_path_factory.mktemp("counted") / "out", monkeypatch)
    assert number > 100
    return number


def test_a_run_killed_before_its_first_file_was_written_begins_again(tmp_path):
    root = tmp_path / "out"
    (root / ".checksums.json.abc.unfinished").mkdir(parents=True)
    (root / ".lock").touch()
    for policy in ("fail", "recompute"):
        config = Config(**SMALL, output_dir=str(root), on_corruption=policy)
        assert output.check(config) is None
        Manifest(config.to_json(), {}).write(root / "checksums.json")
        assert output.check(config) is None
        (root / "checksums.json").unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_run_is_not_taken_for_a_damaged_one(finished, number_of_changes, tmp_path, monkeypatch):
    changes = random.Random(4).sample(range(number_of_changes - 1), 3)
    check_killed(finished, [*changes, number_of_changes - 3], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_at_each_change_is_not_taken_for_a_damaged_one(
    finished, number_of_changes, part, tmp_path, monkeypatch
):
    check_killed(finished, range(part, number_of_changes - 1, 4), tmp_path, monkeypatch)


def test_a_repair_that_is_killed_is_finished(finished, computed, tmp_path, monkeypatch):
    rng = random.Random(5)
    for name in ("results.json", "pack.keras", max(finished.glob("stages/*/state.npz")).relative_to(finished)):
        root = tmp_path / "out"
        shutil.copytree(finished, root)
        (root / name).unlink()
        run_until(rng.randrange(40), root, monkeypatch)
        run(root)
        assert contents(root) == contents(finished)
        assert "nothing to compute" in run(root, on_corruption="fail")
        shutil.rmtree(root)
    assert computed == []
