"""Pack files restore bit-identical packs, can be read task by task, are small, and raise clear errors if damaged."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import ROOT, blobs, make_convnet, make_mlp
from tests.test_any_model import MODELS, two_outputs
from tf_packnet import lifecycle
from tf_packnet.layers.records import COUNTS
from tf_packnet.packfile import coding, container, footprint, loading, model_config
from tf_packnet.packfile.contents import WeightEntry
from tf_packnet.packfile.info import check_info

L = keras.layers
HEADER = container.HEADER_BYTES


def commit(packed, name, seed, prune=0.5, **begin):
    """Commit a task without training, with random values and masks."""
    rng = np.random.default_rng(seed)
    packed.begin_task(name, **begin)
    for layer in lifecycle.task_layers(packed):
        for weight in layer.task_weights + layer.masked_weights:
            weight.variable.assign(rng.normal(size=weight.variable.shape))
    for weight in lifecycle.masked_weights(packed).values():
        owner = weight.owner_map()
        weight.prune((owner == 255) & (rng.random(owner.shape) < 1 - prune))
    packed.commit_task()
    return packed


def two_tasks(packed):
    return commit(commit(packed, "first", 1), "second", 2)


def outputs(model, x):
    found = model(x, training=False)
    return [np.asarray(part) for part in keras.tree.flatten(found)]


def assert_same(packed, loaded, x, free_values):
    """Compare the outputs of every task, the owner maps, and all state that is read later, bit by bit."""
    assert loaded.task_names == packed.task_names
    assert loaded.selected_task == packed.selected_task
    assert not lifecycle.has_open_task(loaded)
    maps = packed.owner_maps()
    assert list(loaded.owner_maps()) == list(maps)
    for path, owner in loaded.owner_maps().items():
        np.testing.assert_array_equal(owner, maps[path])
    for number, name in enumerate(packed.task_names, start=1):
        packed.select_task(number)
        loaded.select_task(name)
        for theirs, ours in zip(outputs(packed, x), outputs(loaded, x), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    then, now = lifecycle.state(packed), lifecycle.state(loaded)
    assert {name for name in now if not name.endswith(".lost")} == set(then)
    for name, value in then.items():
        path, _, part = name.rpartition(".")
        if name.endswith("/records"):  # a file does not keep how a task was pruned
            facts = [
                {k: v for k, v in json.loads(each.tobytes()).items() if k not in COUNTS} for each in (value, now[name])
            ]
            assert facts[0] == facts[1]
            continue
        if part == "variable" or "/units_" in name and part == "frozen":
            continue  # nothing reads these before the next task begins
        if not free_values and path in maps and part == "base" and packed.roles.pretrained == "prunable":
            continue
        seen = maps[path] > 0 if not free_values and path in maps and part == "frozen" else ...
        np.testing.assert_array_equal(now[name][seen], value[seen], err_msg=name)


PACKS = {
    **{name: lambda make=make: tp.pack(make(), bias_policy="per_task") for name, make in MODELS.items()},
    "two outputs": lambda: tp.pack(two_outputs()),
    "convolutions": lambda: tp.pack(make_convnet(), freed_weights="keep"),
    "shared head": lambda: tp.pack(make_mlp(), head="shared", bias_policy="per_task"),
    "pruned pretrained": lambda: tp.pack(make_mlp(), pretrained="task 0"),
    "visible pretrained": lambda: tp.pack(make_mlp(), pretrained="task 0", prune_pretrained=False),
    "excluded": lambda: tp.pack(make_convnet(), exclude=["conv_1"]),
    "normalized": lambda: tp.pack(normalized()),
    "half precision": lambda: tp.pack(make_mlp(dtype="bfloat16")),
}


def normalized():
    normalize = L.Normalization()
    normalize.adapt(np.random.default_rng(0).normal(5, 3, (100, 6)))
    inputs = keras.Input((6,))
    frozen = L.BatchNormalization(trainable=False)
    return keras.Model(inputs, L.Dense(2)(frozen(L.Dense(8, activation="relu")(normalize(inputs)))))


def inputs_of(packed):
    rng = np.random.default_rng(9)

    def make(tensor):
        shape = (5, *tensor.shape[1:])
        x = rng.integers(0, 20, shape) if tensor.dtype == "int32" else rng.normal(size=shape)
        return keras.ops.convert_to_tensor(x, tensor.dtype)

    return keras.tree.map_structure(make, packed._inputs_struct)


WITH_FREE_VALUES = ["convolutions", "pruned pretrained", "visible pretrained"]


@pytest.mark.parametrize(
    ("kind", "free_values"),
    [
        *(
            pytest.param(k, False, marks=[pytest.mark.slow] * (k in ("cells", "vision transformer", "wrapped")))
            for k in PACKS
        ),
        *((k, True) for k in WITH_FREE_VALUES),
    ],
)
def test_a_pack_is_restored_bit_by_bit(kind, free_values, tmp_path):
    path = tmp_path / "pack.packnet"
    packed = two_tasks(PACKS[kind]())
    packed.select_task(1)
    tp.save_pack(packed, path, free_values=free_values)
    keras.utils.clear_session()  # another process would number its layers afresh
    x = inputs_of(packed)
    assert_same(packed, tp.load_pack(path), x, free_values)
    plain, expected = tp.load_task(path, 1), tp.export.dense_model(packed, 1)
    for ours, theirs in zip(outputs(plain, x), outputs(expected, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not [layer for layer in plain._flatten_layers() if isinstance(layer, tp.layers.TaskLayer)]


def test_words_and_their_vocabulary(tmp_path):
    words = L.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat", "the dog ran"])
    text = keras.Input((), dtype="string")
    packed = tp.pack(keras.Model(text, L.Dense(2)(L.GlobalAveragePooling1D()(L.Embedding(10, 4)(words(text))))))
    two_tasks(packed)
    tp.save_pack(packed, tmp_path / "pack.packnet")
    x = keras.ops.convert_to_tensor(np.array(["the cat", "a dog ran"], dtype=object))
    assert_same(packed, tp.load_pack(tmp_path / "pack.packnet"), x, free_values=False)


def test_tasks_with_heads_of_their_own(tmp_path):
    path = tmp_path / "pack.packnet"
    packed = commit(tp.pack(make_mlp()), "two", 1)
    commit(packed, "five", 2, num_classes=5, activation="softmax")
    commit(packed, "three", 3, num_classes=3)
    tp.save_pack(packed, path)
    loaded, x = tp.load_pack(path), blobs(0)[0]
    assert_same(packed, loaded, x, free_values=False)
    for task, units in {"two": 2, "five": 5, "three": 3}.items():
        plain = tp.load_task(path, task)
        packed.select_task(task)
        assert plain.output_shape == (None, units)
        np.testing.assert_allclose(outputs(plain, x)[0], outputs(packed, x)[0], rtol=1e-5, atol=1e-6)
    contents = tp.read_contents(path)
    assert [(task.heads["head"].units, task.heads["head"].activation) for task in contents.tasks] == [
        (2, None),
        (5, "softmax"),
        (3, None),
    ]


class TestNextTask:
    """A loaded pack starts the next task like the saved one."""

    @pytest.mark.parametrize("freed_weights", ["zero", "reinit", "keep"])
    def test_the_next_task_starts_from_the_same_values(self, freed_weights, tmp_path):
        packed = two_tasks(tp.pack(make_mlp(), bias_policy="per_task", freed_weights=freed_weights, seed=3))
        tp.save_pack(packed, tmp_path / "pack.packnet", free_values=freed_weights == "keep")
        loaded = tp.load_pack(tmp_path / "pack.packnet")
        for model in (packed, loaded):
            assert model.begin_task("third") == 3
        then, now = lifecycle.state(packed), lifecycle.state(loaded)
        assert set(then) == set(now)
        for name, value in then.items():
            if not name.endswith(".frozen"):  # of which only what is owned is read
                np.testing.assert_array_equal(now[name], value, err_msg=name)
        for model in (packed, loaded):
            model.commit_task()
        assert_same(packed, loaded, blobs(0)[0], free_values=freed_weights == "keep")

    def test_keep_without_free_values_is_refused_until_another_policy_is_set(self, tmp_path):
        packed = commit(tp.pack(make_mlp(), freed_weights="keep"), "first", 1)
        tp.save_pack(packed, tmp_path / "pack.packnet")
        loaded = tp.load_pack(tmp_path / "pack.packnet")
        for _ in range(2):
            with pytest.raises(tp.ArgumentError, match=r"`freed_weights`: expected zero or reinit \(this pack"):
                loaded.begin_task("second")
            with pytest.raises(tp.ArgumentError, match="Received: free_values=True"):
                tp.save_pack(loaded, tmp_path / "again.packnet", free_values=True)
            loaded.save(tmp_path / "pack.keras")  # and what it lacks is not forgotten on the way through a Keras file
            loaded = keras.models.load_model(tmp_path / "pack.keras")
        assert loaded.task_names == ["first"]
        loaded.freed_weights = "zero"
        commit(loaded, "second", 2)
        loaded.freed_weights = "keep"  # from the values that the second task gave back
        commit(loaded, "third", 3)
        tp.save_pack(loaded, tmp_path / "again.packnet", free_values=True)

    def test_missing_pretrained_values_are_refused(self, tmp_path):
        packed = commit(tp.pack(make_mlp(), pretrained="task 0"), "first", 1)
        tp.save_pack(packed, tmp_path / "pack.packnet")
        loaded = tp.load_pack(tmp_path / "pack.packnet")
        with pytest.raises(tp.ArgumentError, match="a pack with its pretrained values"):
            loaded.begin_task("second")


class TestSavingRefused:
    def test_an_open_task(self, tmp_path):
        packed = tp.pack(make_mlp())
        with pytest.raises(tp.ArgumentError, match="without an open task .*'task_1' is open"):
            tp.save_pack(packed, tmp_path / "pack.packnet")
        commit(packed, "first", 1).begin_task("second")
        with pytest.raises(tp.ArgumentError, match="'second' is open"):
            tp.save_pack(packed, tmp_path / "pack.packnet")
        assert not list(tmp_path.iterdir())

    def test_code_in_a_layer(self, tmp_path):
        packed = tp.pack(keras.Sequential([keras.Input((6,)), L.Lambda(lambda x: x * 2), L.Dense(4), L.Dense(2)]))
        with pytest.raises(tp.ArgumentError, match="its network has a keras.layers.Lambda"):
            tp.save_pack(commit(packed, "first", 1), tmp_path / "pack.packnet")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("info", "message"),
        [
            ([], "a mapping"),
            ({"accuracy": 1.0}, "only the keys 'dataset', 'scale'.*Received: info='accuracy'"),
            ({"scale": 0}, r"info\['scale'\]`: expected a finite number above 0"),
            ({"scale": float("nan")}, "a finite number above 0"),
            ({"dataset": 3}, "a string"),
            ({"tasks": {"third": {}}}, "from task names to facts; the tasks are 'first'"),
            ({"tasks": {"first": {"class_names": ["a"]}}}, "2 names, one per output"),
            ({"tasks": {"first": {"class_names": "ab"}}}, "a list of at least one string"),
            ({"tasks": {"first": {"accuracy": 1.5}}}, "from 0 to 1"),
            ({"extra": object()}, "JSON values"),
        ],
    )
    def test_invalid_info(self, info, message, tmp_path):
        packed = commit(tp.pack(make_mlp()), "first", 1)
        with pytest.raises(tp.ArgumentError, match=message):
            tp.save_pack(packed, tmp_path / "pack.packnet", info=info)
        assert not list(tmp_path.iterdir())


INFO = {
    "dataset": "toys",
    "scale": 1 / 255,
    "tasks": {"first": {"class_names": ["cat", "dog"], "accuracy": 0.75}, "second": {"scale": 0.5}},
    "extra": {"seed": 0},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file with two tasks of an MLP, and its pack."""
    path = tmp_path_factory.mktemp("saved") / "pack.packnet"
    packed = two_tasks(tp.pack(make_mlp()))
    tp.save_pack(packed, path, info=INFO, free_values=True)
    return path, packed


