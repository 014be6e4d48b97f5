"""What the replicas of a distribution strategy contribute to a gradient step, and what each does with the sums.

See `tf_packnet.training.replicas` for the whole step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.structure.state import metric_variables
from tf_packnet.system.keras_internals import (
    RecordingScope,
    all_layers,
    local_updates,
    loss_tracker,
    seed_generators,
)
from tf_packnet.training import acceleration, optimizers
from tf_packnet.training.gradient_step import ForwardBackward, forward_backward, masked_gradients
from tf_packnet.training.kernels import compiled, selected, trained_weights
from tf_packnet.training.step_check import Problem, StepCheck, all_finite

# Tensors with fewer entries are concatenated before they are summed over the replicas: each sum has a fixed cost.
_SUMMED_TOGETHER = 2**14

# Offset of a replica's seeds, multiplied by its number: an odd number without a pattern in its bits.
_SEED_OFFSET = 0x9E3779B1

_KINDS = [kind for kind in Problem if kind != Problem.NONE]


class Exchange:
    """The parts of a gradient step that run on each replica: computing the summands, and using the sums.

    All replicas trace `contribute` one after another, then `update`. The lists are equal on all replicas.

    Args:
        model: A `PackedTrainer`, created in the scope of a strategy.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.weights = trained_weights(model)
        self._packing = _Packing()
        self._has_gradient: list[bool] = []  # for each kernel, then each trainable variable
        self._summed_state: list[keras.Variable] = []
        self._own_state: list[keras.Variable] = []

    def contribute(
        self, batch: Any, count: Any, rows: Any, even: bool
    ) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        """Compute gradients and new state of a replica's rows.

        Args:
            batch: The rows.
            count: Number of rows. If it is 0, `batch` has one row that must not count.
            rows: Number of rows of the whole batch.
            even: Whether all replicas have the same number of rows.

        Returns:
            The tensors to sum, and values that are the same on all replicas.
        """
        model, (replica, replicas) = self.model, current_replica()
        x, *_ = keras.utils.unpack_x_y_sample_weight(batch)
        check = StepCheck()
        check.inputs(all_finite(x))
        kernels = selected(self.weights, acceleration.OFF if model.xla == acceleration.STEP else model.xla)
        seeds = [each for layer in all_layers(model) for each in seed_generators(layer)]
        share = 1 / replicas if even else tf.cast(count, tf.float32) / tf.cast(rows, tf.float32)
        # Keras divides a mean over the rows by the number of replicas. It does not divide a sum.
        loss_weight = tf.cast(count > 0, tf.float32) if self._sums_losses() else share * replicas
        with RecordingScope() as scope, _own_draws(seeds, replica):
            both = forward_backward(model, batch, self.weights, kernels, check, None if even else loss_weight)
        metrics, self._own_state, self._summed_state = _grouped(
            scope.assigned, all_metric_variables(model), [each.state for each in seeds]
        )
        for variable in metrics:  # metrics of several losses
            variable.assign(tf.where(count > 0, scope.get_current_value(variable), tf.convert_to_tensor(variable)))
        self._add_to_metrics(batch, both, count, rows)
        state = [
            _summand(each, tf.ensure_shape(scope.get_current_value(each), each.shape), share, replica)
            for each in self._summed_state
        ]
        targets = [*kernels, *model.trainable_variables]
        gradients = [
            None if gradient is None else tf.ensure_shape(tf.convert_to_tensor(gradient), target.shape)
            for gradient, target in zip((*both.kernel_gradients, *both.variable_gradients), targets, strict=True)
        ]
        self._has_gradient = [each is not None for each in gradients]
        problems = tf.cast(tf.equal(both.problem, tf.constant(_KINDS, both.problem.dtype)), tf.float32)
        summands = [problems, *(each for each in gradients if each is not None), *state]
        return self._packing.pack(summands), tuple(scope.get_current_value(each) for each in self._own_state)

    def _sums_losses(self) -> bool:
        """Whether the loss of a batch is the sum of the losses of its examples, not their mean."""
        losses = [each for each in keras.tree.flatten(self.model.loss) if each is not None]
        return bool(losses) and all(getattr(each, "reduction", None) == "sum" for each in losses)

    def _add_to_metrics(self, batch: Any, both: ForwardBackward, count: Any, rows: Any) -> None:
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        replicas = current_replica()[1]
        loss = tf.where(count > 0, both.loss * replicas, tf.zeros_like(both.loss))
        weight = tf.cast(rows, tf.float32) / replicas if self._sums_losses() else count
        loss_tracker(self.model).update_state(loss, sample_weight=weight)

        def add() -> tf.Tensor:
            self.model.compute_metrics(x, both.y, both.y_pred, sample_weight=sample_weight)
            return tf.constant(0)

        if isinstance(count, int):
            add()
        else:
            tf.cond(count > 0, add, lambda: tf.constant(0))

    def update(self, sums: Sequence[tf.Tensor], own: Sequence[tf.Tensor]) -> None:
        """Apply the optimizer and assign new state on a replica, unless the step has a problem."""
        model, optimizer = self.model, self.model.optimizer
        variables = model.trainable_variables

        def update(sums: Sequence[tf.Tensor], own: Sequence[tf.Tensor]) -> tf.Tensor:
            problems, *rest = self._packing.unpack(sums)
            gradients = [rest.pop(0) if has_gradient else None for has_gradient in self._has_gradient]
            found = problems > 0
            first = tf.gather(tf.constant(_KINDS, tf.int64), tf.argmax(found))
            passed = model.step_record.add(tf.where(tf.reduce_any(found), first, tf.zeros_like(first)))
            for variable, value in zip((*self._summed_state, *self._own_state), (*rest, *own), strict=True):
                variable.assign(tf.where(passed, tf.cast(value, variable.dtype), tf.convert_to_tensor(variable)))
            if variables:
                kernels = len(self.weights)
                masked = masked_gradients(model, self.weights, gradients[:kernels], gradients[kernels:])
                with local_updates(optimizer), optimizers.applied_if(passed, optimizer, variables):
                    optimizer.apply(masked, variables)
            return tf.constant(0)  # a function that XLA compiles must return something

        (update if model.xla == acceleration.OFF else compiled(update))(sums, own)


