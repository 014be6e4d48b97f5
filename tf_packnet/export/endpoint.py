"""A plain Keras model with named inputs and outputs and built-in preprocessing: the content of an exported file."""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tf_packnet.errors import ArgumentError
from tf_packnet.system.keras_internals import as_function, graph_ends, output_names

Preprocessing = str | float | Mapping[str, str | float] | None
ClassNames = Sequence[str] | Mapping[str, Sequence[str]] | None
Function: TypeAlias = tf.types.experimental.PolymorphicFunction
SIGNATURE = "serving_default"


class Endpoint:
    """A plain Keras model with the preprocessing of its inputs and the class names of its outputs.

    Args:
        model: A built functional or Sequential model.
        preprocessing: None if examples are passed to the model unchanged; `uint8` if they are raw bytes, to be
            multiplied by 1/255; or a number to multiply raw bytes by. A mapping by input name for several inputs.
        class_names: None, or one name per unit of the output. A mapping by output name for several outputs.
        batch_size: Number of examples in a call; None for any number.

    Attributes:
        model: The model.
        input_names: Names of its inputs, from their `keras.Input`.
        output_names: Names of its outputs: the keys if the outputs are a dict, otherwise the names of their layers.
        scales: The factor for raw bytes, by name of each input that takes them.
        class_names: Class names by output name.
        batch_size: The argument.

    Raises:
        ArgumentError: If an input or output does not exist, or there is not one name per unit.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocessing: Preprocessing = None,
        class_names: ClassNames = None,
        batch_size: int | None = None,
    ):
        self.model = model
        self.batch_size = batch_size
        self._graph = as_function(model)
        self._inputs = keras.tree.flatten(graph_ends(self._graph)[0])
        self.input_names = _unique(tensor.name for tensor in self._inputs)
        self.output_names = _unique(output_names(self._graph))
        self.scales = _scales(preprocessing, dict(zip(self.input_names, self._inputs, strict=True)))
        outputs = keras.tree.flatten(model.outputs)
        units = {name: output.shape[-1] for name, output in zip(self.output_names, outputs, strict=True)}
        self.class_names = _class_names(class_names, units)

    def with_model(self, model: keras.Model) -> "Endpoint":
        """Return an endpoint of another model with the same inputs and outputs."""
        return Endpoint(model, self.scales, self.class_names, self.batch_size)

    def without_preprocessing(self) -> "Endpoint":
        """Return an endpoint without preprocessing, whose inputs are those of the model."""
        return Endpoint(self.model, batch_size=self.batch_size)

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """Shape and dtype of each input."""
        inputs = zip(self.input_names, self._inputs, strict=True)
        types = [(name, each.shape[1:], "uint8" if name in self.scales else each.dtype) for name, each in inputs]
        return [tf.TensorSpec((self.batch_size, *shape), dtype, name=name) for name, shape, dtype in types]

    def raw_model(self) -> keras.Model:
        """Return a Keras model that includes the preprocessing, without an optimizer."""
        if not self.scales:
            compiled = getattr(self.model, "compiled", False)
            return keras.Model(*graph_ends(self.model), name=self.model.name) if compiled else self.model
        inputs = [keras.Input(spec.shape[1:], dtype=spec.dtype.name, name=spec.name) for spec in self.specs]
        inputs = self.structured(inputs)
        return keras.Model(inputs, self.model(self._preprocessed(inputs)), name=self.model.name)

    def function(self, values: Mapping[int, Callable[[], Any]] = MappingProxyType({})) -> Function:
        """Return the model as a `tf.function` whose inputs have the structure of the model's inputs.

        Args:
            values: By `id` of a variable of the model, a function that returns the tensor to use in its place. It is
                called while tracing. Variables without an entry are read as usual.
        """

        @tf.function(input_signature=[self.structured(self.specs)], autograph=False)
        def serve(inputs: Any) -> Any:
            substituted = [
                (variable, values[id(variable)]()) for variable in self.model.variables if id(variable) in values
            ]
            if not substituted:
                return self.model(self._preprocessed(inputs), training=False)
            with keras.StatelessScope(state_mapping=substituted) as scope:
                outputs = self.model(self._preprocessed(inputs), training=False)
            for variable in self.model.variables:  # state that the call changes, such as seeds
                new = None if id(variable) in values else scope.get_current_value(variable)
                if new is not None:
                    variable.assign(new)
            return outputs

        return serve

    def signature(self, serve: Callable[..., Any]) -> Function:
        """Return `serve` as a SavedModel signature, from tensors by input name to a dict by output name."""

        @tf.function(input_signature=self.specs, autograph=False)
        def serve_by_name(*inputs: Any) -> dict[str, Any]:
            outputs = keras.tree.flatten(serve(self.structured(inputs)))
            return dict(zip(self.output_names, outputs, strict=True))

        return serve_by_name

    def _preprocessed(self, inputs: Any) -> Any:
        flat = [
            keras.layers.Rescaling(self.scales[name], dtype="float32", name=f"{name}_scaled")(tensor)
            if name in self.scales
            else tensor
            for name, tensor in zip(self.input_names, keras.tree.flatten(inputs), strict=True)
        ]
        return self.structured(flat)

    def structured(self, flat: Sequence[Any]) -> Any:
        """Return a flat list of inputs in the structure of the model's inputs."""
        structure = graph_ends(self._graph)[0]
        if isinstance(structure, (list, tuple)) and len(flat) == 1:
            return flat[0]
        return keras.tree.pack_sequence_as(structure, list(flat))


def _unique(names: Iterable[str]) -> list[str]:
    """Append a number to repeated names."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        unique.append(next(each for each in itertools.chain([name], numbered) if each not in unique))
    return unique


def _scales(preprocessing: Preprocessing, inputs: dict[str, Any]) -> dict[str, float]:
    by_input = _by_name("preprocessing", preprocessing, "input", inputs)
    for name, scale in by_input.items():
        if scale is not None and not keras.backend.is_float_dtype(inputs[name].dtype):
            raise ArgumentError("preprocessing", f"None, because input {name!r} takes {inputs[name].dtype}", scale)
    return {name: _scale(scale) for name, scale in by_input.items() if scale is not None}


def _scale(scale: str | float) -> float:
    if isinstance(scale, str) and scale == "uint8":
        return 1 / 255
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise ArgumentError("preprocessing", "None, 'uint8', or a number above 0 to multiply raw bytes by", scale)
    return float(scale)


def _class_names(class_names: ClassNames, units: dict[str, int]) -> dict[str, tuple[str, ...]]:
    by_output = _by_name("class_names", class_names, "output", units)
    for output, names in by_output.items():
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ArgumentError("class_names", "a list of strings", names)
        if len(names) != units[output]:
            raise ArgumentError("class_names", f"{units[output]} names, one per unit of {output!r}", list(names))
    return {output: tuple(names) for output, names in by_output.items()}


def _by_name(argument: str, values: Any, kind: str, names: Collection[str]) -> Mapping[str, Any]:
    """Return a mapping of values by name: `values` itself, or its value for the only name.

    Args:
        argument: Name of the argument with the values.
        values: A mapping, one value, or None for no value.
        kind: `input` or `output`.
        names: The names of this kind.

    Raises:
        ArgumentError: If the mapping has another name, or there is one value for several names.
    """
    expected = (
        f"a mapping from {kind} names to {argument.replace('_', ' ')}; the {kind}s are {', '.join(map(repr, names))}"
    )
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        if len(names) > 1:
            raise ArgumentError(argument, expected, values)
        return dict.fromkeys(names, values)
    for name in values:
        if name not in names:
            raise ArgumentError(argument, expected, name)
    return values
