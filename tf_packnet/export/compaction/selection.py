"""A layer that selects channels."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="tf_packnet")
class Select(keras.layers.Layer):
    """Selects features of the last axis.

    Args:
        features: Indices of the features, ascending.
    """

    def __init__(self, features: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.features = [int(feature) for feature in features]
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, np.array(self.features, "int32"), axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], len(self.features))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "features": self.features}
