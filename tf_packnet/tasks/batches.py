"""Makes training and evaluation batches. Resident and streamed examples give the same training batches.

The order of an epoch depends only on the seed and the number of the epoch, so a `fit` can begin at any epoch. Keras
gets one infinite data set and the number of its elements per epoch.

AutoGraph is off for all functions here: it writes temporary files, which a killed process leaves behind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_packnet.arguments import checked_class
from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.stored_images import Images, StoredImages

if TYPE_CHECKING:  # tasks are made and checked before TensorFlow starts
    import tensorflow as tf

# Maximum number of gradient steps in one call of the compiled step; callbacks run between calls.
_STEPS_PER_CALL = 512
# The same limit for streamed examples, which are copied for each call.
_STREAMED_STEPS_PER_CALL = 32
# Maximum size in bytes of the images on disk for one call: the images of a few calls are in memory at a time.
_STORED_BYTES_PER_CALL = 2**22
# Maximum size in bytes of an evaluation split that is decoded as a whole. Larger ones are decoded batch by batch.
_DECODED_BYTES = 2**28


def epoch_order(examples: int, batch_size: int, seed: int, epoch: Any, epoch_steps: int | None = None) -> "tf.Tensor":
    """Draw the order of the examples in an epoch.

    Args:
        examples: Number of examples. A pass over the examples leaves out those that do not fill a batch.
        batch_size: Examples per batch.
        seed: Seeds the order, 0 to 2^31-1.
        epoch: Number of the epoch (0-based), an integer or a scalar tensor.
        epoch_steps: Batches per epoch, at most as many as in one pass over the examples. Default: one pass. A shorter
            epoch continues the pass of the previous epoch, and may begin another one.

    Returns:
        Indices of examples, `int32` `(steps, batch_size)`.
    """
    import tensorflow as tf

    steps = examples // batch_size
    if epoch_steps is not None and epoch_steps != steps:
        before = tf.cast(epoch, tf.int64) * epoch_steps
        first, offset = before // steps, before % steps
        passes = [epoch_order(examples, batch_size, seed, first + number) for number in (0, 1)]
        return tf.ensure_shape(tf.concat(passes, 0)[offset : offset + epoch_steps], (epoch_steps, batch_size))
    seeds = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    shuffled = tf.random.experimental.stateless_shuffle(tf.range(examples), seed=seeds)
    return tf.reshape(shuffled[: steps * batch_size], (steps, batch_size))


def decode(images: Any, scale: Any) -> "tf.Tensor":
    """Convert images to inputs of the network, `float32` in [0, 1]. The result is bit-identical for all callers."""
    import tensorflow as tf

    return tf.cast(images, tf.float32) * tf.cast(scale, tf.float32)


@checked_class
@dataclass(frozen=True)
class StreamedBatches:
    """Training batches for `PackedModel.fit` that `tf.data` gathers while the network computes.

    One call of the compiled step does many gradient steps, because Keras adds an overhead of 2 ms per call.

    Attributes:
        images: Array `(examples, *shape)` in the dtype of the data, or `StoredImages`.
        labels: `int32` array `(examples,)`; or values, a `float32` array `(examples,)` or `(examples, outputs)`.
        scale: Factor that scales the images to [0, 1].
        batch_size: Examples per batch.
        seed: Seeds the order, 0 to 2^31-1.
        room: Number of examples of the largest task. If it is the same for all tasks, all calls have the same shape, so
            that the tasks share one compiled step.
        steps_per_call: Maximum number of gradient steps in one call of the compiled step.
        epoch_steps: Gradient steps per epoch, at most the number of full batches, which is the default.

    Raises:
        ArgumentError: If there are not as many labels as images, or a number is out of range.
    """

    images: Images
    labels: np.ndarray
    scale: float
    batch_size: int
    seed: int = 0
    room: int = 0
    steps_per_call: int = _STREAMED_STEPS_PER_CALL
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ArgumentError("labels", f"one for each of the {len(self.images)} images", len(self.labels))
        if not 1 <= self.batch_size <= len(self.labels):
            raise ArgumentError("batch_size", f"1 to the {len(self.labels)} examples", self.batch_size)
        if self.steps_per_call < 1:
            raise ArgumentError("steps_per_call", "at least 1", self.steps_per_call)
        full_batches = len(self.labels) // self.batch_size
        if self.epoch_steps is not None and not 1 <= self.epoch_steps <= full_batches:
            raise ArgumentError("epoch_steps", f"1 to the {full_batches} full batches", self.epoch_steps)

    @property
    def steps(self) -> int:
        """Gradient steps per epoch."""
        return self.epoch_steps or len(self.labels) // self.batch_size

    @property
    def reserved(self) -> int:
        """Number of examples to allocate memory for: `room`, or the number of this task's examples if it is larger."""
        return max(self.room, len(self.labels))

    @property
    def steps_in_a_call(self) -> int:
        """Gradient steps in a full call; the same for all tasks with the same `room`."""
        steps = min(self.steps_per_call, self.reserved // self.batch_size)
        if isinstance(self.images, StoredImages):
            steps = min(steps, max(1, _STORED_BYTES_PER_CALL // (self.batch_size * self.images.image_bytes)))
        return steps

    @property
    def calls(self) -> int:
        """Number of elements of `dataset` per epoch. Keras counts them as steps."""
        return -(-self.steps // self.steps_in_a_call)

    def dataset(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """Return an infinite data set of the calls of the compiled step, from epoch `first_epoch` on.

        Each element is a dict with `images`, `(steps_in_a_call, batch_size, *shape)`; `labels`, `(steps_in_a_call,
        batch_size)`; `steps`, the number of these batches to train on; and `scale`.
        """
        import tensorflow as tf

        images, labels = reader(self.images), tf.constant(self.labels)

        @tf.autograph.experimental.do_not_convert
        def gather(call: dict[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
            rows = call.pop("rows")
            return {**call, "images": images(rows), "labels": tf.gather(labels, rows)}

        return untuned(self._calls(first_epoch).map(gather).prefetch(2))

    def single_batches(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """Return the same batches one by one as `(x, y)`, `steps` per epoch.

        Keras divides each between the replicas.
        """
        import tensorflow as tf

        images, labels = reader(self.images), tf.constant(self.labels)

        @tf.autograph.experimental.do_not_convert
        def order(epoch: "tf.Tensor") -> "tf.data.Dataset":
            return tf.data.Dataset.from_tensor_slices(self._order(epoch))

        @tf.autograph.experimental.do_not_convert
        def batch(rows: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
            return decode(images(rows), self.scale), tf.gather(labels, rows)

        return untuned(_epochs(first_epoch).flat_map(order).map(batch).prefetch(2))

    def _order(self, epoch: Any) -> "tf.Tensor":
        return epoch_order(len(self.labels), self.batch_size, self.seed, epoch, self.epoch_steps)

    def _calls(self, first_epoch: int) -> "tf.data.Dataset":
        import tensorflow as tf

        missing = self.calls * self.steps_in_a_call - self.steps
        steps = np.full(self.calls, self.steps_in_a_call, np.int32)
        steps[-1] -= missing

        @tf.autograph.experimental.do_not_convert
        def calls(epoch: "tf.Tensor") -> "tf.data.Dataset":
            rows = tf.pad(self._order(epoch), [[0, missing], [0, 0]])
            rows = tf.reshape(rows, (self.calls, self.steps_in_a_call, self.batch_size))
            scale = tf.fill([self.calls], tf.constant(self.scale, tf.float32))
            return tf.data.Dataset.from_tensor_slices({"rows": rows, "steps": steps, "scale": scale})

        return _epochs(first_epoch).flat_map(calls)


@checked_class
@dataclass(frozen=True)
class ResidentBatches(StreamedBatches):
    """The same batches, from examples that `PackedModel.fit` copies to the device once and keeps there.

    Each call of the compiled step gets only the indices of its examples.
    """

    steps_per_call: int = _STEPS_PER_CALL

    def dataset(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """Return an infinite data set of the calls of the compiled step, from epoch `first_epoch` on.

        Each element is a dict with `rows`, the indices of the examples, `int32` `(steps_in_a_call, batch_size)`;
        `steps`, the number of these batches to train on; and `scale`.
        """
        return untuned(self._calls(first_epoch).prefetch(2))


def _epochs(first: int) -> "tf.data.Dataset":
    import tensorflow as tf

    return tf.data.Dataset.range(first, np.iinfo(np.int32).max)


def reader(images: Images) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    """Return a function for `Dataset.map` that gathers the images at `rows`, an integer tensor of any shape."""
    import tensorflow as tf

    if not isinstance(images, StoredImages):
        array = tf.constant(images)
        return lambda rows: tf.gather(array, rows)

    def read(rows: "tf.Tensor") -> "tf.Tensor":
        pixels = tf.numpy_function(images.__getitem__, [rows], tf.as_dtype(images.dtype))
        return tf.ensure_shape(pixels, rows.shape.concatenate(images.image_shape))

    return read


def decoded_in_batches(images: Images) -> bool:
    """Return whether evaluation decodes the images batch by batch: if they are on disk, or too large when decoded."""
    return isinstance(images, StoredImages) or 4 * math.prod(images.shape) > _DECODED_BYTES


def evaluation_batches(images: Images, labels: np.ndarray, scale: float, batch_size: int) -> "tf.data.Dataset":
    """Make evaluation batches `(x, y)` in order.

    Args:
        images: Array `(examples, *shape)`, or `StoredImages`.
        labels: `int32` array `(examples,)`; or values, a `float32` array `(examples,)` or `(examples, outputs)`.
        scale: Factor that scales the images to [0, 1].
        batch_size: Maximum number of examples per batch.
    """
    import tensorflow as tf

    if decoded_in_batches(images):
        rows = tf.data.Dataset.range(len(labels)).batch(batch_size)
        read, classes = reader(images), tf.constant(labels)

        @tf.autograph.experimental.do_not_convert
        def batch(index: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
            return decode(read(index), scale), tf.gather(classes, index)

        return untuned(rows.map(batch).prefetch(1))

    # The examples are batched and decoded once here, not in a `map`: Keras creates a new iterator for every evaluation,
    # which takes 17 ms with a mapped function and less than 1 ms without. Batches are passed on without a copy.
    full, rest = divmod(len(labels), batch_size)
    examples = decode(images, scale), tf.constant(labels)
    batches = [tf.reshape(each[: len(labels) - rest], (full, batch_size, *each.shape[1:])) for each in examples]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(batches))
    if rest:
        last = tf.data.Dataset.from_tensors(tuple(each[len(labels) - rest :] for each in examples))
        dataset = dataset.concatenate(last) if full else last
    return untuned(dataset)


def untuned(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    """Return `dataset` without autotuning, whose thread can delay the end of every iterator by seconds."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
