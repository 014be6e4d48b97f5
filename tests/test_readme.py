"""The examples in the README work as shown."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tf_packnet.command_line.run_flags import define_flags
from tf_packnet.errors import ArgumentError

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_in_30_lines(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    accuracies = [float(line.split()[1]) for line in done.stdout.splitlines()[-3:]]
    assert min(accuracies) > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"export", "masks", "pack.keras"}


PAGES = sorted((ROOT / "docs").glob("*.md"))
SLOW = ("keras-hub.md", "prune-a-keras-model.md", "serving.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW)) for page in PAGES],
    ids=[page.name for page in PAGES],
)
def test_code_in_the_docs_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    if "import keras_hub" in blocks[0]:
        pytest.importorskip("keras_hub")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_every_flag_is_in_the_table():
    _, themes = define_flags()
    table = README.split("| theme | flags |")[1].split("\n\n")[0]
    shown = re.findall(r"--([a-z0-9_]+)", table)
    flags = sorted(name for names in themes.values() for name in names)
    assert sorted(shown) == flags, "add the new flag to the table of flags in README.md"
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == [theme.lower() for theme in themes]


def test_paths_it_names_exist():
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(r"\]\(([\w/.]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), path
    for path in re.findall(r"\]\(([\w/.]+)\)", README) + re.findall(r"--flagfile=([\w/.]+)", README):
        assert (ROOT / path).exists(), path


def test_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(ArgumentError("p", "a fraction", 2)))
    assert (error.argument, error.expected, error.received) == ("p", "a fraction", 2)
    with pytest.raises(ArgumentError, match="Invalid `p`: expected a fraction. Received: p=2"):
        raise error


def test_the_documentation_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference/tf_packnet.html").read_text()
    for name in ("pack", "plan", "PackedModel", "PruneRoundScheduler", "EqualShare", "export_task"):
        assert f".{name}" in page
    assert (tmp_path / "flags.html").exists()
