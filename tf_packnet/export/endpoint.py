"""What a file of any format answers: a plain Keras model with named inputs and outputs, its preprocessing inside."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.errors import ArgumentError
from tf_packnet.system.keras_internals import as_function, graph_ends

Preprocessing = str | float | Mapping[str, str | float] | None
ClassNames = Sequence[str] | Mapping[str, Sequence[str]] | None
SIGNATURE = "serving_default"


class Endpoint:
    """A plain Keras model as it is served: which inputs are raw bytes, and what its outputs' classes are called.

    Args:
        model: A built functional or Sequential model.
        preprocessing: None; or `uint8`: inputs are raw bytes, multiplied by 1/255; or a number that raw bytes are
            multiplied by. With several inputs, by the name of the input.
        class_names: None; or a name for every unit of the output. With several outputs, by the name of the output.

    Attributes:
        model: The model.
        input_names: Names of its inputs, those of their `keras.Input`.
        output_names: Names of its outputs: the keys of a dict, else the names of the layers they come from.
        scales: By input: what its raw bytes are multiplied by.
        class_names: By output.

    Raises:
        ArgumentError: If there are no such inputs or outputs, or more or fewer names than units.
    """

    def __init__(self, model: keras.Model, preprocessing: Preprocessing = None, class_names: ClassNames = None):
        self.model = model
        self._graph = as_function(model)
        self._inputs = keras.tree.flatten(graph_ends(self._graph)[0])
        self.input_names = _unique(tensor.name for tensor in self._inputs)
        self.output_names = _output_names(self._graph)
        self.scales = _scales(preprocessing, dict(zip(self.input_names, self._inputs, strict=True)))
        outputs = keras.tree.flatten(model.outputs)
        units = {name: each.shape[-1] for name, each in zip(self.output_names, outputs, strict=True)}
        self.class_names = _class_names(class_names, units)

    def of(self, model: keras.Model) -> "Endpoint":
        """The same of another model with the same inputs and outputs."""
        return Endpoint(model, self.scales, self.class_names)

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """What each input takes, for any number of examples."""
        return [
            tf.TensorSpec((None, *tensor.shape[1:]), "uint8" if name in self.scales else tensor.dtype, name=name)
            for name, tensor in zip(self.input_names, self._inputs, strict=True)
        ]

    def raw_model(self) -> keras.Model:
        """The Keras model that takes what the endpoint takes: the model itself, or one with preprocessing before it."""
        if not self.scales:
            return self.model
        inputs = [keras.Input(each.shape[1:], dtype=each.dtype.name, name=each.name) for each in self.specs]
        inputs = self._structured(inputs)
        return keras.Model(inputs, self.model(self._preprocessed(inputs)), name=self.model.name)

    def function(self, values: Mapping[int, Callable[[], Any]] = MappingProxyType({})) -> Callable[..., Any]:
        """The model as a `tf.function` of its inputs, in the structure that they have in the model.

        Args:
            values: By `id` of a variable of the model, what gives the tensor to compute with in its place, called while
                tracing; the function reads the other variables.
        """

        @tf.function(input_signature=[self._structured(self.specs)], autograph=False)
        def serve(inputs):
            given = [(each, values[id(each)]()) for each in self.model.variables if id(each) in values]
            # Around nothing it would keep layers from updating what is theirs, such as seeds.
            with keras.StatelessScope(state_mapping=given) if given else contextlib.nullcontext():
                return self.model(self._preprocessed(inputs), training=False)

        return serve

    def signature(self, serve: Callable[..., Any]) -> Callable[..., Any]:
        """`serve` as the signature of a SavedModel: a tensor for each name in, a dict by name out."""

        @tf.function(input_signature=self.specs, autograph=False)
        def named(*inputs):
            outputs = keras.tree.flatten(serve(self._structured(inputs)))
            return dict(zip(self.output_names, outputs, strict=True))

        return named

    def _preprocessed(self, inputs: Any) -> Any:
        flat = [
            keras.layers.Rescaling(self.scales[name], dtype="float32", name=f"{name}_scaled")(tensor)
            if name in self.scales
            else tensor
            for name, tensor in zip(self.input_names, keras.tree.flatten(inputs), strict=True)
        ]
        return self._structured(flat)

    def _structured(self, flat: Sequence[Any]) -> Any:
        structure = graph_ends(self._graph)[0]
        if isinstance(structure, (list, tuple)) and len(flat) == 1:
            return flat[0]
        return keras.tree.pack_sequence_as(structure, list(flat))


def _output_names(graph: keras.Model) -> list[str]:
    if isinstance(graph_ends(graph)[1], dict):
        return _unique(str(path[-1]) for path, _ in keras.tree.flatten_with_path(graph_ends(graph)[1]))
    return _unique(graph.output_names)


def _unique(names: Any) -> list[str]:
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        found.append(next(each for each in itertools.chain([name], numbered) if each not in found))
    return found


def _scales(preprocessing: Preprocessing, inputs: dict[str, Any]) -> dict[str, float]:
    asked = preprocessing
    if not isinstance(asked, Mapping):
        if asked is not None and len(inputs) > 1:
            raise ArgumentError("preprocessing", f"by input, among {_listed(inputs)}", asked)
        asked = dict.fromkeys(inputs, asked)
    for name, each in asked.items():
        if name not in inputs:
            raise ArgumentError("preprocessing", f"by input, among {_listed(inputs)}", name)
        if each is not None and not keras.backend.is_float_dtype(inputs[name].dtype):
            raise ArgumentError("preprocessing", f"None: the input {name!r} takes {inputs[name].dtype}", each)
    return {name: _scale(each) for name, each in asked.items() if each is not None}


def _scale(asked: str | float) -> float:
    if isinstance(asked, str) and asked == "uint8":
        return 1 / 255
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked < float("inf"):
        raise ArgumentError("preprocessing", "None, 'uint8', or what to multiply raw bytes by, above 0", asked)
    return float(asked)


def _class_names(asked: ClassNames, units: dict[str, int]) -> dict[str, tuple[str, ...]]:
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        if len(units) > 1:
            raise ArgumentError("class_names", f"by output, among {_listed(units)}", asked)
        asked = dict.fromkeys(units, asked)
    for name, names in asked.items():
        if name not in units:
            raise ArgumentError("class_names", f"by output, among {_listed(units)}", name)
        if isinstance(names, str) or not all(isinstance(each, str) for each in names):
            raise ArgumentError("class_names", "a list of strings", names)
        if len(names) != units[name]:
            raise ArgumentError("class_names", f"{units[name]} names, one a unit of {name!r}", list(names))
    return {name: tuple(names) for name, names in asked.items()}


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))
