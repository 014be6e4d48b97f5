"""Compaction: removes the units, channels and weights of a model that its outputs do not depend on."""

from tf_packnet.export.compaction import earlier as earlier  # registers its layers with Keras
from tf_packnet.export.compaction.compact import compact_model

__all__ = ["compact_model"]
