"""Gradient steps, evaluation and prediction on the replicas of a `tf.distribute` strategy.

Keras itself would take one step per call, without XLA, and distribute every batch on its own. Here Keras gets a model
that looks as if it were on one device, see `OneDevice`: it passes on whole batches. `train_step` and the others then
divide them.

A gradient step has three parts:

1. On each replica, forward and backward pass of its rows of the batch; XLA may compile this part.
2. The gradients are summed over the replicas. Nothing that waits for other replicas can be part of a compiled function.
3. On each replica, the optimizer is applied to the same gradients; XLA may compile this part, too.

So all replicas always have the same values. The forward pass itself changes nothing: moving statistics are averaged in
part 2, and every replica draws its own random numbers. A loop around the three parts takes many steps per call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.errors import ReplicaError, listed
from tf_packnet.layers.records import same_bits
from tf_packnet.lifecycle import view_of
from tf_packnet.structure import overrides
from tf_packnet.structure.state import metric_variables
from tf_packnet.system.collectives import sums_by_type
from tf_packnet.system.keras_internals import (
    RecordingScope,
    all_layers,
    distribution_strategy,
    local_updates,
    loss_tracker,
    seed_generators,
    tensorflow_variable,
)
from tf_packnet.training import acceleration, optimizers
from tf_packnet.training.gradient_step import forward_backward, masked_gradients
from tf_packnet.training.kernels import compiled, selected, trained_weights
from tf_packnet.training.step_check import Problem, StepCheck, all_finite

# Tensors with fewer entries are summed over the replicas together, because each sum takes time of its own.
_SUMMED_TOGETHER = 2**14

# Added to the seeds that a replica draws with, times its number: an odd number without a pattern in its bits.
_SEED_OFFSET = 0x9E3779B1

_KINDS = [kind for kind in Problem if kind != Problem.NONE]


class OneDevice:
    """A strategy as Keras's `fit`, `evaluate` and `predict` see it: whole batches, and functions that run once.

    All else is the strategy's own.

    Args:
        strategy: A `tf.distribute` strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Return `dataset`, which every worker iterates over as a whole."""
        del options
        return dataset

    def run(self, function: Callable[..., Any], args: Sequence[Any] = (), **kwargs: Any) -> Any:
        """Call the function once, across all replicas."""
        del kwargs
        with self._strategy.scope():
            return function(*args)


def supports(strategy: tf.distribute.Strategy) -> bool:
    """Whether the steps of this module run on the replicas of `strategy`, rather than Keras's own."""
    return isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy))


def divides_batches(model: keras.Model) -> bool:
    """Whether `model` trains on the replicas of a strategy with the steps of this module, rather than Keras's own."""
    kinds = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not isinstance(distribution_strategy(model), kinds):
        return False
    return not overrides.is_overridden(model, "train_step", "test_step", "predict_step", "compute_metrics")


def train_step(model: keras.Model, data: Any, make_batch: Callable[[Any], Any] | None = None) -> None:
    """Take one gradient step. Call it in the scope of the strategy.

    Args:
        model: A compiled and built `PackedTrainer`, created in the scope of a strategy.
        data: A whole batch `(x, y)` or `(x, y, sample_weight)`, or what `make_batch` makes one from.
        make_batch: Makes the batch of a replica from its rows of `data`.
    """
    strategy, record = distribution_strategy(model), model.step_record.problem
    exchange = _Exchange(model)
    step = functools.partial(_replica_step, exchange, make_batch or (lambda rows: rows))
    summands, own = strategy.run(step, args=(data,))
    if acceleration.gpus() or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        sums = sums_by_type(strategy, summands, record)
    else:
        sums = [strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, summand, record) for summand in summands]
    strategy.extended.update(record, lambda _, *parts: exchange.update(*parts), args=(tuple(sums), own), group=False)


