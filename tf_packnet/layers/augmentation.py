"""Data augmentation of training images, as a layer at the beginning of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

_EIGHTH = 0.125  # of height and width: 4 of 32 pixels
_15_DEGREES = 15 / 360
# By name, a function from a seed to a Keras layer that augments images with values from 0 to 1.
CHANGES: dict[str, Callable[[int], keras.Layer]] = {
    "flip": lambda seed: keras.layers.RandomFlip("horizontal", seed=seed),
    # A crop of an image with a black margin: a shift by whole pixels.
    "crop": lambda seed: keras.layers.RandomTranslation(
        _EIGHTH, _EIGHTH, fill_mode="constant", interpolation="nearest", seed=seed
    ),
    "rotate": lambda seed: keras.layers.RandomRotation(_15_DEGREES, fill_mode="constant", seed=seed),
    "zoom": lambda seed: keras.layers.RandomZoom((-_EIGHTH, _EIGHTH), fill_mode="constant", seed=seed),
    "brightness": lambda seed: keras.layers.RandomBrightness(0.2, value_range=(0.0, 1.0), seed=seed),
    "contrast": lambda seed: keras.layers.RandomContrast(0.2, value_range=(0.0, 1.0), seed=seed),
}


@keras.saving.register_keras_serializable(package="tf_packnet")
class Augmentation(keras.layers.Layer):
    """Augments training images at random.

    In evaluation and prediction, images pass unchanged. Exports leave the layer out.

    Args:
        changes: Names in `CHANGES`, in the order in which they are applied.
        **kwargs: As for any Keras layer.
    """

    def __init__(self, changes: Sequence[str], **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.changes = tuple(changes)
        self.steps = [CHANGES[name](seed) for seed, name in enumerate(self.changes)]

    def build(self, input_shape: Any) -> None:
        for step in self.steps:
            step.build(input_shape)

    # In Keras's layers the default is `training=True`, which would put the other layers of the model in training mode
    # too.
    def call(self, images: Any, training: bool = False) -> Any:
        if not training:
            return images
        for step in self.steps:
            images = step(images, training=True)
        return images

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "changes": self.changes}
