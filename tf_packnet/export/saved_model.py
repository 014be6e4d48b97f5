"""A SavedModel that needs nothing but TensorFlow, with as little beside the weights as TensorFlow allows."""

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

from tf_packnet.export.endpoint import SIGNATURE, Endpoint
from tf_packnet.structure.state import tensor_variables
from tf_packnet.system import files
from tf_packnet.system.keras_internals import all_layers

RESOURCE = tf.saved_model.experimental.TrackableResource


class Servable(tf.Module):
    """What `tf.saved_model.load` gives back.

    Attributes:
        variables: Every weight, once.
    """

    variables: Any = ()  # tf.Module's own is a property, which would not be saved


def write_saved_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes a plain Keras model as a SavedModel folder, atomically.

    Keras's own `export` stores every weight twice.

    Args:
        model: A built Sequential or functional model.
        path: The folder to write; one that is there is replaced.
    """
    with files.replacing(path) as temporary:
        write(Endpoint(model), temporary)


def write(endpoint: Endpoint, path: Path) -> None:
    """Writes the folder `path`, with `serve`, `variables` and the signature; and `class_names` where they are known."""
    module = Servable()
    module.variables = [variable.value for variable in endpoint.model.variables]
    module.serve = endpoint.function()
    signatures = {SIGNATURE: endpoint.signature(module.serve)}
    if endpoint.class_names:
        module.class_names = constants(endpoint.class_names)
        signatures["class_names"] = module.class_names
    save(module, path, signatures, [endpoint.model])


def constants(names: Mapping[str, Sequence[str]]) -> Callable[[], dict[str, tf.Tensor]]:
    """A function that answers these strings: what a client of a server can ask too."""

    @tf.function(input_signature=[], autograph=False)
    def answer():
        return {key: tf.constant(list(values)) for key, values in names.items()}

    return answer


def save(
    module: Servable, path: Path, signatures: dict[str, Callable[..., Any]], models: Sequence[keras.Model]
) -> None:
    """`tf.saved_model.save`, of what the functions compute with and not of the layers that they call.

    Args:
        module: What to save.
        path: The folder to write.
        signatures: The functions that a server finds, by name.
        models: Those whose layers the functions call.
    """
    # Besides variables: the tables of vocabularies, and kernels that are computed when the file is loaded.
    layers = [layer for model in models for layer in all_layers(model)]
    held = [value for layer in layers for value in vars(layer).values() if isinstance(value, RESOURCE)]
    # And variables that Keras does not know: in attributes of layers, or those that a layer's code refers to.
    found = [variable for layer in layers for _, variable in tensor_variables(layer)]
    for function in signatures.values():
        with contextlib.suppress(AssertionError):  # one that was only there while tracing
            found += function.get_concrete_function().graph.variables
    known = {id(variable) for variable in module.variables}
    held += list({id(each): each for each in found if id(each) not in known}.values())
    if held:
        module.resources = held
    with _without_asset_messages():
        tf.saved_model.save(module, str(path), signatures=signatures)
    canonicalize(Path(path))


@contextlib.contextmanager
def _without_asset_messages() -> Iterator[None]:
    """TensorFlow tells where it wrote assets, which here is a temporary name."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


# `__inference_serve_1234`; `PartitionedCall-1234`, where gradients are looked up; `1234` and `1234:0` for a tensor.
_NUMBERED = re.compile(r"(__(?:inference|forward|backward)_.*_|(?:Stateful)?PartitionedCall-|\^?)(\d+)(|:.*)")


def canonicalize(folder: Path) -> None:
    """Rewrites the SavedModel in `folder`: numbers from 1 on, functions by their names, and no random identifier."""
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(path.read_bytes())
    used: set[int] = set()

    def collect(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        used.update([int(match[2])] if match else [])
        return text

    def renumber(text: str) -> str:
        match = _NUMBERED.fullmatch(text)
        return f"{match[1]}{numbers[int(match[2])]}{match[3]}" if match else text

    _change_texts(model, collect)
    numbers = {number: place for place, number in enumerate(sorted(used), start=1)}
    _change_texts(model, renumber)
    for graph in model.meta_graphs:
        functions = sorted(graph.graph_def.library.function, key=lambda function: function.signature.name)
        del graph.graph_def.library.function[:]
        graph.graph_def.library.function.extend(functions)
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # of another content, with the identifier


def _change_texts(message: Any, change: Callable[[str], str]) -> None:
    """Puts `change(text)` in the place of every text in a protocol buffer, the keys of maps included."""
    for field, value in message.ListFields():
        if field.name == "local_name":  # the place of an object in a list, not the number of a tensor
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
        if key == "_user_specified_name":  # the one attribute of an operation in which the numbers are
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
