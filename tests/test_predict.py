"""Prediction from pack files gives the same results as the pack; errors are one line."""

import csv
import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import tf_packnet as tp
from tests.conftest import ROOT, make_convnet, make_mlp
from tests.test_any_model import text, two_outputs
from tests.test_packfile import commit
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.predict import parse_command
from tf_packnet.prediction import Asked, examples, predict

INFO = {
    "scale": 1 / 255,
    "tasks": {"pets": {"class_names": ["cat", "dog"]}, "wild": {"class_names": ["lion", "wolf", "elk"]}},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a pack of two tasks in both file formats, and examples in all formats."""
    folder = tmp_path_factory.mktemp("predict")
    packed = commit(commit(tp.pack(make_convnet()), "pets", 1), "wild", 2, num_classes=3)
    tp.save_pack(packed, folder / "pack.packnet", info=INFO)
    packed.save(folder / "pack.keras")
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    np.save(folder / "x.npy", images)
    np.savez(folder / "x.npz", x=images, y=np.zeros(7))
    np.savez(folder / "only.npz", anything=images.astype("float32") / 255)
    (folder / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "notes.txt").write_text("no image")
    return folder, packed, images


def run(here, capsys, *inputs, pack="pack.packnet", task="wild", format="json", **asked):
    folder = here[0]
    predict(Asked(str(folder / pack), tuple(str(folder / name) for name in inputs), task, format, **asked))
    return capsys.readouterr().out


def expected(packed, task, images):
    packed.select_task(task)
    return softmax(np.asarray(packed(images.astype(np.float32) * np.float32(1 / 255))), axis=1)


@pytest.mark.parametrize("file", ["x.npz", "x.npy", "only.npz", "photos"])
@pytest.mark.parametrize("task", ["pets", "2"])
def test_predicts_as_the_pack_does(here, capsys, file, task):
    _, packed, images = here
    found = json.loads(run(here, capsys, file, task=task, top=3))
    name = {"2": "wild"}.get(task, task)
    assert found["task"] == name
    should = expected(packed, name, images)
    classes = INFO["tasks"][name]["class_names"]
    assert len(found["predictions"]) == 7
    for row, shares in zip(found["predictions"], should, strict=True):
        best = np.argsort(-shares)
        assert [each["class"] for each in row["classes"]] == [classes[i] for i in best]
        np.testing.assert_allclose([each["probability"] for each in row["classes"]], shares[best], rtol=1e-4)
    names = [row["example"] for row in found["predictions"]]
    assert names == ([str(here[0] / f"photos/{i}.png") for i in range(7)] if file == "photos" else list("0123456"))


@pytest.mark.parametrize("pack", ["pack.packnet", "pack.keras"])
def test_the_task_can_be_inferred(here, capsys, pack):
    _, packed, images = here
    found = json.loads(run(here, capsys, "x.npz", pack=pack, task="auto", top=3, scale=1 / 255))
    x = images.astype(np.float32) * np.float32(1 / 255)
    assert found["task"] == "auto"
    assert [row["task"] for row in found["predictions"]] == packed.infer_task(x)
    for example, row in enumerate(found["predictions"]):
        shares = expected(packed, row["task"], images)[example]
        assert len(row["classes"]) == len(shares)
        probabilities = [each["probability"] for each in row["classes"]]
        np.testing.assert_allclose(probabilities, np.sort(shares)[::-1], rtol=1e-4)
    if pack == "pack.packnet":
        names = set(INFO["tasks"]["pets"]["class_names"] + INFO["tasks"]["wild"]["class_names"])
        assert {each["class"] for row in found["predictions"] for each in row["classes"]} <= names
        rows = list(csv.DictReader(io.StringIO(run(here, capsys, "x.npz", task="auto", format="csv"))))
        assert [row["task"] for row in rows] == packed.infer_task(x)


def test_a_keras_file_gives_the_same_predictions(here, capsys):
    ours = json.loads(run(here, capsys, "x.npz"))
    theirs = json.loads(run(here, capsys, "x.npz", pack="pack.keras", scale=1 / 255))
    for one, other in zip(ours["predictions"], theirs["predictions"], strict=True):
        assert other["classes"][0]["class"] == str(["lion", "wolf", "elk"].index(one["classes"][0]["class"]))
        assert other["classes"][0]["probability"] == one["classes"][0]["probability"]


def test_csv_and_table(here, capsys, tmp_path):
    asked = json.loads(run(here, capsys, "x.npz", top=2))["predictions"]
    rows = list(csv.DictReader(io.StringIO(run(here, capsys, "x.npz", top=2, format="csv"))))
    assert [(row["example"], int(row["rank"]), row["class"], float(row["probability"])) for row in rows] == [
        (each["example"], rank, of["class"], of["probability"])
        for each in asked
        for rank, of in enumerate(each["classes"], start=1)
    ]
    assert run(here, capsys, "x.npz", format="table", output=str(tmp_path / "new" / "table.txt")) == ""
    table = (tmp_path / "new" / "table.txt").read_text()
    assert table.startswith("task wild")
    for each in asked:
        best = each["classes"][0]
        assert any(
            line.split() == [each["example"], best["class"], f"{best['probability']:.4f}"]
            for line in table.splitlines()
        )


def test_examples_of_several_files_are_named_by_file(here, capsys):
    found = json.loads(run(here, capsys, "x.npy", "photos/3.png"))["predictions"]
    assert [each["example"] for each in found] == [
        *(f"{here[0]}/x.npy[{i}]" for i in range(7)),
        f"{here[0]}/photos/3.png",
    ]
    assert found[3]["classes"] == found[7]["classes"]


def test_images_of_other_sizes_and_colours(here, capsys, tmp_path):
    image = Image.fromarray(here[2][0, ..., 0])
    image.resize((16, 16), Image.Resampling.NEAREST).convert("RGB").save(tmp_path / "a.bmp")
    image.convert("1").save(tmp_path / "b.gif")
    image.convert("RGBA").save(tmp_path / "c.png")
    found = run(here, capsys, str(tmp_path), "photos/0.png")
    predictions = json.loads(found)["predictions"]
    assert len(predictions) == 4
    assert predictions[2]["classes"] == predictions[3]["classes"]


def test_images_are_scaled_to_the_recorded_white(tmp_path, capsys):
    """Images for a network that was trained on grey values from 0 to 16."""
    packed = commit(tp.pack(make_convnet()), "only", 1)
    tp.save_pack(packed, tmp_path / "pack.packnet", info={"scale": 1 / 16, "white": 16})
    grey = np.random.default_rng(0).integers(0, 2, (1, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / "x.npy", grey * 16)
    Image.fromarray(grey[0, ..., 0] * 255).save(tmp_path / "x.png")
    shares = []
    for name in ("x.npy", "x.png"):
        predict(Asked(str(tmp_path / "pack.packnet"), (str(tmp_path / name),), None, "json"))
        shares.append(json.loads(capsys.readouterr().out)["predictions"][0]["classes"])
    assert shares[0] == shares[1]


@pytest.mark.parametrize("activation", ["linear", "softmax", "sigmoid"])
def test_probabilities_and_logits_are_distinguished(activation, tmp_path, capsys):
    packed = commit(tp.pack(make_mlp()), "only", 1, activation=activation)
    tp.save_pack(packed, tmp_path / "pack.packnet")
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    predict(Asked(str(tmp_path / "pack.packnet"), (str(tmp_path / "x.npy"),), None, "json", top=2))
    found = [row["classes"] for row in json.loads(capsys.readouterr().out)["predictions"]]
    outputs = np.asarray(packed(x))
    should = softmax(outputs, axis=1) if activation == "linear" else outputs
    for row, shares in zip(found, should, strict=True):
        np.testing.assert_allclose([each["probability"] for each in row], np.sort(shares)[::-1], rtol=1e-4)


def test_one_output_for_two_classes(tmp_path, capsys):
    packed = commit(tp.pack(make_mlp()), "only", 1, num_classes=1)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    asked = Asked(str(tmp_path / "pack.packnet"), (str(tmp_path / "x.npy"),), "only", "json")
    tp.save_pack(packed, tmp_path / "pack.packnet")
    with pytest.raises(tp.ArgumentError, match="a classification task"):
        predict(asked)
    tp.save_pack(packed, tmp_path / "pack.packnet", info={"tasks": {"only": {"class_names": ["no", "yes"]}}})
    predict(asked)
    found = [row["classes"][0]["class"] for row in json.loads(capsys.readouterr().out)["predictions"]]
    assert found == ["yes" if logit > 0 else "no" for logit in np.asarray(packed(x))[:, 0]]


class TestBadInput:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"task": None}, "`task`: expected one of 'pets', 'wild', or its number: this pack has 2 tasks"),
            ({"task": "birds"}, "`task`: expected one of 'pets', 'wild', or its number. Received: task='birds'"),
            ({"task": "3"}, "`task`"),
            ({"task": "0"}, "`task`"),
            ({"task": "٣"}, "`task`"),
            ({"pack": "photos"}, r"`pack`: expected a pack file \(Is a directory\)"),
            ({"pack": "none"}, r"`pack`: expected a pack file \(No such file"),
            ({"pack": "x.npy"}, "a pack file .*by packed.save or save_pack"),
            ({"pack": "x.npz"}, "a pack file .*by packed.save or save_pack"),
            ({"inputs": ["none.png"]}, "`input`: expected an existing file or folder"),
            ({"inputs": ["photos/notes.txt"]}, r"expected images \(.png, .*notes.txt"),
            ({"inputs": ["."]}, "expected a folder with images"),
            ({"inputs": ["~nobody-of-this-name"]}, "an existing file or folder"),
            ({"inputs": ["a\0b"]}, "an existing file or folder"),
            ({"output": "/"}, "`output`: expected a file"),
            ({"output": __file__ + "/x"}, "a file in a folder"),
        ],
    )
    def test_is_reported_before_tensorflow_starts(self, here, monkeypatch, asked, message):
        monkeypatch.setattr("tf_packnet.system.quiet.start_tensorflow", lambda: pytest.fail("too late"))
        folder = here[0]
        asked = {"pack": "pack.packnet", "task": "pets", "inputs": ["x.npz"], **asked}
        asked["pack"] = str(folder / asked["pack"])
        asked["inputs"] = tuple(name if name[0] == "~" else f"{folder}/{name}" for name in asked["inputs"])
        with pytest.raises(tp.ArgumentError, match=message):
            predict(Asked(**asked))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (
                np.zeros((3, 9, 8, 1), "uint8"),
                r"examples of shape \(8, 8, 1\) in .*x.npy. Received: .*shape \(3, 9, 8, 1\)",
            ),
            (np.zeros((0, 8, 8, 1), "uint8"), "at least one example"),
            (np.zeros(3, "uint8"), "examples of shape"),
            (np.array("text"), "expected numbers in .*x.npy"),
            (np.zeros((3, 8, 8, 1), "complex64"), "expected numbers"),
            (np.full((3, 8, 8, 1), np.nan), "finite float32 numbers in .*in example 0"),
            (np.full((3, 8, 8, 1), 1e39), "finite float32 numbers"),
        ],
    )
    def test_arrays(self, here, tmp_path, array, message):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(tp.ArgumentError, match=message):
            predict(Asked(str(here[0] / "pack.packnet"), (str(tmp_path / "x.npy"),), "pets"))

    @pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (2, 8, 8)])
    def test_arrays_without_batch_or_channel_axis(self, here, tmp_path, capsys, shape):
        np.save(tmp_path / "x.npy", np.zeros(shape, "uint8"))
        found = run(here, capsys, str(tmp_path / "x.npy"))
        assert len(json.loads(found)["predictions"]) == (2 if shape[0] == 2 else 1)

    @pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "x.jpg", "x.gif", "x.bmp"])
    def test_damaged_files_are_named(self, tmp_path, name):
        for content in (b"", b"\x89PNG\r\n\x1a\nbad", b"GIF89a", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{", b"BM"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(tp.ArgumentError, match=f"`input`: expected .* that can be read. Received: .*{name}"):
                list(examples.read([tmp_path / name], examples.InputSpec((8, 8, 1), "float32", 1.0, 255.0)))

    def test_a_truncated_image(self, here, tmp_path):
        data = (here[0] / "photos/0.png").read_bytes()
        (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(tp.ArgumentError, match="an image that can be read. Received: input='.*cut.png'"):
            predict(Asked(str(here[0] / "pack.packnet"), (str(tmp_path / "cut.png"),), "pets"))

    def test_pickled_objects_are_not_read(self, here, tmp_path):
        np.save(tmp_path / "x.npy", np.array([{}, {}]), allow_pickle=True)
        with pytest.raises(tp.ArgumentError, match="has the dtype object"):
            predict(Asked(str(here[0] / "pack.packnet"), (str(tmp_path / "x.npy"),), "pets"))

    def test_integers_without_a_scale(self, here):
        with pytest.raises(tp.ArgumentError, match="`scale`: expected a factor for the integers in .*x.npz"):
            predict(Asked(str(here[0] / "pack.keras"), (str(here[0] / "x.npz"),), "pets"))

    def test_several_arrays(self, here, tmp_path):
        np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
        with pytest.raises(tp.ArgumentError, match=r"an array named x in .* \(it has a, b\)"):
            predict(Asked(str(here[0] / "pack.packnet"), (str(tmp_path / "x.npz"),), "pets"))

    def test_examples_that_do_not_fit_the_network(self, here, tmp_path, capsys):
        words = commit(tp.pack(text(keras.layers.Flatten())()), "only", 1)
        tp.save_pack(words, tmp_path / "words.packnet")
        for file, message in (("photos/0.png", "are not images"), ("only.npz", r"shape \(6,\)")):
            with pytest.raises(tp.ArgumentError, match=message):
                predict(Asked(str(tmp_path / "words.packnet"), (str(here[0] / file),)))
        np.save(tmp_path / "x.npy", np.zeros((2, 6)))
        with pytest.raises(tp.ArgumentError, match="integers in .*, because the network takes int32"):
            predict(Asked(str(tmp_path / "words.packnet"), (str(tmp_path / "x.npy"),)))
        np.save(tmp_path / "x.npy", np.full((2, 6), 1000))
        with pytest.raises(tp.ArgumentError, match="examples that the network can compute with"):
            predict(Asked(str(tmp_path / "words.packnet"), (str(tmp_path / "x.npy"),)))
        np.save(tmp_path / "x.npy", np.zeros((2, 6), int))
        predict(Asked(str(tmp_path / "words.packnet"), (str(tmp_path / "x.npy"),)))
        assert capsys.readouterr().out.startswith("task only")

    def test_several_outputs(self, here, tmp_path):
        tp.save_pack(commit(tp.pack(two_outputs()), "only", 1), tmp_path / "two.packnet")
        with pytest.raises(tp.ArgumentError, match="a pack with one input and one output"):
            predict(Asked(str(tmp_path / "two.packnet"), (str(here[0] / "x.npz"),)))


class TestCommand:
    def test_flags(self):
        asked = parse_command(["predict", "--pack=p", "a.png", "--task=2", "--input=b.png", "c.png", "--scale=1/4"])
        assert asked == Asked("p", ("b.png", "a.png", "c.png"), "2", scale=0.25)

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--top=0", "--top=0: expected at least 1"),
            ("--top=x", "--top=x: expected an integer"),
            ("--scale=0", "--scale=0: expected a finite number above 0"),
            ("--scale=1/0", "--scale=1/0: expected a number, or a fraction"),
            ("--format=xml", "--format=xml: value should be one of <table|csv|json>"),
            ("--colour=1", "Unknown command line flag 'colour'"),
            ("--pack=", "--pack: expected a value"),
        ],
    )
    def test_bad_flags(self, flag, message):
        with pytest.raises(UsageError) as caught:
            parse_command(["predict", "--pack=p", "--input=x.png", flag])
        assert message in str(caught.value)

    def command(self, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(ROOT / "launch/predict.py"), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    def test_in_a_new_process(self, here):
        folder = here[0]
        done = self.command(f"--pack={folder}/pack.packnet", "--task=pets", f"--input={folder}/x.npz", "--format=csv")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == "example,rank,class,probability"
        assert len(done.stdout.splitlines()) == 8

    def test_without_tensorflow(self, here, tmp_path):
        """Help and errors about flags and files do not import TensorFlow, which would fail here."""
        (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was started')")
        (tmp_path / "keras.py").write_text("raise SystemExit('Keras was started')")
        folder = here[0]
        cases = {
            ("--help",): (0, ""),
            (f"--pack={folder}/pack.packnet", f"--input={folder}/x.npz"): (
                2,
                "predict.py: --task: expected one of 'pets', 'wild', or its number: this pack has 2 tasks\n",
            ),
            (f"--pack={folder}/pack.keras", f"--input={folder}/x.npz", "--task=3"): (
                2,
                "predict.py: --task=3: expected one of 'pets', 'wild', or its number\n",
            ),
        }
        for arguments, (code, line) in cases.items():
            done = self.command(*arguments, PYTHONPATH=str(tmp_path))
            assert (done.returncode, done.stderr) == (code, line)
            assert bool(done.stdout) == (code == 0)

    def test_help_lists_every_flag_with_its_default(self, capsys):
        with pytest.raises(SystemExit) as caught:
            parse_command(["predict", "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for flag in ("--pack", "--task", "--input", "--scale", "--format=table", "--output", "--top=1"):
            assert f"\n  {flag}\n" in shown
        assert not {"None", "[]"} & set(shown.split())
