"""Traces calls of models to TensorFlow graphs, without computing anything, to see which layers and variables they use.

Finds the heads of a subclassed model, the layers that its `call` does not use, and variables that Keras does not track.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.layers import TWINS
from tf_packnet.structure import layer_paths
from tf_packnet.structure.generated import GeneratedTwin, plain_class, without_reads
from tf_packnet.structure.refusals import Refusal, quoted
from tf_packnet.structure.state import metric_variables, unowned_variables
from tf_packnet.system.keras_internals import (
    all_layers,
    clear_losses,
    compute_output_spec,
    graph_ends,
    has_graph,
    own_variables,
    run_graph,
    tensorflow_variable,
)

# The sizes to try for axes of unknown size.
SIZES = (8, 16, 32, 64, 128, 224, 4, 2, 1)
# Operations that do not read the values of their inputs.
_SHAPES = ("Shape", "ShapeN", "Size", "Rank")


def heads_inside(model: keras.Layer, arguments: Any, outputs: Callable[[Any], int | None]) -> list[keras.Layer | None]:
    """Return the head that each output of a subclassed model, or of another layer that contains layers, comes from.

    Args:
        model: The model or layer.
        arguments: Arguments of a call, with symbolic tensors: an object with attributes `args` and `kwargs`.
        outputs: Returns the number of outputs of a layer that can be a head, None for other layers.

    Returns:
        For each output, the layer that can be a head, if the output depends on this layer and on constants only;
        otherwise None. Empty if the model cannot be traced.
    """
    layer_by_output: dict[Any, keras.Layer] = {}
    candidates = [layer for layer in all_layers(model) if outputs(layer) is not None]

    def call(args: Any, kwargs: Any) -> Any:
        with _recording_outputs(candidates, layer_by_output):
            return model(*args, **kwargs)

    try:
        graph = _traced(call, arguments.args, arguments.kwargs)
    except Exception:  # raised by the model's own code
        return []
    finally:
        clear_losses(model)
    return [_only_source(tensor, layer_by_output) for tensor in graph.outputs]


def refusal_of_outputs(
    model: keras.Model, heads: Mapping[keras.Layer, keras.Layer], sizes: Sequence[tuple[int, int] | None]
) -> str | None:
    """Return why a layer cannot compute with other numbers of outputs of heads; None if all layers can.

    Args:
        model: A functional or Sequential model.
        heads: Layers of the model, each with a built layer of another size that computes in its place. The variables of
            the built layers may be without memory.
        sizes: For each output of the model, the size that one axis must then have; None if this is unknown.
    """
    broken: list[tuple[Any, Exception]] = []

    def checked(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return operation(*args, **kwargs)
            except Exception as error:  # raised by the layer's own code
                broken.append((operation, error))
                raise

        return call

    def replacement(plain: keras.Layer) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            zeros = [(variable, keras.ops.zeros(variable.shape, variable.dtype)) for variable in plain.variables]
            with keras.StatelessScope(zeros):
                return plain.call(*args, **kwargs)

        return call

    def call(inputs: Any) -> Any:
        return compute_output_spec(lambda x: run_graph(model, x, checked), inputs)

    for inputs in sized_inputs(model):
        broken.clear()
        for head, plain in heads.items():
            vars(head)["call"] = replacement(plain)
        try:
            specs = keras.tree.flatten(call(inputs))
        except Exception as error:  # the first one in `broken` was raised first
            operation, error = broken[0] if broken else (model, error)
            name = f"layer {operation.name!r} (a {plain_class(operation).__name__})"
            refusal = f"{name} cannot compute with other numbers of outputs ({quoted(error, 0)})"
        else:
            found = [(spec.shape[size[0]], size[1]) for spec, size in zip(specs, sizes, strict=True) if size]
            wrong = [number for number, expected in found if number != expected]
            return f"an operation after it has a fixed number of outputs, {wrong[0]}" if wrong else None
        finally:
            for head in heads:
                del vars(head)["call"]
        with contextlib.suppress(Exception):  # raised by a layer that needs a known size
            call(inputs)
            return refusal
    return None


def sized_inputs(model: keras.Model) -> Iterator[Any]:
    """Yield symbolic inputs of a graph: its own and, if it has axes of unknown size, inputs with each of `SIZES`."""
    own = graph_ends(model)[0]
    yield own
    if any(None in tensor.shape[1:] for tensor in keras.tree.flatten(own)):
        for size in SIZES:
            yield keras.tree.map_structure(
                lambda x, size=size: keras.KerasTensor((x.shape[0], *(each or size for each in x.shape[1:])), x.dtype),
                own,
            )


def unused_layers(model: keras.Model, inputs: Any) -> list[keras.Layer]:
    """Return the layers with weights, at any depth, that the `call` of a subclassed model does not use.

    Args:
        model: A built model.
        inputs: Symbolic tensors for the call.

    Returns:
        The layers; empty if the model cannot be traced.
    """
    read: set[int] = set()
    try:
        for training in (False, True):
            graph = _traced(lambda x, training=training: model(x, training=training), inputs)
            read |= {id(tensor) for tensor in graph.captured_inputs}
        handles = {id(variable): id(tensorflow_variable(variable).handle) for variable in model.variables}
    except Exception:  # raised by the model's own code, or because the variables are distributed
        return []
    finally:
        clear_losses(model)
    return [layer for layer in all_layers(model, include_self=False) if _is_unused(layer, read, handles)]


def _is_unused(layer: keras.Layer, read: set[int], handles: dict[int, int]) -> bool:
    variables = own_variables(layer)
    if not variables:
        return type(layer) in TWINS and not layer.built
    return all(handles.get(id(variable)) not in read for variable in variables)


def _traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the concrete function of `function`, with placeholders for the symbolic tensors in `arguments`."""
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype)
        for tensor in keras.tree.flatten(arguments)
        if isinstance(tensor, keras.KerasTensor)
    ]

    def call(*tensors: Any) -> list[Any]:
        remaining = iter(tensors)
        filled = keras.tree.map_structure(
            lambda each: next(remaining) if isinstance(each, keras.KerasTensor) else each, arguments
        )
        return keras.tree.flatten(function(*filled))

    return tf.function(call, autograph=False).get_concrete_function(*specs)


