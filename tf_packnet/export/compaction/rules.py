"""Compaction rules: which outputs of a layer are constant, which inputs it needs, and how it is made smaller.

The channels of a tensor are the positions of its last axis. Three arrays describe them:

- `known`: the value of each channel that is the same for every input and at every position, NaN for other channels;
- `needed`: whether an output depends on the channel, and its known value cannot replace it;
- `kept`: whether the smaller model has the channel. Needed channels are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction.selection import Select
from tf_packnet.structure.steps import Graph, Step

Arrays = list[np.ndarray]


@dataclass
class Value:
    """A tensor of the smaller model, with the channels of the original tensor that it has (`kept`)."""

    tensor: Any
    kept: np.ndarray

    def only(self, channels: np.ndarray) -> "Value":
        """Return the value with fewer channels, a subset of `kept`."""
        if np.array_equal(channels, self.kept):
            return self
        return Value(Select(np.flatnonzero(channels[self.kept]).tolist())(self.tensor), channels)


class Rule:
    """A barrier, the rule that is correct for any layer: nothing is known about the outputs, and all inputs are needed.

    The layer stays unchanged. Subclasses know more about their layers.

    Args:
        graph: The graph that contains the step.
        step: The call of the layer.

    Attributes:
        options: Names of the keyword arguments of a call with which the rule is correct.
    """

    options: tuple[str, ...] = ()

    def __init__(self, graph: Graph, step: Step):
        self.graph, self.step, self.layer = graph, step, step.layer
        self.input_shapes = [graph.shape(number) for number in step.inputs]
        self.output_shapes = [graph.shape(number) for number in step.outputs]

    def known(self, inputs: Arrays) -> Arrays:
        """Return `known` of the outputs, from `known` of the inputs."""
        return [np.full(channels(shape), np.nan) for shape in self.output_shapes]

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        """Return `needed` of the inputs, from `known` of the inputs and `needed` of the outputs."""
        return [np.ones(channels(shape), bool) for shape in self.input_shapes]

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        """Build the outputs in the smaller model.

        Args:
            inputs: `known` of the inputs.
            needed: `needed` of the outputs.
            values: The inputs in the smaller model.
        """
        if isinstance(self.layer, keras.Layer):
            self.layer.name = self.graph.first_name(self.layer)  # layers of nested models may have equal names
        return self._called(self.layer, values)

    def _called(self, layer: Any, values: list[Value]) -> list[Value]:
        """Call a layer on these values, with the other arguments of the original call."""
        arguments = self.step.node.arguments
        tensors = {id(old): new.tensor for old, new in zip(arguments.keras_tensors, values, strict=True)}
        args, kwargs = arguments.fill_in(tensors)
        outputs = keras.tree.flatten(layer(*args, **kwargs))
        all_channels = [np.ones(channels(shape), bool) for shape in self.output_shapes]
        return [Value(tensor, kept) for tensor, kept in zip(outputs, all_channels, strict=True)]

    def copy(self, **changes: Any) -> keras.Layer:
        """Return a new layer from the layer's config, with changes."""
        return type(self.layer).from_config({**self.layer.get_config(), "name": self.step.name, **changes})


def channels(shape: tuple[int | None, ...]) -> int:
    """Return the number of channels of a tensor; 1 if its last axis has no known length."""
    return shape[-1] if len(shape) > 1 and shape[-1] is not None else 1


class Skip(Rule):
    """Rule for layers that do nothing in prediction, such as Dropout: they are removed."""

    def known(self, inputs: Arrays) -> Arrays:
        return inputs

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        return outputs

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        return values


class Channelwise(Rule):
    """Rule for layers without weights that do not mix channels and keep constants, such as pooling and cropping."""

    def known(self, inputs: Arrays) -> Arrays:
        return inputs

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        return outputs

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        return [Value(self.copy()(values[0].tensor), values[0].kept)]


class Padding(Channelwise):
    """Rule for zero padding: a constant stays constant only if it is 0."""

    def known(self, inputs: Arrays) -> Arrays:
        return [np.where(inputs[0] == 0, 0.0, np.nan)]


class Pointwise(Channelwise):
    """Rule for activations, which map a constant to another constant."""

    def known(self, inputs: Arrays) -> Arrays:
        return [apply_channelwise(self.layer, inputs[0], len(self.output_shapes[0]), self.layer.compute_dtype)]


