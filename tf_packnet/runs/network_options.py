"""The fields of `Config` about the network, and the forms that their values may have."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from tf_packnet.errors import ArgumentError
from tf_packnet.runs.options import (
    Check,
    StageKey,
    boolean,
    fraction,
    integers,
    is_text,
    names,
    one_of,
    option,
)

FC8192 = ("flatten", "dense")
# The values of `model` without a file: the paper's networks, and one for text.
TEXT = "text"
MODELS = ("mlp", "conv", TEXT)
NO_WEIGHTS, IMAGENET = "none", "imagenet"
WEIGHTS_FILES = (".keras", ".weights.h5")
NO_ARGUMENTS = "{}"
_APPLICATIONS = "keras.applications:"

# Limits that catch typing errors: far above what anyone needs, far below what exhausts a machine.
MAX_UNITS = 1_000_000
MAX_LAYERS = 100
MAX_NAMES = 1000


class OwnFunction(NamedTuple):
    """A function in a file of the user, as in `--model=FILE.py:FUNCTION`."""

    file: str
    name: str


def own_function(model: str) -> OwnFunction | None:
    """Return the function that a value `FILE.py:FUNCTION` of `--model` names; None for other values."""
    file, _, name = model.rpartition(":")
    return OwnFunction(file, name) if file.endswith(".py") and name.isidentifier() else None


def application(model: str) -> str | None:
    """Return the name of the network in a value `keras.applications:NAME` of `--model`; None for other values."""
    return model.removeprefix(_APPLICATIONS) if model.startswith(_APPLICATIONS) else None


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse a value of `--model_args`.

    Raises:
        ValueError: If it is not a JSON object of finite numbers with different keys.
    """
    try:
        value = json.loads(text, object_pairs_hook=_with_different_keys, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _with_different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_model(value: Any) -> bool:
    if value in MODELS:
        return True
    return is_text(value) and ((application(value) or "").isidentifier() or own_function(value) is not None)


def _is_arguments(value: Any) -> bool:
    try:
        return is_text(value) and isinstance(parse_arguments(value), dict)
    except ValueError:
        return False


def _is_weights(value: Any) -> bool:
    return value in (NO_WEIGHTS, IMAGENET) or (is_text(value) and value.endswith(WEIGHTS_FILES))


AUGMENTATIONS = ("flip", "crop", "rotate", "zoom", "brightness", "contrast")


@dataclass(frozen=True)
class NetworkOptions:
    """The settings that choose the network of a run."""

    model: str = option(
        "Network",
        "mlp",
        Check(_is_model, "one of mlp, conv, text, keras.applications:NAME and FILE.py:FUNCTION"),
        StageKey.NETWORK,
        "mlp or conv: the paper's fully connected or convolutional network; text: the mean of the embeddings of words, "
        "then dense layers as in mlp; keras.applications:NAME, such as "
        "keras.applications:MobileNetV2; or FILE.py:FUNCTION, a function of your own that gets the shape of an example "
        "and the number of classes, and returns a Keras model with that many logits.",
    )
    model_args: str = option(
        "Network",
        NO_ARGUMENTS,
        Check(_is_arguments, 'a JSON object such as {"width": 64}'),
        StageKey.NETWORK,
        "Further keyword arguments of --model=keras.applications:NAME or FILE.py:FUNCTION, as a JSON object such as "
        '{"width": 64}.',
        neutral=NO_ARGUMENTS,
    )
    weights: str = option(
        "Network",
        NO_WEIGHTS,
        Check(_is_weights, "one of none, imagenet, FILE.keras and FILE.weights.h5"),
        StageKey.NETWORK,
        "Weights of the network before the first task: none (random), imagenet (for --model=keras.applications:NAME), "
        "or a file by Keras's save or save_weights. Heads with another number of outputs start randomly.",
        neutral=NO_WEIGHTS,
    )
    pretrained: bool = option(
        "Network",
        False,
        boolean(),
        StageKey.NETWORK,
        "Start the free weights of every task from --weights, or from the weights that FILE.py:FUNCTION loads; "
        "--freed_weights then has no effect. Without it, only those of the first task.",
        neutral=False,
    )
    exclude: tuple[str, ...] = option(
        "Network",
        (),
        names(MAX_NAMES),
        StageKey.NETWORK,
        "Names of layers that are neither trained nor pruned, separated by commas.",
        sweepable=False,
        neutral=[],
    )
    head_layers: tuple[str, ...] = option(
        "Network",
        (),
        names(MAX_NAMES),
        StageKey.NETWORK,
        "Names of the layers that each task has of its own, the heads. Default: those from which the outputs come.",
        sweepable=False,
        neutral=[],
    )
    augment: tuple[str, ...] = option(
        "Network",
        (),
        Check(
            lambda changes: set(changes) <= set(AUGMENTATIONS) and len(set(changes)) == len(changes),
            f"different ones of {', '.join(AUGMENTATIONS)}, separated by commas",
        ),
        StageKey.NETWORK,
        "Changes of training images at random, inside the network, separated by commas: flip (horizontal), crop (a "
        "shift by up to an eighth), rotate (by up to 15 degrees), zoom, brightness, contrast. Exports leave them out.",
        sweepable=False,
        neutral=[],
    )
    hidden_units: tuple[int, ...] = option(
        "Network",
        (256, 256),
        integers(1, MAX_UNITS, MAX_LAYERS),
        StageKey.NETWORK,
        "Sizes of the hidden layers of --model=mlp and --model=text.",
        sweepable=False,
    )
    fc8192: str = option(
        "Network",
        "flatten",
        one_of(FC8192),
        StageKey.NETWORK,
        "the meaning of 'fc8192' in the paper's table for --model=conv: the 8,192 flattened features, or "
        "another dense layer of 8,192 units.",
    )
    dropout: float = option(
        "Network",
        0.1,
        fraction(),
        StageKey.NETWORK,
        "Dropout rate before and between the dense layers of --model=conv.",
    )

    def canonical_arguments(self) -> str:
        """Return `model_args` in canonical form: equal text for equal arguments.

        Invalid arguments are returned unchanged.
        """
        if not _is_arguments(self.model_args):
            return self.model_args
        return json.dumps(parse_arguments(self.model_args), sort_keys=True, separators=(",", ":"))

    def check_network(self, head: str) -> None:
        """Raise ArgumentError if the fields contradict each other.

        Args:
            head: The value of `--head`.
        """
        if self.model in MODELS and self.model_args != NO_ARGUMENTS:
            flags = "--fc8192 and --dropout" if self.model == "conv" else "--hidden_units"
            expected = f"no value with --model={self.model}, whose arguments are {flags}"
            raise ArgumentError("model_args", expected, self.model_args)
        if self.weights == IMAGENET and application(self.model) is None:
            expected = f"none or a file with --model={self.model} (imagenet is for --model=keras.applications:NAME)"
            raise ArgumentError("weights", expected, self.weights)
        if self.pretrained and self.weights == NO_WEIGHTS and own_function(self.model) is None:
            raise ArgumentError("pretrained", "--weights with it, from which every task starts", "true")
        if self.head_layers and head == "shared":
            raise ArgumentError("head_layers", "no value with --head=shared", ",".join(self.head_layers))