def spans(path):
    """Return the start and end of each part, by name."""
    found, start = {}, HEADER + int.from_bytes(path.read_bytes()[12:16], "little")
    found["directory"] = (HEADER, start)
    for part in tp.read_contents(path).parts:
        found[part.name] = (start, start + part.stored)
        start += part.stored
    return found


class TestContents:
    def test_contents(self, saved):
        path, packed = saved
        contents = tp.read_contents(path)
        assert contents.task_names == ["first", "second"]
        assert contents.info == INFO
        first, second = contents.tasks
        assert (first.class_names, first.accuracy) == (("cat", "dog"), 0.75)
        assert (second.class_names, second.accuracy) == (None, None)
        assert tuple(contents.recorded("scale", name) for name in contents.task_names) == (1 / 255, 0.5)
        for task in contents.tasks:
            counted = {name: int((owner == task.number).sum()) for name, owner in packed.owner_maps().items()}
            assert task.owned == counted
        assert contents.free == {name: int((owner == 0).sum()) for name, owner in packed.owner_maps().items()}
        assert contents.free_fraction == packed.free_fraction()["overall"]
        assert contents.weights["dense_1/kernel"] == WeightEntry((6, 12), "float32")
        assert contents.has_free_values
        assert sum(part.stored for part in contents.parts) + spans(path)["directory"][1] == path.stat().st_size
        assert contents.pack["freed_weights"] == "zero"

    def test_neither_tensorflow_nor_keras_is_imported(self, saved):
        code = (
            "import sys; from tf_packnet.packfile import read_contents; print(read_contents(sys.argv[1]).task_names)\n"
            "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(saved[0])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "TF_PACKNET_LAZY": "1"},
        )
        assert done.stdout.splitlines() == ["['first', 'second']", "[]"], done.stderr

    def test_the_same_pack_gives_the_same_bytes(self, saved, tmp_path):
        path, _ = saved
        tp.save_pack(tp.load_pack(path), tmp_path / "again.packnet", info=INFO, free_values=True)
        assert (tmp_path / "again.packnet").read_bytes() == path.read_bytes()


