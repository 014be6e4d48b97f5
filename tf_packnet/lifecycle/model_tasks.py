"""What a model with task-aware layers holds, and which of its tasks it computes as.

Every function takes any Keras model that contains task-aware layers: one made by `pack`, or one that a user built from
`tf_packnet.layers`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import TaskHead
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import TaskRecords, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.structure.places import by_place, stable_names
from tf_packnet.structure.state import Variable, unowned_variables

STATE = "state"


def task_layers(model: keras.Model) -> list[TaskLayer]:
    """The task-aware layers of `model`, in order, nested ones included.

    Raises:
        ArgumentError: If there are none.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, TaskLayer)]
    if not layers:
        raise ArgumentError("model", "a model with masked layers, from tp.pack(model) or tp.layers", model.name)
    return layers


def named_layers(model: keras.Model) -> list[tuple[str, TaskLayer]]:
    """The task-aware layers of `model`, each with its place, see `tf_packnet.structure.places`."""
    task_layers(model)  # or an error
    return [(place, layer) for place, layer in by_place(model).items() if isinstance(layer, TaskLayer)]


def records(model: keras.Model) -> TaskRecords:
    """What `model` keeps of its tasks besides their weights: names, prune rounds."""
    first = task_layers(model)[0]
    if first.records is None:
        object.__setattr__(first, "records", TaskRecords())
    return first.records


def masked_weights(model: keras.Model) -> dict[str, MaskedWeight]:
    """The pruned and owned weights of `model` by their path, such as `dense/kernel`, in layer order."""
    weights = {
        f"{place}/{weight.name}": weight for place, layer in named_layers(model) for weight in layer.masked_weights
    }
    if not weights:
        raise ArgumentError("model", "a built model with at least one masked kernel to prune", model.name)
    return weights


def kept_values(model: keras.Model) -> Iterator[tuple[str, int, np.ndarray]]:
    """The committed values of weights that are not pruned: path of the weight, task (1-based), value."""
    for place, layer in named_layers(model):
        for weight in layer.all_task_weights:
            yield from ((f"{place}/{weight.name}", task, value) for task, value in weight.kept.items())


def trained_values(model: keras.Model) -> Iterator[tuple[str, np.ndarray]]:
    """What training moves, first layer first: path of the weight, its present values."""
    for place, layer in named_layers(model):
        for weight in (*layer.masked_weights, *layer.task_weights):
            yield f"{place}/{weight.name}", view(weight.variable)


def heads(model: keras.Model) -> dict[str, TaskHead]:
    """The heads of which every task has its own, by their place in the model; none with a shared one."""
    return {place: layer for place, layer in named_layers(model) if isinstance(layer, TaskHead)}


def committed_tasks(model: keras.Model) -> int:
    """How many tasks the model has learned."""
    return task_layers(model)[0].committed_tasks


def has_open_task(model: keras.Model) -> bool:
    """Whether a task is being learned: it was begun (or the model is fresh) and not committed."""
    return task_layers(model)[0].open


def selected_task(model: keras.Model) -> int:
    """Number (1-based) of the task that the model computes as; a fresh model computes as its first."""
    return task_layers(model)[0].selected_task


def select_task(model: keras.Model, task: int) -> None:
    """Makes the model compute as `task` (1-based number), the open one included.

    Raises:
        ArgumentError: If there is no such task.
    """
    last = committed_tasks(model) + has_open_task(model)
    if isinstance(task, bool) or not isinstance(task, (int, np.integer)) or not 1 <= task <= last:
        raise ArgumentError("task", f"the number of a task in the pack, 1 to {last}", task)
    task = int(task)
    with strategy_scope(model):
        kept = records(model)
        is_open = task > committed_tasks(model)
        if not is_open and selected_task(model) > committed_tasks(model):  # the open task's state is put aside
            kept.open_state = {name: view_of(variable) for name, variable in bind_state(model).items()}
        reshaped = [head.use_task(task) for head in heads(model).values()]
        for layer in task_layers(model):
            layer.select_task(task)
        show_state(model, kept.open_state if is_open else kept.state.get(task, {}))
        if is_open:
            kept.open_state = {}
    if any(reshaped):
        drop_compiled_functions(model)


def drop_compiled_functions(model: keras.Model) -> None:
    """Forgets compiled steps; Keras traces them again on their next use. Needed when a head changes its shape."""
    model.train_function = model.test_function = model.predict_function = None


