"""Accesses the task-aware layers, the weights and the other state of a model, and selects the task it computes as.

Every function takes any Keras model with task-aware layers: a pack, or a model that a user has built from
`tf_packnet.layers`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import Head, Slot
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import BEFORE, TaskRecords, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.structure.layer_paths import layers_by_path, stable_names
from tf_packnet.structure.state import Variable, unowned_variables
from tf_packnet.system.keras_internals import all_layers

STATE = "state"
# Number of compiled functions that are kept per model, for heads that are not in use.
_MOST_COMPILED = 32


def task_layers(model: keras.Model) -> list[TaskLayer]:
    """Return the task-aware layers of `model`, in order, including nested ones.

    Raises:
        ArgumentError: If there are none.
    """
    layers = [layer for layer in all_layers(model) if isinstance(layer, TaskLayer)]
    if not layers:
        raise ArgumentError("model", "a model with task-aware layers, from tp.pack(model) or tp.layers", model.name)
    return layers


def named_layers(model: keras.Model) -> list[tuple[str, TaskLayer]]:
    """Return the task-aware layers of `model`, each with its path, see `tf_packnet.structure.layer_paths`."""
    task_layers(model)  # raises if there are none
    return [(path, layer) for path, layer in layers_by_path(model).items() if isinstance(layer, TaskLayer)]


def records(model: keras.Model) -> TaskRecords:
    """Return the task records of `model`, such as names, prune rounds and witnesses."""
    first = task_layers(model)[0]
    task_records = first.records
    if task_records is None:
        task_records = TaskRecords()
        object.__setattr__(first, "records", task_records)
    return task_records


def masked_weights(model: keras.Model) -> dict[str, MaskedWeight]:
    """Return the masked weights of `model` by path, such as `dense/kernel`, in layer order.

    Raises:
        ArgumentError: If there are none.
    """
    weights = {
        f"{path}/{weight.name}": weight for path, layer in named_layers(model) for weight in layer.masked_weights
    }
    if not weights:
        raise ArgumentError("model", "a built model with at least one masked kernel to prune", model.name)
    return weights


def kept_values(model: keras.Model) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield path, task (1-based) and value for each committed value of unpruned weights."""
    for path, layer in named_layers(model):
        for weight in layer.all_task_weights:
            yield from ((f"{path}/{weight.name}", task, value) for task, value in weight.kept.items())