def test_info_of_a_stream():
    stream = tp.tasks.load("digits", classes_per_task=2, num_tasks=3)
    info = tp.packfile.info_of(stream[:2], "digits", {"0-1": np.float32(0.5)}, extra={"seed": 1})
    facts = {"scale": 1 / 16, "white": 16}
    assert info == {
        "dataset": "digits",
        "extra": {"seed": 1},
        "tasks": {
            "0-1": {"class_names": ["0", "1"], "accuracy": 0.5, **facts},
            "2-3": {"class_names": ["2", "3"], **facts},
        },
    }
    check_info(info, {"0-1": {"head": (2, None)}, "2-3": {"head": (2, None)}})
    task = tp.tasks.from_arrays("floats", np.arange(60.0).reshape(20, 3), np.arange(20) % 2, scale=0.5, batch_size=4)
    assert tp.packfile.info_of([task])["tasks"]["floats"] == {"class_names": ["0", "1"], "scale": 0.5}


class TestOneTask:
    def test_only_the_parts_of_the_task_are_read(self, saved, tmp_path):
        """The first task can be loaded although the parts of later tasks are damaged."""
        path, packed = saved
        data, where = bytearray(path.read_bytes()), spans(path)
        for name in ("task 2", "free"):
            start, end = where[name]
            data[start:end] = bytes(end - start)
        (tmp_path / "torn.packnet").write_bytes(data)
        x = blobs(0)[0]
        plain = tp.load_task(tmp_path / "torn.packnet", "first")
        np.testing.assert_array_equal(outputs(plain, x)[0], outputs(tp.export.dense_model(packed, 1), x)[0])
        for task in (2, "second"):
            with pytest.raises(tp.PackFileError, match="part 'task 2' is damaged"):
                tp.load_task(tmp_path / "torn.packnet", task)
        with pytest.raises(tp.PackFileError, match="part 'task 2' is damaged"):
            tp.load_pack(tmp_path / "torn.packnet")

    @pytest.mark.parametrize("task", ["third", 0, 3, -1])
    def test_no_such_task(self, saved, task):
        with pytest.raises(tp.ArgumentError, match="`task`: expected one of 'first', 'second', or its number"):
            tp.load_task(saved[0], task)


