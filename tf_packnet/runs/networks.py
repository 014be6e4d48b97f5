"""Builds the plain Keras model of a config: a network of the paper, an application of Keras, or the user's own."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tf_packnet.approaches import conv, mlp, text
from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.runs import applications, network_files, starting_weights
from tf_packnet.runs.augmentation import augmented
from tf_packnet.runs.call_arguments import RETURNS, check_arguments
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import MODELS, TEXT, OwnFunction, application, own_function, parse_arguments
from tf_packnet.runs.paths import expand
from tf_packnet.structure.graphs import as_graph
from tf_packnet.system import python_files
from tf_packnet.system.keras_internals import creating_call, fresh_names, graph_ends

Shape = tuple[int, ...]
# Builds a model from the shape of an example and the number of outputs.
Builder = Callable[[Shape, int], keras.Model]


def builder(config: Config) -> Builder:
    """Return the function that builds the plain network of a config.

    Raises:
        ArgumentError: If a file cannot be read or executed, there is no such function or application, or it does not
            take the arguments. Errors that depend on the data are raised by `build`.
    """
    network_files.check(config)
    starting_weights.check(config)
    function = own_function(config.model)
    if function is not None:
        return _own(config, function)
    if application(config.model) is not None:
        make, arguments = applications.find(config), parse_arguments(config.model_args)
        check_arguments(config, make, 0, arguments, applications.RESERVED)
        applications.check_input_shape(config)
        return lambda shape, outputs: applications.build(config, shape, outputs)
    return lambda shape, outputs: _of_the_paper(config, shape, outputs)


def build(config: Config, input_shape: Shape, outputs: int, of_tokens: bool = False) -> keras.Model:
    """Build the plain network of a config, with its weights before the first task.

    Args:
        config: The run.
        input_shape: Shape of an example.
        outputs: Number of logits.
        of_tokens: Whether the examples are integer ids of words.

    Raises:
        ArgumentError: If the network cannot be built, has other inputs or outputs, or does not match the file of
            `--weights`; or if `--augment` is given and the examples are not images.
    """
    if config.model in MODELS and of_tokens != (config.model == TEXT):
        expected = "text, or a network of your own, for ids of words" if of_tokens else "another network than text"
        raise ArgumentError("model", f"{expected} (the examples have the shape {input_shape})", config.model)
    make = builder(config)
    with fresh_names():  # stored states contain layer names, which must not depend on models built before
        model = make(input_shape, outputs)
    if config.model not in MODELS:
        with naming(config):
            check(config, model, input_shape, outputs, of_tokens)
    starting_weights.load(config, model)
    return augmented(config, model, input_shape)


@contextlib.contextmanager
def naming(config: Config) -> Iterator[None]:
    """Make errors about the model that `config` builds name the flags of the config."""
    try:
        yield
    except ArgumentError as error:
        names = {"model": "model", "inputs": "model", "head_layers": "head_layers"}
        if error.argument not in names or config.model in MODELS and error.argument == "model":
            raise
        argument = names[error.argument]
        received = config.model if argument == "model" else ",".join(config.head_layers)
        raise ArgumentError(argument, error.expected, received) from error


def check(config: Config, model: keras.Model, input_shape: Shape, outputs: int, of_tokens: bool = False) -> None:
    """Raise ArgumentError unless `model` maps one input of this shape to one output of logits."""
    graph = as_graph(model)
    inputs, results = graph_ends(graph)
    if not isinstance(inputs, keras.KerasTensor):
        inputs = inputs[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else None
    expected = f"a network with one input of shape {('batch', *input_shape)}"
    if inputs is None:
        raise _refused(config, f"{expected}, not {len(keras.tree.flatten(graph.inputs))} inputs")
    if not _accepts(inputs.shape, (None, *input_shape)):
        raise _refused(config, f"{expected}, not {_shown(inputs.shape)}")
    if not keras.backend.is_float_dtype(inputs.dtype) and not (of_tokens and "int" in inputs.dtype):
        raise _refused(config, f"{expected} and a float type, not {inputs.dtype}")
    if not isinstance(results, keras.KerasTensor):
        results = results[0] if isinstance(results, (list, tuple)) and len(results) == 1 else None
    expected = f"a network with one output of shape {('batch', outputs)}"
    if results is None:
        raise _refused(config, f"{expected}, not several or named ones")
    if tuple(results.shape) != (None, outputs):
        raise _refused(config, f"{expected}, not {_shown(results.shape)}")
    activation = _last_activation(results)
    if activation is None:
        try:
            activation = "softmax" if _are_probabilities(graph, input_shape) else None
        except Exception as error:  # raised by the code of a layer
            raise _refused(config, f"a network that can be called ({first_line(error)})") from error
    if activation is not None:
        raise _refused(config, f"a network whose outputs are logits, without an activation ({activation}) after them")


def _refused(config: Config, expected: str) -> ArgumentError:
    return ArgumentError("model", expected, config.model)


def _of_the_paper(config: Config, input_shape: Shape, outputs: int) -> keras.Model:
    if config.model == "mlp":
        return mlp(input_shape, outputs, config.hidden_units)
    if config.model == TEXT:
        return text(input_shape, outputs, config.vocabulary_size, config.hidden_units)
    return conv(input_shape, outputs, config.fc8192, config.dropout)


def _own(config: Config, function: OwnFunction) -> Builder:
    path, arguments = expand(function.file), parse_arguments(config.model_args)
    with python_files.reported("model", "a Python file that can be executed", config.model, path):
        module = python_files.load(path)
    make = getattr(module, function.name, None)
    if not callable(make):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise network_files.unknown_function(config.model, function.name, functions)
    check_arguments(config, make, 2, arguments)

    def build_own(input_shape: Shape, outputs: int) -> keras.Model:
        with python_files.reported("model", RETURNS, config.model, path), python_files.importing_from(path.parent):
            model = make(input_shape, outputs, **arguments)
        if not isinstance(model, keras.Model):
            raise _refused(config, f"{RETURNS}, not {_described(model)}")
        if not model.built:
            raise _refused(config, f"{RETURNS}; this one was not built: give it an Input, or call it once")
        return model

    return build_own


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _shown(shape: Any) -> tuple[Any, ...]:
    return tuple("batch" if size is None and axis == 0 else size for axis, size in enumerate(shape))


def _accepts(shape: Any, wanted: tuple[int | None, ...]) -> bool:
    """Whether an input of shape `shape` accepts tensors of shape `wanted`. In both, None stands for any size."""
    return len(shape) == len(wanted) and all(size in (None, needed) for size, needed in zip(shape, wanted, strict=True))


def _last_activation(tensor: Any) -> str | None:
    """Return the name of the activation that produces `tensor`; None if there is none or it is unknown."""
    operation, node = creating_call(tensor)
    while isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear:
        operation, node = creating_call(node.input_tensors[0])
    if isinstance(operation, _ACTIVATION_LAYERS):
        return type(operation).__name__
    activation = getattr(operation, "activation", None)
    if activation is None or activation is keras.activations.linear or not isinstance(operation, keras.Layer):
        return None
    return getattr(activation, "__name__", str(activation))


_ACTIVATION_LAYERS = (
    keras.layers.Softmax,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
)


def _are_probabilities(graph: keras.Model, input_shape: Shape) -> bool:
    """Whether the outputs of `graph` for four random examples are non-negative and sum to 1."""
    examples = np.random.default_rng(0).random((4, *input_shape), np.float32)
    outputs = keras.ops.convert_to_numpy(keras.ops.cast(graph(examples, training=False), "float32"))
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=-1), 1, atol=1e-2))