@contextlib.contextmanager
def _recording_outputs(layers: list[keras.Layer], layer_by_output: dict[Any, keras.Layer]) -> Iterator[None]:
    """Record in `layer_by_output` the outputs of all calls of `layers` inside the block."""

    def recording(layer: keras.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_and_record(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            if isinstance(outputs, tf.Tensor):
                layer_by_output[outputs.ref()] = layer
            return outputs

        return call_and_record

    for layer in layers:
        vars(layer)["call"] = recording(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def _only_source(tensor: tf.Tensor, layer_by_output: dict[Any, keras.Layer]) -> keras.Layer | None:
    """Return the layer on whose outputs in `layer_by_output`, besides constants, `tensor` depends; else None."""
    layers: dict[int, keras.Layer] = {}
    waiting, seen = [tensor], set()
    while waiting:
        tensor = waiting.pop()
        if tensor.ref() in seen:
            continue
        seen.add(tensor.ref())
        if tensor.ref() in layer_by_output:
            layer = layer_by_output[tensor.ref()]
            layers[id(layer)] = layer
        elif tensor.dtype == tf.resource or tensor.op.type == "Placeholder":
            return None
        elif tensor.op.type not in _SHAPES:
            waiting += tensor.op.inputs
    return next(iter(layers.values())) if len(layers) == 1 else None


def layers_with_untracked_variables(model: keras.Model, named_model: keras.Model | None = None) -> list[Refusal]:
    """Return the layers of a functional or Sequential model that read variables which Keras does not track.

    Such variables would neither be saved nor belong to a task.

    Args:
        model: The model.
        named_model: The model to name in refusals that belong to no layer. Default: `model`.
    """
    layers = {"": (model.name, named_model or model)}
    layers |= {
        layer.path: (layer_path, layer)
        for layer_path, layer in layer_paths.layers_by_path(model).items()
        if hasattr(layer, "path")
    }
    paths_by_layer: dict[str, list[str]] = {}
    for path in untracked_variables(model):
        layer_path = path
        while layer_path not in layers:
            layer_path = layer_path.rpartition("/")[0]
        paths_by_layer.setdefault(layer_path, []).append(path)
    reason = "that reads {}, which no attribute, list, tuple or dict of a layer holds: it would not be saved"
    return [
        Refusal(*layers[layer_path], reason.format(", ".join(paths))) for layer_path, paths in paths_by_layer.items()
    ]


def untracked_variables(model: keras.Model) -> list[str]:
    """Return the paths of variables that a call of `model` reads and that no layer tracks.

    Args:
        model: A functional or Sequential model.

    Returns:
        The paths; empty if the model cannot be traced.
    """
    if tf.distribute.has_strategy():  # a distributed variable has several components
        return []
    inputs = graph_ends(model)[0] if has_graph(model) else model.inputs[0]
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    reads = _RecordingReads()

    def call(x: Any) -> Any:
        with reads:
            return model(x, training=False)

    try:
        graph = tf.function(call, autograph=False).get_concrete_function(specs).graph
    except Exception:  # raised by the code of a layer when TensorFlow traces it
        return []
    keras_variables = [*model.variables, *metric_variables(model)]
    tracked = {id(variable) for variable in keras_variables}
    tracked |= {id(variable) for variable in unowned_variables(model).values()}  # `tf.Variable`s in attributes
    untracked = [variable for variable in reads.variables.values() if id(variable) not in tracked]
    tracked |= {id(tensorflow_variable(variable)) for variable in (*keras_variables, *reads.variables.values())}
    untracked_tf = [variable for variable in graph.variables if id(variable) not in tracked]
    return [variable.path for variable in untracked] + [variable.name for variable in untracked_tf]


def layers_with_unmasked_reads(model: keras.Model) -> list[Refusal]:
    """Return the layers of a pack whose code reads a weight without its mask, such as from `self.trainable_weights`.

    Only layers with generated twins are checked. The result is empty if the model cannot be traced.
    """
    twins = {
        path: layer for path, layer in layer_paths.layers_by_path(model).items() if isinstance(layer, GeneratedTwin)
    }
    if not twins or tf.distribute.has_strategy():
        return []
    inputs = graph_ends(model)[0]
    reads = _RecordingReads()

    def call(x: Any, training: bool) -> Any:
        with reads, contextlib.ExitStack() as stack:
            for layer in twins.values():
                stack.enter_context(without_reads(layer))
            return model(x, training=training)

    try:
        for training in (False, True):
            _traced(functools.partial(call, training=training), inputs)
    except Exception:  # raised by the code of a layer when TensorFlow traces it
        return []
    finally:
        clear_losses(model)
    refusals = []
    for path, layer in twins.items():
        names = [v.name for v in layer.trained_variables if id(v) in reads.variables]
        if names:
            reason = (
                f"that reads its weights ({', '.join(names)}) other than by the attributes that hold them, so that "
                "tasks would share them: read them from attributes"
            )
            refusals.append(Refusal(path, layer, reason))
    return refusals


class _RecordingReads(keras.StatelessScope):
    """Scope that records the Keras variables that are read inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.variables[id(variable)] = variable
        return super().get_current_value(variable)
