"""Layers with state that belongs to no task-aware weight, and a pack that contains all of them."""

import keras
import numpy as np
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import compile_model

register = keras.saving.register_keras_serializable("tests.stateful")
# A layer reads this variable, but no layer tracks it.
OUTSIDE = tf.Variable(1.0, trainable=False)


@register
class Center(keras.layers.Layer):
    """A running mean, in a Keras variable, and `tf.Variable`s in an attribute, a list and a dict."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="mean")
        self.steps = tf.Variable(0.0, trainable=False)
        self.more = [tf.Variable(0.0, trainable=False), {"key": tf.Variable(2.0, trainable=False)}]

    def call(self, z, training=None):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(z, axis=0))
            self.steps.assign_add(1.0)
            self.more[0].assign_add(0.5)
        return (z - self.mean) * (1 + 0.01 * self.steps) + self.more[0] * self.more[1]["key"]


@register
class Outside(keras.layers.Layer):
    """Reads a variable that no layer tracks."""

    def call(self, z):
        return z * OUTSIDE


@register
class CountsCalls(keras.layers.Layer):
    """Has state that inference changes too."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, z):
        self.calls.assign_add(1.0)
        return z + 0.001 * self.calls


@register
class Measures(keras.layers.Layer):
    """Updates a metric."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean()

    def call(self, z):
        self.mean.update_state(z)
        return z


@register
class Normalized(keras.layers.Layer):
    """A block with an inner layer and its own spectral norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(20, name="inner")

    def build(self, shape):
        self.inner.build(shape)
        self.u = self.add_weight(shape=(shape[-1], 1), initializer="ones", trainable=False, name="u")

    def call(self, z, training=None):
        if training:
            self.u.assign(keras.ops.normalize(keras.ops.transpose(z) @ (z @ self.u), axis=0))
        return self.inner(z) / (1.0 + keras.ops.sum(keras.ops.abs(self.u)))


def make_stateful() -> keras.Model:
    """A network with 6 inputs and 2 logits, a frozen layer and every kind of state."""
    frozen = [keras.layers.Dense(20, "relu", name="fixed"), keras.layers.BatchNormalization(name="fixed_norm")]
    base = keras.Sequential([keras.Input((6,)), *frozen], name="base")
    base.trainable = False
    layers = [
        base,
        Center(name="center"),
        Normalized(name="block"),
        keras.layers.Dense(16, "relu", name="dense"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(2, name="head"),
    ]
    return keras.Sequential([keras.Input((6,)), *layers], name="stateful")


def pack_stateful(**kwargs) -> tp.PackedModel:
    return compile_model(tp.pack(make_stateful(), **{"bias_policy": "per_task", **kwargs}))


def prune_and_commit(num_tasks: int = 4) -> list[keras.callbacks.Callback]:
    return [tp.PruneRoundScheduler(tp.EqualShare(0.5, num_tasks)), tp.GradientMask(), tp.TaskMaskSnapshot()]


def learn(packed: keras.Model, task: str, x: np.ndarray, y: np.ndarray) -> None:
    packed.begin_task(task)
    packed.fit(x, y, epochs=2, verbose=0, callbacks=prune_and_commit())


def outputs(packed: tp.PackedModel, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the predictions of every committed task, by name."""
    found = {}
    for task in packed.task_names[: packed.committed_tasks]:
        packed.select_task(task)
        found[task] = packed.predict(x, verbose=0)
    return found
