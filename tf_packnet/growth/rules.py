"""Rules for layers with wider inputs: one for any layer, and those for layers without a width of their own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from tf_packnet.growth.channels import Axes, Axis, Channels, joined
from tf_packnet.layers import TWINS, TaskLayer
from tf_packnet.layers.head import Head
from tf_packnet.structure.generated import plain_class
from tf_packnet.structure.steps import Graph, Step
from tf_packnet.system.keras_internals import all_layers


class ConflictError(Exception):
    """A layer cannot compute with wider inputs: the layers whose units it reads must keep their width.

    Attributes:
        reason: What the layer does, for messages.
        is_local: Whether the outputs of the layer are unchanged all the same, so that later layers can be examined.
    """

    def __init__(self, reason: str, is_local: bool):
        super().__init__(reason)
        self.reason, self.is_local = reason, is_local


@dataclass
class Wider:
    """A layer in the wider network.

    Attributes:
        output: The channels of its output.
        weights: Layers that hold weights, by `id`, each with the axes that change, by name of the weight.
        config: The entries of the layer's config that change.
    """

    output: Channels
    weights: dict[int, dict[str, Axes]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


class Rule:
    """A barrier, the rule that is correct for any layer: its inputs must be unchanged.

    Args:
        graph: The graph that contains the step.
        step: The call of the layer.
        path: Path of the layer.

    Attributes:
        layer: The layer; inside TimeDistributed, the inner one.
        key: Key of the width in the layer's config.
        width: Current number of units, if the layer can have more; otherwise None.
        is_pruned: Whether tasks own weights of the layer.
        obstacle: Why the layer has no width that can change.
    """

    options: tuple[str, ...] = ()
    key = ""

    def __init__(self, graph: Graph, step: Step, path: str):
        self.step, self.path, self.layer = step, path, step.layer
        self.input_shapes = [graph.shape(number) for number in step.inputs]
        self.output_shapes = [graph.shape(number) for number in step.outputs]
        if type(self.layer) is layers.TimeDistributed:
            self.layer = self.layer.layer
        self.is_pruned = self._is_pruned()
        self.obstacle = f"class {self.class_name}, as it is set and called, has no width that can change"
        self.width = self._width() if self.key and self.is_pruned else None

    def _width(self) -> int | None:
        return int(getattr(self.layer, self.key))

    def _is_pruned(self) -> bool:
        inner = [each for each in layers_in(self.layer) if isinstance(each, TaskLayer)]
        return any(each.masked_weights for each in inner) and not isinstance(self.layer, Head)

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        """Return the layer in the wider network.

        Args:
            inputs: The channels of its inputs.
            units: Its units; for a layer without a width of its own, the channels of its first output in the original
                network.

        Raises:
            ConflictError: If it cannot compute with these inputs.
        """
        if any(each.grew for each in inputs):
            raise ConflictError(f"{self._name()} reads their units as they are", is_local=True)
        return Wider(units)

    def _name(self) -> str:
        return f"{self.path!r} (class {self.class_name})"

    @property
    def class_name(self) -> str:
        """Name of the class of Keras or of the user."""
        return plain_class_of(self.step.layer).__name__

    def _weights(self, **weights: Axes) -> dict[int, dict[str, Axes]]:
        return {id(self.layer): weights}

    def _sized(self, units: Channels) -> dict[str, Any]:
        """Return the config entry for the width; empty if there are no new units."""
        return {self.key: len(units.old)} if units.grew else {}


class Channelwise(Rule):
    """Rule for layers that compute each channel from the same channel alone."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(inputs[0])


class Vectors(Channelwise):
    """Rule for BatchNormalization and PReLU, whose weights have one entry per channel."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        names = ("gamma", "beta", "moving_mean", "moving_variance", "alpha")
        return Wider(inputs[0], self._weights(**{name: {-1: Axis(inputs[0].old)} for name in names}))


class Flatten(Rule):
    """Rule for Flatten, and for Reshape to one axis: each channel becomes one channel per position."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        output = inputs[0].tiled(math.prod(size or 1 for size in self.input_shapes[0][1:-1]))
        return Wider(output, config=_reshaped(self.layer, output))


class Reshape(Channelwise):
    """Rule for a Reshape that keeps the channels."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(inputs[0], config=_reshaped(self.layer, inputs[0]))


class Merge(Rule):
    """Rule for layers such as Add that combine tensors channel by channel."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        by = frozenset().union(*(each.by for each in inputs))
        widest = max(inputs, key=lambda each: each.before)
        for each in inputs:
            is_broadcast = each.before == 1 < widest.before and not each.grew
            if not np.array_equal(each.old, widest.old) and not is_broadcast:
                raise ConflictError(f"{self._name()} combines their units", is_local=False)
        return Wider(Channels(widest.old, by))


class Concatenate(Rule):
    """Rule for Concatenate along the channels."""

    def wider(self, inputs: list[Channels], units: Channels) -> Wider:
        return Wider(joined(inputs))


def inner_config(inner: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed config of a layer inside a wrapper, without the shape of its original inputs."""
    kept = {name: value for name, value in inner.items() if name != "build_config"}
    return {**kept, "config": {**kept["config"], **changes}}


def plain_class_of(layer: Any) -> type:
    """Return the plain class, of Keras or of the user, that a task-aware layer replaces."""
    if isinstance(layer, Head):
        return layer.plain_class
    plain = {masked: cls for cls, masked in TWINS.items()}
    return plain.get(type(layer)) or plain_class(layer)


def layers_in(step: Any) -> list[keras.Layer]:
    """Return a layer and all layers inside it; an empty list for an operation."""
    return all_layers(step) if isinstance(step, keras.Layer) else []


def _reshaped(layer: Any, output: Channels) -> dict[str, Any]:
    """Return the part of the config of a Reshape that has the number of channels; of a Flatten, nothing."""
    shape = getattr(layer, "target_shape", None)
    if not output.grew or shape is None or shape[-1] == -1:
        return {}
    return {"target_shape": [*shape[:-1], len(output.old)]}
