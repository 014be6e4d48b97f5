"""Whether a network fits into this machine, told from its sizes before any of it is made."""

import itertools
import math
import os

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments.config import Config
from tf_packnet.planning import ADAM, FLOAT

# A kernel lies in two variables of floats, its owners in one of bytes; Adam keeps two moments of it.
BYTES_A_WEIGHT = 2 * FLOAT + 1 + ADAM


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
