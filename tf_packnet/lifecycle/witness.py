"""Computes and compares the outputs of a model on synthetic inputs, to detect changes of committed tasks.

The inputs are random numbers from a fixed seed, with the shapes and dtypes of the model's inputs. No user data is used.
"""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.layers.head import Head
from tf_packnet.layers.records import TaskRecords, checksum, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.structure.state import seeds
from tf_packnet.structure.tracing import SIZES
from tf_packnet.system.keras_internals import all_layers, as_function, build_shapes, graph_ends, has_graph

SEED = 20200903
# Largest number of examples, and of input values in all examples: there are fewer examples if they are large.
EXAMPLES = 8
_MOST_INPUT_VALUES = 2**18
# Largest number of values that are stored per output. For larger outputs, evenly spaced values are stored.
_MOST_OUTPUT_VALUES = 2**14
# Number of traced functions that are kept per model.
_MOST_FUNCTIONS = 32
# Tolerance of outputs in a different environment, relative to the largest recorded value, by dtype.
TOLERANCES = {"float64": 1e-6, "float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}

# Largest relative difference that rounding alone may explain, by the compute dtype.
_ROUNDING = {"float64": 1e-13, "float32": 1e-5}


def environment() -> dict[str, Any]:
    """Return the facts on which the last bits of outputs depend: versions, device, processor and threads."""
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "device": "GPU" if gpus else "CPU",
        "processor": _processor(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads()
        or int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0))
        or len(os.sched_getaffinity(0)),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
    }


@functools.cache
def _processor() -> str:
    """Return a checksum of the processor's name and instructions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    relevant = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return checksum(np.frombuffer("\n".join(relevant).encode(), np.uint8))


def tolerance(model: keras.Model, recorded: dict[str, Any]) -> float:
    """Return the relative tolerance for outputs of `model`.

    Args:
        model: A model.
        recorded: The environment in which the outputs were recorded.

    Returns:
        0 in the same environment on CPU; otherwise the largest of `TOLERANCES` for the dtypes of the layers.
    """
    now = environment()
    if now == recorded and now["device"] == "CPU":
        return 0.0
    return max(TOLERANCES.get(layer.compute_dtype, 1e-2) for layer in all_layers(model))


def is_rounding(model: keras.Model, difference: float) -> bool:
    """Return whether a result of the function `difference` may be due to another order of summation."""
    return difference <= min(_ROUNDING.get(layer.compute_dtype, 0.0) for layer in all_layers(model))


def rounding(model: keras.Model) -> float:
    """Return the largest relative difference that the order of summation may cause: a tolerance for equal computations.

    On GPUs, which compute float32 with fewer bits, and for half precision, it is one of `TOLERANCES`.
    """
    known = {} if environment()["device"] == "GPU" else _ROUNDING
    return max(known.get(each.compute_dtype, TOLERANCES.get(each.compute_dtype, 0.0)) for each in all_layers(model))


def outputs(
    model: keras.Model, records: TaskRecords, inputs: dict[str, Any] | None = None
) -> tuple[list[np.ndarray], dict[str, Any] | None]:
    """Compute the outputs of `predict` for synthetic inputs, as the selected task. The random seeds are restored.

    Args:
        model: A built model.
        records: The records of the model, which keep traced functions.
        inputs: Parameters of the inputs: number of `examples`, and `size` of axes of unknown size. Default: the first
            parameters with which the model can be called.

    Returns:
        The outputs, flat, and the parameters of the inputs. An empty list and None if the model cannot be called with
        synthetic inputs.
    """
    specs = _input_specs(model)
    if specs is None or (inputs is None and records.functions.get("failed")):
        return [], None
    for parameters in [inputs] if inputs is not None else _parameters_to_try(specs):
        try:
            values = _compute(model, records, specs, parameters)
        except Exception:  # raised by the model's own code, for example because of the size
            continue
        return values, parameters
    records.functions["failed"] = True  # tracing is slow: do not try again
    return [], None


def examples(model: keras.Model) -> int:
    """Return the number of examples of the synthetic inputs; 1 if the model's inputs are unknown."""
    specs = _input_specs(model)
    return 1 if specs is None else next(_parameters_to_try(specs))["examples"]


def difference(recorded: list[np.ndarray], outputs: list[np.ndarray], tolerance: float) -> float | None:
    """Return the largest difference between outputs, relative to the largest recorded value of each output.

    Args:
        recorded: Recorded outputs.
        outputs: Current outputs.
        tolerance: Relative tolerance for floating-point outputs; 0 compares bit by bit.

    Returns:
        The difference; None if the outputs agree.
    """
    if [each.shape for each in outputs] != [each.shape for each in recorded]:
        return float("inf")
    largest = 0.0
    for before, now in zip(recorded, outputs, strict=True):
        if same_bits(before, now):
            continue
        gap = _relative_gap(before, now)
        has_tolerance = before.dtype.kind not in "biu" and tolerance > 0
        if gap > tolerance or not has_tolerance:
            largest = max(largest, gap, np.finfo(float).tiny)  # zeros of different signs have different bits
    return largest or None


def _relative_gap(before: np.ndarray, now: np.ndarray) -> float:
    """Return the largest difference between two arrays, relative to the largest finite value of `before`.

    Equal infinities, or NaN at the same place, count as equal. Any other difference in NaN or infinity is infinite.
    """
    before, now = before.astype(np.complex128), now.astype(np.complex128)
    different = (before != now) & ~(np.isnan(before) & np.isnan(now))
    gap = np.abs(now[different] - before[different]).max(initial=0)
    scale = np.abs(before[np.isfinite(before)]).max(initial=1e-30)
    return float("inf") if np.isnan(gap) else float(gap / scale)


