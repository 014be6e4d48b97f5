"""Turns the bodies of requests into batches of examples."""

import base64
import binascii
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.prediction.examples import InputSpec, read_image
from tf_packnet.serving.errors import RequestError, invalid, of_argument
from tf_packnet.serving.servable import EXAMPLE, PER, ServedTask, Tensor
from tf_packnet.system.limits import Bound, SizeError

# The key of bytes in base64, as in TensorFlow Serving.
BYTES = "b64"
PREDICT, CLASSIFY = "predict", "classify"
# The fields with examples, by verb: one value per example, or (`inputs`) one per input.
_EXAMPLES = {PREDICT: ("instances", "inputs"), CLASSIFY: ("examples", "instances")}
_OPTIONS = {PREDICT: ("task", "signature_name", "per"), CLASSIFY: ("task", "signature_name", "per", "top")}
INPUTS = "inputs"
# Longer texts (in bytes) are parsed in a thread.
SMALL = 2**15
# The types of JSON values that an input takes, by the kind of its dtype.
_JSON_TYPES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}, "O": {str}}


class Asked(NamedTuple):
    """A parsed request.

    Attributes:
        task: Name or number of the task; None for the only one.
        field: The name of the field with the examples.
        examples: The examples as JSON values, or the contents of image files.
        top: How many classes to return; None for all.
        is_quick: Whether it is a short text without images, which is quick to convert.
        per: For an inferred task: `example` if each example has its own task, `batch` if all examples share one.
    """

    task: Any
    field: str
    examples: Any
    top: int | None = None
    is_quick: bool = False
    per: str = EXAMPLE


def parse_json(body: bytes, verb: str) -> Asked:
    """Parse a request in JSON.

    Raises:
        RequestError: If it is not an object with examples.
    """
    try:
        values = Bound().parsed(body, "the JSON text")
    except SizeError as error:
        raise RequestError(413, f"body: expected a smaller JSON text ({str(error).partition(';')[0]})") from error
    except (ValueError, RecursionError) as error:
        raise invalid("body", f"a JSON object ({error})") from error
    if not isinstance(values, dict):
        raise invalid("body", "a JSON object", values)
    for key in values:
        if key not in (*_EXAMPLES[verb], *_OPTIONS[verb]):
            raise invalid("body", f"only the fields {', '.join((*_EXAMPLES[verb], *_OPTIONS[verb]))}", key)
    fields = [field for field in _EXAMPLES[verb] if field in values]
    if len(fields) != 1:
        raise invalid("body", f"one of the fields {' and '.join(_EXAMPLES[verb])}", fields)
    tasks = [values[key] for key in ("task", "signature_name") if values.get(key) not in (None, "")]
    if len(tasks) > 1:
        raise invalid("body", "either task or signature_name", tasks)
    is_quick = len(body) <= SMALL and BYTES.encode() not in body and b"\\" not in body
    task, top, per = tasks[0] if tasks else None, top_of(values.get("top")), per_of(values.get("per"))
    return Asked(task, fields[0], values[fields[0]], top, is_quick, per)


def per_of(value: Any) -> str:
    """Check the value of `per`, from JSON, a URL or a form; None stands for `example`."""
    if value is None:
        return EXAMPLE
    if value not in PER:
        raise invalid("per", " or ".join(PER), value)
    return value


def top_of(value: Any) -> int | None:
    """Check the number of classes to return, from JSON, a URL or a form; None stands for all."""
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid("top", "a whole number of at least 1", value)
    return value


def tensors(asked: Asked, task: ServedTask, max_image_bytes: int) -> dict[str, np.ndarray]:
    """Convert the examples of a request to a batch for each input of a task.

    Raises:
        RequestError: If they do not fit the inputs.
    """
    names, only = list(task.inputs), next(iter(task.inputs))
    if asked.field == INPUTS:
        columns = asked.examples
        if not isinstance(columns, dict) or set(columns) == {BYTES}:
            columns = {only: columns}
        columns = {key: value if isinstance(value, list) else [value] for key, value in columns.items()}
    else:
        rows = asked.examples
        if not isinstance(rows, list) or not rows:
            raise invalid(asked.field, "a list of at least one example", rows)
        if all(isinstance(row, dict) and BYTES not in row for row in rows):
            if any(set(row) != set(rows[0]) for row in rows):
                raise invalid(asked.field, f"examples with the inputs {', '.join(map(repr, names))}")
            columns = {key: [row[key] for row in rows] for key in rows[0]}
        else:
            columns = {only: rows}
    if set(columns) != set(names):
        raise invalid(asked.field, f"the inputs {', '.join(map(repr, names))}", list(columns))
    batch = {key: _batch(key, columns[key], task, max_image_bytes) for key in names}
    if len({len(each) for each in batch.values()}) > 1:
        raise invalid(asked.field, "as many examples of each input", {key: len(each) for key, each in batch.items()})
    return batch


