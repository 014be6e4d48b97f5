"""Writes SavedModels that need only TensorFlow, with little overhead besides the weights."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_packnet.export import manifest
from tf_packnet.export.compaction.sparse import sparse_arrays
from tf_packnet.export.endpoint import SIGNATURE, Endpoint, Function
from tf_packnet.export.loaded_tensor import SparseWeights
from tf_packnet.structure.state import tensor_variables
from tf_packnet.system import files
from tf_packnet.system.keras_internals import all_layers

# Size in bytes of the functions that expand weights (measured: 15 kB).
_EXPANSION_BYTES = 2**14
_RESOURCE = tf.saved_model.experimental.TrackableResource


class Servable(tf.Module):
    """The object that is saved and that `tf.saved_model.load` returns.

    Attributes:
        variables: The weights that are stored dense, each once.
    """

    variables: Any = ()  # replaces the property of tf.Module, which would not be saved


def write_saved_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Write a plain Keras model as a SavedModel folder, atomically.

    Keras's own `export` stores every weight twice.

    Args:
        model: A built Sequential or functional model.
        path: The folder to write. An existing one is replaced.
    """
    with files.replacing(path) as temporary:
        write(Endpoint(model), temporary)


def write(endpoint: Endpoint, path: Path) -> None:
    """Write an endpoint to the folder `path`, with `serve`, `variables`, a signature and, if known, `class_names`.

    Weights that are stored without zeros (see `make_sparse`) are in `sparse_weights` instead, in one group per dtype.
    """
    module = Servable()
    sparse = sparse_arrays(endpoint.model)
    if sum(array.saved_bytes for array in sparse.values()) < _EXPANSION_BYTES:
        sparse = {}
    module.variables = [variable.value for variable in endpoint.model.variables if id(variable) not in sparse]
    groups = [
        SparseWeights({key: array for key, array in sparse.items() if array.dtype == dtype})
        for dtype in sorted({array.dtype for array in sparse.values()})
    ]
    if groups:
        module.sparse_weights = groups
    module.serve = endpoint.function({key: read for group in groups for key, read in group.readers().items()})
    signatures = {SIGNATURE: endpoint.signature(module.serve)}
    if endpoint.class_names:
        module.class_names = constants(endpoint.class_names)
        signatures["class_names"] = module.class_names
    save(module, path, signatures, [endpoint.model])
    manifest.write(path, {SIGNATURE: endpoint})


def constants(names: Mapping[str, Sequence[str]]) -> Function:
    """Return a function without inputs that returns these strings as tensors: clients of a server can request them."""

    @tf.function(input_signature=[], autograph=False)
    def strings() -> dict[str, tf.Tensor]:
        return {key: tf.constant(list(values)) for key, values in names.items()}

    return strings


def save(
    module: Servable,
    path: Path,
    signatures: dict[str, Function],
    models: Sequence[keras.Model],
) -> None:
    """Save the functions of `module` with the variables and resources that they use, but without Keras layers.

    Args:
        module: The object to save.
        path: The folder to write.
        signatures: The functions that a server offers, by name.
        models: The models that the functions call.
    """
    # Resources other than variables: vocabulary tables.
    layers = [layer for model in models for layer in all_layers(model)]
    resources = [value for layer in layers for value in vars(layer).values() if isinstance(value, _RESOURCE)]
    # Variables that Keras does not track: in attributes of layers, or captured by the code of a layer.
    variables = [variable for layer in layers for _, variable in tensor_variables(layer)]
    for function in signatures.values():
        with contextlib.suppress(AssertionError):  # a variable that existed only while tracing
            variables += function.get_concrete_function().graph.variables
    saved = {id(variable) for variable in module.variables}
    resources += list({id(variable): variable for variable in variables if id(variable) not in saved}.values())
    if resources:
        module.resources = resources
    with _without_asset_messages():
        tf.saved_model.save(module, str(path), signatures=signatures)
    canonicalize(Path(path))


@contextlib.contextmanager
def _without_asset_messages() -> Iterator[None]:
    """Hide TensorFlow's message about where it wrote assets, which names a temporary folder."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


# Names with a number that depends on the process: functions such as `__inference_serve_1234` and `while_body_1234`,
# gradient functions such as `PartitionedCall-1234`, tensors such as `1234`, `1234:0` and `while_cond_1234___unused`.
_NUMBERED = re.compile(
    r"(__(?:inference|forward|backward)_.*_|.*(?:while_body|while_cond|cond_true|cond_false|branch\d+)_"
    r"|(?:Stateful)?PartitionedCall-|\^?)(\d+)(|:.*|___.*)"
)


def canonicalize(folder: Path) -> None:
    """Rewrite the SavedModel in `folder` so that equal models give equal bytes, and mark that it has a manifest.

    Numbers in names are replaced by 1, 2, ..., functions are sorted by name, and the random identifier is dropped.
    """
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(path.read_bytes())
    used_numbers: set[int] = set()

    def collect(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        used_numbers.update([int(match[2])] if match else [])
        return text

    def renumber(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        return f"{match[1]}{numbers[int(match[2])]}{match[3]}" if match else text

    _change_texts(model, collect)
    numbers = {number: position for position, number in enumerate(sorted(used_numbers), start=1)}
    _change_texts(model, renumber)
    for graph in model.meta_graphs:
        functions = sorted(graph.graph_def.library.function, key=lambda function: function.signature.name)
        del graph.graph_def.library.function[:]
        graph.graph_def.library.function.extend(functions)
        graph.meta_info_def.meta_graph_version = manifest.MARK
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # it fingerprints the original content


def _change_texts(message: Any, change: Callable[[str], str]) -> None:
    """Replace every string in a protocol buffer by `change(string)`, including keys of maps."""
    for field, value in message.ListFields():
        if field.name == "local_name":  # a position in a list, not the number of a tensor
            continue
        if hasattr(value, "ListFields"):
            _change_texts(value, change)
        elif isinstance(value, str):
            setattr(message, field.name, change(value))
        elif hasattr(value, "keys"):
            _change_map(value, change)
        elif hasattr(value, "extend"):
            for index, each in enumerate(value):
                if hasattr(each, "ListFields"):
                    _change_texts(each, change)
                elif isinstance(each, str):
                    value[index] = change(each)


def _change_map(entries: Any, change: Callable[[str], str]) -> None:
    for key in sorted(entries.keys()):
        entry = entries[key]
        if key == "_user_specified_name":  # the only attribute of an operation that contains such numbers
            entry.s = change(entry.s.decode()).encode()
        elif hasattr(entry, "ListFields"):
            _change_texts(entry, change)
        elif isinstance(entry, str):
            entries[key] = change(entry)
    renamed = {key: change(key) for key in entries.keys() if isinstance(key, str) and change(key) != key}  # noqa: SIM118
    kept = {key: _copy(entries[key]) for key in renamed}
    for key in renamed:
        del entries[key]
    for key, name in renamed.items():
        if hasattr(kept[key], "ListFields"):
            entries[name].CopyFrom(kept[key])
        else:
            entries[name] = kept[key]


def _copy(entry: Any) -> Any:
    if not hasattr(entry, "ListFields"):
        return entry
    copied = type(entry)()
    copied.CopyFrom(entry)
    return copied
