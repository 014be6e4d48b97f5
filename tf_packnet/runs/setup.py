"""From a config to the objects of a run: devices, strategy, network, optimizer."""

import itertools
import math
import os
from pathlib import Path

import keras
import tensorflow as tf

from tf_packnet.approaches import Approach, Memory, Multinet, PackNet, conv, mlp
from tf_packnet.approaches.base import Observers
from tf_packnet.approaches.joint import TaskwiseAccuracy, TaskwiseCrossentropy
from tf_packnet.errors import ArgumentError
from tf_packnet.packed_model import PackedModel
from tf_packnet.packing import pack
from tf_packnet.planning import ADAM_BYTES, FLOAT_BYTES, plan
from tf_packnet.pruning.schedules import EqualShare
from tf_packnet.runs.config import Config
from tf_packnet.tasks import TaskStream
from tf_packnet.training import acceleration

# Training examples of the largest task, as they lie on the device.
RESIDENT_BYTES = 2**30


def make_deterministic(config: Config, xla: str) -> None:
    """Fixes every seed; with it two runs of one config give the same bits on CPU."""
    keras.utils.set_random_seed(config.seed)
    # What XLA compiles for CPU is deterministic already, and Keras will not combine the two.
    if xla != acceleration.STEP:
        tf.config.experimental.enable_op_determinism()


def choose_strategy(config: Config) -> tf.distribute.Strategy:
    """`MirroredStrategy` over all GPUs or over logical CPU devices; TensorFlow's default for one device.

    Raises:
        ArgumentError: If logical devices are asked for after TensorFlow has started, or the batch cannot be shared.
    """
    gpus = acceleration.gpus()
    if config.strategy == "none" or (config.logical_devices is None and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = None
    if config.logical_devices is not None:
        cpu = tf.config.list_physical_devices("CPU")[0]
        wanted = [tf.config.LogicalDeviceConfiguration()] * config.logical_devices
        try:
            tf.config.set_logical_device_configuration(cpu, wanted)
        except RuntimeError as error:
            expected = "to be set before TensorFlow starts: run it in a process of its own"
            raise ArgumentError("logical_devices", expected, config.logical_devices) from error
        devices = [f"CPU:{i}" for i in range(config.logical_devices)]
    strategy = tf.distribute.MirroredStrategy(devices)
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise ArgumentError("batch_size", f"a multiple of the {replicas} replicas", config.batch_size)
    return strategy


def device(config: Config) -> str:
    """The name of what computes, which decides how sums are rounded: the first GPU's, or `CPU`."""
    gpus = acceleration.gpus()
    if not gpus or config.logical_devices is not None:
        return "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


def choose_xla(config: Config, strategy: tf.distribute.Strategy) -> str:
    """How much XLA compiles: `step`, `update` or `off`, see `tf_packnet.training.acceleration`."""
    if config.jit != "auto":
        return acceleration.STEP if config.jit == "on" else acceleration.OFF
    return acceleration.choose(config.model == "conv", strategy.num_replicas_in_sync > 1)


def choose_residency(config: Config, strategy: tf.distribute.Strategy, stream: TaskStream) -> bool:
    """Whether the training examples lie on the device. `auto`: up to `RESIDENT_BYTES` a task, on one device."""
    if config.data_residency != "auto":
        return config.data_residency == "device"
    largest = max(task.splits["train"].images.nbytes for task in stream)
    return strategy.num_replicas_in_sync == 1 and largest <= RESIDENT_BYTES


def threads() -> int:
    """How many threads share one operation; with another number, sums may differ in their last bits."""
    asked = tf.config.threading.get_intra_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0))
    return asked or len(os.sched_getaffinity(0))


APPROACHES: dict[str, type[Approach]] = {"packnet": PackNet, "memory": Memory, "multinet": Multinet}


def has_heads_side_by_side(config: Config) -> bool:
    """Whether one output layer holds the heads of all tasks, which learn together."""
    return config.approach != "packnet" and config.head == "per_task"