def trained_values(model: keras.Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yield path and current values of the weights that training changes, in layer order."""
    for path, layer in named_layers(model):
        for weight in layer.routed_weights:
            yield f"{path}/{weight.name}", view(weight.variable)


def heads(model: keras.Model) -> dict[str, Head]:
    """Return the heads whose number of outputs may differ between tasks, by path."""
    return {path: layer for path, layer in named_layers(model) if isinstance(layer, Head)}


def head_outputs(model: keras.Model) -> dict[str, int]:
    """Return the number of outputs of each head in the selected task, by path."""
    return {path: head.num_outputs for path, head in heads(model).items()}


def use_outputs(model: keras.Model, outputs: Mapping[str, int]) -> None:
    """Switch each head to a number of outputs. The config of a layer that contains the head does not have it."""
    for path, head in heads(model).items():
        head.use(outputs.get(path, head.num_outputs))


def committed_tasks(model: keras.Model) -> int:
    """Return the number of committed tasks."""
    return task_layers(model)[0].committed_tasks


def has_open_task(model: keras.Model) -> bool:
    """Return whether a task is open: it was begun (or the model is new) and is not committed."""
    return task_layers(model)[0].open


def selected_task(model: keras.Model) -> int:
    """Return the number (1-based) of the task that the model computes as; 1 for a new model."""
    return task_layers(model)[0].selected_task


def select_task(model: keras.Model, task: int) -> None:
    """Make the model compute as `task` (1-based number), which may be the open task.

    Raises:
        ArgumentError: If there is no such task.
    """
    last = committed_tasks(model) + has_open_task(model)
    if isinstance(task, bool) or not isinstance(task, (int, np.integer)) or not 1 <= task <= last:
        raise ArgumentError("task", f"the number of a task in the pack, 1 to {last}", task)
    task = int(task)
    with strategy_scope(model):
        task_records = records(model)
        is_open = task > committed_tasks(model)
        if not is_open and selected_task(model) > committed_tasks(model):  # store the state of the open task
            task_records.open_state = {name: view_of(variable) for name, variable in bind_state(model).items()}
        with switching_heads(model):
            for head in heads(model).values():
                head.use_task(task)
        for layer in task_layers(model):
            layer.select_task(task)
        show_state(model, task_records.open_state if is_open else task_records.state.get(task, {}))
        if is_open:
            task_records.open_state = {}


@contextlib.contextmanager
def switching_heads(model: keras.Model) -> Iterator[None]:
    """Swap the compiled functions of `model` if its heads change their outputs or activations inside the block.

    Keras traces a function for the variables and shapes of the heads in use. The training step is dropped. Evaluation
    and prediction are kept, and reused as soon as the same heads are in use again.
    """
    before = _heads_in_use(model)
    try:
        yield
    finally:
        after, compiled = _heads_in_use(model), records(model).compiled
        if after != before:
            compiled[before] = model.test_function, model.predict_function
            model.train_function = None
            model.test_function, model.predict_function = compiled.pop(after, (None, None))
            existing = {slot for head in heads(model).values() for slot in head.slots.values()}
            for key in [key for key in compiled if not {slot for slot, _ in key} <= existing]:
                del compiled[key]
            while len(compiled) > _MOST_COMPILED:
                del compiled[next(iter(compiled))]


def _heads_in_use(model: keras.Model) -> tuple[tuple[Slot, Any], ...]:
    return tuple((head.slots[head.num_outputs], vars(head).get("activation")) for head in heads(model).values())


def drop_compiled_functions(model: keras.Model) -> None:
    """Drop all compiled functions of `model`, so that Keras traces them again."""
    model.train_function = model.test_function = model.predict_function = None
    records(model).compiled.clear()


def bind_state(model: keras.Model) -> dict[str, Variable]:
    """Find the variables that belong to no task-aware weight, and store them in the records of `model`.

    Returns:
        The variables by name.
    """
    task_records = records(model)
    task_records.variables = unowned_variables(model)
    for name, value in task_records.loaded.items():  # values of variables that Keras does not save
        if name in task_records.variables:
            task_records.variables[name].assign(value)
    task_records.loaded = {}
    return task_records.variables


def show_state(model: keras.Model, values: Mapping[str, np.ndarray]) -> None:
    """Assign `values` by name to the variables found by `bind_state`, where they differ."""
    variables, changed = records(model).variables, set()
    for name, value in values.items():
        variable = variables.get(name)
        if variable is not None and not same_bits(view_of(variable), value):
            variable.assign(value)
            changed.add(id(variable))
    if changed:
        _finalize(model, changed)


def _finalize(model: keras.Model, changed: set[int]) -> None:
    """Update the values that layers such as Normalization derive from their variables.

    Traced functions contain them.
    """
    layers = [layer for layer in all_layers(model) if callable(getattr(layer, "finalize_state", None))]
    outdated = [layer for layer in layers if any(id(variable) in changed for variable in layer.variables)]
    for layer in outdated:
        layer.finalize_state()
    if outdated:
        drop_compiled_functions(model)
        records(model).forget_functions()


@checked
def owner_maps(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the owner map of each kernel by path: `uint8`, 0 for free weights, `k` for weights of task `k`."""
    return {path: ownership.without_candidates(w.owner_map()) for path, w in masked_weights(model).items()}


@checked
def free_fraction(model: keras.Model) -> dict:
    """Return the fraction of free prunable weights: `{"overall": float, "layers": {path: float}}`."""
    maps = {path: weight.owner_map() for path, weight in masked_weights(model).items()}
    free = sum(ownership.count_uncommitted(owner) for owner in maps.values())
    return {
        "overall": free / sum(owner.size for owner in maps.values()),
        "layers": {path: ownership.free_fraction(owner) for path, owner in maps.items()},
    }


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the complete state of a model by name, for `load_state`, without optimizer and random seeds."""
    unowned = {f"{STATE}/{name}": view_of(variable) for name, variable in unowned_variables(model).items()}
    return {**state_of(named_layers(model)), **unowned}


def state_of(layers: Iterable[tuple[str, TaskLayer]]) -> dict[str, np.ndarray]:
    """Return the part of `state` that belongs to `layers`, which are given with their paths.

    It leaves out the state before the open task began, so that the files of a run stay small.
    """
    values: dict[str, np.ndarray] = {}
    for path, layer in layers:
        layer_values: dict[str, np.ndarray] = {}
        layer.save_own_variables(layer_values)
        values.update({f"{path}/{n}": value for n, value in layer_values.items() if n.partition(".")[0] != BEFORE})
    return values


def load_state(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Load the result of `state` into a model of the same architecture. The numbers in Keras's layer names may differ.

    Raises:
        KeyError: If `state` lacks a value.
    """
    layers = named_layers(model)
    unowned = {name: value for name, value in state.items() if name.startswith(f"{STATE}/")}
    values_by_path: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        if name not in unowned:
            path, _, weight_name = name.rpartition("/")
            values_by_path.setdefault(path, {})[weight_name] = value
    values_by_name = dict(zip(stable_names(values_by_path), values_by_path.values(), strict=True))
    with strategy_scope(model):
        for (_, layer), name in zip(layers, stable_names(path for path, _ in layers), strict=True):
            layer.restore_own_variables(values_by_name[name])
        for name, variable in bind_state(model).items():
            if f"{STATE}/{name}" in unowned:  # not in stages of earlier versions
                variable.assign(unowned[f"{STATE}/{name}"])


def forget_free_values(model: keras.Model) -> None:
    """Mark the values of the free weights as invalid until the next task begins."""
    for weight in masked_weights(model).values():
        weight.has_free_values = False


def lacks_free_values(model: keras.Model) -> bool:
    """Return whether the values of free weights are invalid, see `forget_free_values`."""
    return not all(weight.has_free_values for weight in masked_weights(model).values())


def view_of(variable: Variable) -> np.ndarray:
    """Return the current value of a Keras or TensorFlow variable as a read-only array, without a copy on CPU.

    Later assignments to the variable do not change the array.
    """
    if isinstance(variable, keras.Variable):
        return view(variable)
    values = np.asarray(variable.value()).view()
    values.flags.writeable = False
    return values


def derived_seed(*parts: int) -> int:
    """Return a 31-bit seed derived from several numbers, which is the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


@contextlib.contextmanager
def strategy_scope(model: keras.Model) -> Iterator[None]:
    """Enter the scope of the model's distribution strategy, in which variables of all replicas can be assigned."""
    with model.distribute_strategy.scope():
        yield