def _batch(name: str, values: Sequence[Any], task: ServedTask, max_image_bytes: int) -> np.ndarray:
    tensor = task.inputs[name]
    if not values:
        raise invalid(name, "at least one example", values)
    contents = [content for content in (_content(name, value) for value in values) if content is not None]
    if not contents:
        return _numbers(name, values, tensor)
    if len(contents) < len(values):
        raise invalid(name, "either images or arrays, not both")
    if tensor.dtype == object:
        return _fitting(name, np.array(contents, object), tensor)
    return _images(name, contents, tensor, task.images[name], max_image_bytes)


def _images(name: str, contents: Sequence[bytes], tensor: Tensor, spec: InputSpec, max_image_bytes: int) -> np.ndarray:
    """Decode images to a batch."""
    images: list[np.ndarray] = []
    bound = Bound(max_image_bytes)
    try:
        for number, content in enumerate(contents, start=1):
            image = read_image(content, f"image {number}", spec, bound)
            images.append(image if tensor.dtype.kind == "f" else np.rint(image).astype(tensor.dtype))
            if image.shape != images[0].shape:
                raise invalid(name, f"images of equal size, such as {images[0].shape[1:]}", image.shape[1:])
            if number * image.nbytes > max_image_bytes:
                raise RequestError(
                    413, f"{name}: expected fewer images; {number} take more than {max_image_bytes:,} bytes"
                )
    except ArgumentError as error:
        raise of_argument(error) from error
    return _fitting(name, np.concatenate(images), tensor)


def _content(name: str, value: Any) -> bytes | None:
    """Return the bytes that a value stands for; None if the value is not bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, Mapping):
        return None
    if set(value) != {BYTES} or not isinstance(value[BYTES], str):
        raise invalid(name, f'arrays, or bytes as {{"{BYTES}": "..."}}', value)
    try:
        return base64.b64decode(value[BYTES], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, f"valid base64 ({error})", value[BYTES]) from error


def _numbers(name: str, values: Sequence[Any], tensor: Tensor) -> np.ndarray:
    """Convert JSON values to an array of the dtype of a tensor. Check types and shapes before allocating it."""
    wanted, flat, shape = tensor.dtype, list(values), [len(values)]
    for _ in tensor.shape[1:]:
        if {*map(type, flat)} != {list} or len({*map(len, flat)}) != 1:
            raise invalid(name, f"examples of shape {_shown(tensor)}", values)
        shape.append(len(flat[0]))
        flat = list(itertools.chain.from_iterable(flat))
    if not {*map(type, flat)} <= _JSON_TYPES[wanted.kind]:
        items = "texts" if wanted.kind == "O" else wanted
        raise invalid(name, f"arrays of {items} of shape {_shown(tensor)}", values)
    if wanted.kind == "O":
        flat = [text.encode(errors="replace") for text in flat]
    try:
        array = np.array(flat, {"f": np.float64, "b": bool, "O": object}.get(wanted.kind, np.int64))
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
    except OverflowError as error:
        raise invalid(name, f"numbers in the range of {wanted}") from error
    if wanted.kind == "f" and not np.isfinite(converted).all():
        raise invalid(name, f"finite numbers in the range of {wanted}", "NaN, infinity or an overflow")
    if wanted.kind in "iu" and not np.array_equal(converted, array):
        raise invalid(name, f"numbers in the range of {wanted}", [int(array.min()), int(array.max())])
    return _fitting(name, converted.reshape(shape), tensor)


def _fitting(name: str, array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Return `array` unchanged; raise RequestError unless it is a batch of the tensor's shape."""
    shape = tensor.shape[1:]
    fits = array.ndim == len(shape) + 1 and all(
        wanted in (None, size) for size, wanted in zip(array.shape[1:], shape, strict=True)
    )
    if not fits or not array.size:
        raise invalid(name, f"examples of shape {_shown(tensor)}", array.shape[1:])
    return array


def _shown(tensor: Tensor) -> str:
    return str(tuple("any" if size is None else size for size in tensor.shape[1:])).replace("'", "")
