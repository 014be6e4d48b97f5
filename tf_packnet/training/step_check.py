"""Checks every gradient step: bad data, a non-finite loss or a non-finite gradient must change nothing.

The checks are part of the compiled step. The first problem is kept in a variable of the model, from then on no step is
taken, and the fit ends with an error, see `tf_packnet.training.fit_guard`.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

SPARSE = ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy)
# Gradients of at most this many entries are looked at in full.
SMALL = 4096
BINARY = ("binary_crossentropy", keras.losses.binary_crossentropy)


class Problem(enum.IntEnum):
    """What was wrong with a gradient step."""

    NONE = 0
    INPUTS = 1
    LABELS = 2
    IDS = 3
    LOSS = 4
    GRADIENTS = 5


class StepRecord:
    """What the compiled steps of a model tell: variables, but no state of the model.

    Attributes:
        problem: The first `Problem` of this fit.
        taken: Steps of the last call before that problem.
        guarded: Whether a `FitGuard` looks at them.
    """

    def __init__(self) -> None:
        # int64, since TensorFlow keeps int32 variables in host memory, where XLA cannot reach them for a GPU.
        self.problem = tf.Variable(0, dtype=tf.int64, trainable=False, name="step_problem")
        self.guarded = False
        self.taken = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps_taken")


class StepCheck:
    """The checks of one gradient step, while it is traced or run.

    Args:
        first: The variable that holds the first `Problem` of this fit, `int64`.
    """

    def __init__(self, first: tf.Variable):
        self._first = first
        self._found: list[tuple[Problem, tf.Tensor]] = []

    def inputs(self, finite: tf.Tensor) -> None:
        """Takes up whether the inputs are finite, see `all_finite`."""
        self._require(Problem.INPUTS, finite)

    def labels(self, loss: Any, y: Any, y_pred: Any) -> Any:
        """Checks that labels are in range; returns them with 0 in place of those that are not.

        Args:
            loss: The model's loss as it was compiled.
            y: Labels in any structure.
            y_pred: Outputs in any structure.
        """
        labels, outputs = tf.nest.flatten(y), tf.nest.flatten(y_pred)
        losses = _flat_losses(loss, len(labels))
        if len(labels) != len(outputs):
            return y
        checked = [self._of_one(each, *pair) for each, *pair in zip(losses, labels, outputs, strict=True)]
        return tf.nest.pack_sequence_as(y, checked)

    def _of_one(self, loss: Any, labels: Any, output: Any) -> Any:
        if not isinstance(labels, tf.Tensor) or labels.dtype in (tf.string, tf.bool):
            return labels
        if isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in SPARSE:
            valid = (labels >= 0) & (labels < tf.cast(output.shape[-1], labels.dtype))
            if labels.dtype.is_floating:
                valid &= labels == tf.floor(labels)
            ignored = getattr(loss, "ignore_class", None)
            if ignored is not None:
                valid |= labels == tf.cast(ignored, labels.dtype)
        elif isinstance(loss, keras.losses.BinaryCrossentropy) or loss in BINARY:
            valid = (labels >= 0) & (labels <= 1)
        else:
            return labels
        self._require(Problem.LABELS, tf.reduce_all(valid))
        return tf.where(valid, labels, tf.zeros((), labels.dtype))

    @contextlib.contextmanager
    def ids(self, model: keras.Model) -> Iterator[None]:
        """While it lasts, embedding layers check their ids and look up entry 0 for those outside the vocabulary."""
        layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
        for layer in layers:
            object.__setattr__(layer, "call", self._checked(layer, layer.call))
        try:
            yield
        finally:
            for layer in layers:
                object.__delattr__(layer, "call")

    def _checked(self, layer: keras.layers.Embedding, call: Callable[..., Any]) -> Callable[..., Any]:
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

        def checked_call(inputs, *args, **kwargs):
            ids = tf.convert_to_tensor(inputs)
            if not ids.dtype.is_integer and not ids.dtype.is_floating:
                return call(inputs, *args, **kwargs)
            if kwargs.get("reverse") or (args and args[0] is True):  # ReversibleEmbedding's way back to ids
                return call(inputs, *args, **kwargs)
            valid = (ids >= 0) & (ids < tf.cast(layer.input_dim, ids.dtype))
            rows = call(tf.where(valid, ids, tf.zeros((), ids.dtype)), *args, **kwargs)
            if graph is None or graph is tf.compat.v1.get_default_graph():
                self._require(Problem.IDS, tf.reduce_all(valid))
                return rows
            # In a loop inside the model, from which no check can be read: the loss becomes NaN.
            return tf.where(valid[..., None], rows, tf.cast(float("nan"), rows.dtype))

        return checked_call

    def result(self, loss: tf.Tensor, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Whether the step may change anything, a `bool` scalar; the first problem of a fit is recorded.

        Args:
            loss: The loss.
            gradients: Gradients, as they come out of the layers. Of a large one two slices are looked at: it is a sum
                of products of what came into its layer and of what came back to it, and a NaN or an infinity in either
                reaches every row or every column.
        """
        self._require(Problem.LOSS, tf.math.is_finite(loss))
        if gradients:  # as in `is_finite`; XLA on CPU is slow to concatenate them
            zeros = [tf.reduce_sum(tf.cast(part, tf.float32) * 0) for each in gradients for part in _parts(each)]
            self._require(Problem.GRADIENTS, tf.equal(tf.reduce_sum(tf.stack(zeros)), 0))
        problem = tf.zeros((), tf.int64)
        for kind, passed in reversed(self._found):
            problem = tf.where(passed, problem, tf.constant(kind, tf.int64))
        before = tf.convert_to_tensor(self._first)
        self._first.assign(tf.where(tf.equal(before, Problem.NONE), problem, before))
        return tf.equal(before, Problem.NONE) & tf.equal(problem, Problem.NONE)

    def _require(self, problem: Problem, passed: tf.Tensor) -> None:
        self._found.append((problem, passed))


