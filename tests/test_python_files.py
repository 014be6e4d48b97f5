"""What a function in a user's file depends on, and how such files are imported."""

import sys

import pytest

from tf_packnet.errors import ArgumentError
from tf_packnet.system import python_files

NETS = '''"""My networks."""
import math
from blocks import block

WIDTH = 8


def small(shape, classes):
    return _dense(WIDTH)  # narrow


def _dense(width):
    return width


def large(shape, classes):
    return block(1)


@staticmethod
def decorated():
    return 1


class Layer:
    gain = 1
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text("from more import inner\nblock = int\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/__init__.py").write_text("inner = 1\n")
    (tmp_path / "more/part.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("y = 1\n")
    return tmp_path


def digest(folder, name="small"):
    return python_files.digest(folder / "nets.py", name)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("nets.py", "WIDTH = 8", "WIDTH = 9"),
        ("nets.py", "return _dense(WIDTH)", "return _dense(WIDTH + 1)"),
        ("nets.py", "    return width\n", "    return width + 1\n"),
        ("nets.py", "    return 1\n", "    return 2\n"),
        ("nets.py", "@staticmethod", "@classmethod"),
        ("nets.py", "gain = 1", "gain = 2"),
        ("nets.py", "import math", "import cmath"),
        ("nets.py", "WIDTH = 8\n", "WIDTH = 8\nWIDTH = len('large')\n"),
        ("blocks.py", "int", "str"),
        ("more/__init__.py", "1", "2"),
        ("more/part.py", "1", "2"),
    ],
)
def test_the_hash_of_a_function_changes_with_what_it_uses(folder, file, old, new):
    before = digest(folder)
    edit(folder / file, old, new)
    assert digest(folder) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("nets.py", "My networks", "Their networks"),
        ("nets.py", "    return block(1)\n", "    return block(2)\n"),
        ("nets.py", "def large", "def huge"),
        ("nets.py", "\n\nclass", "\n# a comment\n\n\nclass"),
        ("nets.py", "\n", "\r\n"),
        ("other.py", "1", "2"),
    ],
)
def test_the_hash_of_a_function_does_not_change_with_what_it_does_not_use(folder, file, old, new):
    before = digest(folder)
    path = folder / file
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    assert digest(folder) == before


def test_the_hash_depends_on_the_function_but_not_on_the_path(folder):
    assert digest(folder) != digest(folder, "large")
    before = digest(folder)
    (folder / "nets.py").rename(folder / "renamed.py")
    assert python_files.digest(folder / "renamed.py", "small") == before


@pytest.mark.parametrize(
    "code", ["globals()['la' + 'rge']", "getattr(x, y)", "eval('lar' + 'ge')", "'large'", "a.large"]
)
def test_functions_that_may_be_found_by_a_text_count(folder, code):
    edit(folder / "nets.py", "    return width\n", f"    return {code}\n")
    before = digest(folder)
    edit(folder / "nets.py", "block(1)", "block(2)")
    assert digest(folder) != before


def test_names_in_a_file(folder):
    def names(text):
        (folder / "x.py").write_text(text)
        return python_files.names_in(python_files.parse(folder / "x.py"))

    text = "import a.b\nfrom c import d as e\nf = 1\nif f:\n    def g(h): i = 2\nclass J:\n    k = 1\n"
    assert names(text + "for m, n in f: pass\n") == {"a", "e", "f", "g", "J", "m", "n"}
    assert names("from a import *\n") is None
    assert names("globals()['f'] = 1\n") is None
    assert python_files.functions_in(python_files.parse(folder / "nets.py")) == ["small", "large", "decorated"]


def test_a_file_is_executed_once_and_imports_from_its_folder(folder):
    edit(folder / "nets.py", "import math", "import sys\nsys.imported_nets = getattr(sys, 'imported_nets', 0) + 1")
    try:
        module = python_files.load(folder / "nets.py")
        assert python_files.load(folder / "../x/.." / folder / "nets.py") is module
        assert sys.imported_nets == 1
        assert module.small((), 1) == 8
        assert module.large((), 1) == 1
        edit(folder / "nets.py", "WIDTH = 8", "WIDTH = 9")
        assert python_files.load(folder / "nets.py").small((), 1) == 9
        assert sys.path[0] != str(folder)
    finally:
        for name in ("nets", "blocks", "more"):
            sys.modules.pop(name, None)
        sys.path.remove(str(folder))
        del sys.imported_nets


def test_a_file_does_not_replace_a_module_of_its_name(folder):
    (folder / "json.py").write_text("here = True\n")
    module = python_files.load(folder / "json.py")
    assert module.here
    assert not hasattr(sys.modules["json"], "here")
    sys.path.remove(str(folder))


def parse_and_load(path):
    with python_files.reported("model", "a file", "broken.py:f", path):
        python_files.parse(path)
        python_files.load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x = 1\ny = = 2\n", "line 2: SyntaxError: invalid syntax"),
        (b"import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (b"raise ValueError('one\\ntwo')\n", "line 1: ValueError: one"),
        (b"raise ValueError\n", "line 1: ValueError"),
        (b"import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (b"open('missing')\n", "line 1: FileNotFoundError"),
        (b"def f(): f()\nf()\n", "line 1: RecursionError"),
        (b"\xff\xfe\x00", "null bytes|SyntaxError"),
        (b"(" * 5000, "SyntaxError|nested"),
        (None, "No such file"),
    ],
)
def test_errors_of_a_file_are_one_line(tmp_path, content, reason):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentError) as caught:
        parse_and_load(path)
    assert any(part in caught.value.expected for part in reason.split("|")), caught.value.expected
    assert caught.value.expected.startswith("a file (")
    assert "\n" not in caught.value.expected


def test_a_device_is_not_read():
    with pytest.raises(ArgumentError, match="not a regular file"):
        python_files.check("layers", "/dev/zero")
    with pytest.raises(ArgumentError, match="Is a directory"):
        python_files.check("layers", "/")
