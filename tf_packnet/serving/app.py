"""The HTTP interface: the routes of TensorFlow Serving's REST API for one model, and their JSON responses."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tf_packnet.errors import first_line
from tf_packnet.prediction.predicting import to_probabilities
from tf_packnet.serving import parsing
from tf_packnet.serving.batching import Batcher
from tf_packnet.serving.errors import RequestError, invalid
from tf_packnet.serving.parsing import CLASSIFY, INPUTS, PREDICT, Asked
from tf_packnet.serving.servable import BATCH, Servable, ServedTask, Tensor
from tf_packnet.serving.settings import Settings
from tf_packnet.serving.versions import Versions, cancelled
from tf_packnet.system.extras import require_extra

require_extra("Serving", "aiohttp", extra="serve")
from aiohttp import web  # noqa: E402

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

VERSION_HEADER = "Model-Version"
# The body of a request must arrive within this many seconds.
_BODY_SECONDS = 60
# All request bodies together may take this many times the size of the largest allowed body.
_BODIES = 8
# Answers with more numbers are formatted in a thread.
_FEW_NUMBERS = 10_000
# Content types with which clients send JSON. TensorFlow Serving ignores them; `curl --data` sends that of forms.
_JSON = ("application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
# TensorFlow's names for dtypes, where they differ from `DT_` and NumPy's name.
_DTYPES = {"object": "DT_STRING", "float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF"}


class Api:
    """Answers requests.

    Args:
        versions: The versions of the pack.
        settings: The bounds.
        log: Called with one line for each internal error.
    """

    def __init__(self, versions: Versions, settings: Settings, log: Callable[[str], None]):
        self._versions = versions
        self._settings = settings
        self._max_bytes = settings.max_request_bytes
        self._log = log
        self._batcher = Batcher(settings.max_batch)
        self._pool = ThreadPoolExecutor(2, "parse")  # decoding images takes much memory
        self._requests = 0
        self._bytes = 0
        self._ending = False

    def application(self, watch: bool = True) -> web.Application:
        """Return the application. With `watch`, it checks for new versions while it runs."""
        app = web.Application(middlewares=[self._last_answers, self._json_errors], client_max_size=self._max_bytes)
        app.router.add_get("/health", self._health)
        model = "/v1/models/{model:[^/:]+}"
        for place in (model, model + "/versions/{version:[^/:]+}"):
            app.router.add_get(place, self._status)
            app.router.add_get(place + "/metadata", self._metadata)
            app.router.add_post(place + f":{{verb:{PREDICT}|{CLASSIFY}}}", self._compute)
        if watch:
            app.cleanup_ctx.append(self._watching)
        app.on_shutdown.append(self._end)
        app.on_cleanup.append(self._close)
        return app

    async def _watching(self, _: web.Application) -> Any:
        task = asyncio.ensure_future(self._versions.watch())
        yield
        await cancelled(task)

    async def _close(self, _: web.Application) -> None:
        self._batcher.close()
        self._pool.shutdown(wait=False)

    async def _end(self, _: web.Application) -> None:
        self._ending = True

    @web.middleware
    async def _last_answers(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """While the server ends, close each connection after its response, so that clients do not reuse it."""
        response = await handler(request)
        if self._ending:
            response.force_close()
        return response

    @web.middleware
    async def _json_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return _error(error.status, str(error))
        except web.HTTPRequestEntityTooLarge as error:
            fields = re.search("form fields ([0-9]+) exceeded", error.text or "")
            most = f"a form of at most {int(fields[1]):,} fields" if fields else f"at most {self._max_bytes:,} bytes"
            return _error(413, f"body: expected {most}")
        except (web.RequestPayloadError, ConnectionError) as error:
            return _error(400, f"body: expected to be complete and in its Content-Encoding ({first_line(error)})")
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _error(error.status, f"{request.method} {request.path}: {error.reason}", headers)
        except Exception as error:
            self._log(f"internal error: {type(error).__name__}: {error}")
            return _error(500, "internal error")

    async def _health(self, _: web.Request) -> web.Response:
        version = str(self._versions.current.source.version)
        return web.json_response({"status": "ok", "model": self._settings.name, "version": version})

    async def _status(self, request: web.Request) -> web.Response:
        version = str(self._servable(request).source.version)
        status = {"error_code": "OK", "error_message": ""}
        state = {"version": version, "state": "AVAILABLE", "status": status}
        return web.json_response({"model_version_status": [state]})

    async def _metadata(self, request: web.Request) -> web.Response:
        servable = self._servable(request)
        signatures = {
            task.name: {
                "inputs": {name: _described(tensor) for name, tensor in task.inputs.items()},
                "outputs": {name: _described(tensor) for name, tensor in task.outputs.items()},
                "method_name": "tensorflow/serving/predict",
            }
            for task in servable.tasks
        }
        tasks = [
            {"number": number, "name": task.name, "class_names": list(task.class_names) or None}
            for number, task in enumerate(servable.tasks, start=1)
        ]
        spec = {"name": self._settings.name, "signature_name": "", "version": str(servable.source.version)}
        metadata = {"signature_def": {"signature_def": signatures}}
        infers_task = servable.which_task is not None
        return web.json_response({"model_spec": spec, "metadata": metadata, "tasks": tasks, "infers_task": infers_task})

    async def _compute(self, request: web.Request) -> web.Response:
        servable, verb = self._servable(request), request.match_info["verb"]
        with self._admitted(request):
            asked = await self._asked(request, verb)
            if servable.is_auto(asked.task):
                return await self._compute_inferred(servable, verb, asked)
            task = servable.task(asked.task)
            if verb == CLASSIFY and len(task.outputs) > 1:
                raise invalid("task", f"a task with one output; call :{PREDICT}", task.name)
            inputs = await self._off_loop(asked.is_quick, parsing.tensors, asked, task, self._settings.max_image_bytes)
            outputs = await self._batcher.run(task, inputs)
            version = str(servable.source.version)

            def answer() -> str:
                if verb == PREDICT:
                    return json.dumps(_predictions(outputs, asked.field))
                return json.dumps({"result": _classes(task, outputs, asked.top), "task": task.name, "version": version})

            is_quick = sum(value.size for value in outputs.values()) <= _FEW_NUMBERS
            text = await self._off_loop(is_quick, answer)
            return web.Response(text=text, content_type="application/json", headers={VERSION_HEADER: version})

    async def _compute_inferred(self, servable: Servable, verb: str, asked: Asked) -> web.Response:
        """Infer the task of each example, or one for the whole batch, and compute each example with its task."""
        which_task, version = servable.which_task, str(servable.source.version)
        assert which_task is not None
        inputs = await self._off_loop(
            asked.is_quick, parsing.tensors, asked, which_task, self._settings.max_image_bytes
        )
        scores = (await self._batcher.run(which_task, inputs))["scores"]
        chosen = np.array(servable.inferred(scores, asked.per))
        groups = [(servable.tasks[index], np.flatnonzero(chosen == index)) for index in np.unique(chosen)]
        computed = await asyncio.gather(
            *(self._batcher.run(task, {key: each[rows] for key, each in inputs.items()}) for task, rows in groups)
        )

        def answer() -> str:
            results: list[Any] = [None] * len(chosen)
            for (task, rows), outputs in zip(groups, computed, strict=True):
                (output,) = outputs.values()
                found = _json_values(output) if verb == PREDICT else _classes(task, outputs, asked.top)
                for row, result in zip(rows, found, strict=True):
                    results[row] = result
            names = [servable.tasks[index].name for index in chosen]
            of_task = {"task": names[0]} if asked.per == BATCH else {"tasks": names}
            if verb == PREDICT:
                return json.dumps({"outputs" if asked.field == INPUTS else "predictions": results, **of_task})
            return json.dumps({"result": results, **of_task, "version": version})

        is_quick = sum(value.size for outputs in computed for value in outputs.values()) <= _FEW_NUMBERS
        text = await self._off_loop(is_quick, answer)
        return web.Response(text=text, content_type="application/json", headers={VERSION_HEADER: version})

    def _servable(self, request: web.Request) -> Servable:
        """Return the loaded version that a request names."""
        servable, place = self._versions.current, request.match_info
        if place["model"] != self._settings.name:
            raise RequestError(404, f"model: expected {self._settings.name!r}; received {place['model']!r}")
        version = str(servable.source.version)
        if place.get("version", version) != version:
            raise RequestError(404, f"version: expected {version}, which serves; received {place['version']!r}")
        return servable

    @contextlib.contextmanager
    def _admitted(self, request: web.Request) -> Any:
        """Count a request and the memory of its body, or refuse it."""
        limit = self._max_bytes
        size = limit if request.content_length is None else request.content_length
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit, size)
        if self._requests >= self._settings.max_requests or self._bytes + size > _BODIES * limit:
            raise RequestError(503, "the server is busy; try again later")
        self._requests += 1
        self._bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size

    async def _asked(self, request: web.Request, verb: str) -> Asked:
        """Read the body of a request: JSON, one image, or a form with images."""
        try:
            return await asyncio.wait_for(self._parsed(request, verb), _BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"body: expected within {_BODY_SECONDS} seconds") from error

    async def _parsed(self, request: web.Request, verb: str) -> Asked:
        kind = request.content_type
        if kind.startswith("image/"):
            return _of_images([await request.read()], request.query)
        if kind == "multipart/form-data":
            return await self._of_form(request)
        if kind in _JSON:
            body = await request.read()
            return await self._off_loop(len(body) <= parsing.SMALL, parsing.parse_json, body, verb)
        expected = "expected application/json, image/* or multipart/form-data"
        raise RequestError(415, f"Content-Type: {expected}; received {kind!r}")

    async def _of_form(self, request: web.Request) -> Asked:
        try:
            form = await request.post()
        except (web.HTTPException, web.RequestPayloadError, ConnectionError):
            raise
        except Exception as error:  # of many types: without a boundary, cut short, with an unknown encoding
            raise invalid("body", f"a complete form ({first_line(error)})") from error
        fields = dict(request.query)
        images = []
        for key, value in form.items():
            if isinstance(value, web.FileField):
                images.append(value.file.read())
            elif isinstance(value, str) and key in ("task", "top", "per"):
                fields[key] = value
            else:
                raise invalid("form", "files, and the fields task, top and per", key)
        return _of_images(images, fields)

    async def _off_loop(self, is_quick: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, in a thread unless it is quick."""
        if is_quick:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


