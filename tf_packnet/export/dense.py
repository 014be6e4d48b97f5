"""Returns one task of a pack as a plain Keras model with dense kernels, which are 0 where the task uses no weight."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TWINS, Augmentation, TaskLayer
from tf_packnet.layers.head import Head, fresh_copy, number_of_outputs, outputs_in, with_outputs
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.task_weight import TaskWeight
from tf_packnet.layers.weights import view
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.generated import GeneratedTwin, named_weights, plain_class, plain_variables
from tf_packnet.structure.graphs import copy_graph, copy_state
from tf_packnet.structure.layer_paths import is_graph, layers_by_path
from tf_packnet.structure.roles import convert
from tf_packnet.structure.state import Variable, own_state, tensor_variables, unowned_variables
from tf_packnet.system.keras_internals import mark_called

State: TypeAlias = dict[int, np.ndarray]
ValueOf: TypeAlias = Callable[[MaskedWeight | TaskWeight], np.ndarray]


@checked
def dense_model(packed: PackedModel, task: int | str) -> keras.Model:
    """Return the network of one committed task as a plain Keras model without any class of this library.

    The pack is only read: none of its variables is assigned, and the selected task stays selected. Methods that the
    user's model class overrides, such as `predict_step`, are not part of the result.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.

    Returns:
        A built Keras model with its own variables, not compiled.

    Raises:
        ArgumentError: If there is no such task.
        RuntimeError: If the task is still open.
        DivergedError: If committed weights are NaN or infinite.
    """
    number = packed.task_number(task)
    if number == packed.committed_tasks + 1 and lifecycle.has_open_task(packed):
        raise RuntimeError(f"task {task!r} is still being learned: commit it before it is exported")
    if not 1 <= number <= packed.committed_tasks:
        raise ArgumentError("task", f"the number of a committed task, 1 to {packed.committed_tasks}", task)
    lifecycle.check_committed_finite(packed)
    return _plain_model(packed, number, lambda weight: _value_of_task(weight, number))


@checked
def strip_pruning(model: keras.Model) -> keras.Model:
    """Return the plain Keras model of a sparsified model, with zeros for the pruned weights.

    The sparsified model is only read, and can be trained further. Its optimizer is not part of the result.

    Args:
        model: A model from `tp.sparsify`, during or after training; or a pack, of which the selected task is returned.

    Returns:
        A Keras model without any class of this library.

    Raises:
        ArgumentError: If `model` is not such a model.
    """
    if not isinstance(model, PackedModel):
        raise ArgumentError("model", "a model from tp.sparsify", type(model).__name__)
    return _plain_model(model, model.selected_task, lambda weight: np.asarray(weight.own_value()))


def _plain_model(packed: PackedModel, number: int, value_of: ValueOf) -> keras.Model:
    """Return the plain model of a task.

    Args:
        packed: The pack.
        number: Number of the task.
        value_of: Returns the values that the task computes with.
    """
    sources = layers_by_path(packed)
    # A copy may contain masked inner layers, because Keras rebuilds them from their class. `convert` makes all plain.
    model = convert(copy_graph(packed.network()), lambda layer, place: _plain(layer, sources[place], number))
    state = _recorded_state(packed, number)
    targets = layers_by_path(model)
    pairs = [(source, targets[path]) for path, source in sources.items() if path in targets]
    for source, target in [(packed, model), *pairs]:
        if not isinstance(source, keras.Layer):  # an operation
            continue
        if isinstance(source, Head):
            _copy_head(source, target, number, state, value_of)
        elif isinstance(source, GeneratedTwin):
            _copy_generated(source, target, state, value_of)
        elif isinstance(source, TaskLayer):
            _copy_task_layer(source, target, state, value_of)
        else:
            _copy_other_layer(source, target, state)
    return mark_called(model)


def kernel_of_task(weight: MaskedWeight, task: int) -> np.ndarray:
    """Compute the kernel that the committed `task` (1-based) uses, from the owner map and the frozen values.

    Returns:
        An array of the kernel's shape and dtype. Entries that the task does not see are 0, or their pretrained values
        where these stay visible.
    """
    owner, frozen = weight.owner_map(), view(weight.frozen)
    hidden = view(weight.base) if weight.pretrained == "visible" else np.zeros((), frozen.dtype)
    return np.where((owner >= 1) & (owner <= task), frozen, hidden)


def _plain(layer: keras.Layer, source: keras.Layer, task: int) -> keras.Layer:
    """Return the plain Keras layer, not built, for a task-aware layer; return other layers unchanged."""
    if isinstance(source, Augmentation):
        return keras.layers.Identity(name=source.name, dtype=source.dtype_policy.name)
    if isinstance(source, Head):
        return source.plain_class.from_config(source.config_of(task))
    resized = {path: head for path, head in layers_by_path(source).items() if _is_resized(head, task)}
    if resized and not is_graph(source):
        return _resized(layer, resized, task) or layer
    plain_classes = {masked: plain for plain, masked in TWINS.items()}
    if type(source) not in plain_classes:
        return layer
    config = source.get_config()
    for key in ("bias_policy", "pretrained", "prune"):
        config.pop(key, None)
    return plain_classes[type(source)].from_config(config)


def _is_resized(layer: keras.Layer, task: int) -> bool:
    return isinstance(layer, Head) and layer.outputs_of(task) != Head.first_outputs_of(layer)


def _resized(layer: keras.Layer, heads: Mapping[str, Head], task: int) -> keras.Layer | None:
    """Return a plain layer whose config makes it create its inner layers with the number of outputs of a task.

    Args:
        layer: A plain layer whose code creates layers, with its first number of outputs.
        heads: The resized heads inside it, by path.
        task: Number of the task.

    Returns:
        The new layer, not built; None if its config does not have the number of outputs of its heads.
    """
    sizes = {(Head.first_outputs_of(head), head.outputs_of(task), head.activation_of(task)) for head in heads.values()}
    if len(sizes) > 1:
        return None
    ((first, outputs, activation),) = sizes
    try:
        config = layer.get_config()
        if activation is not None or outputs_in(config) != first:
            return None
        config = with_outputs(config, outputs)
        copy = fresh_copy(type(layer), config, layer.get_build_config())
        copies = layers_by_path(copy)
        is_same = set(copies) == set(layers_by_path(layer)) and all(
            number_of_outputs(copies[path]) == outputs for path in heads
        )
        return type(layer).from_config(config) if is_same else None
    except Exception:  # raised by the layer's own code
        return None


def _recorded_state(packed: PackedModel, task: int) -> State:
    """Return the values that `task` has recorded for variables that are not weights, by `id` of the variable."""
    records = lifecycle.records(packed)
    values = {**records.loaded, **records.state.get(task, {})}
    variables = unowned_variables(packed)
    return {id(variable): values[name] for name, variable in variables.items() if name in values}


def _copy_task_layer(source: TaskLayer, target: keras.Layer, state: State, value_of: ValueOf) -> None:
    variables = {variable.name: variable for variable in target.weights}
    for weight in source.routed_weights:
        variables[weight.name].assign(value_of(weight))
    _copy_state(source, target, state)


def _copy_head(source: Head, target: keras.Layer, task: int, state: State, value_of: ValueOf) -> None:
    variables = named_weights(target)
    for own in source.weights_of(task):
        variables[own.name].assign(value_of(own))
    _copy_state(source, target, state)


def _copy_state(source: TaskLayer, target: keras.Layer, state: State) -> None:
    targets = dict(own_state(target))
    for name, variable in own_state(source):
        if name in targets:
            targets[name].assign(state.get(id(variable), variable))


def _copy_generated(source: GeneratedTwin, target: keras.Layer, state: State, value_of: ValueOf) -> None:
    values = {id(weight.variable): value_of(weight) for weight in source.routed_weights}
    for variable, copy in _pairs(source, target):
        copy.assign(values.get(id(variable), state.get(id(variable), variable)))


def _value_of_task(weight: MaskedWeight | TaskWeight, task: int) -> np.ndarray:
    if isinstance(weight, MaskedWeight):
        return kernel_of_task(weight, task)
    recorded = weight.kept.get(1 if weight.policy == "first_task" else task)
    return view(weight.frozen) if recorded is None else recorded


def _copy_other_layer(source: keras.Layer, target: keras.Layer, state: State) -> None:
    copy_state(source, target)
    recorded = [(copy, state[id(variable)]) for variable, copy in _pairs(source, target) if id(variable) in state]
    for variable, value in recorded:
        variable.assign(value)
    if recorded and callable(getattr(target, "finalize_state", None)):
        target.finalize_state()  # constants that a layer such as Normalization derives from its variables


def _pairs(source: keras.Layer, target: keras.Layer) -> list[tuple[Variable, Variable]]:
    """Return each variable that `source` itself holds, with its copy in `target`."""
    own, copies = (plain_variables(layer) for layer in (source, target))
    if plain_class(source) is plain_class(target):
        pairs = list(zip(own, copies, strict=True))
    else:
        by_name = {variable.name: variable for variable in copies}
        pairs = [(variable, by_name[variable.name]) for variable in own]
    tensors = dict(tensor_variables(target))
    return pairs + [(variable, tensors[name]) for name, variable in tensor_variables(source) if name in tensors]
