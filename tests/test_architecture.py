"""Imports go downwards, BUILD matches the imports, and the wheel contains the library alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests.architecture import FILES, ROOT, SOURCES, build_file, cycle, imports, module_of, targets
from tf_packnet.system import locks

# Top to bottom: a module imports only from its own row's package or from rows below.
LAYERS = [
    ["launch"],
    ["tf_packnet.command_line"],
    ["tf_packnet"],  # a version, and names that are imported on first use
    ["tf_packnet.experiments"],
    ["tf_packnet.runs"],
    ["tf_packnet.reporting"],
    ["tf_packnet.inspection"],
    ["tf_packnet.serving"],
    ["tf_packnet.prediction"],
    ["tf_packnet.packfile"],
    ["tf_packnet.export"],
    ["tf_packnet.approaches"],
    ["tf_packnet.planning"],
    ["tf_packnet.sparsifying"],
    ["tf_packnet.growth"],
    ["tf_packnet.callbacks"],
    ["tf_packnet.packing"],
    ["tf_packnet.packed_model"],
    ["tf_packnet.packed"],
    ["tf_packnet.training"],
    ["tf_packnet.lifecycle"],
    ["tf_packnet.structure"],
    ["tf_packnet.layers"],
    ["tf_packnet.tasks"],
    ["tf_packnet.pruning"],
    ["tf_packnet.system"],
    ["tf_packnet.arguments"],
    ["tf_packnet.task_names"],
    ["tf_packnet.errors", "tf_packnet.version"],
    ["tf_packnet.text"],
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}


def component(module: str) -> str | None:
    """The row's name that a module belongs to, None for other people's modules."""
    parts = module.split(".")
    for length in (2, 1):
        if ".".join(parts[:length]) in ROW and len(parts) >= length:
            return ".".join(parts[:length])
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_downwards(path):
    mine = component(module_of(path))
    assert mine is not None, f"{path} is in no layer: add it to LAYERS"
    for module in imports(path):
        theirs = component(module)
        if theirs is not None and theirs != mine:
            assert ROW[theirs] > ROW[mine], f"{module_of(path)} imports {module}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_keras_is_imported_as_keras(path):
    if path.name != "tfmot.py":
        assert "tf.keras" not in path.read_text()
        assert not any(module.startswith("tensorflow_model_optimization") for module in imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 420


def test_the_launcher_is_short():
    assert len((ROOT / "launch/main.py").read_text().splitlines()) <= 60


def test_no_script_has_the_name_of_a_standard_module():
    assert not {path.stem for path in (ROOT / "launch").glob("*.py")} & sys.stdlib_module_names


def test_imports_have_no_cycles():
    assert cycle({module_of(path): imports(path) & FILES.keys() for path in SOURCES}) is None


def test_build_file_is_generated():
    assert (ROOT / "BUILD").read_text() == build_file(), "run `make build-file`"


def test_build_targets_have_no_cycles():
    graph = {name: {each[1:] for each in needed if each[0] == ":"} for name, (_, needed) in targets().items()}
    assert cycle(graph) is None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    with locks.locked(tmp_path_factory.getbasetemp().parent / "wheel.lock"):  # two test processes would share build/
        shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would add files of earlier builds
        subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_installs_the_library_and_no_other_top_level_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"tf_packnet"}
    inside = {name for name in names if name.endswith(".py")}
    assert inside == {str(path.relative_to(ROOT)) for path in SOURCES if path.is_relative_to(ROOT / "tf_packnet")}
    assert any(name.endswith("LICENSE") for name in names)
    assert "tf_packnet/py.typed" in names
    presets = {f"tf_packnet/command_line/presets/{path.name}" for path in (ROOT / "flags/presets").iterdir()}
    assert {name for name in names if name.endswith(".flags")} == presets


USE_THE_WHEEL = """
import os
import keras, numpy as np
import tf_packnet as tp
assert tp.__file__.startswith(os.environ["PYTHONPATH"]), tp.__file__
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
packed = tp.pack(model)
packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
packed.begin_task("first")
retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot("masks")]
packed.fit(np.random.rand(32, 4), np.arange(32) % 2, epochs=2, verbose=0, callbacks=retraining)
tp.export_task(packed, "first", "export")
print(packed.free_fraction()["overall"])
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder in which the wheel is installed."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return site


def run_installed(installed, folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_installed_wheel_works_from_an_empty_folder(installed, tmp_path):
    done = run_installed(installed, tmp_path, "-c", USE_THE_WHEEL)
    assert done.returncode == 0, done.stderr
    # 9.37 of 32 candidates are kept, that is 9.
    assert float(done.stdout.splitlines()[-1]) == 1 - 9 / 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "masks"]


def test_the_installed_command_works_from_an_empty_folder(installed, tmp_path):
    command = str(installed / "bin/tf-packnet")
    for arguments in (["--help"], ["run", "--help"], ["run", "--final_prune=2"]):
        done = run_installed(installed, tmp_path, "-X", "importtime", command, *arguments)
        assert done.returncode == (2 if "--final_prune=2" in arguments else 0), done.stderr
        assert not re.search(r"\| +(tensorflow|keras)$", done.stderr, re.MULTILINE)
    planned = run_installed(installed, tmp_path, command, "plan", "--flagfile=digits")
    assert planned.returncode == 0, planned.stderr
    assert list(tmp_path.iterdir()) == []
    flags = ["--num_tasks=2", "--train_epochs=1", "--retrain_epochs=1", "--prune_rounds=1", "--jit=off"]
    done = run_installed(installed, tmp_path, command, "run", "--flagfile=digits", *flags)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    pack = "--pack=out/digits/pack.keras"
    shown = run_installed(installed, tmp_path, command, "inspect", pack, "--format=json")
    assert [task["name"] for task in json.loads(shown.stdout)["tasks"]] == ["0-1", "2-3"], shown.stderr
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 1), np.float32))
    predicted = run_installed(installed, tmp_path, command, "predict", pack, "--task=2", "x.npy", "--format=csv")
    assert len(predicted.stdout.splitlines()) == 4, predicted.stderr