class TestDamage:
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
    def test_any_byte(self, saved, tmp_path, position, flip):
        path, _ = saved
        data = bytearray(path.read_bytes())
        position %= len(data)
        data[position] ^= flip
        torn = tmp_path / "torn.packnet"
        torn.write_bytes(data)
        with pytest.raises(tp.PackFileError) as caught:
            tp.load_pack(torn)
        places = [name for name, (start, end) in spans(path).items() if start <= position < end]
        if position < HEADER:
            assert caught.value.part in ("header", "directory")
        else:
            assert caught.value.part in (f"part {places[0]!r}", places[0])
        assert str(caught.value).startswith(f"{torn}: ")

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(length=st.integers(0, 10**6))
    def test_cut_short_anywhere(self, saved, tmp_path, length):
        path, _ = saved
        data = path.read_bytes()
        torn = tmp_path / "torn.packnet"
        torn.write_bytes(data[: length % len(data)])
        for read in (tp.read_contents, tp.load_pack):
            with pytest.raises(tp.PackFileError, match="is cut short|not that of a pack file"):
                read(torn)

    def test_the_truncated_part_is_named(self, saved, tmp_path):
        torn = tmp_path / "torn.packnet"
        for name, (start, end) in spans(saved[0]).items():
            torn.write_bytes(saved[0].read_bytes()[: max(start, end - 1)])
            with pytest.raises(tp.PackFileError) as caught:
                tp.load_pack(torn)
            assert name in caught.value.part

    def test_extra_bytes_at_the_end(self, saved, tmp_path):
        (tmp_path / "long.packnet").write_bytes(saved[0].read_bytes() + b"more")
        with pytest.raises(tp.PackFileError, match="followed by 4 extra bytes"):
            tp.load_pack(tmp_path / "long.packnet")

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.binary(max_size=200), with_magic=st.booleans())
    def test_random_bytes(self, tmp_path, data, with_magic):
        (tmp_path / "any").write_bytes((container.MAGIC if with_magic else b"") + data)
        with pytest.raises(tp.PackFileError):
            tp.load_pack(tmp_path / "any")

    def test_a_later_version(self, saved, tmp_path):
        data = bytearray(saved[0].read_bytes())
        data[8:12] = (3).to_bytes(4, "little")
        (tmp_path / "later.packnet").write_bytes(data)
        message = "header has format version 3, .*reads versions 1 to 2: upgrade tf_packnet$"
        with pytest.raises(tp.PackFileError, match=message):
            tp.load_pack(tmp_path / "later.packnet")

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            tp.load_pack(tmp_path / "none.packnet")
        with pytest.raises(IsADirectoryError):
            tp.load_pack(tmp_path)


