import json
import os

import pytest

from tf_packnet import files


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_folders_are_replaced_whole(tmp_path):
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
