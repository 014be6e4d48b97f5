"""Takes many gradient steps in one call of the compiled function, on resident or streamed examples."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.structure import overrides
from tf_packnet.tasks.batches import ResidentBatches, decode
from tf_packnet.training import kernels

# Number of examples to compare at a time: comparing all at once would take as much memory as the examples.
_COMPARED_AT_ONCE = 64

# TensorFlow keeps int32 variables in host memory, where functions that XLA compiles for a GPU cannot read them.
_DTYPE_ON_DEVICE = {np.dtype(np.int32): np.int64}


class DeviceExamples:
    """The examples of one task in device memory; those of the next task replace them.

    Args:
        batches: The examples of the first task.

    Attributes:
        images: Variable `(rows, features)` in the dtype of the data, or int64 for int32. Images are flattened, because
            XLA then gathers rows several times as fast.
        labels: Variable `(rows,)`, or `(rows, outputs)` for values, in the dtype of the data, or int64 for int32.
        shape: Shape of one example.
        dtypes: Dtypes of the data's images and labels.
    """

    def __init__(self, batches: ResidentBatches):
        self.shape = batches.images.shape[1:]
        self.dtypes = batches.images.dtype, batches.labels.dtype
        images, labels = _padded(batches)
        # The number of rows is not part of the shape, because it may change.
        self.images = tf.Variable(images, trainable=False, shape=(None, images.shape[1]))
        self.labels = tf.Variable(labels, trainable=False, shape=(None, *labels.shape[1:]))

    def fits(self, batches: ResidentBatches) -> bool:
        """Whether the examples in `batches` have the same shape and dtypes, so that compiled steps can use them."""
        shapes = batches.images.shape[1:], batches.labels.shape[1:]
        return shapes == (self.shape, self.labels.shape[1:]) and (
            (batches.images.dtype, batches.labels.dtype) == self.dtypes
        )

    def load(self, batches: ResidentBatches) -> None:
        """Replace the examples. Compiled steps stay valid, as long as `fits(batches)`."""
        # Retraining uses the same examples as training. Copying 27 MB again can take 0.4 s if allocation is slow.
        if self._has(batches):
            return
        images, labels = _padded(batches, at_least=int(tf.shape(self.labels)[0]))
        self.images.assign(images)
        self.labels.assign(labels)

    def _has(self, batches: ResidentBatches) -> bool:
        examples = len(batches.labels)
        images, labels = np.asarray(self.images.value()), np.asarray(self.labels.value())  # no copies on CPU
        if len(labels) < batches.reserved or not np.array_equal(labels[:examples], batches.labels):
            return False
        given = np.asarray(batches.images).reshape(examples, -1)
        chunks = [slice(start, start + _COMPARED_AT_ONCE) for start in range(0, examples, _COMPARED_AT_ONCE)]
        return all(np.array_equal(images[:examples][chunk], given[chunk]) for chunk in chunks)

    def batch(self, rows: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the examples at `rows`, decoded, and their labels.

        Args:
            rows: Indices, `int32`, of any shape.
            scale: Multiplies the images, see `decode`.
        """
        images = decode(tf.gather(self.images, rows), scale)
        labels = tf.cast(tf.gather(self.labels, rows), self.dtypes[1])
        return tf.reshape(images, (*rows.shape, *self.shape)), labels


def _padded(batches: ResidentBatches, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return flattened images and labels, padded to the rows of the largest task and to `at_least` rows."""
    rows = max(at_least, batches.reserved)
    padding = rows - len(batches.labels)
    flat = np.asarray(batches.images).reshape(len(batches.labels), -1)
    images = np.pad(flat, [(0, padding), (0, 0)]) if padding else flat
    axes = [(0, padding), *[(0, 0)] * (batches.labels.ndim - 1)]
    labels = np.pad(batches.labels, axes) if padding else batches.labels
    return _for_device(images), _for_device(labels)


def _for_device(values: np.ndarray) -> np.ndarray:
    return values.astype(_DTYPE_ON_DEVICE.get(values.dtype, values.dtype), copy=False)


def take_steps(model: keras.Model, call: dict[str, tf.Tensor], step: Callable[[Any], Any]) -> dict[str, Any]:
    """Take the gradient steps of one call in a loop inside the compiled function.

    The loop stops after the first step with a problem, see `StepCheck`. `model.step_record.taken` is then the number of
    steps before that one.

    Args:
        model: A `PackedTrainer`, with the metrics that `step` updates.
        call: An element of `dataset()` of `ResidentBatches` or `StreamedBatches`.
        step: One gradient step on a batch `(x, y)`.

    Returns:
        The metrics after the last step, by name.
    """

    names = ["rows"] if "rows" in call else ["images", "labels"]

    def batch(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return batch_of_call(model, call["scale"], {name: call[name][number] for name in names})

    def continues(number: tf.Tensor) -> tf.Tensor:
        return (number < call["steps"]) & tf.equal(model.step_record.problem, 0)

    def body(number: tf.Tensor) -> tf.Tensor:
        step(batch(number))
        return number + 1

    if overrides.is_overridden(model, "train_step", "compute_metrics"):
        return _take_steps_of_user(model, call["steps"], lambda number: step(batch(number)))
    in_place = kernels.can_compute_in_place(model)
    with kernels.computed_in_place(model) if in_place else contextlib.nullcontext():
        (ended,) = tf.while_loop(continues, body, (tf.constant(0),), parallel_iterations=1)
    model.step_record.taken.assign(tf.maximum(tf.cast(ended, model.step_record.taken.dtype) - 1, 0))
    return model.get_metrics_result()


def batch_of_call(model: keras.Model, scale: tf.Tensor, step: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the batch `(x, y)` of a gradient step in a call.

    Args:
        model: A `PackedTrainer`.
        scale: The `scale` of the call.
        step: The `rows` of the step, or its `images` and `labels`.
    """
    if "rows" in step:
        return model.device_examples.batch(step["rows"], scale)
    return decode(step["images"], scale), step["labels"]


def _take_steps_of_user(model: keras.Model, steps: tf.Tensor, step: Callable[[tf.Tensor], Any]) -> dict[str, Any]:
    """Take steps that the user's class has overridden, whose logs may differ from the model's metrics."""
    # Only traced, for the structure of the logs.
    traced = tf.function(lambda: step(tf.constant(0)), autograph=False).get_concrete_function()
    empty = keras.tree.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), traced.structured_outputs)

    def body(number: tf.Tensor, logs: Any) -> tuple[tf.Tensor, Any]:
        return number + 1, keras.tree.map_structure(tf.convert_to_tensor, step(number))

    first = (tf.constant(0), empty)
    _, logs = tf.while_loop(lambda number, logs: number < steps, body, first, parallel_iterations=1)
    if isinstance(logs, dict) and logs.keys() == model.get_metrics_result().keys():
        return model.get_metrics_result()  # as Keras does
    return logs
