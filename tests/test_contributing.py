"""CONTRIBUTING.md and docs/architecture.md name packages, files and symbols that exist."""

import os
import re
import subprocess
import sys

import pytest

from tests.architecture import PAGE, ROOT, page_with_diagram
from tests.mutation_config import EQUIVALENT, TESTS, plain
from tests.test_architecture import LAYERS

PAGES = [ROOT / "CONTRIBUTING.md", PAGE]
FOLDERS = "tf_packnet|flags|launch|tests|docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./]*)`", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_symbols_are_in_the_files_they_are_said_to_be_in(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    for symbol, path in re.findall(rf"`(\w+)` \(`((?:{FOLDERS})/[\w./]+\.py)`\)", text):
        assert re.search(rf"\b{symbol}\b", (ROOT / path).read_text(encoding="utf-8")), f"{symbol} is not in {path}"


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= set(targets)


def test_mutation_testing_has_modules_and_tests():
    for module, tests in TESTS.items():
        assert (ROOT / module).exists()
        for test in tests.split():
            path, _, name = test.partition("::")
            assert name in (ROOT / path).read_text(encoding="utf-8"), test


def test_equivalent_mutants_are_of_present_lines():
    for module, explained in EQUIVALENT.items():
        lines = {plain(line) for line in (ROOT / module).read_text(encoding="utf-8").splitlines()}
        assert [line for line, _, _ in explained if plain(line) not in lines] == [], module


def test_the_table_has_every_package():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", text, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"\w+", row)}
    packages = {name.removeprefix("tf_packnet.") for names in LAYERS for name in names}
    assert listed == packages - {"tf_packnet"}


def test_the_diagram_is_generated():
    assert PAGE.read_text(encoding="utf-8") == page_with_diagram(), "run `make build-file`"


USE_THE_EXAMPLES = """
import numpy as np

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
task = tp.tasks.from_arrays("first", x, np.arange(64) % 2, batch_size=16)
packed = tp.pack(keras.Sequential([keras.Input((4,)), Doubled(8), keras.layers.Dense(2)]))
packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
packed.begin_task("first", num_classes=2)
scheduler = SmallestFirst(HalfFirst(0.5, 2, 2))
before = np.abs(packed.get_layer("doubled").kernel.numpy()).mean()
packed.fit(task.train, epochs=2, verbose=0, callbacks=[scheduler, tp.GradientMask(), tp.TaskMaskSnapshot()])
kernel = packed.get_layer("doubled").kernel.numpy()
assert [each["kept"]["doubled/kernel"] for each in scheduler.rounds] == [21, 9]  # of 32; 0.71 are released
assert np.abs(kernel[kernel != 0]).mean() < before
tp.export_task(packed, "first", "export")
np.savez("shop.npz", x=x, y=np.arange(64) % 2)
assert shop_task("shop.npz").class_names == ("shoe", "shirt")
"""


def test_the_examples_work(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "\n".join([*blocks, USE_THE_EXAMPLES])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
