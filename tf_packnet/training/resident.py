"""Many gradient steps in one call of the compiled step, on examples that lie on the device or are brought to it."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.structure import overrides
from tf_packnet.tasks.batches import ResidentBatches, decode
from tf_packnet.training import in_place

# Examples that are compared at a time: all at once would take as much memory as they do.
LOOKED_AT = 64

# TensorFlow keeps int32 variables in the host's memory, out of reach of what XLA compiles for a GPU.
HELD_AS = {np.dtype(np.int32): np.int64}


class DeviceExamples:
    """The examples of one task in device memory; those of the next task take their place.

    Attributes:
        images: Variable `(rows, features)` in the data's own dtype, or int64 for int32. Flat: XLA gathers rows several
            times as fast.
        labels: Variable `(rows,)`, likewise.
        shape: Shape of one example.
        dtypes: Of the data's own images and labels.
    """

    def __init__(self, batches: ResidentBatches):
        self.shape = batches.images.shape[1:]
        self.dtypes = batches.images.dtype, batches.labels.dtype
        images, labels = _with_room(batches)
        # Another number of rows may follow: the shape is left open.
        self.images = tf.Variable(images, trainable=False, shape=(None, images.shape[1]))
        self.labels = tf.Variable(labels, trainable=False, shape=(None,))

    def fits(self, batches: ResidentBatches) -> bool:
        """Whether `batches` are examples of the same kind, so that a compiled step can take them from here."""
        return batches.images.shape[1:] == self.shape and (batches.images.dtype, batches.labels.dtype) == self.dtypes

    def load(self, batches: ResidentBatches) -> None:
        """Replaces the examples. As long as they fit into the rows there are, compiled steps stay valid."""
        if self._hold(batches):
            return  # a night follows its day; to copy 27 MB anew takes up to 0.4 s, where memory is slow to come
        images, labels = _with_room(batches, at_least=int(tf.shape(self.labels)[0]))
        self.images.assign(images)
        self.labels.assign(labels)

    def _hold(self, batches: ResidentBatches) -> bool:
        examples = len(batches.labels)
        images, labels = np.asarray(self.images.value()), np.asarray(self.labels.value())  # on CPU no copies
        if len(labels) < batches.reserved or not np.array_equal(labels[:examples], batches.labels):
            return False
        ours, theirs = images[:examples], batches.images.reshape(examples, -1)
        pieces = range(0, examples, LOOKED_AT)
        return all(np.array_equal(ours[at : at + LOOKED_AT], theirs[at : at + LOOKED_AT]) for at in pieces)

    def batch(self, rows: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The examples at `rows`, decoded, and their labels."""
        images = decode(tf.gather(self.images, rows), scale)
        labels = tf.cast(tf.gather(self.labels, rows), self.dtypes[1])
        return tf.reshape(images, (*rows.shape, *self.shape)), labels


def _with_room(batches: ResidentBatches, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = max(at_least, batches.reserved)
    spare = rows - len(batches.labels)
    images, labels = batches.images.reshape(len(batches.labels), -1), batches.labels
    if spare:
        images, labels = np.pad(images, [(0, spare), (0, 0)]), np.pad(labels, (0, spare))
    return _holdable(images), _holdable(labels)


def _holdable(values: np.ndarray) -> np.ndarray:
    return values.astype(HELD_AS.get(values.dtype, values.dtype), copy=False)


def take_steps(model: keras.Model, call: dict[str, tf.Tensor], step: Callable[[Any], Any]) -> dict[str, Any]:
    """Takes the gradient steps of one call, one after another, without leaving the compiled function.

    It ends after the first problem; `model.step_record.taken` is then the number of steps before it.

    Args:
        model: A `PackedTrainer`, with the metrics that `step` updates.
        call: An element of a `dataset` of `ResidentBatches` or `StreamedBatches`.
        step: One gradient step on a batch `(x, y)`.

    Returns:
        The metrics after the last step, by name.
    """

    def batch(number):
        if "rows" in call:
            return model.device_examples.batch(call["rows"][number], call["scale"])
        return decode(call["images"][number], call["scale"]), call["labels"][number]

    def goes_on(number):
        return (number < call["steps"]) & tf.equal(model.step_record.problem, 0)

    def body(number):
        step(batch(number))
        return number + 1

    if overrides.is_overridden(model, "train_step", "compute_metrics"):
        return _take_own_steps(model, call["steps"], lambda number: step(batch(number)))
    with in_place.for_a_call(model) if in_place.possible(model) else contextlib.nullcontext():
        (ended,) = tf.while_loop(goes_on, body, (tf.constant(0),), parallel_iterations=1)
    model.step_record.taken.assign(tf.maximum(tf.cast(ended, model.step_record.taken.dtype) - 1, 0))
    return model.get_metrics_result()


def _take_own_steps(model: keras.Model, steps: tf.Tensor, step: Callable[[tf.Tensor], Any]) -> dict[str, Any]:
    """The same with steps that the user's class has replaced, whose logs may be other than the model's metrics."""
    traced = tf.function(lambda: step(tf.constant(0)), autograph=False).get_concrete_function()  # it is not run
    empty = keras.tree.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), traced.structured_outputs)

    def body(number: tf.Tensor, logs: Any) -> tuple[tf.Tensor, Any]:
        return number + 1, keras.tree.map_structure(tf.convert_to_tensor, step(number))

    first = (tf.constant(0), empty)
    _, logs = tf.while_loop(lambda number, logs: number < steps, body, first, parallel_iterations=1)
    if isinstance(logs, dict) and logs.keys() == model.get_metrics_result().keys():
        return model.get_metrics_result()  # as Keras does
    return logs