def take_steps(model: keras.Model, call: dict[str, tf.Tensor], make_batch: Callable[[Any], Any]) -> None:
    """Take the gradient steps of one call, until the first step with a problem. Call it in the scope of the strategy.

    Args:
        model: As for `train_step`.
        call: An element of `dataset()` of `ResidentBatches` or `StreamedBatches`.
        make_batch: Makes the batch of a replica from a dict with its rows of a step of the call.
    """
    names = ["rows"] if "rows" in call else ["images", "labels"]

    def body(number: tf.Tensor) -> tf.Tensor:
        train_step(model, {name: call[name][number] for name in names}, make_batch)
        return number + 1

    def continues(number: tf.Tensor) -> tf.Tensor:
        return (number < call["steps"]) & tf.equal(model.step_record.problem, 0)

    tf.while_loop(continues, body, (tf.constant(0),), parallel_iterations=1)


def evaluation_step(model: keras.Model, data: Any, step: Callable[[Any], Any]) -> None:
    """Evaluate a whole batch, each replica some of its rows. Call it in the scope of the strategy.

    Args:
        model: As for `train_step`.
        data: The batch.
        step: Adds rows of a batch to the metrics of a replica.
    """

    metrics = [*metric_variables(model), *(variable for metric in model.metrics for variable in metric.variables)]

    def replica_step(data: Any) -> tf.Tensor:
        rows = _Rows(data, *_replica())

        def evaluate() -> tf.Tensor:
            with RecordingScope(except_for=metrics):  # layers change nothing, not even counters
                step(rows.part(data))
            return tf.constant(0)

        return evaluate() if rows.surely_any else tf.cond(rows.count > 0, evaluate, lambda: tf.constant(0))

    distribution_strategy(model).run(replica_step, args=(data,))


def prediction_step(model: keras.Model, data: Any, step: Callable[[Any], Any]) -> Any:
    """Predict a whole batch on the replicas of this worker. Call it in the scope of the strategy.

    Args:
        model: As for `train_step`.
        data: The batch.
        step: Predicts rows of a batch.

    Returns:
        The predictions for all rows, in order.
    """
    strategy = distribution_strategy(model)
    replicas = len(strategy.extended.worker_devices)

    def replica_step(data: Any) -> Any:
        rows = _Rows(data, _replica()[0] % replicas, replicas)
        with RecordingScope():
            outputs = step(rows.part(data))
        return keras.tree.map_structure(lambda each: each[: rows.count], outputs)

    outputs = strategy.run(replica_step, args=(data,))
    if replicas == 1:
        return outputs
    return keras.tree.map_structure(lambda each: tf.concat(strategy.experimental_local_results(each), 0), outputs)


def check_equal(model: keras.Model) -> None:
    """Check that all replicas on this worker have the same bits in every variable of the model and its optimizers.

    Raises:
        ReplicaError: If they have not.
    """
    strategy = model.distribute_strategy
    slots = [variable for optimizer in optimizers.all_of(model) for variable in optimizer.variables]
    different = []
    for variable in (*model.variables, *slots):
        first, *others = strategy.experimental_local_results(tensorflow_variable(variable))
        if not all(same_bits(view_of(first), view_of(other)) for other in others):
            different.append(variable.path)
    if different:
        raise ReplicaError(
            f"the replicas have different values of {listed(different)}. A layer or a callback assigns other values on "
            "some of them, or memory is damaged. Do not use anything that was trained since the last stage"
        )


def _replica() -> tuple[int, int]:
    """Return the number of the current replica (0-based), and the number of all replicas."""
    context = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group)), context.num_replicas_in_sync


class _Rows:
    """The rows of a whole batch that belong to a replica: as many as those of others, or one more or less.

    Args:
        data: The batch, in any structure.
        replica: Number of the replica (0-based).
        replicas: Number of all replicas.

    Attributes:
        count: Number of rows; an integer if it is known when the step is traced, otherwise a scalar tensor.
        fraction: Fraction of the rows of the batch, likewise.
        even: Whether all replicas surely have as many rows.
        surely_any: Whether there is surely a row.
    """

    def __init__(self, data: Any, replica: int, replicas: int):
        batch = next(each for each in keras.tree.flatten(data) if each is not None)
        known = batch.shape[0]
        rows = tf.shape(batch)[0] if known is None else known
        self._first = replica * rows // replicas
        self.count = (replica + 1) * rows // replicas - self._first
        self.fraction = self.count / rows
        self.even = known is not None and known % replicas == 0
        self.surely_any = known is not None and known >= replicas

    def part(self, data: Any) -> Any:
        """Return these rows of `data`. If there are none, it is one row, which must not count."""
        last = self._first + (self.count if self.surely_any else tf.maximum(self.count, 1))
        return keras.tree.map_structure(lambda each: None if each is None else each[self._first : last], data)