def forged(path, to, change=lambda directory: None, **parts):
    """Write the file with a changed directory or changed parts, and matching checksums."""
    data = path.read_bytes()
    stored = int.from_bytes(data[12:16], "little")
    directory = json.loads(zlib.decompress(data[HEADER : HEADER + stored]))
    bodies = {}
    start = HEADER + stored
    for part in directory["parts"]:
        bodies[part["name"]] = data[start : start + part["stored"]]
        start += part["stored"]
        plain = parts.get(part["name"].replace(" ", "_"))
        if plain is not None:
            bodies[part["name"]] = zlib.compress(plain)
            part.update(stored=len(zlib.compress(plain)), plain=len(plain))
            part["sha256"] = hashlib.sha256(zlib.compress(plain)).hexdigest()
            if len(part["arrays"]) == 1:
                part["arrays"][0][3] = [len(plain)]
    change(directory)
    text = json.dumps(directory).encode()
    squeezed = zlib.compress(text)
    header = container._HEADER.pack(container.MAGIC, container.VERSION, len(squeezed), len(text))
    to.write_bytes(header + hashlib.sha256(header + squeezed).digest() + squeezed + b"".join(bodies.values()))
    return to


def plain_part(path, name):
    start, end = spans(path)[name]
    return zlib.decompress(path.read_bytes()[start:end])


