"""One task out of the pack: a plain Keras model, a SavedModel, without what the task does not need."""

from tf_packnet.export.compaction import compact_model
from tf_packnet.export.dense import dense_model
from tf_packnet.export.report import TaskExport, export_report
from tf_packnet.export.saved_model import export_task

__all__ = ["TaskExport", "compact_model", "dense_model", "export_report", "export_task"]