def _of_images(images: list[bytes], fields: Mapping[str, str]) -> Asked:
    top, per = parsing.top_of(fields.get("top")), parsing.per_of(fields.get("per"))
    return Asked(fields.get("task"), "instances", images, top, per=per)


def _predictions(outputs: dict[str, np.ndarray], field: str) -> dict[str, Any]:
    """Format outputs as TensorFlow Serving does: in rows, or in columns if the request has `inputs`."""
    values = {name: _json_values(value) for name, value in outputs.items()}
    only = next(iter(values.values())) if len(values) == 1 else None
    if field == INPUTS:
        return {"outputs": values if only is None else only}
    if only is not None:
        return {"predictions": only}
    return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}


def _classes(task: ServedTask, outputs: dict[str, np.ndarray], top: int | None) -> list[list[list[Any]]]:
    """Return `[name, probability]` of the most probable classes of each example."""
    (output,) = outputs.values()
    axis = task.class_axis % output.ndim
    if output.ndim < 2 or not np.issubdtype(output.dtype, np.floating):
        raise invalid("task", f"a classification task; call :{PREDICT}", task.name)
    shares = to_probabilities(output, axis, task.probabilities)
    if shares.shape[1] == 1:
        shares = np.concatenate([1 - shares, shares], axis=1)
    names = task.class_names if len(task.class_names) == shares.shape[1] else tuple(map(str, range(shares.shape[1])))
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    rows = zip(order.tolist(), np.take_along_axis(shares, order, axis=1).tolist(), strict=True)
    return [[[names[index], share] for index, share in zip(*row, strict=True)] for row in rows]


def _json_values(value: np.ndarray) -> Any:
    if value.dtype == object:
        return np.vectorize(lambda text: text.decode(errors="replace"), otypes=[object])(value).tolist()
    return value.tolist()


def _described(tensor: Tensor) -> dict[str, Any]:
    name = tensor.dtype.name
    dimensions = [{"size": str(-1 if size is None else size), "name": ""} for size in tensor.shape]
    shape = {"dim": dimensions, "unknown_rank": False}
    return {"dtype": _DTYPES.get(name, f"DT_{name.upper()}"), "tensor_shape": shape, "name": ""}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    retry = {"Retry-After": "1"} if status == 503 else {}
    return web.json_response({"error": message}, status=status, headers={**(headers or {}), **retry})