class _Exchange:
    """What the replicas compute in a step, and do with the sums.

    The replicas trace `contribute` one after another, then `update`. The lists are the same for all of them.

    Args:
        model: As for `train_step`.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.weights = trained_weights(model)
        self._packing = _Packing()
        self._has_gradient: list[bool] = []  # for each kernel, then each trainable variable
        self._summed_state: list[keras.Variable] = []
        self._own_state: list[keras.Variable] = []

    def contribute(self, batch: Any, count: Any, fraction: Any) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        """Compute gradients and new state of a replica's rows.

        Args:
            batch: The rows.
            count: Their number, 0 if they must not count.
            fraction: Fraction of the rows of the whole batch; None if it is the same for all replicas.

        Returns:
            The tensors to sum, and values that are the same on all replicas.
        """
        model, (replica, replicas) = self.model, _replica()
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        check = StepCheck()
        check.inputs(all_finite(x))
        kernels = selected(self.weights, acceleration.OFF if model.xla == acceleration.STEP else model.xla)
        seeds = [each for layer in all_layers(model) for each in seed_generators(layer)]
        loss_weight = None if fraction is None else fraction * replicas  # Keras divides the loss by the replicas
        with RecordingScope() as scope, _own_draws(seeds, replica):
            both = forward_backward(model, batch, self.weights, kernels, check, loss_weight)
        self._add_to_metrics(batch, both, count)
        share = 1 / replicas if fraction is None else fraction
        self._own_state = [each for each in scope.assigned if any(each is seed.state for seed in seeds)]
        self._summed_state = [each for each in scope.assigned if not any(each is own for own in self._own_state)]
        state = [_summand(each, scope.get_current_value(each), share, replica) for each in self._summed_state]
        targets = [*kernels, *model.trainable_variables]
        gradients = [
            None if gradient is None else tf.ensure_shape(tf.convert_to_tensor(gradient), target.shape)
            for gradient, target in zip((*both.kernel_gradients, *both.variable_gradients), targets, strict=True)
        ]
        self._has_gradient = [each is not None for each in gradients]
        problems = tf.cast(tf.equal(both.problem, tf.constant(_KINDS, both.problem.dtype)), tf.float32)
        summands = [problems, *(each for each in gradients if each is not None), *state]
        return self._packing.pack(summands), tuple(scope.get_current_value(each) for each in self._own_state)

    def _add_to_metrics(self, batch: Any, both: Any, count: Any) -> None:
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)

        def add() -> tf.Tensor:
            loss_tracker(self.model).update_state(both.loss * _replica()[1], sample_weight=count)
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


def _replica_step(exchange: _Exchange, make_batch: Callable[[Any], Any], data: Any) -> Any:
    rows = _Rows(data, *_replica())

    def contribute(part: Any, count: Any, fraction: Any) -> Any:
        static = rows.count if rows.surely_any else count
        return exchange.contribute(make_batch(part), static, None if rows.even else fraction)

    step = compiled(contribute) if exchange.model.xla == acceleration.STEP else contribute
    return step(rows.part(data), tf.cast(rows.count, tf.int32), tf.cast(rows.fraction, tf.float32))


@contextlib.contextmanager
def _own_draws(generators: Sequence[keras.random.SeedGenerator], replica: int) -> Iterator[None]:
    """Within the block, every replica draws other random numbers. The first draws those of a single device."""

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
    """Return what a replica adds to the new value of a variable that its forward pass has assigned to.

    The sum is the mean over all examples; the value of the first replica for integers and where Keras says so.
    """
    if variable.aggregation == "sum":
        return value
    if variable.aggregation == "only_first_replica" or not value.dtype.is_floating:
        countable = value.dtype.is_integer or value.dtype == tf.bool  # workers cannot sum all of these types
        return (tf.cast(value, tf.int64) if countable else value) * int(replica == 0)
    return value * tf.cast(share, value.dtype)


class _Packing:
    """Joins small tensors of the same dtype, and takes them apart again."""

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
