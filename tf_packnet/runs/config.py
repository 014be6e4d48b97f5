"""The configuration of a run: one frozen dataclass with defaults, ranges and cross-checks.

The flags read their defaults and validators from here, so that help, flag and code cannot disagree. Imports no
TensorFlow, so that bad input is refused at once.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.pruning.policies import BIAS_POLICIES, FREED_WEIGHTS, HEADS, PRUNE_SCOPES
from tf_packnet.pruning.shares import rounds_that_divide

APPROACHES = ("packnet", "memory", "multinet")
BUDGETS = ("steps", "epochs")
FC8192 = ("flatten", "dense")
JIT = ("auto", "on", "off")
MODELS = ("mlp", "conv")
ON_CORRUPTION = ("recompute", "fail")
OPTIMIZERS = ("adam", "adamw", "momentum", "nadam", "rmsprop", "sgd")
RESIDENCIES = ("auto", "device", "stream")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("auto", "none", "mirrored")

# Limits far above what anyone needs: they refuse typing errors before these exhaust the machine.
MAX_EPOCHS = 1_000_000
MAX_UNITS = 1_000_000
MAX_LAYERS = 100
MAX_DEVICES = 64


@dataclass(frozen=True)
class Config:
    """The configuration of a run. Its fields are the launcher's flags; see `--help` for their meaning.

    Raises:
        ArgumentError: On construction, if a field is out of range or two fields contradict each other.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    classes_per_task: int = 2
    num_tasks: int | None = None
    validation_fraction: float = 0.1

    model: str = "mlp"
    hidden_units: tuple[int, ...] = (256, 256)
    fc8192: str = "flatten"
    dropout: float = 0.1

    approach: str = "packnet"
    train_epochs: int = 30
    retrain_epochs: int = 30
    prune_rounds: int = 3
    final_prune: float = 0.75
    budget: str = "steps"
    freed_weights: str = "zero"
    head: str = "per_task"
    bias_policy: str = "first_task"
    prune_scope: str = "layer"

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    batch_size: int = 32
    seed: int = 0

    strategy: str = "auto"
    logical_devices: int | None = None
    precision: str = "float32"
    jit: str = "auto"
    data_residency: str = "auto"

    output_dir: str | None = None
    export: bool = True
    compact: bool = True
    on_corruption: str = "recompute"

    def __post_init__(self):
        if isinstance(self.hidden_units, list):
            object.__setattr__(self, "hidden_units", tuple(self.hidden_units))
        for field in CHECKS:
            check_field(field, getattr(self, field))
        self._check_together()

    def _check_together(self) -> None:
        if self.retrain_epochs % self.prune_rounds:
            fitting = ", ".join(map(str, rounds_that_divide(self.retrain_epochs)))
            expected = f"a divisor of --retrain_epochs={self.retrain_epochs}: {fitting}"
            raise ArgumentError("prune_rounds", expected, self.prune_rounds)
        if self.logical_devices is not None and self.strategy != "mirrored":
            raise ArgumentError("logical_devices", "to be left out, or --strategy=mirrored", self.logical_devices)
        if self.strategy == "mirrored" and self.jit == "on":
            raise ArgumentError("jit", "auto or off with --strategy=mirrored, which XLA cannot compile", self.jit)
        if self.strategy == "mirrored" and self.data_residency == "device":
            expected = "auto or stream with --strategy=mirrored, which divides each batch between replicas"
            raise ArgumentError("data_residency", expected, self.data_residency)
        if self.logical_devices is not None and self.batch_size % self.logical_devices:
            expected = f"a multiple of --logical_devices={self.logical_devices}"
            raise ArgumentError("batch_size", expected, self.batch_size)

    def directory(self) -> str:
        """Returns the output directory: `output_dir`, or `out/<dataset>`."""
        return self.output_dir or f"out/{self.dataset.strip('./~').replace('/', '_').replace(':', '_')}"

    def to_json(self) -> dict[str, Any]:
        """Returns every field, defaults included, as JSON values."""
        return {**dataclasses.asdict(self), "hidden_units": list(self.hidden_units)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`."""
        return cls(**values)

    def identity(self) -> dict[str, Any]:
        """Returns the fields that make two runs the same run: all but `output_dir`, `data_dir` and `on_corruption`."""
        return {k: v for k, v in self.to_json().items() if k not in ("output_dir", "data_dir", "on_corruption")}


def default(field: str) -> Any:
    """Returns the default of a field."""
    return Config.__dataclass_fields__[field].default


def check_axis(name: str) -> None:
    """Raises ArgumentError unless the field `name` can have several values in a sweep."""
    fields = [field for field in Config.__dataclass_fields__ if field not in _NO_AXES]
    if name not in fields:
        raise ArgumentError("sweep", "NAME=VALUE,VALUE with a NAME among " + ", ".join(fields), name)


# Directories, a list (whose commas a sweep would split), and settings that must be made before TensorFlow starts.
_NO_AXES = ("output_dir", "data_dir", "hidden_units", "strategy", "logical_devices")


def check_field(field: str, value: Any) -> None:
    """Raises ArgumentError if `field` cannot have this value, whatever the other fields are."""
    is_valid, expected = CHECKS[field]
    try:
        valid = is_valid(value)
    except TypeError:  # a comparison with a value of another type
        valid = False
    if not valid:
        raise ArgumentError(field, expected, value)


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices), "one of " + ", ".join(choices)


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    expected = f"at least {low}" + (f" and at most {high:,}" if high < _NO_LIMIT else "")
    return (lambda value: type(value) is int and low <= value <= high), expected


# For fields that the data set limits: they are checked when it is loaded.
_NO_LIMIT = 2**63 - 1


def _optional(check: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    is_valid, expected = check
    return (lambda value: value is None or is_valid(value)), expected


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: low <= value < high


def _is_text(value: Any) -> bool:
    """Whether `value` can be encoded as text: command line arguments may have any bytes."""
    try:
        return "\0" not in value and len(value.encode()) <= MAX_PATH
    except (AttributeError, UnicodeEncodeError):
        return False


# The limit of Linux.
MAX_PATH = 4095
_PATH = _optional((_is_text, f"a path, text of at most {MAX_PATH:,} bytes"))
# Smallest and largest learning rate: as float32, the type of the weights, not 0 and not infinite.
_FLOAT32 = (1.2e-38, 3.4e38)

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (
        lambda name: bool(name) and _is_text(name),
        "digits, the name of a TFDS image classification set, or a folder",
    ),
    "data_dir": _PATH,
    "classes_per_task": _whole(2, _NO_LIMIT),
    "num_tasks": _optional((_whole(1, MAX_TASKS)[0], f"1 to {MAX_TASKS} tasks (owner maps are uint8)")),
    "validation_fraction": (_within(0.0, 1.0), "a fraction from 0 up to, but not including, 1"),
    "model": _one_of(MODELS),
    "hidden_units": (
        lambda units: 1 <= len(units) <= MAX_LAYERS and all(_whole(1, MAX_UNITS)[0](size) for size in units),
        f"one or more layer sizes of at least 1 and at most {MAX_UNITS:,}, up to {MAX_LAYERS} of them",
    ),
    "fc8192": _one_of(FC8192),
    "dropout": (_within(0.0, 1.0), "a fraction from 0 up to, but not including, 1"),
    "approach": _one_of(APPROACHES),
    "train_epochs": _whole(1, MAX_EPOCHS),
    "retrain_epochs": _whole(1, MAX_EPOCHS),
    "prune_rounds": _whole(1, MAX_EPOCHS),
    "final_prune": (lambda p: 0.0 < p < 1.0, "a fraction between 0 and 1, both exclusive"),
    "budget": _one_of(BUDGETS),
    "freed_weights": _one_of(FREED_WEIGHTS),
    "head": _one_of(HEADS),
    "bias_policy": _one_of(BIAS_POLICIES),
    "prune_scope": _one_of(PRUNE_SCOPES),
    "optimizer": _one_of(OPTIMIZERS),
    "learning_rate": (lambda rate: _FLOAT32[0] <= rate <= _FLOAT32[1], "a positive number that float32 can hold"),
    "batch_size": _whole(1, _NO_LIMIT),
    "seed": (_whole(0, 2**31 - 1)[0], "0 to 2147483647"),
    "strategy": _one_of(STRATEGIES),
    "logical_devices": _optional(_whole(2, MAX_DEVICES)),
    "precision": _one_of(PRECISIONS),
    "jit": _one_of(JIT),
    "data_residency": _one_of(RESIDENCIES),
    "output_dir": _PATH,
    "on_corruption": _one_of(ON_CORRUPTION),
    "compact": (lambda value: type(value) is bool, "true or false"),
    "export": (lambda value: type(value) is bool, "true or false"),
}
