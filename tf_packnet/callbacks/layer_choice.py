"""Options of prune rounds that may differ between layers: one value for all layers, or a mapping by layer name."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, listed
from tf_packnet.layers.input_axes import input_axes
from tf_packnet.pruning import ownership
from tf_packnet.pruning.patterns import UNSTRUCTURED, Pattern, parse_pattern
from tf_packnet.pruning.ranking import keep_pattern_masks

# TF-MOT computes sparsities in float32: differences up to this are rounding errors.
_ROUNDING = 1e-6
Patterns = Mapping[str, tuple[Pattern, Sequence[int]]]


def by_weight(model: keras.Model, argument: str, option: Any) -> dict[str, Any]:
    """Return the value of an option for each masked weight that has one.

    Args:
        model: A model with masked weights.
        argument: Name of the option.
        option: One value for all layers, or a mapping from layers to values. A layer is given by its path or its name.
            The name of a layer that contains layers stands for all of these.

    Returns:
        Values by path of the weight, in layer order.

    Raises:
        ArgumentError: If a key is not the name of a layer with masked weights.
    """
    paths = list(lifecycle.masked_weights(model))
    if not isinstance(option, Mapping):
        return dict.fromkeys(paths, option)
    values: dict[str, Any] = {}
    for name, value in option.items():
        matches = [path for path in paths if name in path.split("/")[:-1] or f"{path}/".startswith(f"{name}/")]
        if not matches:
            layers = dict.fromkeys(path.rpartition("/")[0] for path in paths)
            expected = "the names of layers with pruned weights as keys, among " + listed(map(repr, layers), 20)
            raise ArgumentError(argument, expected, name)
        values |= dict.fromkeys(matches, value)
    return {path: values[path] for path in paths if path in values}


def patterns_of(model: keras.Model, pattern: Any) -> Patterns:
    """Return the pattern and the input axes of each masked weight by its path.

    Args:
        model: A model with masked weights.
        pattern: A pattern, or a mapping from layers to patterns; other layers have none.

    Raises:
        ArgumentError: If a pattern or a key is invalid, or a kernel cannot have its pattern.
    """
    parsed = {path: parse_pattern(each) for path, each in by_weight(model, "pattern", pattern).items()}
    found: dict[str, tuple[Pattern, Sequence[int]]] = {}
    for layer_path, layer in lifecycle.named_layers(model):
        for weight in layer.masked_weights:
            path, shape = f"{layer_path}/{weight.name}", tuple(weight.variable.shape)
            own, axes = parsed.get(path, UNSTRUCTURED), input_axes(layer, weight.name, len(shape))
            if own.densest < 1.0 and axes is None:
                expected = f"no N:M pattern for {path!r}, whose weights have no input axis ({type(layer).__name__})"
                raise ArgumentError("pattern", expected, pattern)
            found[path] = own, axes or ()
    return found


def keep_with_patterns(
    model: keras.Model,
    patterns: Patterns,
    scores: Mapping[str, np.ndarray],
    kept_fraction: float,
    scope: str,
    erk_cap: float = 1.0,
) -> list[np.ndarray]:
    """Select the weights that a prune round keeps.

    Args:
        model: A model with an open task.
        patterns: The result of `patterns_of`.
        scores: Scores by path of the weights to prune.
        kept_fraction: Fraction of the task's candidates that remains.
        scope: `layer`, `global` or `erk`.
        erk_cap: As for `keep_masks`.

    Returns:
        Boolean masks, in the order of `scores`.
    """
    weights = lifecycle.masked_weights(model)
    owners = [weights[path].owner_map() for path in scores]
    chosen = [patterns[path] for path in scores]
    return keep_pattern_masks(
        [pattern for pattern, _ in chosen],
        [axes for _, axes in chosen],
        scores.values(),
        [ownership.candidates(owner) for owner in owners],
        # While a task is open, all free weights were its candidates when it began.
        [ownership.candidates(owner) | (owner == ownership.FREE) for owner in owners],
        kept_fraction,
        scope,
        erk_cap,
    )


def check_completed(patterns: Patterns, kept_fraction: float) -> None:
    """Raise ArgumentError if the `kept_fraction` of the last prune round is too large for a pattern."""
    for path, (pattern, _) in patterns.items():
        if kept_fraction > pattern.densest + _ROUNDING:
            expected = f"a final sparsity of at least {1 - pattern.densest:.6g}, that of the pattern of {path!r}"
            raise ArgumentError("schedule", expected, f"{1 - kept_fraction:.6g}")