class Normalization(Pointwise):
    """Rule for BatchNormalization in prediction: a factor and an offset per channel."""

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        layer = self.copy()
        tensor = layer(values[0].tensor)
        for new, old in zip(layer.weights, self.layer.weights, strict=True):
            new.assign(array(old)[values[0].kept])
        return [Value(tensor, values[0].kept)]


class Flatten(Channelwise):
    """Rule for Flatten: each channel becomes one channel per position."""

    def __init__(self, graph: Graph, step: Step):
        super().__init__(graph, step)
        known = [size for size in self.input_shapes[0][1:-1] if size is not None]  # all, see `compact`
        self.positions = math.prod(known)

    def known(self, inputs: Arrays) -> Arrays:
        return [np.tile(inputs[0], self.positions)]

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        return [np.any(outputs[0].reshape(self.positions, -1), axis=0)]

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        tensor = keras.layers.Flatten(name=self.step.name, dtype=self.layer.dtype_policy)(values[0].tensor)
        return [Value(tensor, np.tile(values[0].kept, self.positions))]


class Reshape(Channelwise):
    """Rule for Reshape where it rearranges positions and keeps the channels."""

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        shape = (*self.output_shapes[0][1:-1], int(values[0].kept.sum()))
        return [Value(self.copy(target_shape=shape)(values[0].tensor), values[0].kept)]


class Merge(Rule):
    """Rule for layers such as Add that combine tensors with equal numbers of channels, channel by channel."""

    def known(self, inputs: Arrays) -> Arrays:
        unknown = np.isnan(inputs).any(0)
        shape = (1,) * (len(self.output_shapes[0]) - 1) + (-1,)
        constants = [np.where(np.isnan(known), 0.0, known).reshape(shape) for known in inputs]
        return [np.where(unknown, np.nan, self._merge(constants))]

    def _merge(self, inputs: Arrays) -> np.ndarray:
        return apply_eagerly(self.layer, inputs, self.layer.compute_dtype)

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        return outputs * len(inputs)

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        kept = values[0].kept
        if any(not np.array_equal(value.kept, kept) for value in values):
            kept = needed[0]
            values = [value.only(kept) for value in values]
        return [Value(self.copy()([value.tensor for value in values]), kept)]


class Operation(Merge):
    """Rule for operators such as `x + y`."""

    def _merge(self, inputs: Arrays) -> np.ndarray:
        return apply_eagerly(lambda pair: self.layer(*pair), inputs, "float64")

    def copy(self, **changes: Any) -> Any:
        operation = type(self.layer)(name=self.step.name)  # not the Keras layer, which also combines masks
        return lambda tensors: operation(*tensors)


class ConcatenatePositions(Merge):
    """Rule for Concatenate along an axis other than the channels: equal constants stay constant."""

    def known(self, inputs: Arrays) -> Arrays:
        equal = (np.asarray(inputs) == inputs[0]).all(0)
        return [np.where(equal, inputs[0], np.nan)]


class ConcatenateChannels(Rule):
    """Rule for Concatenate along the channels."""

    def known(self, inputs: Arrays) -> Arrays:
        return [np.concatenate(inputs)]

    def needed(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        return np.split(outputs[0], np.cumsum([len(known) for known in inputs])[:-1])

    def smaller(self, inputs: Arrays, needed: Arrays, values: list[Value]) -> list[Value]:
        tensor = self.copy()([value.tensor for value in values])
        return [Value(tensor, np.concatenate([value.kept for value in values]))]


def apply_channelwise(layer: Callable[[Any], Any], known: np.ndarray, rank: int, dtype: str) -> np.ndarray:
    """Apply a layer that does not mix channels to known values `(channels,)`; NaN stays NaN.

    Args:
        layer: The layer or activation.
        known: The known values.
        rank: Number of axes of the tensor that the layer takes, including the batch.
        dtype: The dtype to compute in.
    """
    unknown = np.isnan(known)
    one_position = np.where(unknown, 0.0, known).reshape((1,) * (rank - 1) + (-1,))
    return np.where(unknown, np.nan, apply_eagerly(layer, one_position, dtype))


def apply_eagerly(layer: Callable[[Any], Any], inputs: Any, dtype: str) -> np.ndarray:
    """Apply a layer to arrays of one position, in `dtype`; return the values as `float64` `(channels,)`."""
    tensors = keras.tree.map_structure(lambda value: keras.ops.convert_to_tensor(value, dtype), inputs)
    return array(layer(tensors)).astype("float64").reshape(-1)


def array(value: Any) -> np.ndarray:
    """Convert a variable or tensor to a NumPy array."""
    return np.asarray(keras.ops.convert_to_numpy(value))