def captured_variables(records: TaskRecords) -> list[tf.Variable]:
    """Return the variables that the traced functions read, including those that no layer tracks."""
    variables: dict[int, tf.Variable] = {}
    for function in records.functions.values():
        if hasattr(function, "get_concrete_function"):
            for variable in function.get_concrete_function().graph.variables:
                variables[id(variable)] = variable
    return list(variables.values())


def _input_specs(model: keras.Model) -> Any:
    """Return the structure of the model's inputs as KerasTensors; None if it is unknown."""
    if has_graph(model) or (isinstance(model, keras.Sequential) and model.built):
        structure, _ = graph_ends(as_function(model))
        return structure
    match build_shapes(model):
        case [tuple() as shape]:
            return keras.KerasTensor((None, *shape[1:]))
        case _:
            return None


def _parameters_to_try(specs: Any) -> Iterator[dict[str, Any]]:
    """Yield parameters of inputs to try, see `outputs`."""
    flat = keras.tree.flatten(specs)
    has_unknown_sizes = any(size is None for spec in flat for size in spec.shape[1:])
    for size in SIZES if has_unknown_sizes else (0,):
        batch_size = next((spec.shape[0] for spec in flat if spec.shape and spec.shape[0]), None)
        yield {"examples": batch_size or _most_examples(specs, size), "size": size}


def _most_examples(specs: Any, unknown_size: int) -> int:
    """Return the number of examples. Large examples are fewer."""
    values = (math.prod(size or unknown_size for size in spec.shape[1:]) for spec in keras.tree.flatten(specs))
    return int(np.clip(_MOST_INPUT_VALUES // max(1, *values), 1, EXAMPLES))


def _inputs(model: keras.Model, specs: Any, parameters: dict[str, Any]) -> Any:
    """Create synthetic inputs.

    Raises:
        ValueError: If the parameters, which may come from a file, are not ones that this module creates.
    """
    # NumPy guarantees that the numbers of this generator never change.
    draw = np.random.RandomState(SEED)
    vocabulary_sizes = [layer.input_dim for layer in all_layers(model) if isinstance(layer, keras.layers.Embedding)]
    examples, unknown_size = parameters["examples"], parameters["size"]
    batch_sizes = {spec.shape[0] for spec in keras.tree.flatten(specs) if spec.shape}
    valid = {*range(1, _most_examples(specs, unknown_size) + 1), *batch_sizes}
    if examples not in valid or unknown_size not in (0, *SIZES):
        raise ValueError(f"invalid parameters of a witness: {parameters}")

    def values(spec: Any) -> Any:
        shape = (examples, *(size or unknown_size for size in spec.shape[1:]))
        if spec.dtype == "string":
            return tf.strings.as_string(draw.randint(0, 10, shape))
        if spec.dtype == "bool":
            return tf.constant(draw.randint(0, 2, shape).astype(bool))
        if "int" in spec.dtype:
            return tf.constant(draw.randint(0, min(vocabulary_sizes, default=2), shape), spec.dtype)
        dense = tf.cast(tf.constant(draw.standard_normal(shape), tf.float32), spec.dtype)
        return tf.sparse.from_dense(dense) if spec.sparse else dense

    return keras.tree.map_structure(values, specs)


def _compute(model: keras.Model, records: TaskRecords, specs: Any, parameters: dict[str, Any]) -> list[np.ndarray]:
    """Compute the outputs with a traced function, from `records` if possible."""
    key = (repr(sorted(parameters.items())), id(model), _heads(model))
    if key not in records.functions:
        x = _inputs(model, specs, parameters)

        @tf.function(autograph=False)
        def function() -> Any:
            with _undivided(model):
                return model.predict_step((x,))

        records.functions[key] = function
        if len(records.functions) > _MOST_FUNCTIONS:  # possible with heads of many sizes
            del records.functions[next(iter(records.functions))]
    states = seeds(model)
    before = [np.array(view(state)) for state in states]
    for number, state in enumerate(states):
        state.assign(np.array([SEED, number], before[number].dtype))
    try:
        results = records.functions[key]()
    except Exception:  # raised by the model's own code, for example because of the size
        del records.functions[key]
        raise
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)
    return [_flat_values(np.asarray(each)) for each in tf.nest.flatten(results, expand_composites=True)]


def _undivided(model: keras.Model) -> contextlib.AbstractContextManager:
    """Let a pack compute undivided batches even during a `fit` on several replicas: parts would round differently."""
    on_one_device = getattr(model, "_on_one_device", None)
    return contextlib.nullcontext() if on_one_device is None else on_one_device(shown=False)


def _flat_values(output: np.ndarray) -> np.ndarray:
    """Return the values of an output to store: flat, text as bytes, evenly spaced values of a large output."""
    if output.dtype == object:
        output = output.astype(str)
    if output.dtype.kind in "US":
        output = np.frombuffer(repr(output.tolist()).encode(), np.uint8)
    flat = output.reshape(-1)
    return np.array(flat[:: max(1, -(-flat.size // _MOST_OUTPUT_VALUES))])


def _heads(model: keras.Model) -> tuple[Any, ...]:
    """Return the outputs and activations of the heads, on which a traced function depends."""
    heads = [layer for layer in all_layers(model) if isinstance(layer, Head)]
    return tuple((head.num_outputs, id(vars(head).get("activation"))) for head in heads)
