import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tf_packnet.system import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(path, {"new": float("nan")})
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_unfinished_files_of_a_killed_process_are_found(tmp_path):
    code = (
        "import os, sys\n"
        "from tf_packnet.system import files\n"
        "with files.replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os._exit(9)\n"
    )
    path = tmp_path / "results.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_PACKNET_LAZY": "1"}
    subprocess.run([sys.executable, "-c", code, path], check=False, env=environment)
    assert not path.exists()
    assert files.unfinished(path) == list(tmp_path.iterdir())
    assert len(files.unfinished(path)) == 1


def test_folders_are_replaced_completely(tmp_path):
    folder = tmp_path / "folder"
    for name in ("one", "two"):
        with files.replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert os.listdir(folder) == ["two"]
    with pytest.raises(FileNotFoundError), files.replacing(folder) as temporary:
        (temporary / "three").write_text("the folder was never made")
    assert os.listdir(folder) == ["two"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_spare_file_is_overwritten(tmp_path):
    path, spare = tmp_path / "new", tmp_path / ".spare"
    spare.write_bytes(b"longer than the new content")
    inode = spare.stat().st_ino
    with files.rewriting(path, spare) as file:
        file.write(b"short")
        assert not path.exists()
    assert path.read_bytes() == b"short"
    assert path.stat().st_ino == inode
    assert os.listdir(tmp_path) == ["new"]


def test_a_failed_write_to_a_spare_file_leaves_the_old_file(tmp_path):
    path, spare = tmp_path / "new", tmp_path / ".spare"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="read only"), files.rewriting(path, spare) as file:
        _write_half(file)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["new"]


def _write_half(file):
    file.write(b"half")
    raise OSError("the disk is read only")
