"""Builds the objects of a run from its config: devices, strategy, network, optimizer, approach."""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.approaches import Approach, Memory, Multinet, PackNet
from tf_packnet.approaches.base import Observers
from tf_packnet.approaches.joint import TaskwiseAccuracy, TaskwiseCrossentropy
from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import model_config
from tf_packnet.packing import pack
from tf_packnet.planning import ADAM_BYTES, FLOAT_BYTES, CapacityPlan, plan
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.pruning.shares import AUTO
from tf_packnet.pruning.unequal_shares import Shares
from tf_packnet.runs import networks
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import own_function
from tf_packnet.runs.workers import Workers
from tf_packnet.tasks import TaskStream
from tf_packnet.tasks.encodings import Text, Tokens
from tf_packnet.training import acceleration

# With --data_residency=auto, the training examples of a task stay on the device up to this size in bytes.
RESIDENT_BYTES = 2**30


def make_deterministic(xla: str) -> None:
    """Make operations deterministic: on the same CPU, a config always gives bit-identical results."""
    # XLA on CPU is deterministic already, and Keras refuses to combine it with op determinism.
    if xla != acceleration.STEP:
        tf.config.experimental.enable_op_determinism()


def choose_strategy(config: Config, workers: Workers | None = None) -> tf.distribute.Strategy:
    """Return `MirroredStrategy` over all GPUs or over logical CPU devices; TensorFlow's default for one device.

    Args:
        config: The run.
        workers: Its workers; None for this process alone.

    Raises:
        ArgumentError: If TensorFlow has started before logical devices could be configured, or the batch size is
            smaller than the number of replicas.
    """
    if config.strategy == "multiworker":
        return _checked(config, (workers or Workers()).strategy())
    gpus = acceleration.gpus()
    if config.strategy == "none" or (config.logical_devices is None and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = operations = None
    if config.logical_devices is not None:
        cpu = tf.config.list_physical_devices("CPU")[0]
        wanted = [tf.config.LogicalDeviceConfiguration()] * config.logical_devices
        try:
            tf.config.set_logical_device_configuration(cpu, wanted)
        except RuntimeError as error:
            expected = "to be set before TensorFlow starts: use a new process for this run"
            raise ArgumentError("logical_devices", expected, config.logical_devices) from error
        devices = [f"CPU:{i}" for i in range(config.logical_devices)]
        operations = tf.distribute.ReductionToOneDevice()  # the default on CPU, collectives, is slower
    return _checked(config, tf.distribute.MirroredStrategy(devices, operations))


def _checked(config: Config, strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """Return `strategy`, unless it has more replicas than a batch of `config` has examples."""
    replicas = strategy.num_replicas_in_sync
    if config.batch_size < replicas:
        raise ArgumentError(
            "batch_size", f"at least one example for each of the {replicas} replicas", config.batch_size
        )
    return strategy


def device(config: Config) -> str:
    """Return the name of the first GPU, or `CPU`. Results depend on it: devices round sums differently."""
    gpus = acceleration.gpus()
    if not gpus or config.logical_devices is not None:
        return "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


def choose_xla(config: Config, network: PackedModel) -> str:
    """Return how much XLA compiles: `step`, `update` or `off`, see `tf_packnet.training.acceleration`.

    Args:
        config: The run.
        network: As `build_model` returns it.
    """
    if config.jit != "auto":
        return acceleration.STEP if config.jit == "on" else acceleration.OFF
    return acceleration.fastest(network)


def choose_residency(config: Config, stream: TaskStream) -> bool:
    """Whether training examples are kept on each device. `auto`: up to `RESIDENT_BYTES` per task."""
    if config.data_residency != "auto":
        return config.data_residency == "device"
    if any(task.splits["train"].is_stored for task in stream):
        return False
    largest = max(task.splits["train"].images.nbytes for task in stream)
    return largest <= RESIDENT_BYTES


def threads() -> int:
    """Return the number of threads of one operation. Results depend on it: sums may be split differently."""
    configured = tf.config.threading.get_intra_op_parallelism_threads()
    return configured or int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0)) or len(os.sched_getaffinity(0))


APPROACHES: dict[str, type[Approach]] = {"packnet": PackNet, "memory": Memory, "multinet": Multinet}


