"""All access to private names of Keras. Tested with Keras 3.12 to 3.15.

When a new version of Keras breaks this library, look here first. Modules elsewhere use only Keras's public API, except
that some classes override private hooks of Keras: `_get_own_losses` (layers/base.py), `_obj_type`
(packed/safe_loading.py) and `_trackable_children` (packed_model.py).
"""

import collections
import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras.src.backend import compute_output_spec, in_stateless_scope
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.models.functional import Functional
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import ObjectSharingScope

__all__ = [
    "Functional",
    "KerasSaveable",
    "ObjectSharingScope",
    "RecordingScope",
    "all_layers",
    "as_function",
    "autocasts",
    "build_shapes",
    "build_symbolically",
    "clear_losses",
    "compute_output_spec",
    "continue_graph",
    "creating_call",
    "distribution_strategy",
    "fresh_names",
    "global_state",
    "graph_ends",
    "has_graph",
    "has_mask",
    "in_stateless_scope",
    "initializer_of",
    "is_built",
    "keras_lists",
    "learning_rate_of",
    "local_updates",
    "loss_tracker",
    "mask_of",
    "nodes",
    "optimizer_trainable_variables",
    "output_names",
    "own_metrics",
    "own_trainable_variables",
    "own_variables",
    "run_graph",
    "seed_generators",
    "stateless_updates",
    "sublayers",
    "tensorflow_variable",
    "unlocked",
    "unpickle_model",
    "untrack",
    "without_memory",
]


def all_layers(layer: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """Return `layer` and all layers inside it, at any depth, each once."""
    return layer._flatten_layers(include_self=include_self)


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Return Keras's own list of the layers (and metrics) directly inside `layer`. Changing it changes the layer."""
    return layer._layers


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that `layer` tracks itself, without those of its sublayers: trainable ones first."""
    return layer._trainable_variables + layer._non_trainable_variables


def own_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Return the trainable variables that `layer` tracks itself, even if `layer.trainable` is False."""
    return layer._trainable_variables


def own_metrics(layer: keras.Layer) -> list[keras.metrics.Metric]:
    """Return Keras's own list of the metrics directly inside `layer`."""
    return layer._metrics


def seed_generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Return the random generators directly inside `layer`."""
    return layer._seed_generators


def keras_lists(layer: keras.Layer) -> dict[str, list[Any]]:
    """Return the lists in which Keras tracks the parts of `layer`, by the attribute that should hold each list."""
    config = layer._tracker.config
    return {"_layers": config["layers"][1], "_metrics": config["metrics"][1]}


@contextlib.contextmanager
def unlocked(layer: keras.Layer) -> Iterator[None]:
    """Context manager that allows adding variables and layers to a built layer."""
    was_locked, layer._tracker.locked = layer._tracker.locked, False
    try:
        yield
    finally:
        layer._tracker.locked = was_locked


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Context manager in which variables are created without memory: with shapes and initializers, but no values."""
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name, []))
    try:
        with keras.StatelessScope(initialize_variables=False), ObjectSharingScope():
            yield
    finally:
        global_state.set_global_attribute(name, before)


def initializer_of(variable: keras.Variable) -> Any:
    """Return the initializer of a variable that was created `without_memory`."""
    return variable._initializer


def untrack(owner: keras.Layer, layer: keras.Layer) -> None:
    """Remove a sublayer from those that `owner` tracks."""
    owner._tracker.untrack(layer)


def untrack_variable(owner: keras.Layer, variable: keras.Variable) -> None:
    """Remove a variable from those that `owner` tracks."""
    owner._untrack_variable(variable)


def clear_losses(model: keras.Model) -> None:
    """Drop the losses that the last call of `model` has added."""
    model._clear_losses()


def autocasts(variable: keras.Variable) -> bool:
    """Return whether the variable is cast to the compute dtype of its layer when it is read."""
    return variable._autocast


def tensorflow_variable(variable: keras.Variable) -> Any:
    """Return the `tf.Variable` inside a Keras variable."""
    return variable._value


