"""A task is saved and found under its name, or `begin_task` raises an error."""

import enum
import unicodedata

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import make_mlp
from tf_packnet import lifecycle
from tf_packnet.packfile import container
from tf_packnet.system.limits import Bound
from tf_packnet.task_names import MAX_BYTES, check_task_name, default_task_name


class Animals(str, enum.Enum):
    DOGS = "dogs"


GOOD = [
    "cats",
    "3",
    "Katzen & Hunde",
    "  ",
    "a/b\\c",
    "../up",
    "\u732b\u3068\u72ac",
    "\U0001f408\u200d\u2b1b",
    "null",
    "x" * MAX_BYTES,
    "\u00e9" * (MAX_BYTES // 2),
    np.str_("numpy"),
    Animals.DOGS,
    'say "hello"',
]
BAD = {
    "no text": [7, 2.5, b"cats", ("cats",), ["cats"], True, float("nan"), object],
    "empty": [""],
    "control characters": ["a\nb", "a\tb", "\x00", "a\x1b[31mb", "a\x7f", "a\x85b"],
    "surrogates": ["\ud800", "a\udfff"],
    "too long": ["x" * (MAX_BYTES + 1), "\u00e9" * (MAX_BYTES // 2 + 1), "\U0001f408" * 51],
}


def pruned(packed):
    for weight in lifecycle.masked_weights(packed).values():
        owner = weight.owner_map()
        weight.prune((owner == 255) & (np.arange(owner.size).reshape(owner.shape) % 2 == 0))
    packed.commit_task()


@pytest.fixture(scope="module")
def one_task():
    packed = tp.pack(make_mlp())
    packed.begin_task("first")
    pruned(packed)
    return packed


def test_valid_names_survive_both_file_formats(tmp_path):
    packed = tp.pack(make_mlp())
    texts = [str.__str__(name) for name in GOOD]
    for name in GOOD:
        packed.begin_task(name)
        for weight in lifecycle.masked_weights(packed).values():
            weight.prune(np.zeros(weight.owner_map().shape, bool))
        packed.commit_task()
    assert packed.task_names == texts
    assert {type(name) for name in packed.task_names} == {str}
    tp.save_pack(packed, tmp_path / "pack.packnet", info={"tasks": {name: {"accuracy": 0.5} for name in texts}})
    packed.save(tmp_path / "pack.keras")
    for loaded in (tp.load_pack(tmp_path / "pack.packnet"), keras.models.load_model(tmp_path / "pack.keras")):
        assert loaded.task_names == texts
        for number, name in enumerate(texts, start=1):
            loaded.select_task(name)
            assert loaded.selected_task == number
    assert tp.read_contents(tmp_path / "pack.packnet").task_names == texts


@pytest.mark.parametrize("name", [pytest.param(name, id=ascii(name)[:30]) for names in BAD.values() for name in names])
def test_invalid_names_are_refused_before_anything_begins(one_task, name):
    before = lifecycle.state(one_task)
    with pytest.raises(tp.ArgumentError, match="^Invalid `name`: expected ") as caught:
        one_task.begin_task(name)
    assert caught.value.received is name or caught.value.received == name
    assert "\n" not in str(caught.value)
    assert one_task.task_names == ["first"]
    after = lifecycle.state(one_task)
    assert set(after) == set(before)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (7, "a string. Received: name=7"),
        ("", "not empty, or None for task_<number>. Received: name=''"),
        ("a\nb", r"without control characters and surrogates. Received: name='a\\nb'"),
        ("x" * 201, r"at most 200 bytes in UTF-8 \(this name has 201\)"),
        ("first", "a name that no task of this pack has yet. Received: name='first'"),
    ],
)
def test_the_message_says_what_is_wrong(one_task, name, message):
    with pytest.raises(tp.ArgumentError, match=message):
        one_task.begin_task(name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=[]), max_size=220))
def test_a_name_is_allowed_or_not_by_the_rule(name):
    fits = bool(name) and not any(unicodedata.category(each) in ("Cc", "Cs") for each in name)
    fits = fits and len(name.encode("utf-8", "replace")) <= MAX_BYTES
    if fits:
        assert check_task_name(name) == name
        assert name.encode().decode() == name
    else:
        with pytest.raises(tp.ArgumentError):
            check_task_name(name)


class TestDefaultName:
    def test_is_another_name_where_a_task_has_it_already(self):
        packed = tp.pack(make_mlp())
        packed.begin_task("task_2")
        pruned(packed)
        packed.begin_task()
        pruned(packed)
        packed.begin_task()
        assert packed.task_names == ["task_2", "task_2_1", "task_3"]

    def test_that_is_free(self):
        assert default_task_name(3, ["task_3", "task_3_1"]) == "task_3_2"
        assert default_task_name(3, []) == "task_3"

    def test_of_tasks_begun_by_the_function_too(self, tmp_path):
        packed = tp.pack(make_mlp())
        packed.begin_task("task_2")
        pruned(packed)
        tp.begin_task(packed)
        pruned(packed)
        assert packed.task_names == ["task_2", "task_2_1"]
        tp.save_pack(packed, tmp_path / "pack.packnet")
        assert tp.load_pack(tmp_path / "pack.packnet").task_names == ["task_2", "task_2_1"]

    def test_of_a_first_task_that_was_never_begun_is_taken(self):
        packed = tp.pack(make_mlp())
        pruned(packed)
        with pytest.raises(tp.ArgumentError, match="no task of this pack has yet. Received: name='task_1'"):
            packed.begin_task("task_1")


class TestTasksAreFound:
    @pytest.mark.parametrize("number", [1, np.int64(1), np.uint8(1)])
    def test_by_number(self, one_task, number):
        one_task.select_task(number)
        assert one_task.selected_task == 1

    @pytest.mark.parametrize("task", [None, 1.0, True, ["first"], b"first"])
    def test_by_nothing_else(self, one_task, task):
        with pytest.raises(tp.ArgumentError, match="or its number"):
            one_task.select_task(task)

    def test_by_name_first(self):
        packed = tp.pack(make_mlp())
        for name in ("2", "1"):
            packed.begin_task(name)
            pruned(packed)
        packed.select_task("2")
        assert packed.selected_task == 1


def forged(path, name):
    """Write the file with `name` as the name of its first task and valid checksums."""
    with open(path, "rb") as file:
        read = container.PackFile(path, file, Bound())
        directory, parts, rest = read.directory, [], file.read()
    for part in directory.pop("parts"):
        arrays = tuple(container.ArrayEntry(kind, of, dtype, tuple(shape)) for kind, of, dtype, shape in part["arrays"])
        entry = container.Part(part["name"], part["stored"], part["plain"], part["sha256"], arrays)
        parts.append((entry, rest[: entry.stored]))
        rest = rest[entry.stored :]
    before, directory["tasks"][0]["name"] = directory["tasks"][0]["name"], name
    recorded = directory.get("info", {}).get("tasks", {})
    if before in recorded:
        recorded[name] = recorded.pop(before)
    container.write(path, directory, parts)
    return path


def test_a_file_of_an_earlier_version_may_have_names_that_are_refused_now(one_task, tmp_path):
    tp.save_pack(one_task, tmp_path / "pack.packnet")
    for name in ("a\nb", "x" * 300, "\ud800"):
        assert tp.load_pack(forged(tmp_path / "pack.packnet", name)).task_names == [name]
    with pytest.raises(tp.PackFileError, match="'name' is a int, not a str"):
        tp.load_pack(forged(tmp_path / "pack.packnet", 7))