class TestForgery:
    """Malicious files with matching checksums."""

    def test_unchanged_forged_files_are_valid(self, saved, tmp_path):
        tp.load_pack(forged(saved[0], tmp_path / "same.packnet"))
        again = forged(saved[0], tmp_path / "same.packnet", model=plain_part(saved[0], "model"))
        tp.load_pack(again)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["parts"][0].update(plain=10**12), "part 'model' claims 1000000000000 bytes, but its arrays"),
            (lambda d: d["parts"][0].update(plain=-1), "has a negative size"),
            (lambda d: d["parts"][0].update(stored=-1), "has a negative size"),
            (lambda d: d["parts"][0].update(stored=10**15), "part 'model' is cut short"),
            (lambda d: d["parts"][0].update(name="task 1"), "its parts are"),
            (lambda d: d["parts"].pop(), "followed by"),
            (lambda d: d["parts"][2]["arrays"].pop(0), "claims"),
            (lambda d: d["parts"][2]["arrays"][0].__setitem__(3, [10**18]), "claims"),
            (lambda d: d["parts"][2]["arrays"][0].__setitem__(2, "object"), "dtype 'object' is unknown"),
            (lambda d: d["parts"][2]["arrays"][0].__setitem__(2, ["float32"]), "is not that of a pack"),
            (lambda d: d["parts"][2]["arrays"][0].__setitem__(0, "code"), "'code' is not a kind of array"),
            (lambda d: d["weights"].update({"dense_1/kernel": ["float32", [10**9, 10**9]]}), "other weights"),
            (lambda d: d["weights"].update({"dense_1/kernel": ["float32", [1]]}), "its tasks own"),
            (lambda d: d["weights"].update({"dense_1/kernel": ["float32", [12, 6]]}), "other weights"),
            (lambda d: d["weights"].update(more=["float32", [1]]), "is not that of a pack"),
            (lambda d: d["weights"].pop("dense_1/kernel"), "other weights"),
            (lambda d: d.update(tasks=[]), "it has 0 tasks"),
            (lambda d: d.update(tasks=d["tasks"][:1] * 2), "it has 2 tasks"),
            (lambda d: d.update(selected=7), "task 7 selected"),
            (lambda d: d.update(selected=True), "'selected' is a bool"),
            (lambda d: d.update(info={"scale": -1}), "info.*above 0"),
            (lambda d: d["tasks"][0]["heads"].update(head=[10**9, None]), "directory|tasks"),
            (lambda d: d["tasks"][0]["heads"].update(head=[2, "no activation"]), "tasks"),
            (lambda d: d.pop("tasks"), "is not that of a pack: tasks"),
            (lambda d: d.clear(), "is not that of a pack"),
        ],
    )
    def test_directory(self, saved, tmp_path, change, message):
        path = forged(saved[0], tmp_path / "forged.packnet", change)
        with pytest.raises(tp.PackFileError, match=message):
            tp.load_pack(path)

    def config(self, saved):
        return json.loads(plain_part(saved[0], "model"))

    def refused(self, saved, tmp_path, config, message):
        path = forged(saved[0], tmp_path / "forged.packnet", model=json.dumps(config).encode())
        with pytest.raises(tp.PackFileError, match=f"part 'model' .*{message}"):
            tp.load_pack(path)

    def layer(self, config, name):
        return next(layer for layer in config["config"]["network"]["layers"] if layer["name"] == name)

    def test_a_network_that_is_too_large_allocates_no_memory(self, saved, tmp_path):
        config = self.config(saved)
        self.layer(config, "dense_1")["config"]["units"] = 10**9
        self.layer(config, "dense_2")["build_config"] = {"input_shape": [None, 10**9]}
        self.refused(saved, tmp_path, config, "units=1000000000 would take 16,000,000,000 bytes of memory")

    def test_max_bytes(self, saved):
        for most, part in ((3000, "directory"), (60_000, "part 'model'")):
            with pytest.raises(tp.PackFileError, match=rf"{part} .*more than the bound of {most:,}; max_bytes=\d+"):
                tp.load_pack(saved[0], max_bytes=most)

    @pytest.mark.parametrize(
        ("module", "name", "registered"),
        [
            ("os", "system", None),
            ("keras.utils", "get_file", None),
            ("keras.layers", "Lambda", None),
            ("keras.layers", "TFSMLayer", None),
            ("keras.layers", "Dense", "tests>Nobody"),
            ("keras.optimizers", "Adam", None),
            ("tests.test_any_model", "Subclassed2", "Subclassed2"),
            ([], {}, 3),
        ],
    )
    def test_another_class(self, saved, tmp_path, module, name, registered):
        config = self.config(saved)
        self.layer(config, "dense_2").update(module=module, class_name=name, registered_name=registered)
        self.refused(saved, tmp_path, config, "")

    def test_another_function(self, saved, tmp_path):
        config = self.config(saved)
        evil = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
        self.layer(config, "dense_2")["config"]["activation"] = evil
        self.refused(saved, tmp_path, config, "has the function os.system")

    def test_a_file_to_read(self, saved, tmp_path):
        config = self.config(saved)
        lookup = {"name": "words", "vocabulary": "/etc/passwd"}
        self.layer(config, "dense_2").update(
            module="keras.layers", class_name="StringLookup", registered_name=None, config=lookup
        )
        self.refused(saved, tmp_path, config, "reads its vocabulary from a file")

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", "[" * 10**5, '{"class_name": "Dense"}'])
    def test_invalid_config(self, saved, tmp_path, text):
        path = forged(saved[0], tmp_path / "forged.packnet", model=text.encode())
        with pytest.raises(tp.PackFileError, match="part 'model'"):
            tp.load_pack(path)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_random_values(self, saved, tmp_path, data):
        """Any bytes are valid values; as gaps they fit the owner map or are refused."""
        plain = bytearray(plain_part(saved[0], "task 1"))
        for _ in range(3):
            plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
        path = forged(saved[0], tmp_path / "forged.packnet", task_1=bytes(plain))
        with contextlib.suppress(tp.PackFileError, tp.FreezeError):
            assert tp.load_pack(path).committed_tasks == 2

    @pytest.mark.parametrize("name", ["..", "../../evil", "/etc/evil", "a\\b", "", "a\0b"])
    def test_assets_stay_in_their_folder(self, name):
        with pytest.raises(ValueError, match="an asset has the invalid name"):
            loading._load_assets(None, {name: np.zeros(1, np.uint8)})

    def test_building_without_memory_has_no_side_effects(self, saved):
        text = plain_part(saved[0], "model").decode()
        with keras.StatelessScope():
            pass  # would make what was only sketched
        sketched = footprint.build_without_memory(json.loads(text), model_config._build)
        with keras.StatelessScope():
            pass
        assert all(v._value is None for v in sketched.variables)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_gaps_restore_owner_maps(data):
    size, tasks = data.draw(st.integers(0, 600)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    owner = rng.choice(tasks + 1, size=size, p=rng.dirichlet(np.full(tasks + 1, 0.3))).astype(np.uint8)
    again = np.zeros(size, np.uint8)
    for task in range(1, tasks + 1):
        gaps = coding.to_gaps(owner, task)
        np.testing.assert_array_equal(coding.take_gaps(again, gaps, task), owner == task)
    np.testing.assert_array_equal(again, owner)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "bfloat16", "float32", "int64", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4), (3, 0)])