def build_model(config: Config, stream: TaskStream) -> PackedModel:
    """The packed network of a config, not compiled.

    Raises:
        ArgumentError: If the approach or the head cannot have tasks of different numbers of classes, or the network
            does not fit into this machine.
    """
    sizes = sorted({task.num_classes for task in stream})
    if len(sizes) > 1 and (config.approach != "packnet" or config.head == "shared"):
        field = "head" if config.approach == "packnet" else "approach"
        expected = f"{'per_task' if field == 'head' else 'packnet'} for tasks of {' or '.join(map(str, sizes))} classes"
        raise ArgumentError(field, expected, getattr(config, field))
    keras.config.set_dtype_policy(config.precision)
    outputs = stream.num_classes * (len(stream) if has_heads_side_by_side(config) else 1)
    if config.model == "mlp" or len(stream.input_shape) == 3:  # else `conv` refuses the inputs
        check_memory(config, stream.input_shape, outputs)
    if config.model == "mlp":
        model = mlp(stream.input_shape, outputs, config.hidden_units)
    else:
        model = conv(stream.input_shape, outputs, config.fc8192, config.dropout)
    return pack(model, config.head, config.bias_policy, config.freed_weights, config.seed)


def check_can_begin(config: Config, stream: TaskStream) -> None:
    """Raises ArgumentError if PackNet's network has no room for all tasks of `stream`."""
    if config.approach == "packnet":
        network = build_model(config, stream)
        plan(network, len(stream), config.final_prune, config.prune_rounds, config.prune_scope)


def build_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """The optimizer of a config; `momentum` is SGD with momentum 0.9."""
    if config.optimizer == "momentum":
        return keras.optimizers.SGD(config.learning_rate, momentum=0.9)
    return keras.optimizers.get({"class_name": config.optimizer, "config": {"learning_rate": config.learning_rate}})


def build_loss(config: Config, stream: TaskStream) -> dict:
    """Loss and metrics of a config, as `compile` takes them."""
    if has_heads_side_by_side(config):
        classes = stream.num_classes
        return {"loss": TaskwiseCrossentropy(classes), "metrics": [TaskwiseAccuracy(classes)]}
    return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": ["accuracy"]}


def build_approach(
    config: Config, stream: TaskStream, xla: str, resident: bool, masks_dir: Path | None, observers: Observers
) -> Approach:
    """The approach of a config, ready to learn the stream. Call it in the strategy's scope."""
    packed = build_model(config, stream)
    packed.compile(
        optimizer=build_optimizer(config),
        **build_loss(config, stream),
        jit_compile="auto" if xla == acceleration.UPDATE else xla == acceleration.STEP,
    )
    joint = {
        "num_classes": stream.num_classes,
        "own_heads": has_heads_side_by_side(config),
        "budget": config.budget,
    }
    return APPROACHES[config.approach](
        packed,
        EqualShare(config.final_prune, len(stream), config.prune_rounds),
        train_epochs=config.train_epochs,
        retrain_epochs=config.retrain_epochs,
        prune_scope=config.prune_scope,
        seed=config.seed,
        masks_dir=masks_dir,
        resident=resident,
        observers=observers,
        **({} if config.approach == "packnet" else joint),
    )


# A kernel lies in two variables of floats, its owners in one of bytes; Adam keeps two moments of it.
BYTES_A_WEIGHT = 2 * FLOAT_BYTES + 1 + ADAM_BYTES


def check_memory(config: Config, input_shape: tuple[int, ...], outputs: int) -> None:
    """Raises ArgumentError if training the network of `config` takes more memory than there is in the machine.

    Args:
        config: The run.
        input_shape: Shape of one example.
        outputs: Units of the output layer.
    """
    sizes = dense_sizes(config, input_shape, outputs)
    needed = BYTES_A_WEIGHT * sum(before * after for before, after in itertools.pairwise(sizes))
    there = physical_memory()
    if needed > there:
        expected = (
            f"a network that fits into the {there / 2**30:.1f} GiB of this machine (its dense layers of "
            f"{':'.join(map(str, sizes))} take {needed / 2**30:,.1f} GiB to train)"
        )
        mlp = config.model == "mlp"
        shown = ",".join(map(str, config.hidden_units)) if mlp else config.model
        raise ArgumentError("hidden_units" if mlp else "model", expected, shown)


def dense_sizes(config: Config, input_shape: tuple[int, ...], outputs: int) -> list[int]:
    """Features before, between and after the dense layers, in which nearly all weights are."""
    if config.model == "mlp":
        return [math.prod(input_shape), *config.hidden_units, outputs]
    features = (input_shape[0] // 4) * (input_shape[1] // 4) * 128  # after two poolings
    return [features, *([8192] if config.fc8192 == "dense" else []), 1024, outputs]


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
