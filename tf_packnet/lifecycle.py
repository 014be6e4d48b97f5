"""The life of a task in a Keras model: begin, (train, prune,) commit, select.

Every function takes any Keras model that contains task-aware layers: one made by `pack`, or one that a user built from
`tf_packnet.layers`. A fresh model is open for its first task, so that it can be trained at once.
"""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from tf_packnet import ownership
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.base import TaskLayer
from tf_packnet.layers.head import TaskHead
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import TaskRecords
from tf_packnet.layers.weights import check_freed_weights, check_task_number, view
from tf_packnet.structure.places import by_place


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


def begin_task(model: keras.Model, freed_weights: str = "zero", seed: int = 0) -> int:
    """Opens every free weight for the next task; returns its number (1-based).

    Args:
        model: A model with task-aware layers.
        freed_weights: How weights that earlier tasks gave back start: `zero` (Mallya & Lazebnik 2018), `keep` (as they
            were when pruned) or `reinit` (a fresh draw from the layer's initializer).
        seed: Seeds the fresh draws (heads, `reinit`) together with the task and the layer.

    Raises:
        ArgumentError: If the policy is unknown, 254 tasks are in the pack already, or no weight is free.
        RuntimeError: If an earlier task is still open.
    """
    check_freed_weights(freed_weights)
    task = committed_tasks(model) + 1
    if task > 1:
        if has_open_task(model):
            raise RuntimeError(
                f"task {task} is still open: commit it with the TaskMaskSnapshot callback or "
                "tp.commit_task(model) before the next one begins"
            )
        check_room(model, freed_weights)
    with strategy_scope(model):
        for position, layer in enumerate(task_layers(model)):
            layer.begin_task(freed_weights, derived_seed(seed, task, position))
    records(model).begin()
    return task


def check_room(model: keras.Model, freed_weights: str) -> None:
    """Raises ArgumentError if another task has no weights, no number, or no values to start from."""
    task = committed_tasks(model) + 1
    check_task_number(task)
    if task > 1 and free_fraction(model)["overall"] == 0.0:
        raise ArgumentError("model", f"a model with free weights (this pack is full after {task - 1})", model.name)
    if task > 1:
        _check_start(model, freed_weights)


def _check_start(model: keras.Model, freed_weights: str) -> None:
    without = "this pack was loaded from a file without the values of its free weights, see save_pack(free_values=True)"
    for weight in masked_weights(model).values():
        if weight.has_free_values:
            continue
        if weight.pretrained == "prunable":
            raise ArgumentError("model", f"a pack with its pretrained values ({without})", model.name)
        if weight.pretrained is None and freed_weights == "keep":
            raise ArgumentError("freed_weights", f"zero or reinit ({without})", freed_weights)


def forget_free_values(model: keras.Model) -> None:
    """Says that the free weights hold nothing to go on from, until a task has begun with other values."""
    for weight in masked_weights(model).values():
        weight.has_free_values = False


def lacks_free_values(model: keras.Model) -> bool:
    """Whether the free weights hold nothing to go on from."""
    return not all(weight.has_free_values for weight in masked_weights(model).values())


def reopen_task(model: keras.Model, freed_weights: str = "zero", seed: int = 0) -> None:
    """Opens every free weight for the task that is open already, whose candidates go on as they are.

    Args:
        model: A model with task-aware layers.
        freed_weights: How the weights that were pruned start again, see `begin_task`.
        seed: Seeds the fresh draws, together with the layer.

    Raises:
        ArgumentError: If the policy is unknown.
        RuntimeError: If no task is open.
    """
    check_freed_weights(freed_weights)
    if not has_open_task(model):
        raise RuntimeError(f"no task is open in model {model.name!r}: begin one with begin_task first")
    with strategy_scope(model):
        for position, weight in enumerate(masked_weights(model).values()):
            weight.reopen(freed_weights, derived_seed(seed, position))
    records(model).begin()


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """Everything that the task-aware layers hold, by name, for `load_state`: not the optimizer, not other layers."""
    return state_of(named_layers(model))


def state_of(layers: Iterable[tuple[str, TaskLayer]]) -> dict[str, np.ndarray]:
    """What `layers` hold, each under its place, see `state`."""
    found: dict[str, np.ndarray] = {}
    for place, layer in layers:
        part: dict[str, np.ndarray] = {}
        layer.save_own_variables(part)
        found.update({f"{place}/{name}": value for name, value in part.items()})
    return found


def load_state(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """The inverse of `state`, on a model of the same architecture."""
    with strategy_scope(model):
        for place, layer in named_layers(model):
            prefix = f"{place}/"
            layer.load_own_variables(
                {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            )


def commit_task(model: keras.Model) -> int:
    """Freezes what the open task kept, for ever; returns its number (1-based).

    Raises:
        RuntimeError: If no task is open.
    """
    if not has_open_task(model):
        raise RuntimeError(f"no task is open in model {model.name!r}: begin one with begin_task first")
    with strategy_scope(model):
        for layer in task_layers(model):
            layer.commit_task()
    return committed_tasks(model)


def select_task(model: keras.Model, task: int) -> None:
    """Makes the model compute as `task` (1-based number), the open one included.

    Raises:
        ArgumentError: If there is no such task.
    """
    last = committed_tasks(model) + has_open_task(model)
    if not 1 <= task <= last:
        raise ArgumentError("task", f"the number of a task in the pack, 1 to {last}", task)
    with strategy_scope(model):
        reshaped = [head.use_task(task) for head in heads(model).values()]
        for layer in task_layers(model):
            layer.select_task(task)
    if any(reshaped):
        drop_compiled_functions(model)


def selected_task(model: keras.Model) -> int:
    """Number (1-based) of the task that the model computes as; a fresh model computes as its first."""
    return task_layers(model)[0].selected_task


def drop_compiled_functions(model: keras.Model) -> None:
    """Forgets compiled steps; Keras traces them again on their next use. Needed when a head changes its shape."""
    model.train_function = model.test_function = model.predict_function = None


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


def derived_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers, well mixed: the same parts give the same seed on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


@contextlib.contextmanager
def strategy_scope(model: keras.Model) -> Iterator[None]:
    """The scope of the model's distribution strategy, in which its variables may be assigned on every replica."""
    with model.distribute_strategy.scope():
        yield
