"""A small convolutional network, for `--model=docs/comparison/small_convnet.py:small_convnet`."""

from collections.abc import Sequence

import keras


def small_convnet(shape: Sequence[int], num_classes: int) -> keras.Model:
    """Return a network with three convolutions and one hidden dense layer, and logits."""
    layers: list[keras.Layer] = []
    for filters in (32, 64, 64):
        layers += [keras.layers.Conv2D(filters, 3, activation="relu", padding="same"), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input(shape), *layers])
