"""A flipped bit anywhere in an output directory is detected, and the damaged file is named and recomputed."""

import contextlib
import io
import json
import random
import re
import shutil

import keras
import pytest

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


def run(root, **more):
    """Run in this process; return its standard error."""
    keras.utils.clear_session()  # gives layers the same names as a new process would
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        single_run.main(Config(**SMALL, output_dir=str(root), **more))
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


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def all_files(root):
    return [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]


def one_of_each_kind(root):
    """One file of each folder and name, numbers left out: the last."""
    kinds = {(name.parts[0], re.sub(r"\d+", "#", name.name)): name for name in all_files(root)}
    return sorted(kinds.values())


def without_latency(report):
    return [{**row, "latency": None} for row in files.read_json(report)["tasks"]]


LAST = [(2, "prune+retrain")]


@pytest.mark.parametrize(
    ("damage", "which", "at_least"),
    [
        (flip, one_of_each_kind, 13),
        pytest.param(flip, all_files, 25, marks=pytest.mark.slow),
        pytest.param(truncate, all_files, 25, marks=pytest.mark.slow),
    ],
)
def test_each_damaged_file_is_reported_and_recomputed(finished, computed, damage, which, at_least, tmp_path):
    rng = random.Random(0)
    names = which(finished)
    assert len(names) >= at_least
    states = [name for name in names if name.name == "state.npz"]
    for name in names:
        computed.clear()
        root = tmp_path / "out"
        shutil.copytree(finished, root)
        damage(root / name, rng)
        reported = [line for line in run(root).splitlines() if "is damaged" in line]
        assert reported == [f"{root / name} is damaged and will be recomputed"], name
        assert computed in ([], LAST) if name in states else computed == [], name
        for other in all_files(finished):
            if other.name == "report.json":
                assert without_latency(root / other) == without_latency(finished / other)
            elif other.parts[0] in ("masks", "export") or other.name == "pack.keras":
                assert (root / other).read_bytes() == (finished / other).read_bytes(), other
        assert "nothing to compute" in run(root)
        shutil.rmtree(root)


def test_a_complete_run_stays_complete_without_its_stages(finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "stages")
    stderr = run(root)
    assert "nothing to compute" in stderr
    assert "is damaged" not in stderr
    assert computed == []


def test_the_last_state_is_recomputed_from_the_one_before(finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    last = max(root.glob("stages/*/state.npz"), key=lambda path: path.stat().st_mtime_ns)
    flip(last, random.Random(1))
    run(root)
    assert computed == LAST
    assert last.read_bytes() == (finished / last.relative_to(root)).read_bytes()


def test_on_corruption_fail_stops_before_anything_is_changed(finished, computed, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(finished, root)
    rng = random.Random(2)
    for name in all_files(finished):
        flip(root / name, rng)
        damaged = (root / name).read_bytes()
        with pytest.raises(CorruptionError, match=f"{name} is damaged; --on_corruption=recompute recomputes it"):
            run(root, on_corruption="fail")
        assert (root / name).read_bytes() == damaged
        shutil.copy(finished / name, root / name)
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
