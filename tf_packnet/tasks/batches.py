"""The batches that a task is trained on: the same ones, whether the examples stream by or lie on the device.

The order of epoch `e` is a permutation drawn from `(seed, e)` alone, so that any epoch can be had without those before
it. Keras sees one data set without an end, and is told how much of it makes an epoch.

No function here is converted by AutoGraph: it writes temporary files, which a process that is killed leaves behind.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_packnet.errors import ArgumentError

if TYPE_CHECKING:  # tasks can be cut, and bad ones refused, before TensorFlow starts
    import tensorflow as tf

# Gradient steps in one call of a compiled training function, at most: Keras looks up between calls.
STEPS_PER_CALL = 512
# The same where a call's examples have to be brought to it.
STREAMED_STEPS_PER_CALL = 32


def epoch_order(examples: int, batch_size: int, seed: int, epoch: Any, epoch_steps: int | None = None) -> "tf.Tensor":
    """Which examples make up each batch of an epoch: `int32`, `(steps, batch_size)`.

    Args:
        examples: How many there are; those that fill no batch are left out of a pass over them.
        batch_size: Examples a batch.
        seed: Seeds the order, 0 to 2^31-1.
        epoch: Number of the epoch, an integer or a scalar tensor.
        epoch_steps: Batches an epoch, at most those of one pass; default one pass, no example twice. A shorter epoch
            goes on where the one before stopped, and a pass ends within an epoch.
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
    """Examples as the network takes them, `float32` in [0, 1]: the same bits on every path."""
    import tensorflow as tf

    return tf.cast(images, tf.float32) * tf.cast(scale, tf.float32)


@dataclass(frozen=True)
class StreamedBatches:
    """Training batches that `tf.data` gathers while the network computes, for `PackedModel.fit`.

    One call of the compiled step takes many gradient steps: Keras itself takes 2 ms a call.

    Attributes:
        images: Array `(examples, *shape)` in the data's own dtype.
        labels: `int32` array `(examples,)`.
        scale: Multiplies the images to bring them into [0, 1].
        batch_size: Examples a batch.
        seed: Seeds the order.
        room: Examples of the largest task: calls of the same shape for all tasks let them share one compiled step.
        steps_per_call: Gradient steps in one call of the compiled step, at most.
        epoch_steps: Gradient steps an epoch, at most those that see every example once, which is the default.

    Raises:
        ArgumentError: On construction, if there are more or fewer labels than images, or too few full batches.
    """

    images: np.ndarray
    labels: np.ndarray
    scale: float
    batch_size: int
    seed: int = 0
    room: int = 0
    steps_per_call: int = STREAMED_STEPS_PER_CALL
    epoch_steps: int | None = None

    def __post_init__(self):
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
        """Gradient steps an epoch."""
        return self.epoch_steps or len(self.labels) // self.batch_size

    @property
    def reserved(self) -> int:
        """Examples to make room for: those of the largest task."""
        return max(self.room, len(self.labels))

    @property
    def steps_in_a_call(self) -> int:
        """Gradient steps that a full call takes; the same for all tasks with the same `room`."""
        return min(self.steps_per_call, self.reserved // self.batch_size)

    @property
    def calls(self) -> int:
        """Elements of `dataset` an epoch: what Keras takes for its steps."""
        return -(-self.steps // self.steps_in_a_call)

    def dataset(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """The calls of epoch `first_epoch`, of the one after it, and so on without an end.

        Each has `images`, `(steps_in_a_call, batch_size, *shape)`, and `labels`, of which the first `steps` count, and
        `scale`.
        """
        import tensorflow as tf

        images, labels = tf.constant(self.images), tf.constant(self.labels)

        @tf.autograph.experimental.do_not_convert
        def gather(call):
            rows = call.pop("rows")
            return {**call, "images": tf.gather(images, rows), "labels": tf.gather(labels, rows)}

        return untuned(self._calls(first_epoch).map(gather).prefetch(2))

    def single_batches(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """The same batches one by one, `(x, y)`, as Keras shares them out to replicas; `steps` of them an epoch."""
        import tensorflow as tf

        images, labels = tf.constant(self.images), tf.constant(self.labels)

        @tf.autograph.experimental.do_not_convert
        def order(epoch):
            return tf.data.Dataset.from_tensor_slices(self._order(epoch))

        @tf.autograph.experimental.do_not_convert
        def batch(rows):
            return decode(tf.gather(images, rows), self.scale), tf.gather(labels, rows)

        return untuned(_epochs(first_epoch).flat_map(order).map(batch).prefetch(2))

    def _order(self, epoch):
        return epoch_order(len(self.labels), self.batch_size, self.seed, epoch, self.epoch_steps)

    def _calls(self, first_epoch):
        import tensorflow as tf

        missing = self.calls * self.steps_in_a_call - self.steps
        steps = np.full(self.calls, self.steps_in_a_call, np.int32)
        steps[-1] -= missing

        @tf.autograph.experimental.do_not_convert
        def calls(epoch):
            rows = tf.pad(self._order(epoch), [[0, missing], [0, 0]])
            rows = tf.reshape(rows, (self.calls, self.steps_in_a_call, self.batch_size))
            scale = tf.fill([self.calls], tf.constant(self.scale, tf.float32))
            return tf.data.Dataset.from_tensor_slices({"rows": rows, "steps": steps, "scale": scale})

        return _epochs(first_epoch).flat_map(calls)


@dataclass(frozen=True)
class ResidentBatches(StreamedBatches):
    """The same batches, from examples that `PackedModel.fit` puts on the device and keeps there.

    What reaches the compiled step is which rows to take.
    """

    steps_per_call: int = STEPS_PER_CALL

    def dataset(self, first_epoch: int = 0) -> "tf.data.Dataset":
        """The calls of epoch `first_epoch`, of the one after it, and so on without an end.

        Each has `rows`, `int32` `(steps_in_a_call, batch_size)`, of which the first `steps` count, and `scale`.
        """
        return untuned(self._calls(first_epoch).prefetch(2))


def _epochs(first: int):
    import tensorflow as tf

    return tf.data.Dataset.range(first, np.iinfo(np.int32).max)


def evaluation_batches(
    images: np.ndarray, labels: np.ndarray, scale: float, batch_size: int, multiple_of: int = 1
) -> "tf.data.Dataset":
    """Batches `(x, y)` in order, each a `multiple_of` examples: Keras cannot evaluate uneven shares on replicas.

    Fewer than `multiple_of` examples may be left out for that.
    """
    import tensorflow as tf

    batch_size -= batch_size % multiple_of
    whole = len(labels) - len(labels) % multiple_of
    # Cut and decoded once, each batch a piece of memory that is handed on without a copy, and no function to map: Keras
    # makes a new iterator for every evaluation, which takes 17 ms with one and less than 1 ms without.
    full, rest = divmod(whole, batch_size)
    examples = decode(images[:whole], scale), tf.constant(labels[:whole])
    batches = [tf.reshape(each[: whole - rest], (full, batch_size, *each.shape[1:])) for each in examples]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(batches))
    if rest:
        last = tf.data.Dataset.from_tensors(tuple(each[whole - rest :] for each in examples))
        dataset = dataset.concatenate(last) if full else last
    return untuned(dataset)


def untuned(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    """The same data set, without the thread that tunes it: the end of every iterator waits for that, up to seconds."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
