"""Tasks out of the pack: a plain Keras model, and files for whatever serves them."""

from tf_packnet.export.dense import dense_model
from tf_packnet.export.pack import export_pack
from tf_packnet.export.serving import export_for_serving
from tf_packnet.export.task import export_task

__all__ = ["dense_model", "export_for_serving", "export_pack", "export_task"]
