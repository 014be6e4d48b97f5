"""Outputs of a model on synthetic inputs, by which a later change of a committed task is noticed.

The inputs are drawn from a fixed seed in the shapes and dtypes of the model's inputs, never taken from anyone's data.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.layers.records import TaskRecords, Witness, checksum, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.structure.state import seeds

SEED = 20200903
# Examples, at most; fewer of large ones.
EXAMPLES = 8
MOST_VALUES = 2**18
# Output values that are kept of each output, at most: evenly spaced ones of larger outputs, and a checksum of all.
MOST_OUTPUTS = 2**14
# What is tried for axes of unknown size.
SIZES = (8, 16, 32, 64, 128, 224, 4, 2, 1)
# Largest difference to the recorded outputs, relative to the largest of them, where their bits may differ.
TOLERANCES = {"float64": 1e-6, "float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}


def environment() -> dict[str, Any]:
    """What decides the last bits of what is computed: versions, device, instructions and threads."""
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
    """A checksum of the processor's name and instructions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return checksum(np.frombuffer("\n".join(told).encode(), np.uint8))


def tolerance(model: keras.Model, recorded: dict[str, Any]) -> float:
    """The relative tolerance for outputs of `model` that were recorded in another environment; 0 in the same on CPU."""
    now = environment()
    if now == recorded and now["device"] == "CPU":
        return 0.0
    return max(TOLERANCES.get(layer.compute_dtype, 1e-2) for layer in model._flatten_layers())


def outputs(
    model: keras.Model, records: TaskRecords, how: dict[str, Any] | None = None
) -> tuple[list[np.ndarray], Any]:
    """What `predict` gives for synthetic inputs, as the model computes now. It leaves the state of the model as it was.

    Args:
        model: A model whose layers are built.
        records: Its records, where traced functions are kept.
        how: How the inputs are to be made; default what works.

    Returns:
        The outputs, flat, and how the inputs were made. No outputs and None if the model cannot be called with
        synthetic inputs, or is not the same function of its inputs twice.
    """
    specs = _specs(model)
    if specs is None or (how is None and records.functions.get("failed")):
        return [], None
    for candidate in [how] if how is not None else _recipes(specs):
        try:
            found = _computed(model, records, specs, candidate)
        except Exception:  # a size that the model's own code does not take
            continue
        return found, candidate
    records.functions["failed"] = True  # tracing takes long: not again
    return [], None


def differences(witness: Witness, found: list[np.ndarray], tolerance: float) -> float | None:
    """The largest difference of outputs to those of `witness`, relative to their size; None if they agree."""
    if not witness.outputs:
        return None
    if [each.shape for each in found] != [each.shape for each in witness.outputs]:
        return float("inf")
    largest = 0.0
    for before, now in zip(witness.outputs, found, strict=True):
        if same_bits(before, now):
            continue
        if before.dtype.kind not in "fc" or tolerance == 0:
            scale = np.abs(before.astype(np.float64)).max(initial=1e-30) if before.dtype.kind in "fiub" else 1.0
            both = before.dtype.kind in "fiub" and now.dtype.kind in "fiub"
            gap = np.abs(now.astype(np.float64) - before).max(initial=0) if both else np.inf
            largest = max(largest, float(gap / scale), np.finfo(float).tiny)
            continue
        scale = np.abs(before.astype(np.float64)).max(initial=1e-30)
        gap = float(np.abs(now.astype(np.float64) - before.astype(np.float64)).max(initial=0) / scale)
        if not gap <= tolerance:  # NaN is a difference, too
            largest = max(largest, gap if np.isfinite(gap) else np.inf)
    return largest or None


def captured_variables(records: TaskRecords) -> list[tf.Variable]:
    """The variables that the traced functions of the witness read, those of no layer included."""
    found: dict[int, tf.Variable] = {}
    for function in records.functions.values():
        if hasattr(function, "get_concrete_function"):
            for variable in function.get_concrete_function().graph.variables:
                found[id(variable)] = variable
    return list(found.values())