def has_heads_side_by_side(config: Config) -> bool:
    """Whether one output layer holds the heads of all tasks, because the baselines learn tasks together."""
    return config.approach != "packnet" and config.head == "per_task"


def build_model(config: Config, stream: TaskStream) -> PackedModel:
    """Build the packed network of a config, not compiled. Call this in the scope of the strategy.

    Raises:
        ArgumentError: If the tasks have different numbers of classes and the approach or the head does not allow it,
            or the network does not fit into RAM.
    """
    class_counts = sorted({task.num_classes for task in stream})
    if len(class_counts) > 1 and (config.approach != "packnet" or config.head == "shared"):
        field, allowed = ("head", "per_task") if config.approach == "packnet" else ("approach", "packnet")
        expected = f"{allowed} for tasks of {' or '.join(map(str, class_counts))} classes"
        raise ArgumentError(field, expected, getattr(config, field))
    keras.config.set_dtype_policy(config.precision)
    outputs = stream.num_classes * (len(stream) if has_heads_side_by_side(config) else 1)
    if config.model == "mlp" or (config.model == "conv" and len(stream.input_shape) == 3):  # `conv` refuses others
        check_memory(config, stream.input_shape, outputs)
    of_tokens = isinstance(stream[0].encoding, (Text, Tokens))
    model = networks.build(config, stream.input_shape, outputs, of_tokens)
    check_weights(config, model.count_params())
    with networks.naming(config):
        packed = pack(
            model,
            config.head,
            config.bias_policy,
            config.freed_weights,
            config.seed,
            pretrained="task 0" if config.pretrained else None,
            head_layers=config.head_layers or None,
            exclude=config.exclude,
        )
    if own_function(config.model) is not None:
        try:
            model_config.to_json(packed)
        except Exception as error:  # raised by Keras or by the code of a layer
            expected = f"a network that can be saved; its pack {first_line(error)}"
            raise ArgumentError("model", expected, config.model) from error
    return packed


def check_tasks(config: Config, stream: TaskStream, network: PackedModel) -> None:
    """Raise ArgumentError if a task would get no weights, or `round_epochs` does not match the tasks."""
    lists = len(config.lengths_by_task())
    retrainings = len(APPROACHES[config.approach].training_task_numbers(len(stream)))
    if lists not in (1, retrainings):
        expected = f"one list of epochs, or {retrainings}: one for each retraining"
        raise ArgumentError("round_epochs", expected, config.round_epochs)
    if config.approach == "packnet":
        plan_of(config, stream, network)


def plan_of(config: Config, stream: TaskStream, network: PackedModel) -> CapacityPlan:
    """Return how many weights each task of a run would get.

    Raises:
        ArgumentError: If some task would get no weights, or there is not one share per task.
    """
    schedule, tasks = schedule_of(config, len(stream)), len(stream)
    if isinstance(schedule, Shares):
        return plan(network, tasks, scope=config.prune_scope, shares=schedule)
    return plan(network, tasks, config.final_prune, config.prune_rounds, config.prune_scope)


def schedule_of(config: Config, tasks: int) -> EqualShare:
    """Return the pruning schedule of a run with `tasks` tasks.

    Raises:
        ArgumentError: If there is not one share per task.
    """
    shares, lengths = config.share_of_each_task(), config.lengths_by_task()[0]
    if shares is None:
        return EqualShare(config.final_prune, tasks, config.prune_rounds, round_epochs=lengths)
    if len(shares) != tasks:
        raise ArgumentError("shares", f"{tasks} shares, one for each task", config.shares)
    return Shares(shares, config.prune_rounds, round_epochs=lengths)


def check_validation(config: Config, stream: TaskStream) -> None:
    """Raise ArgumentError if prune rounds depend on the validation split, and a task has no examples in it."""
    empty = [task.name for task in stream if not len(task.splits["validation"])]
    if config.prune_rounds == AUTO and empty:
        expected = f"enough for a validation example of task {empty[0]!r}, because of --prune_rounds={AUTO}"
        raise ArgumentError("validation_fraction", expected, config.validation_fraction)


