"""Loads the sparse layers that compact `.keras` files of version 0.1 contain.

Such a file stores the values and the gaps of a kernel as two weights. Each gap is the distance between two positions in
the flat kernel. A gap too wide for its dtype is bridged by an entry of value 0.
"""

from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction.sparse import make_sparse
from tf_packnet.system.keras_layer import KerasLayer


class _EarlierKernel(KerasLayer):
    """Mixin for Keras layers. After its weights are loaded, the layer becomes one that `make_sparse` has changed."""

    kernel: keras.Variable
    bias: keras.Variable | None

    def __init__(self, *args: Any, entries: int, gap_dtype: str = "uint16", **kwargs: Any):
        del entries, gap_dtype
        super().__init__(*args, **kwargs)

    def load_own_variables(self, store: dict) -> None:
        """Override Keras's hook: expands the kernel."""
        *bias, values, gaps = (np.asarray(store[str(index)]) for index in range(len(store.keys())))
        flat = np.zeros(int(np.prod(self.kernel.shape)), values.dtype)
        np.add.at(flat, np.cumsum(gaps.astype(np.int64)), values)
        self.kernel.assign(flat.reshape(self.kernel.shape))
        if self.bias is not None:
            self.bias.assign(bias[0])
        self.__class__ = next(each for each in type(self).__bases__ if each is not _EarlierKernel)
        make_sparse(self)


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseDense(_EarlierKernel, keras.layers.Dense):
    """A `Dense` layer of such a file."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv1D(_EarlierKernel, keras.layers.Conv1D):
    """A `Conv1D` layer of such a file."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv2D(_EarlierKernel, keras.layers.Conv2D):
    """A `Conv2D` layer of such a file."""


@keras.saving.register_keras_serializable(package="tf_packnet")
class SparseConv3D(_EarlierKernel, keras.layers.Conv3D):
    """A `Conv3D` layer of such a file."""