def _specs(model: keras.Model) -> Any:
    """Structure of the model's inputs, as KerasTensors; None if it is not known."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is None and isinstance(model, keras.Sequential) and model.built:
        structure = model._functional._inputs_struct
    if structure is None:
        shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
        if len(shapes) != 1 or not isinstance(shapes[0], tuple):
            return None
        structure = keras.KerasTensor((None, *shapes[0][1:]))
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return structure[0]
    return structure


def _recipes(specs: Any) -> Iterator[dict[str, Any]]:
    """Sizes to try for batch and open axes."""
    flat = keras.tree.flatten(specs)
    open_axes = any(size is None for spec in flat for size in spec.shape[1:])
    for size in SIZES if open_axes else (0,):
        values = max(1, max(int(np.prod([each or size for each in spec.shape[1:]])) for spec in flat))
        fixed = next((spec.shape[0] for spec in flat if spec.shape and spec.shape[0]), None)
        yield {"examples": fixed or int(np.clip(MOST_VALUES // values, 1, EXAMPLES)), "size": size}


def _inputs(model: keras.Model, specs: Any, how: dict[str, Any]) -> Any:
    # NumPy guarantees the stream of this generator for good.
    draw = np.random.RandomState(SEED)  # noqa: NPY002
    entries = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]

    fixed = {spec.shape[0] for spec in keras.tree.flatten(specs) if spec.shape}
    if how["examples"] not in {*range(1, EXAMPLES + 1), *fixed} or how["size"] not in (0, *SIZES):
        raise ValueError(f"a witness is not made of {how}")  # what a file claims is not made

    def values(spec: Any) -> Any:
        shape = (how["examples"], *(size or how["size"] for size in spec.shape[1:]))
        if spec.dtype == "string":
            return tf.strings.as_string(draw.randint(0, 10, shape))
        if spec.dtype == "bool":
            return tf.constant(draw.randint(0, 2, shape).astype(bool))
        if "int" in spec.dtype:
            return tf.constant(draw.randint(0, min(entries, default=2), shape), spec.dtype)
        dense = tf.cast(tf.constant(draw.standard_normal(shape), tf.float32), spec.dtype)
        return tf.sparse.from_dense(dense) if getattr(spec, "sparse", False) else dense

    return keras.tree.map_structure(values, specs)


def _computed(model: keras.Model, records: TaskRecords, specs: Any, how: dict[str, Any]) -> list[np.ndarray]:
    key = (repr(sorted(how.items())), id(model), _heads(model))
    if key not in records.functions:
        x = _inputs(model, specs, how)

        @tf.function(autograph=False)
        def function():
            return model.predict_step((x,))

        records.functions[key] = function
        if len(records.functions) > 32:  # heads of many sizes
            del records.functions[next(iter(records.functions))]
    states = seeds(model)
    before = [np.array(view(state)) for state in states]
    for number, state in enumerate(states):
        state.assign(np.array([SEED, number], before[number].dtype))
    try:
        found = records.functions[key]()
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)
    return [_kept(np.asarray(each)) for each in tf.nest.flatten(found, expand_composites=True)]


def _kept(output: np.ndarray) -> np.ndarray:
    if output.dtype == object:
        output = output.astype(str)
    if output.dtype.kind in "US":
        output = np.frombuffer(repr(output.tolist()).encode(), np.uint8)
    flat = output.reshape(-1)
    return np.array(flat[:: -(-flat.size // MOST_OUTPUTS)] if flat.size > MOST_OUTPUTS else flat)


def _heads(model: keras.Model) -> tuple[Any, ...]:
    """What a traced function depends on besides variables: the units and activations of heads."""
    return tuple((layer.units, id(layer.activation)) for layer in model._flatten_layers() if hasattr(layer, "units_of"))
