"""`Config`: all settings of a run in one frozen dataclass, with their defaults, ranges and help.

Each field is declared once, with `option`, here or in one of the three base classes; flags, help pages,
`flags/REFERENCE.md` and stage keys are generated from these declarations. Importable without TensorFlow, so that bad
input is reported before anything slow starts.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.shares import AUTO, EQUAL
from tf_packnet.runs.data_options import DataOptions
from tf_packnet.runs.method_options import MethodOptions
from tf_packnet.runs.network_options import NetworkOptions
from tf_packnet.runs.options import (
    MAX_HOSTS,
    ORIGINAL,
    Check,
    Option,
    StageKey,
    addresses,
    boolean,
    integer,
    one_of,
    option,
    optional,
    path,
)
from tf_packnet.tasks.datasets import default_classes

JIT = ("auto", "on", "off")
ON_CORRUPTION = ("recompute", "fail")
OPTIMIZERS = ("adam", "adamw", "momentum", "nadam", "rmsprop", "sgd")
RESIDENCIES = ("auto", "device", "stream", "disk")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("auto", "none", "mirrored", "multiworker")

# Limits that catch typing errors: far above what anyone needs, far below what exhausts a machine.
MAX_DEVICES = 64
# The positive numbers that float32, the type of the weights, can hold.
_FLOAT32 = (1.2e-38, 3.4e38)


@dataclass(frozen=True)
class Config(MethodOptions, NetworkOptions, DataOptions):
    """The settings of one run, and its command-line flags (`flags/REFERENCE.md` has the meaning of each).

    Raises:
        ArgumentError: On construction, if a field is out of range or two fields contradict each other.
    """

    optimizer: str = option(
        "Training",
        "adam",
        one_of(OPTIMIZERS),
        StageKey.TRAINING,
        ". momentum is SGD with momentum 0.9.",
    )
    learning_rate: float = option(
        "Training",
        1e-3,
        Check(lambda rate: _FLOAT32[0] <= rate <= _FLOAT32[1], "a positive number that float32 can hold"),
        StageKey.TRAINING,
        "Learning rate of the optimizer.",
    )
    batch_size: int = option(
        "Training",
        32,
        integer(1),
        StageKey.TRAINING,
        "Examples per gradient step, over all replicas.",
    )
    seed: int = option(
        "Training",
        0,
        integer(0, 2**31 - 1, "0 to 2147483647"),
        StageKey.TRAINING,
        "Seed of all random numbers. On CPU, the same seed gives bit-identical results.",
    )

    strategy: str = option(
        "Machine",
        "auto",
        one_of(STRATEGIES),
        StageKey.COVERED_BY_EXECUTION,
        "auto and mirrored use all GPUs if there are two or more. multiworker trains one network on several hosts, "
        "see docs/scaling.md.",
        sweepable=False,
    )
    hosts: tuple[str, ...] = option(
        "Machine",
        (),
        addresses(),
        StageKey.COVERED_BY_EXECUTION,
        "With --strategy=multiworker: HOST:PORT of every worker, separated by commas, the same on each of them. The "
        "first writes all files. Default: those in the environment variable TF_CONFIG.",
        sweepable=False,
        neutral=[],
    )
    host_index: int | None = option(
        "Machine",
        None,
        optional(integer(0, MAX_HOSTS - 1)),
        StageKey.COVERED_BY_EXECUTION,
        "With --hosts: which of them this process is, from 0.",
        sweepable=False,
        neutral=None,
    )
    logical_devices: int | None = option(
        "Machine",
        None,
        optional(integer(2, MAX_DEVICES)),
        StageKey.COVERED_BY_EXECUTION,
        "With --strategy=mirrored: run on this many logical CPU devices.",
        sweepable=False,
    )
    precision: str = option(
        "Machine",
        "float32",
        one_of(PRECISIONS),
        StageKey.TRAINING,
        "type in which the network computes; weights are always float32. On a CPU, mixed_bfloat16 is faster "
        "only with AVX512-BF16 or AMX.",
    )
    jit: str = option(
        "Machine",
        "auto",
        one_of(JIT),
        StageKey.COVERED_BY_EXECUTION,
        "compile with XLA. auto compiles whole gradient steps; with convolutions or very large kernels on CPU "
        "only the masks and the optimizer, or nothing if the network has few weights.",
    )
    data_residency: str = option(
        "Machine",
        "auto",
        one_of(RESIDENCIES),
        StageKey.COVERED_BY_EXECUTION,
        "keep the training examples in device memory and shuffle them there, stream them through tf.data, or read "
        "each image from disk when it is needed, all in the same order. auto keeps up to 1 GiB on the device, but "
        "streams to replicas; images that take more than a quarter of the free memory stay on disk.",
    )

    output_dir: str | None = option(
        "Output",
        None,
        path(),
        StageKey.NO_EFFECT,
        "Folder for all output. Default: out/<dataset>[-<experiment>].",
        sweepable=False,
    )
    export: bool = option(
        "Output",
        True,
        boolean(),
        StageKey.NO_EFFECT,
        "Write one SavedModel per task.",
    )
    compact: bool = option(
        "Output",
        True,
        boolean(),
        StageKey.NO_EFFECT,
        "Leave out of each SavedModel what its task does not use.",
    )
    on_corruption: str = option(
        "Output",
        "recompute",
        one_of(ON_CORRUPTION),
        StageKey.NO_EFFECT,
        "what to do about a damaged file in --output_dir: report it and write it again, or stop.",
    )

    def __post_init__(self) -> None:
        for name in OPTIONS:
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "model_args", self.canonical_arguments())
        for name in OPTIONS:
            check_field(name, getattr(self, name))
        for name in ("round_epochs", "shares"):
            object.__setattr__(self, name, getattr(self, name).replace("+", ","))
        if self.shares != EQUAL:  # then p is not used: drop one that a preset sets
            object.__setattr__(self, "final_prune", default("final_prune"))
        object.__setattr__(self, "retrain_time", self.canonical_time())
        if self.classes_per_task is None:
            object.__setattr__(self, "classes_per_task", default_classes(self.dataset, self.scenario))
        if self.image_size is not None:
            height, width = self.pixels() or (0, 0)
            object.__setattr__(self, "image_size", f"{height}" if height == width else f"{height}x{width}")
        self._check_together()

    def _check_together(self) -> None:
        self.check_data()
        self.check_network(self.head)
        self._check_hosts()
        self.check_rounds()
        self.check_shares()
        if self.prune_rounds == AUTO and self.validation_fraction == 0.0:
            expected = f"more than 0 with --prune_rounds={AUTO}, which decides by the validation split"
            raise ArgumentError("validation_fraction", expected, self.validation_fraction)
        if self.logical_devices is not None and self.strategy != "mirrored":
            raise ArgumentError("logical_devices", "no value without --strategy=mirrored", self.logical_devices)
        if self.logical_devices is not None and self.batch_size < self.logical_devices:
            expected = f"at least one example for each of --logical_devices={self.logical_devices}"
            raise ArgumentError("batch_size", expected, self.batch_size)

    def _check_hosts(self) -> None:
        if self.hosts and self.strategy != "multiworker":
            raise ArgumentError("hosts", "no value without --strategy=multiworker", ",".join(self.hosts))
        last = len(self.hosts) - 1
        if self.host_index is not None and not self.hosts:
            raise ArgumentError("host_index", "no value without --hosts", self.host_index)
        if self.hosts and (self.host_index is None or self.host_index > last):
            expected = f"0 to {last}: which of the {last + 1} --hosts this process is"
            raise ArgumentError("host_index", expected, self.host_index)

    def directory(self) -> str:
        """Return the output folder: `output_dir`, by default `out/<dataset>`."""
        return self.output_dir or f"out/{self.dataset.strip('./~').replace('/', '_').replace(':', '_')}"

    def to_json(self) -> dict[str, Any]:
        """Return every field, defaults included, as JSON values."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`; the values may be those of an earlier version."""
        return cls(**completed(values))

    def identity(self) -> dict[str, Any]:
        """Return the fields in which two runs must agree to be the same run."""
        free = ("output_dir", "data_dir", "max_bytes", "on_corruption", "hosts", "host_index", "deadline")
        return {k: v for k, v in self.to_json().items() if k not in free}


