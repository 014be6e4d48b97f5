"""Compaction: makes a model smaller by removing what its outputs do not depend on."""

from tf_packnet.export.compaction.compact import compact_model
from tf_packnet.export.compaction.sparse import SparseConv1D, SparseConv2D, SparseConv3D, SparseDense

__all__ = ["SparseConv1D", "SparseConv2D", "SparseConv3D", "SparseDense", "compact_model"]
