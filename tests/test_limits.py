"""Files that declare too much memory are refused with one line before allocation; large valid files are opened."""

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests import forked, hostile
from tests.conftest import make_mlp
from tests.hostile import BOMB, CONFIG, MB, WEIGHTS
from tests.test_packfile import commit
from tf_packnet.command_line.inspect_pack import parse_request
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.predict import parse_command
from tf_packnet.inspection.opened_pack import open_pack as inspect
from tf_packnet.packfile import container
from tf_packnet.packfile.opening import kind_of, open_pack, tasks_of_keras_file
from tf_packnet.prediction import Asked, examples, predict
from tf_packnet.prediction.predicting import _in_batches
from tf_packnet.runs.config import Config
from tf_packnet.system import archives, files, limits
from tf_packnet.system.limits import Bound

L = keras.layers
# What a refused file may take, with what TensorFlow takes for its first network.
MOST = 400 * MB
GREY = examples.InputSpec((8, 8, 1), "float32", 1.0, 255.0)


def assert_refused(path, opener, message="", *arguments):
    """The file is refused in a line that names it, and takes little memory."""
    outcome = forked.outcome(opener, path, *arguments)
    assert isinstance(outcome.error, tp.ArgumentError | tp.PackFileError), outcome
    assert str(path) in str(outcome.error)
    assert "\n" not in str(outcome.error)
    assert len(str(outcome.error)) < 1000 + 2 * len(str(path))
    assert message in str(outcome.error)
    assert outcome.grown < MOST, outcome


def read_examples(path: Path) -> None:
    for _ in examples.read(examples.files_of([str(path)]), GREY):
        pass


def odd_layers() -> keras.Model:
    """Layers with settings that cost memory without weights."""
    image = keras.Input((8, 8, 1))
    x = L.Resizing(4, 4)(image)
    x = L.RepeatVector(7)(L.Dense(4)(L.Flatten()(x)))
    return keras.Model(image, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


def words() -> keras.Model:
    text = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 4)(text)
    x = L.MultiHeadAttention(1, 4)(x, x)
    return keras.Model(text, L.Dense(2)(L.Flatten()(x)))


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """Folder of packs in both formats."""
    folder = tmp_path_factory.mktemp("genuine")
    for name, make in {"mlp": make_mlp, "odd": odd_layers, "words": words}.items():
        packed = commit(tp.pack(make()), "first", 1)
        packed.save(folder / f"{name}.keras")
        tp.save_pack(packed, folder / f"{name}.packnet")
    return folder


JSON = {
    "spaces": b" " * (70 * MB),
    "lists": b"[" + b"[]," * (12 * MB) + b"[]]",
    "strings": b"[" + b'"\xf0\x9f\x98\x80ab",' * (8 * MB) + b"0]",
    "deep": b'{"config":' * 200_000 + b"0" + b"}" * 200_000,
    "long integer": b'{"config": 1' + b"0" * MB + b"}",
    "not text": b"\xff\xfe{}",
    "list": b"[]",
    "empty": b"",
}