def build_shapes(model: keras.Model) -> list[Any]:
    """Return the input shapes that a subclassed model was built for; empty if they are unknown."""
    return list((getattr(model, "_build_shapes_dict", None) or {}).values())


def has_graph(model: keras.Layer) -> bool:
    """Return whether `model` is a functional model, or a Sequential model with the interface of one."""
    return hasattr(model, "_inputs_struct")


def graph_ends(model: keras.Model) -> tuple[Any, Any]:
    """Return the inputs and outputs of a functional or built Sequential model, in their original structure."""
    if not has_graph(model):
        return model.inputs, model.outputs
    return model._inputs_struct, model._outputs_struct


def as_function(graph: keras.Model) -> keras.Function:
    """Return the graph of a functional or built Sequential model. A packed Sequential model is functional."""
    return vars(graph).get("_functional", graph)


def output_names(graph: keras.Model) -> list[str]:
    """Return the names of the outputs of a graph: the keys if they are a dict, otherwise the names of their layers."""
    if isinstance(graph_ends(graph)[1], dict):
        return [str(path[-1]) for path, _ in keras.tree.flatten_with_path(graph_ends(graph)[1])]
    return list(graph.output_names)


def mark_called(model: keras.Model) -> keras.Model:
    """Mark a built model as called, and return it. Keras exports only called models to ONNX."""
    model._called = True
    return model


def adapt_tf2onnx() -> None:
    """Make `tf2onnx` work with NumPy 2, as Keras's own export does."""
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()


def nodes(function: keras.Function) -> list[Any]:
    """Return the calls of operations in a graph, starting with those closest to the inputs."""
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def creating_call(tensor: Any) -> tuple[Any, Any]:
    """Return the operation that a symbolic tensor comes from, and the node of that call; (None, None) for an input."""
    operation, index, _ = tensor._keras_history
    return (None, None) if operation is None else (operation, operation._inbound_nodes[index])


def mask_of(tensor: Any) -> Any:
    """Return the mask that is attached to a symbolic tensor; None if there is none."""
    return getattr(tensor, "_keras_mask", None)


def has_mask(tensor: Any) -> bool:
    """Return whether a mask is attached to a symbolic tensor."""
    return mask_of(tensor) is not None


def run_graph(model: keras.Model, inputs: Any, operation_fn: Any) -> Any:
    """Call a functional model, with `operation_fn(operation)` in place of each operation."""
    return model._run_through_graph(model._standardize_inputs(inputs), operation_fn=operation_fn)


def continue_graph(model: keras.Model, tensors: list[Any]) -> Any:
    """Call the operations of a functional model on other symbolic tensors, one in place of each input."""
    return model._run_through_graph(tensors, operation_fn=lambda operation: operation)


def unpickle_model(file: Any) -> keras.Model:
    """Load a model from the file that `keras.Model.__reduce__` has written."""
    return keras.Model._unpickle_model(file)


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Return the metric that tracks the mean loss of a compiled model."""
    return model._loss_tracker


def distribution_strategy(model: keras.Model) -> Any:
    """Return the `tf.distribute` strategy in whose scope the model was created; None without one."""
    return model._distribute_strategy


class RecordingScope(keras.StatelessScope):
    """Stateless scope that records assignments to Keras variables: the new values are visible only in the scope.

    Args:
        except_for: Variables that are assigned to as usual.

    Attributes:
        assigned: The other variables that were assigned to, each once.
    """

    def __init__(self, except_for: Sequence[keras.Variable] = ()) -> None:
        super().__init__(collect_losses=True)
        self.assigned: list[keras.Variable] = []
        self._except_for = except_for

    def get_current_value(self, variable: keras.Variable) -> Any:
        """Return the value of a variable in the scope.

        Keras also asks for regularized variables without assignments.
        """
        value = super().get_current_value(variable)
        return variable._value if value is None else value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Keep the new value of a variable."""
        variable, value = update
        if any(variable is each for each in self._except_for):
            variable._direct_assign(value)
            return
        super().add_update(update)
        if not any(variable is each for each in self.assigned):
            self.assigned.append(variable)