OPTIONS: dict[str, Option] = {field.name: field.metadata["option"] for field in dataclasses.fields(Config)}


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return field values that an earlier version wrote, completed by the neutral values of the fields added since."""
    added = {name: declared.neutral for name, declared in OPTIONS.items() if declared.neutral is not ORIGINAL}
    return {**added, **values}


def default(name: str) -> Any:
    """Return the default of a field."""
    return Config.__dataclass_fields__[name].default


def fields_in(stage_key: StageKey) -> list[str]:
    """Return the names of the fields that are declared with `stage_key`."""
    return [name for name, declared in OPTIONS.items() if declared.stage_key is stage_key]


def check_axis(name: str) -> None:
    """Raise ArgumentError unless the runs of a sweep may differ in the field `name`."""
    sweepable = [field for field, declared in OPTIONS.items() if declared.sweepable]
    if name not in sweepable:
        raise ArgumentError("sweep", "NAME=VALUE,VALUE with a NAME among " + ", ".join(sweepable), name)


def check_field(name: str, value: Any) -> None:
    """Raise ArgumentError if `value` is out of the range of the field `name`."""
    check = OPTIONS[name].check
    try:
        valid = check.holds(value)
    except TypeError:  # from comparing different types
        valid = False
    if not valid:
        raise ArgumentError(name, check.expected, value)
