"""What compaction knows of a layer: which outputs are constant, which inputs matter, how it is made smaller.

A tensor's channels are the positions of its last axis. Three facts are kept of each, as arrays over its channels:

- `known`: the value of a channel that is the same for every input and at every position, NaN for others;
- `needed`: whether anything that reaches an output reads it, and is not told its known value instead;
- `kept`: whether the smaller model has it. What is needed is kept.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction.graph import Graph, Step
from tf_packnet.export.compaction.sparse import Select


@dataclass
class Value:
    """A tensor of the smaller model, and which channels of the old tensor it has."""

    tensor: Any
    kept: np.ndarray

    def only(self, channels: np.ndarray) -> "Value":
        """The value with fewer channels: those of `channels`, a subset of `kept`."""
        if np.array_equal(channels, self.kept):
            return self
        return Value(Select(np.flatnonzero(channels[self.kept]))(self.tensor), channels)


class Rule:
    """A barrier: nothing is known of what comes out, all that goes in is needed, the layer stays as it is.

    That is right for any layer; subclasses know more about theirs.

    Args:
        graph: Where the step is.
        step: The call of the layer.
    """

    def __init__(self, graph: Graph, step: Step):
        self.graph, self.step, self.layer = graph, step, step.layer
        self.input_shapes = [graph.shape(number) for number in step.inputs]
        self.output_shapes = [graph.shape(number) for number in step.outputs]

    def known(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """`known` of the outputs, from that of the inputs."""
        return [np.full(channels(shape), np.nan) for shape in self.output_shapes]

    def needed(self, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> list[np.ndarray]:
        """`needed` of the inputs, from what is known of them and `needed` of the outputs."""
        return [np.ones(channels(shape), bool) for shape in self.input_shapes]

    def smaller(self, inputs: list[np.ndarray], needed: list[np.ndarray], values: list[Value]) -> list[Value]:
        """The outputs in the smaller model.

        Args:
            inputs: What is known of the inputs.
            needed: `needed` of the outputs.
            values: The inputs in the smaller model.
        """
        arguments = self.step.node.arguments
        tensors = {id(old): new.tensor for old, new in zip(arguments.keras_tensors, values, strict=True)}
        args, kwargs = arguments.fill_in(tensors)
        if isinstance(self.layer, keras.Layer):
            self.layer.name = self.graph.first_name(self.layer)  # layers of models inside may have the same
        outputs = keras.tree.flatten(self.layer(*args, **kwargs))
        everything = [np.ones(channels(shape), bool) for shape in self.output_shapes]
        return [Value(tensor, kept) for tensor, kept in zip(outputs, everything, strict=True)]

    def made(self, **changes: Any) -> keras.Layer:
        """The layer made anew from its config, with changes."""
        return type(self.layer).from_config({**self.layer.get_config(), "name": self.step.name, **changes})


def channels(shape: tuple[int | None, ...]) -> int:
    """How many channels a tensor is taken to have; those of no known last axis are treated as one."""
    return shape[-1] if len(shape) > 1 and shape[-1] is not None else 1


class Skipped(Rule):
    """Does nothing when a model predicts, as Dropout: left out."""

    def known(self, inputs):
        return inputs

    def needed(self, inputs, outputs):
        return outputs

    def smaller(self, inputs, needed, values):
        return values


class Channelwise(Rule):
    """Works on each channel by itself, has no weights, and leaves a constant channel as it is: pooling, cropping."""

    def known(self, inputs):
        return inputs

    def needed(self, inputs, outputs):
        return outputs

    def smaller(self, inputs, needed, values):
        return [Value(self.made()(values[0].tensor), values[0].kept)]


class Padded(Channelwise):
    """Puts zeros around: a constant stays one only if it is 0."""

    def known(self, inputs):
        return [np.where(inputs[0] == 0, 0.0, np.nan)]


class Pointwise(Channelwise):
    """An activation: a constant becomes another."""

    def known(self, inputs):
        return [applied(self.layer, inputs[0], len(self.output_shapes[0]), self.layer.compute_dtype)]


class Normalized(Pointwise):
    """BatchNormalization on its stored statistics: a factor and an offset a channel."""

    def smaller(self, inputs, needed, values):
        layer = self.made()
        tensor = layer(values[0].tensor)
        for new, old in zip(layer.weights, self.layer.weights, strict=True):
            new.assign(array(old)[values[0].kept])
        return [Value(tensor, values[0].kept)]


class Flattened(Channelwise):
    """Puts the positions side by side: a channel becomes as many as there were positions."""

    def __init__(self, graph, step):
        super().__init__(graph, step)
        self.positions = int(np.prod(self.input_shapes[0][1:-1]))

    def known(self, inputs):
        return [np.tile(inputs[0], self.positions)]

    def needed(self, inputs, outputs):
        return [outputs[0].reshape(self.positions, -1).any(0)]

    def smaller(self, inputs, needed, values):
        tensor = keras.layers.Flatten(name=self.step.name, dtype=self.layer.dtype_policy)(values[0].tensor)
        return [Value(tensor, np.tile(values[0].kept, self.positions))]


class Reshaped(Channelwise):
    """Rearranges the positions and leaves the channels."""

    def smaller(self, inputs, needed, values):
        shape = (*self.output_shapes[0][1:-1], int(values[0].kept.sum()))
        return [Value(self.made(target_shape=shape)(values[0].tensor), values[0].kept)]


class Merged(Rule):
    """Adds, multiplies, ... or joins tensors of as many channels, channel by channel."""

    def known(self, inputs):
        nothing = np.isnan(inputs).any(0)
        rank = len(self.output_shapes[0])
        filled = [np.where(np.isnan(each), 0.0, each).reshape((1,) * (rank - 1) + (-1,)) for each in inputs]
        return [np.where(nothing, np.nan, self._merged(filled))]

    def _merged(self, inputs: list[np.ndarray]) -> np.ndarray:
        return eagerly(self.layer, inputs, self.layer.compute_dtype)

    def needed(self, inputs, outputs):
        return outputs * len(inputs)

    def smaller(self, inputs, needed, values):
        kept = values[0].kept
        if any(not np.array_equal(value.kept, kept) for value in values):
            kept = needed[0]
            values = [value.only(kept) for value in values]
        return [Value(self.made()([value.tensor for value in values]), kept)]


class Operated(Merged):
    """The same, written with an operator such as `x + y`."""

    def _merged(self, inputs):
        return eagerly(lambda pair: self.layer(*pair), inputs, "float64")

    def made(self, **changes):
        return getattr(keras.layers, type(self.layer).__name__)(name=self.step.name)


class Joined(Merged):
    """Joins tensors along an axis of positions: a channel is constant if it is the same constant in all of them."""

    def known(self, inputs):
        same = (np.asarray(inputs) == inputs[0]).all(0)
        return [np.where(same, inputs[0], np.nan)]


class Stacked(Rule):
    """Concatenates channels."""

    def known(self, inputs):
        return [np.concatenate(inputs)]

    def needed(self, inputs, outputs):
        return np.split(outputs[0], np.cumsum([len(each) for each in inputs])[:-1])

    def smaller(self, inputs, needed, values):
        tensor = self.made()([value.tensor for value in values])
        return [Value(tensor, np.concatenate([value.kept for value in values]))]


def applied(layer: Any, known: np.ndarray, rank: int, dtype: str) -> np.ndarray:
    """What a layer that works channel by channel makes of known values; NaN stays NaN."""
    nothing = np.isnan(known)
    one_position = np.where(nothing, 0.0, known).reshape((1,) * (rank - 1) + (-1,))
    return np.where(nothing, np.nan, eagerly(layer, one_position, dtype))


def eagerly(layer: Any, inputs: Any, dtype: str) -> np.ndarray:
    """What a layer makes of arrays of one position, computed in `dtype`: `(channels,)`."""
    tensors = keras.tree.map_structure(lambda each: keras.ops.convert_to_tensor(each, dtype), inputs)
    return array(layer(tensors)).astype("float64").reshape(-1)


def array(value: Any) -> np.ndarray:
    """A variable or tensor as a NumPy array."""
    return np.asarray(keras.ops.convert_to_numpy(value))