def bind_state(model: keras.Model) -> dict[str, Variable]:
    """The variables of `model` that no weight of a task holds, by name; they are known to its records from now on."""
    kept = records(model)
    kept.variables = unowned_variables(model)
    for name, value in kept.loaded.items():  # what Keras does not save itself
        if name in kept.variables:
            kept.variables[name].assign(value)
    kept.loaded = {}
    return kept.variables


def show_state(model: keras.Model, values: Mapping[str, np.ndarray]) -> None:
    """Assigns `values` to the variables that no weight of a task holds, where they hold others."""
    kept, changed = records(model), set()
    for name, value in values.items():
        variable = kept.variables.get(name)
        if variable is not None and not same_bits(view_of(variable), value):
            variable.assign(value)
            changed.add(id(variable))
    if changed:
        _finalize(model, changed)


def _finalize(model: keras.Model, changed: set[int]) -> None:
    """Lets layers such as Normalization derive from their variables what traced functions have as constants."""
    layers = [layer for layer in model._flatten_layers() if callable(getattr(layer, "finalize_state", None))]
    derived = [layer for layer in layers if any(id(variable) in changed for variable in layer.variables)]
    for layer in derived:
        layer.finalize_state()
    if derived:
        drop_compiled_functions(model)
        records(model).functions.clear()


def owner_maps(model: keras.Model) -> dict[str, np.ndarray]:
    """A `uint8` owner map a kernel, by path: 0 is free, `k` is owned by task `k`."""
    return {path: ownership.without_candidates(w.owner_map()) for path, w in masked_weights(model).items()}


def free_fraction(model: keras.Model) -> dict:
    """Share of the prunable weights that no task owns: `{"overall": float, "layers": {path: float}}`."""
    maps = {path: weight.owner_map() for path, weight in masked_weights(model).items()}
    free = sum(ownership.count_uncommitted(owner) for owner in maps.values())
    return {
        "overall": free / sum(owner.size for owner in maps.values()),
        "layers": {path: ownership.free_fraction(owner) for path, owner in maps.items()},
    }


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """Everything that a model with task-aware layers holds, by name, for `load_state`: not the optimizer, not seeds."""
    unowned = {f"{STATE}/{name}": view_of(variable) for name, variable in unowned_variables(model).items()}
    return {**state_of(named_layers(model)), **unowned}


def state_of(layers: Iterable[tuple[str, TaskLayer]]) -> dict[str, np.ndarray]:
    """What `layers` hold, each under its place, see `state`."""
    found: dict[str, np.ndarray] = {}
    for place, layer in layers:
        part: dict[str, np.ndarray] = {}
        layer.save_own_variables(part)
        found.update({f"{place}/{name}": value for name, value in part.items()})
    return found


def load_state(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of `state`, on a model of the same architecture, however Keras numbered its layers.

    Raises:
        KeyError: If something is missing.
    """
    layers = named_layers(model)
    unowned = {name: value for name, value in state.items() if name.startswith(f"{STATE}/")}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        if name not in unowned:
            place, _, part = name.rpartition("/")
            parts.setdefault(place, {})[part] = value
    theirs = dict(zip(stable_names(parts), parts.values(), strict=True))
    with strategy_scope(model):
        for (_, layer), name in zip(layers, stable_names(place for place, _ in layers), strict=True):
            layer.restore_own_variables(theirs[name])
        for name, variable in bind_state(model).items():
            if f"{STATE}/{name}" in unowned:  # stages of earlier versions have none
                variable.assign(unowned[f"{STATE}/{name}"])


def forget_free_values(model: keras.Model) -> None:
    """Says that the free weights hold nothing to go on from, until a task has begun with other values."""
    for weight in masked_weights(model).values():
        weight.has_free_values = False


def lacks_free_values(model: keras.Model) -> bool:
    """Whether the free weights hold nothing to go on from."""
    return not all(weight.has_free_values for weight in masked_weights(model).values())


def view_of(variable: Variable) -> np.ndarray:
    """What a Keras or TensorFlow variable holds now, on CPU without a copy; it stays as it is when that changes."""
    if isinstance(variable, keras.Variable):
        return view(variable)
    values = np.asarray(variable.value()).view()
    values.flags.writeable = False
    return values


def derived_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers, well mixed: the same parts give the same seed on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


@contextlib.contextmanager
def strategy_scope(model: keras.Model) -> Iterator[None]:
    """The scope of the model's distribution strategy, in which its variables may be assigned on every replica."""
    with model.distribute_strategy.scope():
        yield
