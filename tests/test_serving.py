"""The server answers as `predict` and the exported files do, refuses bad requests, and switches versions."""

import asyncio
import base64
import functools
import gzip
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

import tf_packnet as tp
from tests.conftest import ROOT, make_convnet
from tests.test_packfile import commit
from tests.test_predict import INFO
from tf_packnet.command_line.parsing import UsageError
from tf_packnet.command_line.serve import parse_command
from tf_packnet.export import manifest
from tf_packnet.prediction import Asked, predict
from tf_packnet.serving import Settings
from tf_packnet.serving.app import Api
from tf_packnet.serving.batching import Batcher
from tf_packnet.serving.versions import Versions

ZOO = "/v1/models/zoo"
NAMES = {task: facts["class_names"] for task, facts in INFO["tasks"].items()}


def png(size=(20, 12), seed=0, mode="RGB", format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A pack as a file, two versions of it as SavedModels, and the first of them loaded."""
    folder = tmp_path_factory.mktemp("serving")
    packed = commit(commit(tp.pack(make_convnet()), "pets", 1), "wild", 2, num_classes=3)
    tp.save_pack(packed, folder / "zoo.packnet", info=INFO)
    tp.export_for_serving(packed, folder, name="zoo", preprocessing="uint8", class_names=NAMES)
    shutil.copytree(folder / "zoo/1", folder / "two/1")
    shutil.copytree(folder / "zoo/1", folder / "two/2")
    (folder / "a.png").write_bytes(png())
    settings = Settings(folder / "zoo", "zoo", poll_seconds=0.05)
    return SimpleNamespace(folder=folder, packed=packed, settings=settings, versions=Versions(settings, print))


def ask(zoo, *requests, versions=None, **settings):
    """Send requests (method, path, and arguments of aiohttp) at the same time; returns statuses and answers."""
    api = Api(versions or zoo.versions, zoo.settings._replace(**settings), print)

    async def work():
        async with TestClient(TestServer(api.application(watch=False))) as client:

            async def one(method, path, arguments):
                async with client.request(method, path, **arguments) as response:
                    return response.status, json.loads(await response.text())

            return await asyncio.gather(*(one(*request) for request in requests))

    return asyncio.run(work())


def post(verb, **body):
    return "POST", f"{ZOO}:{verb}", {"json": body}


def expected(zoo, capsys, task, name="a.png"):
    pack = str(zoo.folder / "zoo.packnet")
    predict(Asked(pack, (str(zoo.folder / name),), task, "json", top=3))
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    return [each["class"] for each in row["classes"]], [each["probability"] for each in row["classes"]]


@pytest.mark.parametrize("pack", ["zoo", "zoo.packnet"])
def test_images_are_classified_as_predict_does(zoo, capsys, pack):
    pack_file = zoo.settings._replace(pack=zoo.folder / pack, per_task_kernels=True)
    should = {task: expected(zoo, capsys, task) for task in NAMES}
    versions = zoo.versions if pack == "zoo" else Versions(pack_file, print)

    def form(*parts):
        data = FormData()
        for name, value in parts:
            data.add_field(name, value, filename="a.png" if isinstance(value, bytes) else None)
        return data

    header = {"Content-Type": "image/png"}
    requests = [
        (task, request)
        for number, task in enumerate(NAMES, start=1)
        for request in (
            ("POST", f"{ZOO}:classify", {"data": form(("task", task), ("image", png()))}),
            ("POST", f"{ZOO}:classify?task={number}", {"data": png(), "headers": header}),
            post("classify", task=number, examples=[b64(png())]),
            post("classify", signature_name=task, examples=[{"image": b64(png())}], top=3),
        )
    ]
    answers = ask(zoo, *(request for _, request in requests), versions=versions)
    for (task, _), (status, answer) in zip(requests, answers, strict=True):
        assert (status, answer["task"], answer["version"]) == (200, task, "1"), answer
        (classes,) = answer["result"]
        assert [name for name, _ in classes] == should[task][0]
        np.testing.assert_allclose([share for _, share in classes], should[task][1], rtol=1e-6)
    several = (
        "POST",
        f"{ZOO}:classify",
        {"data": form(("task", "1"), ("top", "1"), *[("x", png(seed=n)) for n in (0, 1)])},
    )
    ((status, answer),) = ask(zoo, several, versions=versions)
    assert status == 200
    assert [len(classes) for classes in answer["result"]] == [1, 1]


@pytest.mark.parametrize("pack", ["zoo", "zoo.packnet"])
def test_the_tasks_of_a_mixed_stream_are_inferred(zoo, pack):
    versions = zoo.versions if pack == "zoo" else Versions(zoo.settings._replace(pack=zoo.folder / pack), print)
    x = np.random.default_rng(2).integers(0, 256, (12, 8, 8, 1)).astype("uint8")
    x[::3] //= 64  # dark images of another task
    sent = x if pack == "zoo" else x.astype("float32") / np.float32(255)
    loaded = tf.saved_model.load(str(zoo.folder / "zoo/1"))
    inferred = loaded.signatures["which_task"](image=x)
    tasks = [name.decode() for name in inferred["task"].numpy()]
    assert set(tasks) == set(NAMES)
    all_of_them = list(NAMES)[int(inferred["scores"].numpy().mean(axis=0).argmax())]
    rows = {task: [row for row, name in enumerate(tasks) if name == task] for task in NAMES}
    computed = {task: iter(outputs_of(loaded, task, x[rows[task]])) for task in NAMES}
    should = [next(computed[task]) for task in tasks]
    of_one = outputs_of(loaded, all_of_them, x)

    def images(query, *numbers):
        form = FormData()
        for number in numbers:
            file = io.BytesIO()
            Image.fromarray(x[number, ..., 0]).save(file, "PNG")
            form.add_field("image", file.getvalue(), filename="a.png")
        return "POST", f"{ZOO}:classify?{query}", {"data": form}

    answers = ask(
        zoo,
        post("predict", task="auto", instances=sent.tolist()),
        post("predict", signature_name="auto", inputs=sent.tolist()),
        post("predict", task="auto", per="batch", instances=sent.tolist()),
        post("predict", task="which_task", instances=sent.tolist()),
        images("task=auto&top=1", 0, 1, 2),
        images("task=auto&top=1&per=batch", 0, 1, 2),
        versions=versions,
        max_batch=12,
    )
    assert [status for status, _ in answers] == [200] * 6, answers
    in_rows, in_columns, as_batch, which, images_alone, images_together = (answer for _, answer in answers)
    compare = (
        np.testing.assert_array_equal if pack == "zoo" else functools.partial(np.testing.assert_allclose, rtol=1e-5)
    )
    for answer, field in ((in_rows, "predictions"), (in_columns, "outputs")):
        assert answer.keys() == {field, "tasks"}
        assert answer["tasks"] == tasks
        for found, expected_row in zip(answer[field], should, strict=True):
            compare(found, expected_row)
    assert as_batch["task"] == all_of_them
    compare(as_batch["predictions"], of_one)
    assert [row["task"] for row in which["predictions"]] == tasks
    best = [NAMES[task][int(np.argmax(row))] for task, row in zip(tasks, should, strict=True)]
    assert images_alone["tasks"] == tasks[:3]
    assert [classes[0][0] for classes in images_alone["result"]] == best[:3]
    of_three = list(NAMES)[int(inferred["scores"].numpy()[:3].mean(axis=0).argmax())]
    assert images_together["task"] == of_three
    assert [len(classes) for classes in images_together["result"]] == [1, 1, 1]


def outputs_of(loaded, task, x):
    return loaded.signatures[task](image=x)["head"].numpy().tolist()


def test_no_task_is_inferred_where_it_cannot_be(zoo, tmp_path):
    """A single task, a pack whose tasks prepare images differently, and a task with the name."""
    packed = zoo.packed
    tp.export_for_serving(packed, tmp_path, name="one", task="pets")
    facts = {"pets": {"scale": 1 / 255}, "wild": {"scale": 1.0}}
    tp.save_pack(packed, tmp_path / "scales.packnet", info={"tasks": facts})
    x = np.zeros((1, 8, 8, 1)).tolist()
    for pack in ("one", "scales.packnet"):
        versions = Versions(zoo.settings._replace(pack=tmp_path / pack), print)
        auto, metadata = ask(
            zoo, post("predict", task="auto", instances=x), ("GET", f"{ZOO}/metadata", {}), versions=versions
        )
        assert auto[0] == 400
        assert auto[1]["error"].startswith("task: expected one of "), auto
        assert (
            "no signature 'which_task', or prepares the images of its tasks differently; received 'auto'"
            in auto[1]["error"]
        )
        assert metadata[1]["infers_task"] is False
    other = commit(tp.pack(make_convnet()), "auto", 1)
    tp.export_for_serving(other, tmp_path, name="named")
    versions = Versions(zoo.settings._replace(pack=tmp_path / "named"), print)
    ((status, answer),) = ask(zoo, post("predict", task="auto", instances=x), versions=versions)
    assert (status, answer.keys()) == (200, {"predictions"})


def test_arrays_are_predicted_as_the_file_does(zoo):
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1)).astype("uint8")
    loaded = tf.saved_model.load(str(zoo.folder / "zoo/1"))
    should = [loaded.signatures["wild"](image=x)["head"].numpy().tolist(), loaded.serve["pets"](x).numpy().tolist()]
    answers = ask(
        zoo,
        post("predict", signature_name="wild", instances=x.tolist()),
        post("predict", signature_name="wild", instances=[{"image": each.tolist()} for each in x]),
        post("predict", task="wild", inputs={"image": x.tolist()}),
        post("predict", task=2, inputs=x.tolist()),
        post("predict", task="pets", instances=x.tolist()),
        max_batch=5,
    )
    assert answers == [
        (200, {"predictions": should[0]}),
        (200, {"predictions": should[0]}),
        (200, {"outputs": should[0]}),
        (200, {"outputs": should[0]}),
        (200, {"predictions": should[1]}),
    ]


def test_status_metadata_and_health(zoo):
    answers = ask(
        zoo,
        *(("GET", path, {}) for path in ("/health", ZOO, f"{ZOO}/versions/1", f"{ZOO}/metadata", f"{ZOO}/versions/2")),
    )
    assert [status for status, _ in answers] == [200, 200, 200, 200, 404]
    health, status, same, metadata, _ = (answer for _, answer in answers)
    assert health == {"status": "ok", "model": "zoo", "version": "1"}
    assert status == same
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert list(signatures) == ["pets", "wild"]
    assert signatures["wild"]["inputs"]["image"]["dtype"] == "DT_UINT8"
    assert [each["size"] for each in signatures["wild"]["outputs"]["head"]["tensor_shape"]["dim"]] == ["-1", "3"]
    assert metadata["infers_task"] is True
    assert metadata["tasks"] == [
        {"number": n, "name": k, "class_names": v} for n, (k, v) in enumerate(NAMES.items(), 1)
    ]


ROWS = np.zeros((2, 8, 8, 1), int).tolist()
BLACK = io.BytesIO()
Image.new("L", (2000, 2000)).save(BLACK, "PNG")
ANIMATION = io.BytesIO()
Image.new("L", (8, 8)).save(ANIMATION, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)])


def raw(data, verb="predict", **headers):
    return "POST", f"{ZOO}:{verb}", {"data": data, "headers": {k.replace("_", "-"): v for k, v in headers.items()}}


def form(*parts):
    """A form of parts, each headers and content."""
    data = b"".join(b"--b\r\n%s\r\n\r\n%s\r\n" % part for part in parts) + b"--b--\r\n"
    return raw(data, "classify", Content_Type="multipart/form-data; boundary=b")


def field(name=b"task", more=b""):
    return b'Content-Disposition: form-data; name="%s"%s' % (name, more)


def task(**body):
    return post("predict", **{"task": "pets", **body})


BAD = [
    (raw(b"{"), 400, "body: expected a JSON object"),
    (raw(b"\xff\xfe"), 400, "body: expected a JSON object"),
    (raw(b"[" * 100_000), 400, "nested too deeply"),
    (raw(b"[1]"), 400, r"body: expected a JSON object; received \[1\]"),
    (raw(b""), 400, "body: expected a JSON object"),
    (raw(gzip.compress(b"0" * 300_000), Content_Encoding="gzip"), 413, "body: expected at most 100,000 bytes"),
    (raw(b"no gzip", Content_Encoding="gzip"), 400, "body"),
    (raw(b"<p>", Content_Type="text/html"), 415, "Content-Type: expected application/json, image/"),
    (raw(b"x" * 100_001), 413, "body: expected at most 100,000 bytes"),
    (raw(b"abc", Content_Type="multipart/form-data"), 400, "body: expected a complete form"),
    (raw(b"--b\r\n", Content_Type="multipart/form-data; boundary=b"), 400, ""),
    (
        raw(b"--b--\r\n", "predict?task=1", Content_Type="multipart/form-data; boundary=b"),
        400,
        "a list of at least one example",
    ),
    *(
        (raw(data, Content_Type="multipart/form-data; boundary=b"), 400, "body: expected a complete form")
        for data in (b"--b\r\nxx", b"--b\r\n" + field() + b"\r\n\r\n1", b"--b\r\n\xff: \xff\r\n\r\n1\r\n--b--\r\n")
    ),
    *(
        (form((field(more=more), b"1")), 400, "body: expected a complete form")
        for more in (
            b"\r\nContent-Transfer-Encoding: zzz",
            b"\r\nContent-Type: text/plain; charset=zzz",
            b"\r\nContent-Type: multipart/mixed; boundary=c",
        )
    ),
    (form((b"Content-Disposition: form-data", b"1")), 400, "body: expected a complete form"),
    (form(*[(field(), b"1")] * 1001), 413, "body: expected a form of at most 1,000 fields"),
    (("POST", f"{ZOO}:classify", {"data": FormData({"colour": "red"})}), 400, "body: expected a JSON object"),
    (raw(b"no image", "classify?task=1", Content_Type="image/png"), 400, "input: expected an image that can be read"),
    (raw(png()[:200], "classify?task=1", Content_Type="image/png"), 400, "an image that can be read"),
    (raw(ANIMATION.getvalue(), "classify?task=1", Content_Type="image/gif"), 400, "a single image of 8 or 16 bits"),
    (raw(BLACK.getvalue(), "classify?task=1", Content_Type="image/png"), 400, "a smaller image"),
    (raw(png(), "classify", Content_Type="image/png"), 400, "task: expected one of 'pets', 'wild', or its number"),
    (raw(png(), "classify?task=1&top=0", Content_Type="image/png"), 400, "top: expected a whole number of at least 1"),
    (post("classify", task=1, examples=ROWS, top=1.5), 400, "top: expected a whole number"),
    (task(), 400, "body: expected one of the fields instances and inputs"),
    (task(instances=ROWS, inputs=ROWS), 400, "one of the fields"),
    (task(instances=ROWS, tsak=1), 400, "body: expected only the fields instances, inputs, .*'tsak'"),
    (task(instances=ROWS, signature_name="wild"), 400, "either task or signature_name"),
    (post("predict", instances=ROWS), 400, "task: expected one of 'pets', 'wild', or its number"),
    *((task(instances=ROWS, task=bad), 400, "task: expected one of") for bad in (3, "0", True, "cats", [1], {}, 1.0)),
    (task(instances=ROWS, task="auto", per="day"), 400, "per: expected example or batch; received 'day'"),
    (raw(png(), "classify?task=auto&per=1", Content_Type="image/png"), 400, "per: expected example or batch"),
    (post("classify", task="which_task", examples=ROWS), 400, "task: expected a task with one output; call :predict"),
    *((task(instances=bad), 400, "instances: expected a list") for bad in ([], {}, 1, None, "x")),
    *(
        (task(instances=bad), 400, r"image: expected (examples|arrays of uint8) of shape \(8, 8, 1\)")
        for bad in ([1], [[]], [ROWS], [ROWS[0], ROWS[0][:7]], [[[1] * 8] * 8], ["abc"], [None])
    ),
    *(
        (task(instances=[[[[bad]] * 8] * 8]), 400, f"image: expected {expected}")
        for bad, expected in [
            (256, r"numbers in the range of uint8; received \[256, 256\]"),
            (-1, "numbers in the range of uint8"),
            (10**30, "numbers in the range of uint8"),
            (0.5, "arrays of uint8"),
            ("7", "arrays of uint8"),
            (None, "arrays of uint8"),
            (True, "arrays of uint8"),
            ([1], "arrays of uint8"),
            (float("nan"), "arrays of uint8"),
        ]
    ),
    (task(instances=[{"img": ROWS[0]}]), 400, r"instances: expected the inputs 'image'; received \['img'\]"),
    (task(instances=[{"image": ROWS[0]}, {"x": 1}]), 400, "instances: expected examples with the inputs 'image'"),
    (task(inputs={"image": ROWS, "x": 1}), 400, "inputs: expected the inputs 'image'"),
    (task(inputs={"image": []}), 400, "image: expected at least one example"),
    (task(instances=[b64(png()), ROWS[0]]), 400, "image: expected either images or arrays"),
    (task(instances=[{"b64": "%%%"}]), 400, "image: expected valid base64"),
    (task(instances=[{"b64": 5}]), 400, "image: expected arrays, or bytes"),
    (task(instances=[{"b64": "", "x": 1}]), 400, "image: expected arrays, or bytes"),
    (("GET", f"{ZOO}:predict", {}), 405, "GET /v1/models/zoo:predict: Method Not Allowed"),
    (("POST", f"{ZOO}:regress", {}), 404, "Not Found"),
    (("POST", "/v1/models/zebra:predict", {}), 404, "model: expected 'zoo'; received 'zebra'"),
    (("GET", "/v1/models/zoo/versions/x", {}), 404, "version: expected 1, which serves; received 'x'"),
    (("GET", "/", {}), 404, "GET /: Not Found"),
]


def test_bad_requests_get_one_line_and_no_traceback(zoo, capsys):
    good = post("predict", task="pets", instances=ROWS)
    requests = [good, *(request for request, _, _ in BAD), good]
    first, *answers, last = ask(zoo, *requests, max_request_bytes=100_000, max_image_bytes=1_000_000)
    wrong = [
        (request, status, message, received, answer)
        for (request, status, message), (received, answer) in zip(BAD, answers, strict=True)
        if received != status or list(answer) != ["error"] or not re.search(message, answer["error"])
    ]
    assert not wrong, "\n".join(str(each)[-700:] for each in wrong)
    assert max(len(answer["error"]) for _, answer in answers) <= 1000
    assert first == last
    assert first[0] == 200
    assert "internal error" not in capsys.readouterr().out


class Doubling:
    """A task that doubles what it gets, and fails for -1."""

    def __init__(self):
        self.sizes = []
        self.go = threading.Event()

    def __call__(self, inputs):
        self.go.wait()
        self.sizes.append(len(inputs["x"]))
        if (inputs["x"] == -1).any():
            raise ValueError("no -1\nsecond line")
        return {"y": 2 * inputs["x"]}


def test_waiting_requests_are_computed_together():
    task, other = Doubling(), Doubling()
    batches = [np.full((size, 2), size, np.float32) for size in (1, 3, 2, 9, 4, 1)]
    bad, wide = np.array([[-1, 0]], np.float32), np.ones((1, 3), np.float32)
    infinite = np.full((1, 2), np.inf, np.float32)

    async def work():
        batcher = Batcher(max_batch=4)
        inputs = [(task, x) for x in (*batches, bad, wide, infinite)] + [(other, batches[0])]
        runs = [asyncio.ensure_future(batcher.run(to, {"x": x})) for to, x in inputs]
        await asyncio.sleep(0.01)
        task.go.set(), other.go.set()
        results = await asyncio.gather(*runs, return_exceptions=True)
        batcher.close()
        return results

    results = asyncio.run(work())
    for x, result in zip([*batches, wide, batches[0]], results[:6] + [results[7], results[9]], strict=True):
        np.testing.assert_array_equal(result["y"], 2 * x)
    assert str(results[6]) == "input: expected examples that the network can compute with (no -1)"
    assert "finite outputs" in str(results[8])
    # The first call is alone; then 3 + 1 (of 9) of those that wait; then 2 + 1 + the bad one, and each of them alone.
    assert task.sizes[:6] == [1, 4, 4, 2, 1, 1]
    assert max(task.sizes) == 4
    assert other.sizes == [1]


def test_requests_over_the_bound_get_503(zoo):
    requests = [post("predict", task="pets", instances=ROWS) for _ in range(12)]
    answers = ask(zoo, *requests, max_requests=3)
    statuses = [status for status, _ in answers]
    assert sorted(set(statuses)) == [200, 503]
    assert statuses.count(200) >= 3
    assert {answer["error"] for status, answer in answers if status == 503} == {"the server is busy; try again later"}


def test_the_last_answers_close_their_connections(zoo):
    """Otherwise clients send further requests over them, which nobody answers."""

    async def work():
        app = Api(zoo.versions, zoo.settings, print).application(watch=False)
        async with TestClient(TestServer(app)) as client:
            found = []
            for _ in range(2):
                for path, status in (("/health", 200), ("/none", 404)):
                    async with client.get(path) as response:
                        assert response.status == status
                        found.append(response.headers.get("Connection"))
                await app.shutdown()  # what a signal to end does first
            return found

    assert asyncio.run(work()) == [None, None, "close", "close"]


@pytest.fixture
def lines():
    return []


def damaged(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_good_version_serves(zoo, tmp_path, lines):
    models, good = tmp_path / "zoo", zoo.folder / "zoo/1"
    shutil.copytree(good, models / "1")
    (models / "1.tmp").mkdir()
    (models / "notes").mkdir()
    versions = Versions(zoo.settings._replace(pack=models), lines.append)
    first = versions.current

    def poll(is_new=True):
        """Poll twice: a new version must not have changed since the poll before."""
        lines.clear()
        versions.poll()
        assert lines == [] or not is_new
        versions.poll()
        return versions.current.source.version, lines

    assert poll() == (1, [])
    (models / "2").mkdir()
    assert poll() == (1, [f"version 2 is refused: {models}/2: saved_model.pb is missing"])
    for name in ("saved_model.pb", "variables/variables.index"):
        (models / "2" / name).parent.mkdir(exist_ok=True)
        shutil.copy(good / name, models / "2" / name)
    version, refusal = poll()
    assert (version, len(refusal)) == (1, 1)
    assert poll() == (1, [])  # refused once
    shutil.copytree(good, models / "2", dirs_exist_ok=True)
    assert poll() == (2, ["version 2 serves 2 tasks, version 1 no more requests"])
    assert versions.current is not first
    shutil.copytree(good, models / "10")
    damaged(models / "10/variables/variables.data-00000-of-00001")
    assert poll() == (2, [f"version 10 is refused: {models}/10: variables/variables.data-00000-of-00001 is damaged"])
    shutil.copytree(good, models / "20", ignore=shutil.ignore_patterns("assets.extra"))  # the last part of a copy
    assert poll() == (2, [f"version 20 is refused: {models}/20: assets.extra/tf_packnet.json is missing"])
    damaged(models / "2/saved_model.pb")
    assert poll() == (2, [f"version 2 is refused: {models}/2: saved_model.pb is damaged"])
    shutil.rmtree(models / "2")
    assert poll(is_new=False) == (1, ["version 1 serves 2 tasks, version 2 no more requests"])
    shutil.rmtree(models)
    assert poll() == (1, [])
    (models / "11").mkdir(parents=True)
    shutil.copy(zoo.folder / "zoo.packnet", models / "11")
    assert poll() == (11, ["version 11 serves 2 tasks, version 1 no more requests"])


@pytest.mark.parametrize("pack", ["zoo.packnet", "zoo/1"])
def test_a_pack_without_versions_is_served_again_when_it_is_replaced(zoo, tmp_path, lines, pack):
    path = tmp_path / "pack"
    copy = shutil.copytree if (zoo.folder / pack).is_dir() else shutil.copy
    copy(zoo.folder / pack, path)
    versions = Versions(zoo.settings._replace(pack=path), lines.append)
    versions.poll()
    copy(zoo.folder / pack, tmp_path / "next")
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(tmp_path / "next", path)
    for _ in range(3):
        versions.poll()
    assert lines == ["version 1 serves 2 tasks", "version 2 serves 2 tasks, version 1 no more requests"]


def test_damage_of_every_file_is_found(zoo, tmp_path):
    shutil.copytree(zoo.folder / "zoo/1", tmp_path / "1")
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert list(manifest.read(tmp_path / "1")) == ["pets", "wild"]
    for path in files:
        before = path.read_bytes()
        damaged(path)
        with pytest.raises(tp.PackFileError, match="is damaged"):
            manifest.read(tmp_path / "1")
        path.unlink()
        if path.name != "tf_packnet.json":
            with pytest.raises(tp.PackFileError, match="cannot be read"):
                manifest.read(tmp_path / "1")
        path.write_bytes(before)


def module_of(function, path):
    module = tf.Module()
    module.function = tf.function(function, input_signature=[tf.TensorSpec((None, 1), tf.float32, name="x")])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.function})


def test_savedmodels_of_other_programs_are_served_if_they_are_safe(zoo, tmp_path, lines):
    def sigmoid(x):
        return {"y": tf.sigmoid(x)}

    def reads(x):
        return {"y": x + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)}

    module_of(sigmoid, tmp_path / "1")
    module_of(reads, tmp_path / "2")
    versions = Versions(zoo.settings._replace(pack=tmp_path), lines.append)
    assert lines[0].endswith("saved_model.pb has the operation ReadFile, which is not served")
    answers = ask(
        zoo,
        post("predict", instances=[[0.0], [0]]),
        post("predict", instances=[{"x": [1e39]}]),
        post("predict", instances=[[float("nan")]]),
        post("predict", instances=[b64(png())]),
        versions=versions,
    )
    assert answers[0] == (200, {"predictions": [[0.5], [0.5]]})
    assert [status for status, _ in answers[1:]] == [400, 400, 400]
    assert "finite numbers in the range of float32" in answers[1][1]["error"]
    assert "which are not images" in answers[3][1]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pack: expected a pack file or a folder"),
        (["--pack=x", "--port=70000"], "--port=70000: expected 0 to 65535"),
        (["--pack=x", "--name=a/b"], "--name=a/b: expected a name without / and :"),
        (["--pack=x", "--resize=fill"], "--resize=fill: expected one of stretch, pad, crop"),
        (["--pack=x", "--max_batch=0"], "--max_batch=0: expected at least 1"),
        (["--pack=x", "y"], "'y' is not a flag"),
    ],
)
def test_bad_flags_are_refused(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_command(["serve", *arguments])
    assert parse_command(["serve", "--pack=out/digits/pack.packnet", "--scale=1/4"])[:2][1] == "pack"


class Process:
    """`launch/serve.py` as a process."""

    def __init__(self, *arguments):
        command = [sys.executable, str(ROOT / "launch/serve.py"), "--port=0", "--poll_seconds=0.1", *arguments]
        # Processes in the background of a shell ignore SIGINT.
        default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening" in line:
                self.address = line.split()[-1]
                break
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.reader.start()

    def predict(self, body):
        request = urllib.request.Request(f"{self.address}:predict", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.headers["Model-Version"], json.load(response)["predictions"]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join()
        return code, "".join(self.lines)


@pytest.fixture
def start():
    """Start servers that are killed when the test ends."""
    started = []

    def start(*arguments):
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()


@pytest.mark.slow
def test_no_request_fails_while_versions_change_and_the_server_ends(zoo, tmp_path, start):
    models = tmp_path / "zoo"
    shutil.copytree(zoo.folder / "zoo/1", models / "1")
    server = start(f"--pack={models}")
    should = server.predict({"task": 2, "instances": ROWS})[1]
    answers, failures, stopped = [], [], threading.Event()

    def load():
        while not stopped.is_set():
            try:
                answers.append((*server.predict({"task": 2, "instances": ROWS}), time.monotonic()))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()

    def until(version):
        deadline = time.monotonic() + 120
        while answers[-1][0] != version and time.monotonic() < deadline:
            time.sleep(0.05)

    time.sleep(1)
    tp.export_for_serving(zoo.packed, tmp_path, name="zoo", preprocessing="uint8", class_names=NAMES)
    until("2")
    shutil.copytree(zoo.folder / "zoo/1", models / "3")
    damaged(models / "3/saved_model.pb")
    shutil.copytree(zoo.folder / "zoo/1", models / "4", copy_function=lambda *a: (time.sleep(0.3), shutil.copy2(*a)))
    until("4")
    time.sleep(1)
    stopped.set()
    for thread in threads:
        thread.join()
    assert failures == []
    # To the last bits: examples that arrive together are computed together.
    for _, predictions, _ in answers:
        np.testing.assert_allclose(predictions, should, rtol=1e-6)
    order = [version for version, _ in itertools.groupby(version for version, _, _ in answers)]
    assert {"1", "2", "4"} == set(order)
    code, log = server.end()
    assert code == 0, log
    assert "version 3 is refused" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_process_refuses_and_ends_in_one_line(zoo, tmp_path, start):
    server = start(f"--pack={zoo.folder / 'zoo.packnet'}")
    port = server.address.split(":")[2].split("/")[0]
    (tmp_path / "1").mkdir()
    for pack, more, message in [
        (zoo.folder / "zoo.packnet", [f"--port={port}"], f"--port=127.0.0.1:{port}: expected a free port"),
        (tmp_path, [], f"--pack={tmp_path}: expected a version that can be loaded"),
        (tmp_path / "none", [], "expected a pack file (No such file or directory)"),
        (tmp_path / "1", [], "expected a pack file, a SavedModel folder, or a folder of versions"),
    ]:
        command = [sys.executable, str(ROOT / "launch/serve.py"), f"--pack={pack}", *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert server.end(signal.SIGINT)[0] == 0