def test_planes_restore_arrays(dtype, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.dtype(dtype))
    again = coding.from_planes(memoryview(coding.to_planes(array)), dtype, shape)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("final_prune", [0.5, 0.75, 0.9, 0.95, 0.99, 0.995])
def test_file_size_is_close_to_the_entropy(final_prune, tmp_path):
    """At most 1.15 times the entropy of the owner maps plus 4 bytes per owned weight."""
    model = keras.Sequential([keras.Input((400,)), L.Dense(300, activation="relu"), L.Dense(200), L.Dense(2)])
    packed, tasks = tp.pack(model), 5
    for number in range(tasks):
        commit(packed, f"task {number}", number, prune=final_prune ** (1 / tasks))
    path = tmp_path / "pack.packnet"
    tp.save_pack(packed, path)
    bits = used = 0.0
    for owner in packed.owner_maps().values():
        share = np.bincount(owner.reshape(-1), minlength=tasks + 1) / owner.size
        bits -= owner.size * np.sum(share[share > 0] * np.log2(share[share > 0]))
        used += np.count_nonzero(owner)
    used += tasks * (200 * 2 + 2) + 300 + 200  # heads and the first task's biases
    assert path.stat().st_size <= 1.15 * (bits / 8 + 4 * used)
    assert sum(tp.read_contents(path).free.values()) / (400 * 300 + 300 * 200) == pytest.approx(final_prune, abs=0.01)