class TestKerasFiles:
    @pytest.mark.parametrize("content", JSON)
    def test_the_config(self, genuine, tmp_path, content):
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", config=JSON[content])
        for opener in (open_pack, tasks_of_keras_file):
            assert_refused(path, opener)

    @pytest.mark.parametrize("member", [CONFIG, WEIGHTS, "metadata.json", "assets/more/0.txt", "other"])
    def test_a_compressed_member(self, genuine, tmp_path, member):
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", others={member: BOMB})
        if member == WEIGHTS:
            path = hostile.keras_file(path, genuine / "mlp.keras", weights=BOMB)
        elif member == CONFIG:
            path = hostile.keras_file(path, genuine / "mlp.keras", config=BOMB)
        assert_refused(path, open_pack, f"bytes of memory, more than the bound of {limits.DEFAULT:,}; max_bytes=")

    def test_a_vocabulary_of_empty_lines(self, genuine, tmp_path):
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", others={"assets/x/v": b"\n" * 4 * MB})
        assert_refused(path, open_pack, "its vocabularies would take")

    @pytest.mark.parametrize(
        ("pack", "setting", "message"),
        [
            ("mlp", {"units": 50_000_000}, "units=50000000 would take 800,000,000 bytes"),
            ("mlp", {"units": 10**30}, "would take"),
            ("words", {"input_dim": 2**31}, "input_dim=2147483648"),
            ("words", {"input_dim": 8_000_000}, "bytes of variables would take"),
            ("words", {"batch_shape": [None, 100_000]}, ""),
            ("words", {"batch_shape": [100_000_000, 6]}, ""),
            ("odd", {"n": 8_000_000}, "an intermediate result of"),
            ("odd", {"height": 1_000_000, "width": 1_000_000}, ""),
            ("odd", {"batch_shape": [None, 100_000, 100_000, 1]}, ""),
        ],
    )
    def test_a_setting(self, genuine, tmp_path, pack, setting, message):
        config = hostile.with_settings(genuine / f"{pack}.keras", **setting)
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / f"{pack}.keras", config=config)
        assert_refused(path, open_pack, message)

    def test_more_weights_than_fit(self, genuine, tmp_path):
        config = hostile.with_number(hostile.members_of(genuine / "mlp.keras")[CONFIG], 12, 2_000_000)
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", config=config)
        assert_refused(path, open_pack, "bytes of variables would take")

    def test_too_many_layers(self, genuine, tmp_path):
        config = json.loads(hostile.members_of(genuine / "mlp.keras")[CONFIG])
        layer = {"module": "keras.layers", "class_name": "ReLU", "config": {}, "registered_name": None}
        config["config"]["network"]["layers"] += [layer | {"name": f"r{i}", "inbound_nodes": []} for i in range(50_000)]
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", config=json.dumps(config).encode())
        assert_refused(path, open_pack, "layers and their parts would take")

    @pytest.mark.parametrize(
        "change",
        [
            hostile.replace_dataset(shape=(40_000, 40_000), dtype="f4", chunks=True, compression="gzip"),
            hostile.replace_dataset(shape=(40_000, 40_000), dtype="f4"),
            hostile.replace_dataset(shape=(2**40,), dtype="f8"),
            hostile.replace_dataset(data=["text"] * 5),
            hostile.replace_dataset(data=np.zeros(3, [("a", "f4")])),
            hostile.replace_dataset(shape=(100,), dtype="f4", external=[("/dev/zero", 0, 400)]),
            hostile.replace_by_link(h5py.SoftLink("/")),
            hostile.replace_by_link(h5py.ExternalLink("/etc/passwd", "/")),
            hostile.cycle,
            hostile.virtual,
            lambda file, kernel: file.__setitem__(kernel + "2", file[kernel]),
            lambda file, kernel: [file.create_group(f"g{i}") for i in range(100)][0].file.__delitem__(kernel),
        ],
    )
    def test_the_weights(self, genuine, tmp_path, change):
        weights = hostile.with_weights(genuine / "mlp.keras", change)
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", weights=weights)
        assert_refused(path, open_pack)

    @pytest.mark.parametrize(
        ("name", "value"), [("units_of", np.array([[1, 50_000_000]])), ("committed_tasks", np.array(2**40))]
    )
    def test_a_number_in_the_weights(self, genuine, tmp_path, name, value):
        """A head of many units, or many tasks."""

        def change(file, kernel):
            for path in _paths(file, name):
                del file[path]
                file[path] = value

        weights = hostile.with_weights(genuine / "mlp.keras", change)
        path = hostile.keras_file(tmp_path / "bad.keras", genuine / "mlp.keras", weights=weights)
        assert_refused(path, open_pack)

    def test_many_members(self, genuine, tmp_path):
        path = hostile.keras_file(
            tmp_path / "bad.keras", genuine / "mlp.keras", others={f"assets/{i}": b"" for i in range(12_000)}
        )
        assert_refused(path, open_pack, "12,003 members")

    def test_a_file_cut_short_anywhere(self, genuine, tmp_path):
        content = (genuine / "mlp.keras").read_bytes()
        for length in (4, 30, len(content) // 2, len(content) - 30, len(content) - 1):
            (tmp_path / "cut.keras").write_bytes(content[:length])
            for opener in (open_pack, tasks_of_keras_file):
                with pytest.raises(tp.ArgumentError, match="damaged or cut short.*cut.keras") as caught:
                    opener(tmp_path / "cut.keras")
                assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable("tests")
class FromAnArray(L.Layer):
    def build(self, shape):
        self.factor = keras.Variable(np.full(shape[-1:], 2.0), trainable=False)

    def call(self, x):
        return x * self.factor


def test_a_layer_that_cannot_be_built_without_memory(tmp_path):
    packed = tp.pack(keras.Sequential([keras.Input((6,)), L.Dense(4), FromAnArray(), L.Dense(2)]))
    commit(packed, "first", 1).save(tmp_path / "pack.keras")
    with pytest.raises(tp.ArgumentError, match="the size of the network is unknown; max_bytes=N opens it anyway"):
        open_pack(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    with pytest.raises(tp.PackFileError, match="the size of the network is unknown; max_bytes=N opens it anyway"):
        tp.load_pack(tmp_path / "pack.packnet")
    for name in ("pack.keras", "pack.packnet"):
        assert open_pack(tmp_path / name, max_bytes=2**28).task_names == ["first"]


def _paths(file: h5py.File, name: str) -> list[str]:
    found: list[str] = []
    file.visit(lambda path: found.append(path) if path.endswith(name) else None)
    return found


class TestPackFiles:
    @pytest.mark.parametrize(
        ("pack", "change", "message"),
        [
            ("mlp", hostile.replace_array("shared", "variable", np.zeros(BOMB // 4, "f4")), "part 'shared' is too"),
            ("mlp", hostile.replace_array("task 1", "state", np.zeros(BOMB // 4, "f4")), "part 'task 1' is too large"),
            ("mlp", hostile.replace_array("shared", "asset", np.zeros(BOMB, "u1")), "part 'shared' is too large"),
            ("mlp", hostile.replace_array("model", "config", np.zeros(BOMB, "u1")), "part 'model' is too large"),
            ("mlp", hostile.replace_array("model", "config", np.frombuffer(JSON["lists"], "u1")), "part 'model'"),
            ("mlp", hostile.replace_array("task 1", "witness", np.frombuffer(JSON["lists"], "u1")), "the witness of"),
            ("mlp", hostile.replace_array("task 1", "witness", np.frombuffer(JSON["deep"], "u1")), "nested too"),
            ("mlp", hostile.replace_number(12, 50_000_000), "units=50000000 would take"),
            ("mlp", hostile.replace_number(12, 2_000_000), "bytes of variables would take"),
            ("odd", hostile.replace_number(7, 8_000_000), "an intermediate result of"),
            ("words", hostile.replace_number(11, 8_000_000), "bytes of variables"),
            ("mlp", lambda directory, _: directory["info"].update(extra=[[]] * (8 * MB)), "directory is too large"),
        ],
    )
    def test_a_part(self, genuine, tmp_path, pack, change, message):
        path = hostile.packnet(tmp_path / "bad.packnet", genuine / f"{pack}.packnet", change)
        assert_refused(path, open_pack, message)

    def test_an_array_without_numbers(self, genuine, tmp_path):
        """Its shape has a length that NumPy does not have."""
        path = tmp_path / "bad.packnet"
        hostile.packnet(path, genuine / "mlp.packnet", hostile.replace_array("task 1", "state", np.zeros((0, 1234567))))
        content = path.read_bytes()
        directory = zlib.decompress(content[container.HEADER_BYTES :]).replace(b"1234567", b"9" * 40)
        stored, end = zlib.compress(directory), container.HEADER_BYTES + int.from_bytes(content[12:16], "little")
        start = content[:12] + len(stored).to_bytes(4, "little") + len(directory).to_bytes(4, "little")
        path.write_bytes(start + hashlib.sha256(start + stored).digest() + stored + content[end:])
        with pytest.raises(tp.PackFileError, match="part 'task 1' has an array of shape"):
            tp.load_pack(path)

    def test_max_bytes_raises_the_bound(self, genuine, tmp_path):
        path = genuine / "mlp.packnet"
        for opener in (tp.load_pack, open_pack):
            with pytest.raises(
                (tp.PackFileError, tp.ArgumentError), match=r"more than .* 20,000; max_bytes=\d+ allows"
            ):
                opener(path, max_bytes=20_000)
            assert opener(path, max_bytes=2**24).task_names == ["first"]

    def test_a_file_as_large_as_its_network(self, tmp_path):
        """Large networks need no flag: here the bound is that of the file, not the default."""
        packed = commit(tp.pack(keras.Sequential([keras.Input((500,)), L.Dense(400), L.Dense(2)])), "first", 1)
        packed.save(tmp_path / "pack.keras")
        tp.save_pack(packed, tmp_path / "pack.packnet")
        for name in ("pack.keras", "pack.packnet"):
            bound = limits.PACK_RATIO * (tmp_path / name).stat().st_size
            assert open_pack(tmp_path / name, max_bytes=bound).task_names == ["first"]

    def test_a_sparse_pack_of_the_papers_largest_network_needs_no_flag(self, tmp_path):
        network = keras.Sequential([keras.Input((8192,)), L.Dense(1054), L.Dense(2)])
        packed = commit(tp.pack(network), "first", 1, prune=0.999)
        tp.save_pack(packed, tmp_path / "pack.packnet")
        assert (tmp_path / "pack.packnet").stat().st_size < MB
        assert open_pack(tmp_path / "pack.packnet").task_names == ["first"]


NPZ = {
    "zeros": {"x.npy": BOMB},
    "claims": {"x.npy": hostile.npy((2**40,), "<f4")},
    "overflow": {"x.npy": hostile.npy((2**33, 2**33), "<f4")},
    "negative": {"x.npy": hostile.npy((-8, 8), "|u1", bytes(64))},
    "objects": {"x.npy": hostile.npy((1,), "|O", b"cos\nsystem\n(S'true'\ntR.")},
    "structured": {"x.npy": hostile.npy((2, 8, 8), [("a", "<f4")], bytes(512))},
    "complex": {"x.npy": hostile.npy((2, 8, 8), "<c8", bytes(1024))},
    "text": {"x.npy": hostile.npy((2, 8, 8), "<U1", bytes(512))},
    "dates": {"x.npy": hostile.npy((2, 8, 8), "<M8[s]", bytes(1024))},
    "nothing": {"x.npy": hostile.npy((2**40, 0, 8), "|u1")},
    "long text": {"x.npy": hostile.npy((0,), "<U99999999")},
    "thousands of names": {f"a{i}.npy": hostile.npy((), "|u1", b"1") for i in range(3000)},
    "a path": {"../../x.npy": hostile.npy((), "|u1", b"1")},
    "no members": {},
    "more than it declares": {"x.npy": hostile.npy((2, 8, 8), "|u1", bytes(129))},
    "header": {"x.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
}


class TestArrays:
    @pytest.mark.parametrize("kind", NPZ)
    def test_npz(self, tmp_path, kind):
        path = hostile.write_zip(tmp_path / "x.npz", NPZ[kind])
        assert_refused(path, read_examples)

    @pytest.mark.parametrize("kind", [name for name, members in NPZ.items() if isinstance(members.get("x.npy"), bytes)])
    def test_npy(self, tmp_path, kind):
        (tmp_path / "x.npy").write_bytes(NPZ[kind]["x.npy"])
        assert_refused(tmp_path / "x.npy", read_examples)

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compressions(self, tmp_path, compression):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
            archive.writestr("x.npy", hostile.npy((2, 8, 8), "|u1", bytes(128)))
        with pytest.raises(tp.ArgumentError, match="another compression than deflate"):
            read_examples(tmp_path / "x.npz")

    def test_a_directory_of_many_members(self, tmp_path):
        path = hostile.write_zip(tmp_path / "x.npz", {f"{i:0150}.npy": b"" for i in range(25_000)})
        assert_refused(path, read_examples, "directory is too large")
        with pytest.raises(tp.ArgumentError, match="directory is too large"):
            tp.load_owner_maps(path)

    def test_too_many_examples(self, tmp_path):
        np.savez_compressed(tmp_path / "x.npz", x=np.zeros((200_000, 8, 8, 1), np.uint8))
        assert_refused(tmp_path / "x.npz", read_examples, "fewer examples (predictions for 200,000 examples")

    def test_sparse_file(self, tmp_path):
        with (tmp_path / "x.npy").open("wb") as file:
            file.write(hostile.npy((2**33, 8, 8), "|u1"))
            file.truncate(file.tell() + 2**39)
        assert_refused(tmp_path / "x.npy", read_examples, "its array would take")

    def test_owner_maps(self, tmp_path):
        path = hostile.write_zip(tmp_path / "maps.npz", {"a.npy": BOMB, "b.npy": BOMB})
        with pytest.raises(tp.ArgumentError, match=r"maps.npz|more than the bound of 320,000,000; max_bytes="):
            tp.load_owner_maps(path)
        np.savez_compressed(path, kernel=np.zeros((300, 1000), np.uint8))
        with pytest.raises(tp.ArgumentError, match="max_bytes=300128 allows it"):
            tp.load_owner_maps(path, max_bytes=300_000)
        assert tp.load_owner_maps(path, max_bytes=300_128)["kernel"].shape == (300, 1000)

    def test_state(self, tmp_path):
        path = hostile.write_zip(tmp_path / "state.npz", {"a.npy": BOMB})
        with pytest.raises(archives.BROKEN, match="max_bytes"):
            archives.read_state(path)
        state = {"w": np.arange(6.0).reshape(2, 3), "text": np.array("a\u0394"), "flag": np.array(True)}
        np.savez(path, **state)
        found = archives.read_state(path)
        assert found.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value, strict=True)

    @given(
        shape=st.lists(st.integers(-2, 2**70), max_size=34).map(tuple),
        descr=st.sampled_from(["|u1", "<f4", ">f8", "<c16", "|O", "<U0", "<U2147483647", "|V3", "<M8[ns]"]),
        data=st.binary(max_size=40),
    )
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_header(self, tmp_path, shape, descr, data):
        (tmp_path / "x.npy").write_bytes(hostile.npy(shape, descr, data))
        try:
            found = archives.read_array(tmp_path / "x.npy", "x", Bound())
        except archives.BROKEN:
            return
        assert found.nbytes == len(data)


IMAGES = {
    "178 megapixels": lambda path: hostile.png(path, 13_300, 13_300, colours=3),
    "70 megapixels": lambda path: hostile.png(path, 10_000, 7_000, colours=3),
    "4 gigapixels": lambda path: hostile.gif(path, 65_535, 65_535),
    "bitmap": lambda path: hostile.bmp(path, 20_000, 20_000),
    "upside down": lambda path: hostile.bmp(path, 2**31 - 1, -(2**31 - 1)),
    "many scans": lambda path: hostile.many_scans(path, 4000, 2000),
    "another format": lambda path: _save(path, "PPM"),
    "text chunks": lambda path: hostile.png(path, 9, 9, ((b"zTXt", b"a\0\0" + _deflated(BOMB)),)),
    "profile": lambda path: hostile.png(path, 9, 9, ((b"iCCP", b"a\0\0" + _deflated(BOMB)),)),
}  # fmt: skip


def _save(path: Path, kind: str) -> Path:
    from PIL import Image

    Image.new("L", (8, 8)).save(path, kind)
    return path


def _deflated(size: int) -> bytes:
    compressor = zlib.compressobj(1)
    return b"".join(compressor.compress(bytes(MB)) for _ in range(size // MB)) + compressor.flush()


class TestImages:
    @pytest.mark.parametrize("kind", IMAGES)
    def test_is_refused(self, tmp_path, kind):
        path = IMAGES[kind](tmp_path / "x.png")
        outcome = forked.outcome(read_examples, path)
        assert outcome.grown < MOST
        if kind not in ("text chunks", "profile"):  # Pillow bounds or ignores these
            assert isinstance(outcome.error, tp.ArgumentError)
            assert str(path) in str(outcome.error)

    def test_a_folder_of_large_images(self, tmp_path):
        for number in range(6):
            for name in "ab":
                (tmp_path / name).mkdir(exist_ok=True)
                hostile.png(tmp_path / name / f"{number}.png", 4000, 4000)
        with pytest.raises(tp.ArgumentError, match="smaller images .*max_bytes="):
            tp.tasks.from_folder(tmp_path, batch_size=2, on_disk=False)
        with pytest.raises(tp.ArgumentError, match="10 equal examples"):  # read, as they are small now
            tp.tasks.from_folder(tmp_path, (8, 8), batch_size=2)

    def test_a_large_photograph(self, tmp_path):
        """24 megapixels, as phones take them."""
        from PIL import Image

        Image.new("RGB", (6000, 4000), "red").save(tmp_path / "x.jpg", progressive=True)
        ((_, x),) = examples.read([tmp_path / "x.jpg"], GREY)
        assert x.shape == (1, 8, 8, 1)

    def test_a_folder_of_too_many_images(self, tmp_path):
        for number in range(20):
            (tmp_path / f"{number}.png").touch()
        with pytest.raises(tp.ArgumentError, match="fewer examples"):
            examples.files_of([str(tmp_path)], max_bytes=10 * examples._PREDICTION_BYTES)


class TestSpecialFiles:
    """Devices and pipes have no end: they are refused, not read."""

    @pytest.fixture(params=["pipe", "device", "folder"])
    def special(self, tmp_path, request):
        if request.param == "device":
            return Path("/dev/zero")
        path = tmp_path / "special"
        os.mkfifo(path) if request.param == "pipe" else path.mkdir()
        return path

    def test_is_refused(self, special):
        with pytest.raises(tp.ArgumentError):
            kind_of(special)
        with pytest.raises(tp.ArgumentError):
            examples.files_of([str(special)])
        for opener in (tp.load_pack, tp.read_contents, tp.load_owner_maps, limits.read_json, files.read_json):
            with pytest.raises(OSError, match=r"not a file|not a regular file|directory"):
                opener(special)


class TestJson:
    @pytest.mark.parametrize("content", JSON)
    def test_is_refused(self, tmp_path, content):
        (tmp_path / "results.json").write_bytes(JSON[content])
        outcome = forked.outcome(_read_json, tmp_path / "results.json")
        assert outcome.grown < MOST
        assert isinstance(outcome.error, files.DamagedError)

    @pytest.mark.parametrize("text", ['{"a": [1, 2.5, "b", null]}', "{}", '{"a": {"b": {"c": [[[]]]}}}'])
    def test_is_read(self, tmp_path, text):
        (tmp_path / "x.json").write_text(text)
        assert limits.read_json(tmp_path / "x.json") == json.loads(text)


def _read_json(path: Path) -> None:
    files.read_json(path)


class TestCommands:
    def test_max_bytes_of_predict_and_inspect(self, genuine):
        assert parse_command(["predict", "--pack=p", "--input=x.npz", "--max_bytes=5"]).max_bytes == 5
        assert parse_request(["inspect", f"--pack={genuine}/mlp.keras", "--max_bytes=5"]).max_bytes == 5
        for parse, rest in ((parse_command, ["--input=x.npz"]), (parse_request, [])):
            with pytest.raises(UsageError, match="--max_bytes=0: expected at least 1"):
                parse(["program", f"--pack={genuine}/mlp.keras", "--max_bytes=0", *rest])

    @pytest.mark.parametrize("name", ["mlp.keras", "mlp.packnet"])
    def test_inspect_is_bounded(self, genuine, name):
        with pytest.raises(tp.ArgumentError, match="more than the bound of 20,000; max_bytes="):
            inspect(genuine / name, max_bytes=20_000)

    def test_predict_is_bounded(self, genuine, tmp_path):
        np.savez_compressed(tmp_path / "x.npz", x=np.zeros((4, 6), np.float32))
        with pytest.raises(tp.PackFileError, match="more than the bound of 20,000; max_bytes="):
            predict(Asked(f"{genuine}/mlp.packnet", (f"{tmp_path}/x.npz",), max_bytes=20_000))
        with pytest.raises(tp.ArgumentError, match="smaller file .*more than the bound of 100; max_bytes="):
            list(examples.read([tmp_path / "x.npz"], GREY, max_bytes=100))

    def test_max_bytes_does_not_make_another_run(self):
        assert Config(max_bytes=5).identity() == Config().identity()


def test_examples_are_predicted_in_whole_batches():
    """Predictions do not depend on how the examples come."""
    parts = [([f"{n}"] * n, np.full((n, 3), n)) for n in (1, 5, 2, 9, 1)]
    found = list(_in_batches(iter(parts), 4, [Path("a")]))
    assert [len(x) for _, x in found] == [4, 4, 8, 2]
    assert [name for names, _ in found for name in names] == [name for names, _ in parts for name in names]
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), np.concatenate([x for _, x in parts]))
    for names, x in found:
        assert [str(row[0]) for row in x] == names
