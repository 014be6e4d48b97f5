"""Files from untrusted sources: loading executes none of their code, trusts no declared size, and writes nothing."""

import contextlib
import io
import json
import os
import shutil
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tf_packnet as tp
from tests.conftest import ROOT, make_mlp
from tests.test_launcher import results_of
from tf_packnet.callbacks import save_owner_maps
from tf_packnet.experiments import executor
from tf_packnet.runs import corruption, output, results
from tf_packnet.runs.config import Config
from tf_packnet.runs.stages import chain
from tf_packnet.runs.store import StageStore
from tf_packnet.system import archives, limits

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAPS = {"dense/kernel": np.arange(12, dtype=np.uint8).reshape(3, 4), "other": np.zeros(5, np.uint8)}


@pytest.fixture
def maps(tmp_path):
    path = tmp_path / "task_1.npz"
    save_owner_maps(path, MAPS)
    return path


def member(array=MAPS["other"], shape=None, descr="|u1") -> bytes:
    """An array in NumPy's format, optionally with a false header."""
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": array.shape if shape is None else shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


class TestOwnerMaps:
    @given(st.dictionaries(st.sampled_from("abcd"), hnp.arrays(np.uint8, hnp.array_shapes(min_side=0))))
    @FUZZ
    def test_what_was_saved_is_read(self, tmp_path, maps):
        save_owner_maps(tmp_path / "any.npz", maps)
        found = tp.load_owner_maps(tmp_path / "any.npz")
        assert found.keys() == maps.keys()
        for name, value in maps.items():
            np.testing.assert_array_equal(found[name], value, strict=True)
            assert found[name].flags.writeable

    def test_fortran_order(self, tmp_path):
        np.savez(tmp_path / "f.npz", a=np.asfortranarray(MAPS["dense/kernel"]))
        np.testing.assert_array_equal(tp.load_owner_maps(tmp_path / "f.npz")["a"], MAPS["dense/kernel"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (member(np.zeros(8), descr="<f8"), "has the dtype float64"),
            (member(np.zeros(1, "O").astype("S8"), descr="|O"), "has the dtype object"),
            (member(shape=(2**60,)), "declares a size other than its own"),
            (member(shape=(2**40, 2**40)), "declares a size other than its own"),
            (member(shape=(4,)), "declares a size other than its own"),
            (member()[:-1], "declares a size other than its own"),
            (b"no array", "damaged"),
            (b"", "damaged"),
            (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535, "damaged"),
            (b"\x93NUMPY\x09\x00" + b" " * 99, "damaged"),
        ],
    )
    def test_other_members_are_refused(self, tmp_path, content, message):
        path = archive(tmp_path / "forged.npz", [("a.npy", content)])
        with pytest.raises(tp.ArgumentError, match=f"`path`: expected an .npz file of uint8 arrays .*{message}"):
            tp.load_owner_maps(path)

    def test_a_pickle_is_not_loaded(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        np.savez(tmp_path / "bomb.npz", a=np.array([Bomb()], object))
        with pytest.raises(tp.ArgumentError, match="has the dtype object"):
            tp.load_owner_maps(tmp_path / "bomb.npz")
        assert not (tmp_path / "ran").exists()

    def test_zip_bombs(self, tmp_path):
        """Refused by the sizes in the zip directory, before anything is unpacked."""
        for copies, message in (
            (3, "would take 12,884,901,882 bytes of memory, more than the bound of 320,000,000"),
            (1, "would take 4,294,967,294 bytes"),
        ):
            path = archive(tmp_path / "bomb.npz", [(f"{number}.npy", bytes(2**20)) for number in range(copies)])
            claims = path.read_bytes().replace((2**20).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little"))
            path.write_bytes(claims)
            with pytest.raises(tp.ArgumentError, match=message):
                tp.load_owner_maps(path)
        with pytest.raises(tp.ArgumentError, match="declares more bytes than it can contain"):
            tp.load_owner_maps(path, max_bytes=2**33)
        archive(tmp_path / "bomb.npz", [("a.npy", bytes(2**24))])
        with pytest.raises(tp.ArgumentError, match="16,777,216 bytes of memory, more than the bound of 1,000"):
            archives.read_arrays(tmp_path / "bomb.npz", "path", "uint8", 1000)

    def test_member_names_are_not_used_as_paths(self, tmp_path):
        (tmp_path / "in").mkdir()
        path = archive(tmp_path / "in" / "slip.npz", [("../../up.npy", member()), ("/abs.npy", member())])
        before = sorted(tmp_path.rglob("*"))
        assert list(tp.load_owner_maps(path)) == ["../../up", "/abs"]
        assert sorted(tmp_path.rglob("*")) == before

    def test_duplicate_names(self, tmp_path):
        with pytest.warns(UserWarning, match="Duplicate"):
            path = archive(tmp_path / "two.npz", [("a.npy", member()), ("a.npy", member())])
        with pytest.raises(tp.ArgumentError, match="two members with the same name"):
            tp.load_owner_maps(path)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            tp.load_owner_maps(tmp_path / "none.npz")

    @given(st.data())
    @FUZZ
    def test_random_damage(self, tmp_path, maps, data):
        """Bytes are changed, deleted or inserted, with valid checksums or not: read or refused, within 4 MB of RAM."""
        if data.draw(st.booleans()):
            (tmp_path / "damaged.npz").write_bytes(damaged(maps.read_bytes(), data))
        else:
            archive(tmp_path / "damaged.npz", [("a.npy", damaged(member(), data)), ("b.npy", member())])
        tracemalloc.start()
        try:
            found = tp.load_owner_maps(tmp_path / "damaged.npz")
        except tp.ArgumentError:
            return
        finally:
            assert tracemalloc.get_traced_memory()[1] < 2**22
            tracemalloc.stop()
        for value in found.values():
            assert value.dtype == np.uint8


def damaged(content: bytes, data) -> bytes:
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        what = data.draw(st.sampled_from(["change", "cut", "put", "large"]))
        if what == "change" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del content[place : place + data.draw(st.integers(1, 40))]
        elif what == "put":
            content[place:place] = data.draw(st.binary(max_size=20))
        elif what == "large":
            content[place : place + 4] = b"\xff\xff\xff\x7f"
    return bytes(content)


# Errors of Keras for files that it cannot load.
REFUSALS = (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError)


class TestPacks:
    def test_a_lambda_in_a_pack_is_not_run(self, tmp_path):
        inputs = keras.Input((6,))
        x = keras.layers.Lambda(lambda x: x * 2.0, output_shape=(6,))(keras.layers.Dense(6)(inputs))
        packed = tp.pack(keras.Model(inputs, keras.layers.Dense(2)(x)))
        packed.save(tmp_path / "pack.keras")
        with pytest.raises(ValueError, match="[Ll]ambda.*unsafe|safe_mode"):
            keras.models.load_model(tmp_path / "pack.keras")

    def test_a_config_that_names_a_function_of_python(self, tmp_path):
        """Keras must not import and call it instead of a layer."""
        tp.pack(make_mlp()).save(tmp_path / "pack.keras")
        with zipfile.ZipFile(tmp_path / "pack.keras") as old, zipfile.ZipFile(tmp_path / "bad.keras", "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "config.json":
                    config = json.loads(content)
                    evil = {"module": "os", "class_name": "system", "config": f"touch {tmp_path}/ran"}
                    config["config"]["network"]["layers"][1] |= evil
                    content = json.dumps(config)
                new.writestr(name, content)
        with pytest.raises((TypeError, ValueError)):
            keras.models.load_model(tmp_path / "bad.keras")
        assert not (tmp_path / "ran").exists()

    @given(st.data())
    @settings(FUZZ, max_examples=25)
    def test_damaged_packs_are_refused_or_read(self, tmp_path, data):
        path = tmp_path / "pack.keras"
        if not path.exists():
            tp.pack(make_mlp()).save(path)
        (tmp_path / "damaged.keras").write_bytes(damaged(path.read_bytes(), data))
        with contextlib.suppress(*REFUSALS):
            keras.models.load_model(tmp_path / "damaged.keras")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["damaged.keras", "pack.keras"]


def test_the_library_never_unpickles_or_extracts_archives():
    words = (
        "pickle.load",
        "allow_pickle=True",
        "safe_mode=False",
        "enable_unsafe_deserialization",
        "extractall",
        "eval(",
    )
    for folder in ("tf_packnet", "flags", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not [word for word in words if word in text.replace("literal_eval(", "")], path
            assert text.count("np.load(") == text.count("allow_pickle=False"), path


DEEP = '{"config": ' + "[" * 100_000 + "]" * 100_000 + ', "complete": true}'
# Values to put into the results of a complete run, with the path of the value that they replace.
HOSTILE = [
    (("config",), []), (("config",), None), (("complete",), 1), (("complete",), "true"), (("tasks",), {}),
    (("tasks",), []),
    (("tasks",), [1]), (("tasks", 0, "number"), 7), (("tasks", 0, "number"), True), (("tasks", 0, "class_names"), [1]),
    (("accuracy",), []), (("accuracy",), [[]]), (("accuracy",), "ab"), (("accuracy",), [["x"]]), (("weights",), []),
    (("accuracy",), [[0.5, 0.5]]), (("weights", "owned"), []), (("weights", "prunable"), 0), (("free_fraction",), None),
    (("free_fraction", "layers"), {"a": "b"}), (("average_accuracy",), None), (("environment",), {}),
    (("seconds",), [{}]),
    (("schema_version",), "one"), (("schema_version",), 2.5), (("validation_accuracy",), [[0.1, 0.2]]),
    (("accuracy_matrix",), {}), (("accuracy_matrix",), [[0.1, 0.2]]), (("accuracy_matrix",), [["x"], ["y"]]),
]  # fmt: skip


class TestResults:
    """`results.json` of a run, and of the runs of an experiment."""

    @pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "\0", '"a"', DEEP, '{"config": 1' + "0" * 5000 + "}"])
    def test_other_content_is_refused(self, tmp_path, text):
        reported = []
        (tmp_path / "results.json").write_text(text)
        config = Config(output_dir=str(tmp_path))
        with pytest.raises(tp.ArgumentError, match="a new or empty folder, or that of the same run"):
            output.check(config)
        assert executor.completed_results(tmp_path / "results.json", config, reported.append) is None
        (tmp_path / "experiment.json").write_text(text)
        assert results.read_experiment(tmp_path / "experiment.json", reported.append) is None

    def test_binary_and_huge_files_are_not_read(self, tmp_path):
        reported = []
        path = tmp_path / "results.json"
        path.write_bytes(b"\xff\xfe{}")
        assert corruption.read_json(path, reported.append) is None
        with path.open("wb") as file:  # a sparse file, which takes no disk
            file.truncate(limits.DEFAULT // 4 + 1)
        assert corruption.read_json(path, reported.append) is None
        assert corruption.read_json(tmp_path, reported.append) is None

    @pytest.mark.parametrize(("where", "value"), HOSTILE)
    def test_complete_results_with_wrong_types(self, tmp_path, where, value):
        config = Config(output_dir=str(tmp_path))
        found = results_of(config)
        assert results.has_form(found, {"config": dict})
        *path, last = where
        inner = found
        for name in path:
            inner = inner[name]
        inner[last] = value
        (tmp_path / "results.json").write_text(json.dumps(found))
        with pytest.raises(tp.ArgumentError, match="a new or empty folder|a newer tf_packnet"):
            output.check(config)

    @given(st.data())
    @FUZZ
    def test_damaged_results_are_refused_or_shown(self, tmp_path, data):
        from rich.console import Console

        from tf_packnet.reporting.summary import print_results

        config = Config(output_dir=str(tmp_path))
        (tmp_path / "results.json").write_bytes(damaged(json.dumps(results_of(config)).encode(), data))
        try:
            found = output.check(config)
        except tp.ArgumentError:
            return
        if found is not None:
            print_results(found, tmp_path, Console(file=io.StringIO()))


class TestStages:
    """The store of stages: damaged files count as missing."""

    @given(st.data())
    @settings(FUZZ, max_examples=50)
    def test_a_damaged_state_is_repaired(self, tmp_path, data):
        store, stage = stored(tmp_path)
        path = store.root / stage.key / "state.npz"
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, data))
        assert store.has_state(stage)
        assert path.read_bytes() == whole

    @given(st.data())
    @settings(FUZZ, max_examples=50)
    def test_a_damaged_record_raises_nothing(self, tmp_path, data):
        store, stage = stored(tmp_path)
        path = store.root / stage.key / "stage.json"
        path.write_bytes(damaged(path.read_bytes(), data))
        store.record(stage)
        store.has_state(stage)
        store.first_to_compute([stage], with_state=True)

    def test_a_deeply_nested_record_is_ignored(self, tmp_path):
        store, stage = stored(tmp_path)
        for name in ("stage.json", "stage.copy.json"):
            (store.root / stage.key / name).write_text(DEEP)
        assert store.record(stage) is None


def stored(folder):
    store = StageStore(folder / "stages")
    stage = chain(Config(), (1,), "data", {})[0]
    shutil.rmtree(store.root, ignore_errors=True)
    store.put(stage, {"seconds": 1.5}, {"weights": np.arange(5, dtype=np.float32)})
    return store, stage