@contextlib.contextmanager
def local_updates(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Context manager in which `optimizer.apply` updates the variables of one replica, from already summed gradients.

    Keras's own methods for TensorFlow sum the gradients and update all replicas, which is impossible in a loop.
    """
    changed = []
    for each in {id(each): each for each in (optimizer, getattr(optimizer, "inner_optimizer", optimizer))}.values():
        local = {name: getattr(BaseOptimizer, name) for name in _OF_ONE_REPLICA}
        if isinstance(each, keras.optimizers.LossScaleOptimizer):
            local["_tf_apply"] = type(each)._common_apply
        for name, method in local.items():
            object.__setattr__(each, name, functools.partial(method, each))
            changed.append((each, name))
    try:
        with _own_update_step():
            yield
    finally:
        for each, name in changed:
            object.__delattr__(each, name)


@contextlib.contextmanager
def _own_update_step() -> Iterator[None]:
    """Context manager in which optimizers update variables one by one, without Keras's method for TensorFlow.

    The method is replaced in the class, because optimizers such as Nadam call it from a method of their own.
    """
    update_step, TFOptimizer._backend_update_step = TFOptimizer._backend_update_step, BaseOptimizer._backend_update_step
    try:
        yield
    finally:
        TFOptimizer._backend_update_step = update_step


@contextlib.contextmanager
def stateless_updates(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Context manager in which `optimizer.apply` changes only Keras variables, so that it works in a `StatelessScope`.

    Keras's own methods for TensorFlow assign to the underlying TensorFlow variables.
    """
    keys = {id(variable): optimizer._var_key(variable) for variable in optimizer._trainable_variables}
    methods: dict[str, Any] = {
        **{name: functools.partial(getattr(BaseOptimizer, name), optimizer) for name in _ASSIGNMENTS},
        "_apply_weight_decay": functools.partial(BaseOptimizer._apply_weight_decay, optimizer),
        "_var_key": lambda variable: keys[id(variable)],
    }
    for name, method in methods.items():
        object.__setattr__(optimizer, name, method)
    try:
        with _own_update_step():
            yield
    finally:
        for name in methods:
            object.__delattr__(optimizer, name)


_ASSIGNMENTS = ("assign", "assign_add", "assign_sub")
# Methods that Keras overrides in its optimizers for TensorFlow.
_OF_ONE_REPLICA = (
    "_apply_weight_decay",
    "_backend_increment_gradient_accumulators",
    "_overwrite_model_variables_with_average_value",
)


def build_symbolically(model: keras.Model, x: Any, y: Any) -> None:
    """Build the metrics and the loss of a compiled model from a symbolic batch."""
    model._symbolic_build(data_batch=(x, y, None))


def is_built(model: keras.Model) -> bool:
    """Return whether the loss, the metrics and the optimizer of a compiled model are built."""
    parts = (model._compile_loss, model._compile_metrics, model.optimizer)
    return all(part is None or part.built for part in parts)


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the learning rate of an optimizer as it is stored: a variable or a schedule."""
    return optimizer._learning_rate


def optimizer_trainable_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the model variables that a built optimizer updates."""
    return optimizer._trainable_variables


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Return the training loss of a batch, for any signature of the `compute_loss` of the model's class."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def resumed_epoch(model: keras.Model) -> int | None:
    """Return the epoch in which the current `fit` resumes, as set by `resume_at`; None if it does not resume."""
    return model._initial_epoch


def resume_at(model: keras.Model, epoch: int | None) -> None:
    """Make the current `fit` begin at `epoch`, as `keras.callbacks.BackupAndRestore` does; None undoes this."""
    model._initial_epoch = epoch


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Context manager in which unnamed layers get the same names as in a new process."""
    name = "object_name_uids"
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)
