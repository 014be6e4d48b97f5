"""Checks every gradient step inside the compiled function, for bad data, a non-finite loss and non-finite gradients.

A step that fails a check changes nothing but metrics. The first problem of a `fit` is kept in a variable, see
`StepRecord`, and no step is taken after it. `tf_packnet.training.fit_guard` reads the variable and ends the `fit` with
an error.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.system.keras_internals import all_layers

# Gradients with at most this many entries are checked completely, larger ones partly.
_CHECKED_IN_FULL = 4096

_SPARSE = ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy)
_BINARY = ("binary_crossentropy", keras.losses.binary_crossentropy)


class Problem(enum.IntEnum):
    """The problem of a gradient step. Of several problems in a step, the one that was checked first is recorded."""

    NONE = 0
    INPUTS = 1
    LABELS = 2
    IDS = 3
    LOSS = 4
    GRADIENTS = 5


class StepRecord:
    """The records of compiled steps, in variables that are not part of the model.

    Attributes:
        problem: The first `Problem` of this `fit`, a scalar `int64` variable.
        taken: Number of steps that the last call of `take_steps` took before that problem, a scalar `int64` variable.
        guarded: Whether a `FitGuard` checks these records in the current `fit`.
        epoch: Steps and seconds of the last epoch, and whether the seconds exclude compilation: whether it was not the
            first epoch of its `fit`.
    """

    def __init__(self) -> None:
        # int64, because TensorFlow keeps int32 variables in host memory, where XLA cannot read them for a GPU.
        self.problem = tf.Variable(0, dtype=tf.int64, trainable=False, name="step_problem")
        self.guarded = False
        self.epoch: tuple[int | None, float, bool] = (None, 0.0, False)
        self.taken = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps_taken")

    def add(self, problem: tf.Tensor) -> tf.Tensor:
        """Record the first problem of a step, unless an earlier step of the `fit` had one.

        Args:
            problem: A `Problem`, an `int64` scalar.

        Returns:
            Whether the step may change anything, a `bool` scalar.
        """
        earlier = tf.convert_to_tensor(self.problem)
        self.problem.assign(tf.where(tf.equal(earlier, Problem.NONE), problem, earlier))
        return tf.equal(earlier, Problem.NONE) & tf.equal(problem, Problem.NONE)


class StepCheck:
    """Checks one gradient step: call `inputs`, `ids` and `labels` during the forward pass, then `problem`."""

    def __init__(self) -> None:
        self._checks: list[tuple[Problem, tf.Tensor]] = []

    def inputs(self, finite: tf.Tensor) -> None:
        """Require that the inputs are finite: `finite` is a `bool` scalar, see `all_finite`."""
        self._require(Problem.INPUTS, finite)

    def labels(self, loss: Any, y: Any, y_pred: Any) -> Any:
        """Require that labels are in the range of the loss, for cross-entropies with a known range of labels.

        Args:
            loss: The loss from `compile`.
            y: Labels in any structure.
            y_pred: Outputs in any structure.

        Returns:
            `y`, with 0 in place of labels out of range.
        """
        labels, outputs = tf.nest.flatten(y), tf.nest.flatten(y_pred)
        losses = _flat_losses(loss, len(labels))
        if len(labels) != len(outputs):
            return y
        checked = [self._checked_labels(*each) for each in zip(losses, labels, outputs, strict=True)]
        return tf.nest.pack_sequence_as(y, checked)

    def _checked_labels(self, loss: Any, labels: Any, output: Any) -> Any:
        if not isinstance(labels, tf.Tensor) or labels.dtype in (tf.string, tf.bool):
            return labels
        if isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in _SPARSE:
            valid = (labels >= 0) & (labels < tf.cast(output.shape[getattr(loss, "axis", -1)], labels.dtype))
            if labels.dtype.is_floating:
                valid &= labels == tf.floor(labels)
            ignored = getattr(loss, "ignore_class", None)
            if ignored is not None:
                valid |= labels == tf.cast(ignored, labels.dtype)
        elif isinstance(loss, keras.losses.BinaryCrossentropy) or loss in _BINARY:
            valid = (labels >= 0) & (labels <= 1)
        else:
            return labels
        self._require(Problem.LABELS, tf.reduce_all(valid))
        return tf.where(valid, labels, tf.zeros((), labels.dtype))

    @contextlib.contextmanager
    def ids(self, model: keras.Model) -> Iterator[None]:
        """Require, within the block, that ids of embedding layers are in the vocabulary.

        Invalid ids look up entry 0.
        """
        layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Embedding)]
        for layer in layers:
            object.__setattr__(layer, "call", self._checked_call(layer, layer.call))
        try:
            yield
        finally:
            for layer in layers:
                object.__delattr__(layer, "call")

    def _checked_call(self, layer: keras.layers.Embedding, call: Callable[..., Any]) -> Callable[..., Any]:
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

        def checked_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids = tf.convert_to_tensor(inputs)
            if not ids.dtype.is_integer and not ids.dtype.is_floating:
                return call(inputs, *args, **kwargs)
            if kwargs.get("reverse") or (args and args[0] is True):  # ReversibleEmbedding converts vectors to logits
                return call(inputs, *args, **kwargs)
            valid = (ids >= 0) & (ids < tf.cast(layer.input_dim, ids.dtype))
            if ids.dtype.is_floating:
                valid &= ids == tf.floor(ids)
            rows = call(tf.where(valid, ids, tf.zeros((), ids.dtype)), *args, **kwargs)
            if graph is None or graph is tf.compat.v1.get_default_graph():
                self._require(Problem.IDS, tf.reduce_all(valid))
                return rows
            # In a loop inside the model, whose tensors cannot be used outside: make the loss NaN instead.
            return tf.where(valid[..., None], rows, tf.cast(float("nan"), rows.dtype))

        return checked_call

    def problem(self, loss: tf.Tensor, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Check loss and gradients, and return the first `Problem` of the step, an `int64` scalar.

        Args:
            loss: The loss, a scalar.
            gradients: Unmasked gradients. Two slices of a large gradient are checked. This suffices: a gradient is a
                sum of products of the layer's inputs and of the gradients of its outputs, so that a NaN or an infinity
                in either fills a whole row or a whole column.
        """
        self._require(Problem.LOSS, tf.math.is_finite(loss))
        if gradients:  # multiplied by 0 as in `is_finite`, because concatenation is slow in XLA on CPU
            parts = [part for gradient in gradients for part in _checked_parts(gradient)]
            zeros = [tf.reduce_sum(tf.cast(part, tf.float32) * 0) for part in parts]
            self._require(Problem.GRADIENTS, tf.equal(tf.reduce_sum(tf.stack(zeros)), 0))
        problem = tf.zeros((), tf.int64)
        for kind, passed in reversed(self._checks):
            problem = tf.where(passed, problem, tf.constant(kind, tf.int64))
        return problem

    def _require(self, problem: Problem, passed: tf.Tensor) -> None:
        self._checks.append((problem, passed))


