"""A SavedModel that needs nothing but TensorFlow, with as little beside the weights as TensorFlow allows."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_packnet import files
from tf_packnet.export.canonical import canonicalize
from tf_packnet.export.endpoint import SIGNATURE, Endpoint
from tf_packnet.structure.state import tensor_variables

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
    layers = [layer for model in models for layer in model._flatten_layers()]
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
