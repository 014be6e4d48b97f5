"""One task as a SavedModel that needs nothing but TensorFlow."""

import contextlib
import logging
import os
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_packnet import files
from tf_packnet.export.compaction import compact_model
from tf_packnet.export.compaction.graph import inputs_of
from tf_packnet.export.dense import dense_model
from tf_packnet.packed_model import PackedModel


def export_task(packed: PackedModel, task: int | str, path: str | os.PathLike, compact: bool = False) -> None:
    """Writes one committed task as a SavedModel folder, atomically.

    `tf.saved_model.load(path).serve(x)` gives the task's logits, for any batch size.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.
        path: The folder to write; one that is there is replaced.
        compact: Whether to leave out what the task's outputs do not depend on, see `compact_model`. Otherwise kernels
            have the shapes of the pack's, with 0 where a weight is not the task's.

    Raises:
        ArgumentError: If there is no such task.
        RuntimeError: If the task is still being learned.
    """
    model = dense_model(packed, task)
    write_saved_model(compact_model(model) if compact else model, path)


def write_saved_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes a model as a SavedModel folder with one function `serve`, atomically.

    Keras's own `export` stores every variable twice.

    Args:
        model: A Sequential or functional model.
        path: The folder to write; one that is there is replaced.
    """
    root = tf.__internal__.tracking.AutoTrackable()
    root.variables = [variable.value for variable in model.variables]
    root.resources = _resources(model)
    signature = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), inputs_of(model))

    @tf.function(input_signature=[signature], autograph=False)
    def serve(x):
        return model(x, training=False)

    root.serve = serve
    with files.replacing(path) as temporary, _without_asset_messages():
        tf.saved_model.save(root, os.fspath(temporary), signatures={"serving_default": serve})


def _resources(model: keras.Model) -> list[tf.saved_model.experimental.TrackableResource]:
    """What a loaded SavedModel makes anew before it serves: lookup tables, kernels that are stored without zeros."""
    held = [child for layer in model._flatten_layers() for child in layer._trackable_children("savedmodel").values()]
    return [child for child in held if isinstance(child, tf.saved_model.experimental.TrackableResource)]


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
