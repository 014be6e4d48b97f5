"""Computes how much memory a network takes from a symbolic copy of it, before any memory is allocated."""

import copy
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.lifecycle import witness
from tf_packnet.packfile.coding import nbytes
from tf_packnet.structure.tracing import sized_inputs
from tf_packnet.system.keras_internals import (
    compute_output_spec,
    has_graph,
    without_memory,
)
from tf_packnet.system.limits import Bound

# Peak memory of loading, as a multiple of the size of the variables (measured: 3.6 to 4.1).
_LOADING = 4
# Number of intermediate results that TensorFlow holds at the same time.
_LIVE_TENSORS = 3
# Largest intermediate result of a batch of predictions, in bytes.
_BATCH_BYTES = 2**26
# Memory in bytes for a layer, and per unit of an integer setting: `STFTSpectrogram` has a window of 8 bytes per unit.
_LAYER_BYTES, _UNIT_BYTES = 2**16, 16
_UNBOUNDED = ("seed", "num_bins")


class UnknownSizeError(ValueError):
    """Raised if a network cannot be built without memory, because a layer creates a variable from an array."""


def check(config: dict[str, Any], build: Callable[[Any], keras.Model], bound: Bound, others: int = 0) -> None:
    """Raise SizeError if the network of a config would take too much memory while it is loaded or called.

    Args:
        config: The config; it is not changed.
        build: Builds the network from its config.
        bound: Limit on the memory.
        others: Memory in bytes for everything else that is loaded.

    Raises:
        SizeError: If the network would take more.
        UnknownSizeError: If it cannot be built without memory, and `bound` is the default.
        Exception: Any error that Keras raises for an invalid config.
    """
    _check_settings(config, bound)
    with without_memory():
        try:
            model = _built(config, build)
        except UnknownSizeError:
            if bound.is_explicit:
                return
            raise
        variables = variable_bytes(model)
        bound.check(_LOADING * variables + others, f"a network with {variables:,} bytes of variables")
        largest, per_example = _largest_tensors(model)
        needed = _LIVE_TENSORS * max(largest, witness.examples(model) * per_example)
        bound.check(needed, f"a network with an intermediate result of {max(largest, per_example):,} bytes")


def build_without_memory(config: dict[str, Any], build: Callable[[Any], keras.Model]) -> keras.Model:
    """Build a network from its config, with variables that have shapes but no memory.

    Raises:
        UnknownSizeError: If a layer creates a variable from an array.
        Exception: If the network cannot be built.
    """
    with without_memory():
        return _built(config, build)


def _built(config: dict[str, Any], build: Callable[[Any], keras.Model]) -> keras.Model:
    try:
        return build(copy.deepcopy(config))  # Keras removes keys from a config
    except ValueError as error:
        if "in a stateless scope" not in str(error):
            raise
        reason = "a layer creates a variable from an array, so the size of the network is unknown"
        raise UnknownSizeError(f"{reason}; max_bytes=N opens it anyway, if you trust it") from error


def variable_bytes(model: keras.Model) -> int:
    """Return the size of the variables of a model in bytes."""
    return sum(nbytes(v.dtype, v.shape) for v in model.variables if v.dtype != "string")


def batch_size(model: keras.Model, most: int) -> int:
    """Return the largest batch size up to `most` with which no intermediate result takes more than `_BATCH_BYTES`."""
    per_example = max(1, _largest_tensors(model)[1])
    return int(min(most, max(1, _BATCH_BYTES // per_example)))


def _check_settings(config: Any, bound: Bound) -> None:
    """Check the number of layers, and the settings from which Keras layers build arrays eagerly."""
    layers, waiting = 0, [(config, False)]
    while waiting:
        part, is_of_keras = waiting.pop()
        if isinstance(part, list):
            waiting += [(each, is_of_keras) for each in part]
        elif isinstance(part, dict):
            is_object = "class_name" in part
            layers += is_object
            for key, value in part.items():
                if isinstance(value, int) and is_of_keras and not is_object and key not in _UNBOUNDED:
                    bound.check(_UNIT_BYTES * abs(value), f"a layer with {key}={value}")
                elif is_object:
                    waiting.append((value, str(part.get("module")).startswith(("keras", "tf_packnet"))))
                else:
                    waiting.append((value, is_of_keras))
    bound.check(_LAYER_BYTES * layers, f"a network of {layers:,} layers and their parts")


def _largest_tensors(model: keras.Model) -> tuple[int, int]:
    """Return the bytes of the largest tensor in a call with one example, and of the largest one with a batch axis."""
    if not has_graph(model):
        return 0, 0
    shapes = [
        (output.dtype.size, output.shape.as_list())
        for operation in _traced_operations(model)
        for output in operation.outputs
        if output.shape.rank is not None
    ]
    sizes = [(size * math.prod(length or 1 for length in shape), None in shape) for size, shape in shapes]
    return max((size for size, _ in sizes), default=0), max((size for size, batch in sizes if batch), default=0)


def _traced_operations(model: keras.Model) -> list[Any]:
    """Trace a call of a model, and return its operations."""
    error: Exception | None = None
    for inputs in sized_inputs(model):
        graphs: list[Any] = []

        def call(inputs: Any, graphs: list[Any] = graphs) -> Any:
            outputs = model(inputs, training=False)
            graphs.append(tf.compat.v1.get_default_graph())
            return outputs

        try:
            compute_output_spec(call, inputs)
            return graphs[0].get_operations()
        except Exception as reason:  # raised by a layer that needs a known size, such as a bilinear UpSampling2D
            error = error or reason
    assert error is not None
    raise error


def parsed_config(text: bytes, bound: Bound) -> dict[str, Any]:
    """Parse the config of a network.

    Raises:
        ValueError: If it is not a JSON object.
    """
    config = bound.parsed(text, "the config of the network")
    if not isinstance(config, dict):
        raise ValueError("the config of the network is not a JSON object")
    return config