def all_finite(x: Any) -> tf.Tensor:
    """Whether all floating-point tensors in the structure `x` are finite, a `bool` scalar."""
    floating = [part for part in tf.nest.flatten(x) if isinstance(part, tf.Tensor) and part.dtype.is_floating]
    return tf.reduce_all(tf.stack([is_finite(part) for part in floating] or [tf.constant(True)]))


def is_finite(values: Any) -> tf.Tensor:
    """Whether all entries of a tensor are finite, a `bool` scalar.

    A finite number times 0 is 0; NaN or infinity times 0 is NaN. So the sum of the products is 0 only if all entries
    are finite.
    """
    values = tf.convert_to_tensor(values)
    rows = tf.reshape(values, (1, -1) if values.shape.rank in (None, 0, 1) else (tf.shape(values)[0], -1))
    return tf.reduce_all(tf.equal(tf.linalg.matvec(rows, tf.zeros(tf.shape(rows)[1:], rows.dtype)), 0))


def _checked_parts(gradient: tf.Tensor) -> list[tf.Tensor]:
    """Return a small gradient itself; for a large one, the middle slice along each of its last two axes."""
    shape = gradient.shape
    if shape.rank is None or shape.rank < 2 or not shape.is_fully_defined() or shape.num_elements() <= _CHECKED_IN_FULL:
        return [gradient]
    middle = [size // 2 for size in shape]
    slices = [[*middle[:axis], slice(None), *middle[axis + 1 :]] for axis in (shape.rank - 2, shape.rank - 1)]
    return [gradient[tuple(each)] for each in slices]


def _flat_losses(loss: Any, count: int) -> list[Any]:
    """Return the loss of each of `count` outputs, None where it is unknown."""
    if isinstance(loss, dict):
        loss = [loss[key] for key in sorted(loss)]
    if isinstance(loss, (list, tuple)):
        flat = list(loss)
        return flat if len(flat) == count else [None] * count
    return [loss] * count
