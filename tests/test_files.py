import contextlib
import os
import socket
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


@pytest.fixture(params=["link", "link to itself", "link to a folder", "empty folder", "pipe", "socket"])
def something_else(request, tmp_path, monkeypatch):
    """A path at which there is no file, and the target that links lead to."""
    path, target = tmp_path / "path", tmp_path / "target"
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 characters at most
    target.mkdir()
    (target / "kept").write_text("kept")
    if request.param.startswith("link"):
        targets = {"link": target / "kept", "link to itself": path, "link to a folder": target}
        path.symlink_to(targets[request.param])
    elif request.param == "empty folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("path")
    yield path
    assert (target / "kept").read_text() == "kept"


def test_nothing_else_is_opened_as_a_file(something_else):
    assert files.kind(something_else) not in (files.FILE, files.MISSING)
    with pytest.raises(OSError, match="a (link|folder|pipe|socket), not a file"):
        files.open_file(something_else)
    assert files.problem(something_else).endswith("not a file")


def test_a_file_replaces_anything_but_contents(something_else):
    files.write_json(something_else, {"new": 1})
    assert files.kind(something_else) == files.FILE
    assert files.read_json(something_else) == {"new": 1}


def test_a_spare_that_is_no_file_is_replaced(something_else, tmp_path):
    with files.rewriting(tmp_path / "new", something_else) as file:
        file.write(b"new")
    assert (tmp_path / "new").read_bytes() == b"new"
    assert files.kind(tmp_path / "new") == files.FILE


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    file.write_text("mine")
    with pytest.raises(IsADirectoryError, match="move this folder away") as error:
        files.write_json(folder, {})
    assert error.value.filename == str(folder)
    with pytest.raises(NotADirectoryError, match="move this file away") as error, files.replacing(file) as temporary:
        temporary.mkdir()
    assert error.value.filename == str(file)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (folder / "mine").read_text() == file.read_text() == "mine"


def test_what_is_wrong_with_a_path(tmp_path):
    path = tmp_path / "path"
    assert files.problem(path) == "missing"
    path.write_text("")
    assert files.problem(path) == ""
    assert not files.is_occupied(path)
    assert files.is_occupied(tmp_path)


def test_every_flipped_bit_of_a_json_file_is_noticed(tmp_path):
    path, content = tmp_path / "file.json", {"rate": 1e-05, "names": ["a", "\u00e9"], "none": None, "count": 3}
    files.write_json(path, content)
    intact = path.read_bytes()
    for position in range(8 * len(intact)):
        damaged = bytearray(intact)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with contextlib.suppress(files.DamagedError):
            assert files.read_json(path) == content  # a space became a tab, or e became E