def _grouped(
    variables: Sequence[keras.Variable], *groups: Sequence[keras.Variable]
) -> tuple[list[keras.Variable], ...]:
    """Return the `variables` that are in each group, then the remaining ones."""
    ids = [{id(each) for each in group} for group in groups]
    others = [each for each in variables if not any(id(each) in group for group in ids)]
    return *([each for each in variables if id(each) in group] for group in ids), others


def all_metric_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of the metrics of a compiled model and of its layers. Each replica has its own values."""
    return [*metric_variables(model), *(variable for metric in model.metrics for variable in metric.variables)]


def current_replica() -> tuple[int, int]:
    """Return the number of the current replica (0-based), and the number of all replicas."""
    context = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group)), context.num_replicas_in_sync


@contextlib.contextmanager
def _own_draws(generators: Sequence[keras.random.SeedGenerator], replica: int) -> Iterator[None]:
    """Make every replica draw different random numbers within the block.

    The first one draws those of a single device.
    """

    def shifted(next_seed: Callable[..., Any]) -> Callable[..., Any]:
        def shifted_seed(*args: Any, **kwargs: Any) -> Any:
            seed = next_seed(*args, **kwargs)
            return seed + tf.cast(tf.constant([replica * _SEED_OFFSET, 0], tf.int64), seed.dtype)

        return shifted_seed

    changed = generators if replica else []
    for generator in changed:
        object.__setattr__(generator, "next", shifted(generator.next))
    try:
        yield
    finally:
        for generator in changed:
            object.__delattr__(generator, "next")


def _summand(variable: keras.Variable, value: tf.Tensor, share: Any, replica: int) -> tf.Tensor:
    """Return what a replica contributes to the new value of a variable that its forward pass has assigned.

    The sum over replicas is the mean over all examples; for integers, or where Keras says so, it is the value of the
    first replica.
    """
    if variable.aggregation == "sum":
        return value
    if variable.aggregation == "only_first_replica" or not value.dtype.is_floating:
        countable = value.dtype.is_integer or value.dtype == tf.bool  # workers cannot sum all of these types
        return (tf.cast(value, tf.int64) if countable else value) * int(replica == 0)
    return value * tf.cast(share, value.dtype)


class _Packing:
    """Concatenates small tensors of the same dtype, and splits them again."""

    def __init__(self) -> None:
        self._shapes: list[tf.TensorShape] = []
        self._alone: list[int] = []
        self._together: dict[tf.DType, list[int]] = {}

    def pack(self, tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Return fewer tensors: the large ones, and one with all small ones of each dtype."""
        self._shapes = [each.shape for each in tensors]
        small = [i for i, each in enumerate(tensors) if each.shape.num_elements() < _SUMMED_TOGETHER]
        self._alone = [i for i in range(len(tensors)) if i not in small]
        self._together = {
            dtype: [i for i in small if tensors[i].dtype == dtype]
            for dtype in dict.fromkeys(tensors[i].dtype for i in small)
        }
        joined = [tf.concat([tf.reshape(tensors[i], (-1,)) for i in group], 0) for group in self._together.values()]
        return *(tensors[i] for i in self._alone), *joined

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the tensors that `pack` was given, from its result or a sum of such results."""
        tensors = dict(zip(self._alone, packed[: len(self._alone)], strict=True))
        for group, joined in zip(self._together.values(), packed[len(self._alone) :], strict=True):
            parts = tf.split(joined, [self._shapes[i].num_elements() for i in group])
            tensors.update({i: tf.reshape(part, self._shapes[i]) for i, part in zip(group, parts, strict=True)})
        return [tensors[i] for i in range(len(self._shapes))]
