"""The two networks of the paper (Table 2), and one for text, as plain Keras models to be packed."""

from collections.abc import Sequence

import keras
from keras import layers

from tf_packnet.errors import ArgumentError


def mlp(input_shape: tuple[int, ...], num_classes: int, hidden_units: Sequence[int] = (256, 256)) -> keras.Model:
    """Make a fully connected network: flatten, ReLU layers, logits. The default is the paper's 784:256:256 for MNIST.

    Args:
        input_shape: Shape of one example.
        num_classes: Number of outputs of the head.
        hidden_units: Units of each hidden layer.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.Flatten(name="flatten")(inputs) if len(input_shape) > 1 else inputs
    for number, units in enumerate(hidden_units, start=1):
        x = layers.Dense(units, activation="relu", name=f"dense_{number}")(x)
    return keras.Model(inputs, _logits(x, num_classes), name="mlp")


# Embedding size in the network for text.
_WORD_FEATURES = 64


def text(
    input_shape: tuple[int, ...], num_classes: int, vocabulary_size: int, hidden_units: Sequence[int] = (256, 256)
) -> keras.Model:
    """Make a network for text: the mean of the embeddings of its words, ReLU layers, logits.

    Args:
        input_shape: `(length,)`, the number of ids in an example.
        num_classes: Number of outputs of the head.
        vocabulary_size: Number of different ids.
        hidden_units: Units of each hidden layer.
    """
    inputs = keras.Input(input_shape, dtype="int32", name="tokens")
    x = layers.Embedding(vocabulary_size, _WORD_FEATURES, name="embedding")(inputs)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    for number, units in enumerate(hidden_units, start=1):
        x = layers.Dense(units, activation="relu", name=f"dense_{number}")(x)
    return keras.Model(inputs, _logits(x, num_classes), name="text")


def conv(input_shape: tuple[int, ...], num_classes: int, fc8192: str = "flatten", dropout: float = 0.1) -> keras.Model:
    """Make a convolutional network: 32, 64, pool, 128, 128, pool, then dense layers with dropout.

    Args:
        input_shape: `(height, width, channels)`, at least 4x4.
        num_classes: Number of outputs of the head.
        fc8192: What "fc8192" in the table means. `flatten`: the 8x8x128 = 8,192 features of a CIFAR image after the
            second pooling, followed by one dense layer of 1,024 units. `dense`: an additional dense layer of 8,192
            units before that (75 million weights instead of 8.6 million).
        dropout: Rate of the dropout before and between the dense layers.

    Raises:
        ArgumentError: If the inputs are not images of at least 4x4.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 4:
        raise ArgumentError(
            "model", f"mlp, for inputs of shape {input_shape} (conv needs images of 4x4 or more)", "conv"
        )
    x = inputs = keras.Input(input_shape, name="image")
    for block, filters in enumerate([(32, 64), (128, 128)], start=1):
        for number, count in enumerate(filters, start=1):
            x = layers.Conv2D(count, 3, padding="same", activation="relu", name=f"conv_{block}_{number}")(x)
        x = layers.MaxPooling2D(name=f"pool_{block}")(x)
    x = layers.Flatten(name="flatten")(x)
    for number, units in enumerate([8192, 1024] if fc8192 == "dense" else [1024], start=1):
        x = layers.Dropout(dropout, name=f"dropout_{number}")(x)
        x = layers.Dense(units, activation="relu", name=f"dense_{number}")(x)
    x = layers.Dropout(dropout, name="dropout_out")(x)
    return keras.Model(inputs, _logits(x, num_classes), name="conv")


def _logits(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    # float32 even in mixed precision: a loss of bfloat16 logits would be too coarse.
    return layers.Dense(num_classes, dtype="float32", name="head")(x)
