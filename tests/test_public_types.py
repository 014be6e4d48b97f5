"""Type checkers, editors and `dir` know the public names, although they are imported on first use."""

import ast
import re
import subprocess
import sys

import pytest

import tf_packnet as tp
from tests.architecture import ROOT

# What a user writes, and the type that mypy finds.
REVEALED = {
    "tp.pack(model)": "tf_packnet.packed_model.PackedModel",
    "tp.pack(model).begin_task('one', num_classes=2)": "int",
    "tp.pack(model).owner_maps()": "dict[str, numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]]",
    "tp.PruneRoundScheduler(schedule, scope='erk')": ("tf_packnet.callbacks.prune_round_scheduler.PruneRoundScheduler"),
    "tp.tasks.load('digits')[0]": "tf_packnet.tasks.stream.Task",
    "tp.load_pack('a.packnet')": "tf_packnet.packed_model.PackedModel",
    "tp.dense_model": "def (packed: tf_packnet.packed_model.PackedModel, task: int | str) -> Any",
    "tp.layers.twin": ("def (package: str) -> def [_Twin <: type[tf_packnet.layers.base.TaskLayer]] (_Twin) -> _Twin"),
}
MISTAKES = {
    "tp.pac(model)": "attr-defined",
    "tp.callbacks.GradientMsk()": "attr-defined",
    "tp.pack(model, heads='shared')": "call-arg",
    "tp.export_task(tp.pack(model), 1.5, 'export')": "arg-type",
}


def test_the_imports_for_type_checkers_are_those_on_first_use():
    tree = ast.parse((ROOT / "tf_packnet" / "__init__.py").read_text(encoding="utf-8"))
    block = next(each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    imported = [(alias.name, node.module, alias.asname) for node in block.body for alias in node.names]
    used = [(name, f"tf_packnet.{module}", name) for name, module in tp._HOME.items()]
    assert sorted(imported) == sorted([*used, *((name, "tf_packnet", name) for name in tp._MODULES)])


def test_dir_lists_the_public_names():
    assert dir(tp) == sorted(tp.__all__)
    assert all(hasattr(tp, name) for name in tp.__all__)


@pytest.mark.slow  # mypy reads the package without its cache
def test_mypy_finds_types_and_mistakes(tmp_path):
    lines = [
        *("from typing import Any", "", "import tf_packnet as tp", "", "model: Any", "schedule: tp.EqualShare"),
        *(f"reveal_type({expression})" for expression in REVEALED),
        *MISTAKES,
    ]
    (tmp_path / "user.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--strict", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir=cache"]
    command = [sys.executable, "-m", "mypy", *options, "user.py"]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.findall(r'note: Revealed type is "(.*)"$', run.stdout, re.MULTILINE) == list(REVEALED.values())
    assert re.findall(r"error: .*\[([a-z-]+)\]$", run.stdout, re.MULTILINE) == list(MISTAKES.values()), run.stdout
