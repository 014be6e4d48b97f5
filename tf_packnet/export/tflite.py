"""Writes LiteRT (TensorFlow Lite) files: `float32`, `float16` or 8-bit integers."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_packnet.errors import ArgumentError
from tf_packnet.export import lite_sparsity, saved_model
from tf_packnet.export.endpoint import SIGNATURE, Endpoint

_CALIBRATION_BATCH = 64
Examples = dict[str, np.ndarray]


def write(
    endpoint: Endpoint, path: Path, format: str, calibration: Examples | None = None, sparse: bool = False
) -> None:
    """Convert an endpoint and write the file `path`.

    Args:
        endpoint: The model to write.
        path: The file.
        format: `tflite`, `tflite_float16` or `tflite_int8`.
        calibration: The return value of `check_calibration`, for `tflite_int8`; None for the others.
        sparse: Whether weights are stored without zeros.

    Raises:
        ArgumentError: If LiteRT cannot represent the network.
    """
    if calibration is not None and _has_loop(endpoint):  # the converter would crash the process
        expected = "tflite or tflite_float16 for networks with loops, such as recurrent layers"
        raise ArgumentError("format", expected, format)
    raw_input = calibration is not None and bool(endpoint.scales)
    with tempfile.TemporaryDirectory() as folder:
        # Raw bytes already are the quantized input (see `_with_extremes`), so the file needs no preprocessing.
        saved_model.write(endpoint.without_preprocessing() if raw_input else endpoint, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if format != "tflite":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if format == "tflite_float16":
            converter.target_spec.supported_types = [tf.float16]
        if calibration is not None:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _batches(endpoint, calibration)
        if raw_input:
            converter.inference_input_type = tf.uint8
        content = _converted(converter, format, endpoint)
    path.write_bytes(lite_sparsity.without_zeros(content) if sparse else content)


def _has_loop(endpoint: Endpoint) -> bool:
    graph = endpoint.signature(endpoint.function()).get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return any(node.op in ("While", "StatelessWhile") for node in nodes)


def _converted(converter: Any, format: str, endpoint: Endpoint) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # the converter raises various types, with messages of many lines
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^.*\berror: (loc\(.*\): )?", "", reason)  # drop the location in the graph
        if "TensorList" in reason and endpoint.batch_size is None:
            reason += "; recurrent layers need a fixed number of examples, such as batch_size=1"
        expected = f"a format that can represent this network; LiteRT cannot: {reason}"
        raise ArgumentError("format", expected, format) from error


def check_calibration(endpoint: Endpoint, calibration: Any) -> Examples:
    """Check calibration examples, and convert them to inputs of the network.

    Args:
        endpoint: The model to calibrate.
        calibration: An array `(examples, *shape)` as the endpoint takes it, or such arrays by input name.

    Returns:
        The examples by input name, after preprocessing.

    Raises:
        ArgumentError: If there are fewer than two examples, or they do not fit the inputs.
    """
    if len(endpoint.scales) not in (0, len(endpoint.specs)):
        expected = "a value for every input or for none (format='tflite_int8')"
        raise ArgumentError("preprocessing", expected, endpoint.scales)
    if not isinstance(calibration, Mapping):
        calibration = dict.fromkeys(endpoint.input_names[:1], calibration)
    if set(calibration) != set(endpoint.input_names):
        expected = f"examples for each input: {', '.join(endpoint.input_names)}"
        raise ArgumentError("calibration", expected, list(calibration))
    examples = {spec.name: _examples(spec, calibration[spec.name], endpoint.scales) for spec in endpoint.specs}
    count = min(map(len, examples.values()))
    if endpoint.batch_size is not None and count < endpoint.batch_size:
        raise ArgumentError("calibration", f"at least {endpoint.batch_size} examples, the batch size", f"{count}")
    return examples


def _examples(spec: tf.TensorSpec, examples: Any, scales: dict[str, float]) -> np.ndarray:
    examples = np.asarray(examples)
    if examples.shape[1:] != spec.shape[1:] or examples.ndim == 0 or len(examples) < 2:
        shape = ", ".join(map(str, ("examples", *spec.shape[1:])))
        raise ArgumentError("calibration", f"an array ({shape}) of at least two examples", f"shape {examples.shape}")
    if spec.name not in scales:
        return examples.astype(spec.dtype.as_numpy_dtype)
    if examples.dtype != np.uint8:
        expected = "raw bytes (uint8), because preprocessing is given"
        raise ArgumentError("calibration", expected, examples.dtype.name)
    return _with_extremes(examples).astype(np.float32) * np.float32(scales[spec.name])


def _with_extremes(raw: np.ndarray) -> np.ndarray:
    """Return a copy that contains 0 and 255, so that the input has the range 0..255 and is quantized as it is."""
    raw = raw.copy()
    raw.reshape(-1)[[0, -1]] = 0, 255
    return raw


def _batches(endpoint: Endpoint, examples: Examples) -> Iterator[dict[str, np.ndarray]]:
    count = min(map(len, examples.values()))
    size = endpoint.batch_size or min(_CALIBRATION_BATCH, count)
    for start in range(0, count - size + 1, size) if endpoint.batch_size else range(0, count, size):
        end = min(start + size, count)
        yield {name: examples[name][start:end] for name in endpoint.input_names}
