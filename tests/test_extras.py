"""`pip install tf_packnet` suffices to pack, train and export; runs and reports need the extra `experiments`."""

import ast
import os
import re
import subprocess
import sys

import pytest

from tests.architecture import PYPI, ROOT, SOURCES, imports, module_of

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib comes with Python 3.11


def _distributions(key: str) -> set[str]:
    (listed,) = re.findall(rf"^{key} = \[(.*?)\]\n", PYPROJECT, re.MULTILINE | re.DOTALL)
    return {re.split(r"[<>\[]", requirement)[0] for requirement in re.findall(r'"(.+?)"', listed)}


DEPENDENCIES = _distributions("dependencies")
EXPERIMENTS = _distributions("experiments")
OPTIONAL = EXPERIMENTS.union(*map(_distributions, ("s3", "gcs", "ray", "onnx", "tables", "serve")))
# Packages that call `require_extra` when they are imported, and what is only used with them.
WITH_EXTRA = {"command_line", "experiments", "inspection", "reporting", "runs"}


def _required_extras(tree: ast.Module) -> set[str]:
    """The modules that a file passes to `require_extra`."""
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "require_extra"
    ]
    return {ast.literal_eval(argument) for call in calls for argument in call.args[1:]}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_are_required(path):
    parts = module_of(path).split(".")
    allowed = DEPENDENCIES
    if parts[0] != "tf_packnet" or parts[1:2] and parts[1] in WITH_EXTRA:
        allowed = DEPENDENCIES | EXPERIMENTS
    needed = {module.split(".")[0] for module in imports(path)} & PYPI.keys()
    extras = _required_extras(ast.parse(path.read_text(encoding="utf-8")))
    assert {PYPI[module] for module in extras} <= OPTIONAL
    for module in needed - extras:
        assert PYPI[module] in allowed, f"{path} imports {module}: call require_extra, or add it to pyproject.toml"


BLOCK = """
import sys
for module in {modules}:
    sys.modules[module] = None  # importing it raises ModuleNotFoundError
"""
MODULES = sorted(module for module, distribution in PYPI.items() if distribution in EXPERIMENTS)

PACK_FIT_EXPORT = """
import keras, numpy as np
import tf_packnet as tp

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
task = tp.tasks.from_arrays("first", x, np.arange(64) % 2, batch_size=16)
tp.plan(model, num_tasks=2, final_prune=0.5)
packed = tp.pack(model)
packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
packed.begin_task("first", num_classes=2)
packed.fit(task.train, epochs=1, verbose=0, callbacks=[tp.StopWhenDiverged(), tp.EpochBackup("backup")])
retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 2)), tp.GradientMask(), tp.TaskMaskSnapshot("masks")]
packed.fit(task.train, epochs=2, verbose=0, callbacks=retraining)
packed.summary()
tp.export_task(packed, "first", "export")
tp.compact_model(tp.dense_model(packed, "first"))
tp.dense_model(packed, "first")
tp.save_pack(packed, "pack.packnet")
tp.load_pack("pack.packnet")
tp.load_task("pack.packnet", "first")
packed.save("pack.keras")
keras.models.load_model("pack.keras")
np.save("examples.npy", x)
from tf_packnet.command_line.predict import main
main(["predict", "--pack=pack.packnet", "examples.npy", "--output=out.csv"])
"""


def run_blocked(code: str, folder: os.PathLike) -> subprocess.CompletedProcess:
    """Run Python code in an empty folder, without the libraries of the extra `experiments`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", BLOCK.format(modules=MODULES) + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_pack_fit_export_and_predict_without_the_extra(tmp_path):
    done = run_blocked(PACK_FIT_EXPORT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) > 64


WITHOUT = """
import contextlib
import tf_packnet as tp
from tf_packnet.system.extras import MissingExtraError

def attempt(work):
    try:
        work()
    except MissingExtraError as error:
        print(error)

attempt(lambda: tp.reporting)
attempt(lambda: tp.experiments)
attempt(lambda: tp.tasks.load("digits"))
attempt(lambda: tp.tasks.load("mnist"))
attempt(lambda: tp.callbacks.EpochLog("logs").on_train_begin())
"""


def test_a_missing_extra_is_named_in_one_line(tmp_path):
    done = run_blocked(WITHOUT, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(": pip install 'tf_packnet[experiments]'") for line in lines)
    assert lines[0].startswith("tf_packnet.reporting needs jinja2, matplotlib, pandas, tabulate, tensorboard:")
    assert list(tmp_path.iterdir()) == []
