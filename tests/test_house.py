"""The house stands as it was drawn: layers import downwards, BUILD says what is there, the wheel holds the library."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT

# Top to bottom: a module imports only from its own row's package or from rows below.
LAYERS = [
    ["launch"],
    ["flags"],
    ["tf_packnet.experiments"],
    ["tf_packnet.reporting"],
    ["tf_packnet.prediction"],
    ["tf_packnet.packfile"],
    ["tf_packnet.export"],
    ["tf_packnet.approaches"],
    ["tf_packnet.planning"],
    ["tf_packnet.callbacks"],
    ["tf_packnet.packing"],
    ["tf_packnet.packed_model"],
    ["tf_packnet.trainer", "tf_packnet.safe_loading"],
    ["tf_packnet.fit_guard"],
    ["tf_packnet.model_class"],
    ["tf_packnet.gradient_step", "tf_packnet.resident", "tf_packnet.heads"],
    ["tf_packnet.in_place"],
    ["tf_packnet.kernels"],
    ["tf_packnet.acceleration"],
    ["tf_packnet.training_state", "tf_packnet.freeze_guard"],
    ["tf_packnet.fit_data", "tf_packnet.step_check"],
    ["tf_packnet.lifecycle", "tf_packnet.optimizers"],
    ["tf_packnet.task_checks"],
    ["tf_packnet.model_tasks", "tf_packnet.witness", "tf_packnet.checksums"],
    ["tf_packnet.structure"],
    ["tf_packnet.layers"],
    ["tf_packnet.tasks"],
    ["tf_packnet.ranking", "tf_packnet.ownership", "tf_packnet.tfmot", "tf_packnet.files"],
    ["tf_packnet.fit_checks", "tf_packnet.ownership_table", "tf_packnet.plan_table"],
    [
        "tf_packnet.schedules",
        "tf_packnet.selection",
        "tf_packnet.archives",
        "tf_packnet.data_checks",
        "tf_packnet.pack_format",
        "tf_packnet.task_names",
    ],
    [
        "tf_packnet.errors",
        "tf_packnet.interruption",
        "tf_packnet.keras_internals",
        "tf_packnet.overrides",
        "tf_packnet.policies",
        "tf_packnet.quiet",
    ],
    ["tf_packnet"],  # the package itself: a version, and names that are imported on first use
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
SOURCES = [path for folder in ("tf_packnet", "flags", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def component(module: str) -> str | None:
    """The row's name that a module belongs to, None for other people's modules."""
    parts = module.split(".")
    for length in (2, 1):
        if ".".join(parts[:length]) in ROW and len(parts) >= length:
            return ".".join(parts[:length])
    return None


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` imports the module.
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if component(deeper) != component(node.module) else node.module)
    return found


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
    assert len(path.read_text().splitlines()) <= 400


def test_the_launcher_stays_a_launcher():
    assert len((ROOT / "launch/main.py").read_text().splitlines()) <= 60


def targets() -> dict[str, dict]:
    """What BUILD declares: its calls are Python calls with literal arguments."""
    found = {}
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        call = node.value
        if not isinstance(call, ast.Call):
            continue  # the docstring
        if call.func.id in ("py_library", "py_binary", "py_test"):
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            found[arguments["name"]] = {"kind": call.func.id, **arguments}
    return found


def packages() -> dict[str, list[Path]]:
    """Source files by package."""
    found: dict[str, list[Path]] = {}
    for path in [*SOURCES, *sorted((ROOT / "tests").glob("*.py"))]:
        found.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    return found


def test_build_has_one_target_a_package_with_its_files():
    declared = {name: sorted(target["srcs"]) for name, target in targets().items()}
    actual = {
        package.replace("/", "_"): sorted(str(path.relative_to(ROOT)) for path in paths)
        for package, paths in packages().items()
    }
    assert declared == actual


PYPI = {
    "absl": "absl-py",
    "h5py": "h5py",
    "hypothesis": "hypothesis",
    "keras": "keras",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "PIL": "pillow",
    "psutil": "psutil",
    "pytest": "pytest",
    "filelock": "filelock",
    "jinja2": "Jinja2",
    "pandas": "pandas",
    "rich": "rich",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "tf_keras": "tf-keras",
}


@pytest.mark.parametrize("package", packages())
def test_build_deps_are_the_imports(package):
    name = package.replace("/", "_")
    needed = set()
    for path in packages()[package]:
        for module in imports(path):
            top = module.split(".")[0]
            if top in ("tf_packnet", "flags", "launch", "tests"):
                folder = ROOT / Path(*module.split("."))
                while not folder.is_dir():
                    folder = folder.parent
                needed.add(":" + str(folder.relative_to(ROOT)).replace("/", "_"))
            elif top not in sys.stdlib_module_names:
                needed.add("@pypi//" + PYPI[top])
    needed.discard(":" + name)
    assert sorted(needed) == sorted(targets()[name].get("deps", []))


def test_what_is_imported_is_required():
    requirements = (ROOT / "setup.py").read_text()
    for path in SOURCES:
        for module in imports(path):
            top = module.split(".")[0]
            if top in PYPI:
                assert f'"{PYPI[top]}>=' in requirements, f"{path} imports {module}, which setup.py does not require"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    with FileLock(tmp_path_factory.getbasetemp().parent / "wheel.lock"):  # two test processes would share build/
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


USE_THE_WHEEL = """
import sys
sys.path[:] = [sys.argv[1]] + [p for p in sys.path if p]
import keras, numpy as np
import tf_packnet as tp
assert tp.__file__.startswith(sys.argv[1]), tp.__file__
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
packed = tp.pack(model)
packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
packed.begin_task("first")
night = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot("masks")]
packed.fit(np.random.rand(32, 4), np.arange(32) % 2, epochs=2, verbose=0, callbacks=night)
tp.export_task(packed, "first", "export")
print(packed.free_fraction()["overall"])
"""


def test_the_installed_wheel_works_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", USE_THE_WHEEL, str(site)], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # 9.37 of 32 candidates are kept, that is 9.
    assert float(done.stdout.splitlines()[-1]) == 1 - 9 / 32
    assert sorted(path.name for path in empty.iterdir()) == ["export", "masks"]