def all_finite(x: Any) -> tf.Tensor:
    """Whether all floating-point tensors in the structure `x` are finite, a `bool` scalar."""
    floating = [part for part in tf.nest.flatten(x) if isinstance(part, tf.Tensor) and part.dtype.is_floating]
    return tf.reduce_all(tf.stack([is_finite(part) for part in floating] or [tf.constant(True)]))


def is_finite(values: Any) -> tf.Tensor:
    """Whether all entries of a tensor are finite, a `bool` scalar.

    Their products with 0 are 0, or NaN for one that is not finite, and so is a sum of them.
    """
    values = tf.convert_to_tensor(values)
    rows = tf.reshape(values, (1, -1) if values.shape.rank in (None, 0, 1) else (tf.shape(values)[0], -1))
    return tf.reduce_all(tf.equal(tf.linalg.matvec(rows, tf.zeros(tf.shape(rows)[1:], rows.dtype)), 0))


def _parts(gradient: tf.Tensor) -> list[tf.Tensor]:
    """All of a small gradient; of a large one a slice along each of the last two axes, through its middle."""
    shape = gradient.shape
    if shape.rank is None or shape.rank < 2 or not shape.is_fully_defined() or shape.num_elements() <= SMALL:
        return [gradient]
    middle = [size // 2 for size in shape]
    along = [[*middle[:axis], slice(None), *middle[axis + 1 :]] for axis in (shape.rank - 2, shape.rank - 1)]
    return [gradient[tuple(each)] for each in along]


def _flat_losses(loss: Any, count: int) -> list[Any]:
    if isinstance(loss, dict):
        loss = [loss[key] for key in sorted(loss)]
    if isinstance(loss, (list, tuple)):
        flat = list(loss)
        return flat if len(flat) == count else [None] * count
    return [loss] * count
