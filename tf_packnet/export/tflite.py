"""A task for LiteRT (TensorFlow Lite), in floating point or in whole numbers of 8 bits."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.export import saved_model
from tf_packnet.export.endpoint import SIGNATURE, Endpoint

BATCH = 64  # calibration examples at a time
Examples = dict[str, np.ndarray]


def write(endpoint: Endpoint, path: Path, format: str, calibration: Examples | None = None) -> None:
    """Writes the file `path`.

    Args:
        endpoint: What to write.
        path: The file.
        format: `tflite`, `tflite_float16` or `tflite_int8`.
        calibration: For `tflite_int8`, what `checked` gave.
    """
    whole_numbers = format == "tflite_int8"
    raw = whole_numbers and bool(endpoint.scales)
    with tempfile.TemporaryDirectory() as folder:
        # Raw bytes are the quantized input, see `_with_extremes`: nothing is left to be computed before the network.
        saved_model.write(Endpoint(endpoint.model) if raw else endpoint, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if format != "tflite":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if format == "tflite_float16":
            converter.target_spec.supported_types = [tf.float16]
        if whole_numbers:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _batches(endpoint, calibration)
        if raw:
            converter.inference_input_type = tf.uint8
        path.write_bytes(_converted(converter, format))


def _converted(converter: Any, format: str) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # whatever the converter raises, on many lines
        # Without the location in the graph, which may be long.
        reason = re.sub(r"^.*\berror: (loc\(.*\): )?", "", first_line(error, longest=1000))
        raise ArgumentError("format", f"one that can hold this network; LiteRT cannot: {reason}", format) from error


def checked(endpoint: Endpoint, calibration: Any) -> Examples:
    """The calibration examples by input, as the network itself takes them.

    Args:
        endpoint: What they are for.
        calibration: An array `(examples, *shape)` as the endpoint takes them, or such arrays by name of the input.

    Raises:
        ArgumentError: If these are no two examples or more of what the endpoint takes.
    """
    if len(endpoint.scales) not in (0, len(endpoint.specs)):
        raise ArgumentError("preprocessing", "for every input or for none (format='tflite_int8')", endpoint.scales)
    if not isinstance(calibration, Mapping):
        calibration = dict.fromkeys(endpoint.input_names[:1], calibration)
    if set(calibration) != set(endpoint.input_names):
        raise ArgumentError("calibration", f"examples by input: {', '.join(endpoint.input_names)}", list(calibration))
    return {spec.name: _examples(spec, calibration[spec.name], endpoint.scales) for spec in endpoint.specs}


def _examples(spec: tf.TensorSpec, given: Any, scales: dict[str, float]) -> np.ndarray:
    given = np.asarray(given)
    if given.shape[1:] != spec.shape[1:] or given.ndim == 0 or len(given) < 2:
        shape = ", ".join(map(str, ("examples", *spec.shape[1:])))
        raise ArgumentError("calibration", f"an array ({shape}) of two examples or more", f"shape {given.shape}")
    if spec.name not in scales:
        return given.astype(spec.dtype.as_numpy_dtype)
    if given.dtype != np.uint8:
        raise ArgumentError("calibration", "raw bytes (uint8), as preprocessing says", given.dtype.name)
    return _with_extremes(given).astype(np.float32) * np.float32(scales[spec.name])


def _with_extremes(raw: np.ndarray) -> np.ndarray:
    """The same with a 0 and a 255 in it: the input's range is then a byte's, and its quantization the identity."""
    raw = raw.copy()
    raw.reshape(-1)[[0, -1]] = 0, 255
    return raw


def _batches(endpoint: Endpoint, examples: Examples) -> Iterator[dict[str, np.ndarray]]:
    count = min(map(len, examples.values()))
    for start in range(0, count, BATCH):
        yield {name: examples[name][start : min(start + BATCH, count)] for name in endpoint.input_names}
