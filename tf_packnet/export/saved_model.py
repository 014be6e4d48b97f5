"""One task as a SavedModel that needs nothing but TensorFlow."""

import contextlib
import logging
import os
from collections.abc import Iterator

from tf_packnet import files
from tf_packnet.export.dense import dense_model
from tf_packnet.packed_model import PackedModel


def export_task(packed: PackedModel, task: int | str, path: str | os.PathLike) -> None:
    """Writes one committed task as a SavedModel folder, atomically.

    `tf.saved_model.load(path).serve(x)` gives the task's logits, for any batch size.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.
        path: The folder to write; one that is there is replaced.

    Raises:
        ArgumentError: If there is no such task.
        RuntimeError: If the task is still being learned.
    """
    model = dense_model(packed, task)
    with files.replacing(path) as temporary, _without_asset_messages():
        model.export(os.fspath(temporary), format="tf_saved_model", verbose=False)


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
