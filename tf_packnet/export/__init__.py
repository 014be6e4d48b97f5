"""One task out of the pack: a plain Keras model, a SavedModel."""

from tf_packnet.export.dense import dense_model
from tf_packnet.export.saved_model import export_task

__all__ = ["dense_model", "export_task"]
