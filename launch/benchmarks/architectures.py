"""Networks to measure in addition to those of the paper, with random weights."""

from collections.abc import Callable
from typing import Any

import keras


def networks() -> dict[str, Callable[[], Any]]:
    """Return functions that make the networks, by name."""
    layers = keras.layers

    class Table(layers.Layer):
        """A position embedding."""

        def build(self, input_shape: Any) -> None:
            self.table = self.add_weight(shape=input_shape[1:], name="table")

        def call(self, x: Any) -> Any:
            return x + self.table

    class Matrices(layers.Layer):
        """A user's layer with matrices in a dict."""

        def build(self, input_shape: Any) -> None:
            shapes = {"up": (input_shape[-1], 1024), "across": (1024, 512), "down": (512, 256)}
            self.parts = {name: self.add_weight(shape=shape, name=name) for name, shape in shapes.items()}

        def call(self, x: Any) -> Any:
            for part in self.parts.values():
                x = keras.ops.relu(x @ part)
            return x

    for each in (Table, Matrices):
        keras.saving.register_keras_serializable("benchmark")(each)

    def vit(size: int, patch: int, width: int, depth: int, heads: int) -> Any:
        inputs = keras.Input((size, size, 3))
        x = layers.Reshape((-1, width))(layers.Conv2D(width, patch, patch)(inputs))
        x = Table()(x)
        for _ in range(depth):
            h = layers.LayerNormalization()(x)
            x = x + layers.MultiHeadAttention(heads, width // heads)(h, h)
            h = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
            x = x + layers.Dense(width)(h)
        return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))))

    def text() -> Any:
        words = keras.Input((40,), dtype="int32")
        x = layers.Bidirectional(layers.LSTM(256, return_sequences=True))(layers.Embedding(4000, 128)(words))
        return keras.Model(words, layers.Dense(2)(layers.GRU(256)(x)))

    def decoder() -> Any:
        words = keras.Input((40,), dtype="int32")
        x = layers.Embedding(4000, 256)(words)
        for _ in range(3):
            h = layers.RMSNormalization()(x)
            x = x + layers.GroupQueryAttention(32, 8, 2)(h, h, use_causal_mask=True)
            h = layers.Dense(1024, activation="silu")(layers.RMSNormalization()(x))
            x = x + layers.Dense(256)(h)
        return keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

    def embedding() -> Any:
        words = keras.Input((40,), dtype="int32")
        x = layers.GlobalAveragePooling1D()(layers.Embedding(20_000, 128)(words))
        return keras.Model(words, layers.Dense(2)(layers.Dense(256, activation="relu")(x)))

    def video() -> Any:
        frames = keras.Input((6, 24, 24, 3))
        x = layers.ConvLSTM2D(96, 3)(frames)
        x = layers.Conv2DTranspose(128, 3, activation="relu")(x)
        return keras.Model(frames, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))

    def own() -> Any:
        inputs = keras.Input((512,))
        return keras.Model(inputs, layers.Dense(2)(Matrices()(inputs)))

    def mobilenet_v2() -> Any:
        return keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=2)

    return {
        "vit": lambda: vit(64, 8, 192, 4, 3),
        "text": text,
        "decoder": decoder,
        "embedding": embedding,
        "video": video,
        "own": own,
        "mobilenet_v2": mobilenet_v2,
        "efficientnet_b0": lambda: keras.applications.EfficientNetB0(
            weights=None, input_shape=(96, 96, 3), classes=2, classifier_activation=None
        ),
        "resnet50": lambda: keras.applications.ResNet50(
            weights=None, input_shape=(96, 96, 3), classes=2, classifier_activation=None
        ),
        "vit_86m": lambda: vit(224, 16, 768, 12, 12),
    }
