"""Begins a task, reopens it, and commits it."""

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.weights import check_freed_weights, check_task_number
from tf_packnet.lifecycle.model_tasks import (
    bind_state,
    committed_tasks,
    derived_seed,
    free_fraction,
    has_open_task,
    masked_weights,
    records,
    select_task,
    show_state,
    strategy_scope,
    task_layers,
    view_of,
)
from tf_packnet.lifecycle.task_checks import check_finite, check_tasks, record_witness


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
        bind_state(model)
        show_state(model, records(model).state.get(task - 1, {}))  # state starts as the task before left it
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


def commit_task(model: keras.Model) -> int:
    """Freezes what the open task kept, for ever; returns its number (1-based).

    Raises:
        RuntimeError: If no task is open.
        DivergedError: If a weight of the task is NaN or infinite.
        FreezeError: If an earlier task does not compute any more what it did when it was committed.
    """
    if not has_open_task(model):
        raise RuntimeError(f"no task is open in model {model.name!r}: begin one with begin_task first")
    check_finite(model)
    check_tasks(model)
    task = committed_tasks(model) + 1
    select_task(model, task)
    kept = records(model)
    with strategy_scope(model):
        for layer in task_layers(model):
            layer.commit_task()
        kept.keep_state(task, {name: view_of(variable) for name, variable in bind_state(model).items()})
    record_witness(model, task)
    return task
