"""The server answers as `predict` and the exported files do, refuses bad requests, and switches versions."""

import asyncio
import base64
import gzip
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

import tf_packnet as tp
from tests.conftest import make_convnet
from tests.test_packfile import commit
from tests.test_predict import INFO
from tf_packnet.prediction import Asked, predict
from tf_packnet.serving import Settings
from tf_packnet.serving.app import Api
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
    should = {task: expected(zoo, capsys, task) for task in NAMES}
    versions = zoo.versions if pack == "zoo" else Versions(zoo.settings._replace(pack=zoo.folder / pack), print)

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
    (task(instances=ROWS, task="auto"), 400, "no signature 'which_task'"),
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