def build_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """Build the optimizer of a config; `momentum` is SGD with momentum 0.9."""
    if config.optimizer == "momentum":
        return keras.optimizers.SGD(config.learning_rate, momentum=0.9)
    return keras.optimizers.get({"class_name": config.optimizer, "config": {"learning_rate": config.learning_rate}})


def build_loss(config: Config, stream: TaskStream) -> dict[str, Any]:
    """Build loss and metrics of a config, as arguments of `compile`."""
    if has_heads_side_by_side(config):
        classes = stream.num_classes
        return {"loss": TaskwiseCrossentropy(classes), "metrics": [TaskwiseAccuracy(classes)]}
    return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": ["accuracy"]}


def build_approach(
    network: PackedModel,
    config: Config,
    stream: TaskStream,
    xla: str,
    resident: bool,
    masks_dir: Path | None,
    observers: Observers,
) -> Approach:
    """Compile the network and build the approach of a config. Call this in the scope of the strategy.

    Args:
        network: As `build_model` returns it.
        config: The run.
        stream: Its tasks.
        xla: How much XLA compiles, as `choose_xla` returns it.
        resident: Whether training examples are kept on the device.
        masks_dir: Where owner maps are written after each task; None writes none.
        observers: Gives further Keras callbacks for every stage.
    """
    network.compile(
        optimizer=build_optimizer(config),
        **build_loss(config, stream),
        jit_compile="auto" if xla == acceleration.UPDATE else xla == acceleration.STEP,
    )
    baseline_arguments = {
        "num_classes": stream.num_classes,
        "own_heads": has_heads_side_by_side(config),
        "budget": config.budget,
    }
    return APPROACHES[config.approach](
        network,
        schedule_of(config, len(stream)),
        train_epochs=config.train_epochs,
        retrain_epochs=config.retrain_epochs,
        prune_scope=config.prune_scope,
        seed=config.seed,
        masks_dir=masks_dir,
        resident=resident,
        observers=observers,
        prune_criterion=config.prune_criterion,
        retrain_rate=config.retrain_rate,
        **({} if config.approach == "packnet" else baseline_arguments),
    )


# A kernel has two float variables (trainable and frozen), a uint8 owner map, and two moments of Adam.
BYTES_PER_WEIGHT = 2 * FLOAT_BYTES + 1 + ADAM_BYTES


def check_memory(config: Config, input_shape: tuple[int, ...], outputs: int) -> None:
    """Raise ArgumentError if training the network of `config` takes more RAM than the machine has.

    Args:
        config: The run.
        input_shape: Shape of one example.
        outputs: Units of the output layer.
    """
    sizes = dense_sizes(config, input_shape, outputs)
    needed = BYTES_PER_WEIGHT * sum(before * after for before, after in itertools.pairwise(sizes))
    available = physical_memory()
    if needed > available:
        expected = (
            f"a network that fits into the {available / 2**30:.1f} GiB of RAM of this machine (its dense layers of "
            f"{':'.join(map(str, sizes))} take {needed / 2**30:,.1f} GiB to train)"
        )
        if config.model == "mlp":
            raise ArgumentError("hidden_units", expected, ",".join(map(str, config.hidden_units)))
        raise ArgumentError("model", expected, config.model)


def check_weights(config: Config, weights: int) -> None:
    """Raise ArgumentError if training a network with `weights` weights takes more RAM than the machine has."""
    needed, available = BYTES_PER_WEIGHT * weights, physical_memory()
    if needed > available:
        expected = (
            f"a network that fits into the {available / 2**30:.1f} GiB of RAM of this machine (its {weights:,} weights "
            f"take {needed / 2**30:,.1f} GiB to train)"
        )
        raise ArgumentError("model", expected, config.model)


def dense_sizes(config: Config, input_shape: tuple[int, ...], outputs: int) -> list[int]:
    """Return the numbers of features before, between and after the dense layers, which have nearly all weights."""
    if config.model == "mlp":
        return [math.prod(input_shape), *config.hidden_units, outputs]
    features = (input_shape[0] // 4) * (input_shape[1] // 4) * 128  # after two poolings of 2x2
    return [features, *([8192] if config.fc8192 == "dense" else []), 1024, outputs]


def physical_memory() -> int:
    """Return the RAM of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
