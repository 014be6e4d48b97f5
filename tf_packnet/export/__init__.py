"""Exports committed tasks of a pack: as plain Keras models, smaller models, and files for serving."""

from tf_packnet.export.compaction import compact_model
from tf_packnet.export.dense import dense_model, strip_pruning
from tf_packnet.export.pack import export_pack
from tf_packnet.export.report import TaskExport, export_report
from tf_packnet.export.serving import export_for_serving
from tf_packnet.export.task import export_model, export_task

__all__ = [
    "TaskExport",
    "compact_model",
    "dense_model",
    "export_for_serving",
    "export_model",
    "export_pack",
    "export_report",
    "export_task",
    "strip_pruning",
]
