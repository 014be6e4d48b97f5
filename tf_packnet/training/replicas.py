"""Gradient steps, evaluation and prediction on the replicas of a `tf.distribute` strategy.

Keras itself would take one step per call, without XLA, and would distribute every batch itself. Here the model looks to
Keras as if it were on one device, see `OneDevice`: Keras passes on whole batches. `train_step`, `evaluation_step` and
`prediction_step` then divide them.

A gradient step has three parts:

1. On each replica, the forward and the backward pass of its rows of the batch. XLA may compile this part.
2. The gradients are summed over the replicas. Code that waits for other replicas cannot be part of a compiled function.
3. On each replica, the optimizer is applied to the same gradients. XLA may compile this part too.

So all replicas always have the same values. The forward pass itself changes nothing: moving statistics are averaged in
part 2, and every replica draws its own random numbers. A loop around the three parts takes many steps per call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.errors import ReplicaError, listed
from tf_packnet.layers.records import same_bits
from tf_packnet.lifecycle import view_of
from tf_packnet.structure import overrides
from tf_packnet.system.collectives import sums_by_type
from tf_packnet.system.keras_internals import (
    RecordingScope,
    distribution_strategy,
    tensorflow_variable,
)
from tf_packnet.training import acceleration, optimizers
from tf_packnet.training.exchange import Exchange, all_metric_variables, current_replica
from tf_packnet.training.kernels import compiled


class OneDevice:
    """The strategy that Keras's `fit`, `evaluate` and `predict` see: whole batches, and functions that run once.

    Everything else is delegated to the actual strategy.

    Args:
        strategy: A `tf.distribute` strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Return `dataset` unchanged: every worker iterates over all of it."""
        del options
        return dataset

    def run(self, function: Callable[..., Any], args: Sequence[Any] = (), **kwargs: Any) -> Any:
        """Call the function once, in cross-replica context."""
        del kwargs
        with self._strategy.scope():
            return function(*args)


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
        data: A whole batch `(x, y)` or `(x, y, sample_weight)`, or the input of `make_batch`.
        make_batch: Makes the batch of a replica from its rows of `data`.
    """
    strategy, record = distribution_strategy(model), model.step_record.problem
    exchange = Exchange(model)
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
    """Evaluate a whole batch; each replica evaluates some of its rows. Call this in the scope of the strategy.

    Args:
        model: As for `train_step`.
        data: The batch.
        step: Adds rows of a batch to the metrics of a replica.
    """
    metrics = all_metric_variables(model)

    def replica_step(data: Any) -> tf.Tensor:
        rows = _Rows(data, *current_replica())

        def evaluate() -> tf.Tensor:
            with RecordingScope(except_for=metrics):  # layers must change nothing, not even counters
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
        rows = _Rows(data, current_replica()[0] % replicas, replicas)
        with RecordingScope():
            outputs = step(rows.part(data))
        return keras.tree.map_structure(lambda each: each[: rows.count], outputs)

    outputs = strategy.run(replica_step, args=(data,))
    if replicas == 1:
        return outputs
    return keras.tree.map_structure(lambda each: tf.concat(strategy.experimental_local_results(each), 0), outputs)


def check_equal(model: keras.Model) -> None:
    """Check that all variables of the model and its optimizers are bit-identical on all replicas of this worker.

    Raises:
        ReplicaError: If a variable differs.
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


class _Rows:
    """The rows of a whole batch that belong to a replica. The numbers of rows differ by at most one between replicas.

    Args:
        data: The batch, in any structure.
        replica: Number of the replica (0-based).
        replicas: Number of all replicas.

    Attributes:
        count: Number of rows; an integer if known at tracing time, otherwise a scalar tensor.
        total: Number of rows of the batch, of the same types.
        even: Whether all replicas are known to have the same number of rows.
        surely_any: Whether the replica is known to have at least one row.
    """

    def __init__(self, data: Any, replica: int, replicas: int):
        batch = next(each for each in keras.tree.flatten(data) if each is not None)
        known = batch.shape[0]
        self.total = tf.shape(batch)[0] if known is None else known
        self._first = replica * self.total // replicas
        self.count = (replica + 1) * self.total // replicas - self._first
        self.even = known is not None and known % replicas == 0
        self.surely_any = known is not None and known >= replicas

    def part(self, data: Any) -> Any:
        """Return the rows of this replica. If it has none, return one row, which must not count."""
        last = self._first + (self.count if self.surely_any else tf.maximum(self.count, 1))
        return keras.tree.map_structure(lambda each: None if each is None else each[self._first : last], data)


def _replica_step(exchange: Exchange, make_batch: Callable[[Any], Any], data: Any) -> Any:
    rows = _Rows(data, *current_replica())

    def contribute(part: Any, count: Any, total: Any) -> Any:
        static = rows.count if rows.surely_any else count
        return exchange.contribute(make_batch(part), static, total, rows.even)

    step = compiled(contribute) if exchange.model.xla == acceleration.STEP else contribute
    return step(rows.part(data), tf.cast(rows.count, tf.int32), tf.cast(rows.total, tf.int32))
