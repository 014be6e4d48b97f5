"""Begins, reopens and commits tasks."""

import keras

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.layers.weights import check_freed_weights, check_task_number
from tf_packnet.lifecycle.model_state import (
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


@checked
def begin_task(model: keras.Model, freed_weights: str = "zero", seed: int = 0) -> int:
    """Begin the next task: all free weights become its candidates.

    Args:
        model: A model with task-aware layers.
        freed_weights: Start values of the free weights: `zero` (Mallya & Lazebnik 2018), `keep` (their values when they
            were pruned) or `reinit` (new random values from the layer's initializer).
        seed: Seeds the random values (heads, `reinit`), together with the numbers of task and layer.

    Returns:
        Number of the task (1-based).

    Raises:
        ArgumentError: If the policy is unknown, if there are 254 tasks already, or if no weight is free.
        RuntimeError: If another task is still open.
    """
    check_freed_weights(freed_weights)
    task = committed_tasks(model) + 1
    if task > 1 and has_open_task(model):
        raise RuntimeError(
            f"task {task} is still open: commit it with the TaskMaskSnapshot callback or "
            "tp.commit_task(model) before you begin the next one"
        )
    check_can_begin(model, freed_weights)
    with strategy_scope(model):
        bind_state(model)
        show_state(model, records(model).state.get(task - 1, {}))  # state starts from that of the previous task
        for position, layer in enumerate(task_layers(model)):
            layer.begin_task(freed_weights, derived_seed(seed, task, position))
    records(model).begin()
    return task


def check_can_begin(model: keras.Model, freed_weights: str) -> None:
    """Raise ArgumentError if no weight or task number is free, or if start values of free weights are missing."""
    task = committed_tasks(model) + 1
    check_task_number(task)
    if task == 1:
        return  # all weights are free, and keep their values
    if free_fraction(model)["overall"] == 0.0:
        expected = f"a model with free weights (its {task - 1} tasks own all weights)"
        raise ArgumentError("model", expected, model.name)
    _check_start_values(model, freed_weights)


def _check_start_values(model: keras.Model, freed_weights: str) -> None:
    reason = "this pack was loaded from a file without the values of its free weights, see save_pack(free_values=True)"
    for weight in masked_weights(model).values():
        if weight.has_free_values:
            continue
        if weight.pretrained == "prunable":
            raise ArgumentError("model", f"a pack with its pretrained values ({reason})", model.name)
        if weight.pretrained is None and freed_weights == "keep":
            raise ArgumentError("freed_weights", f"zero or reinit ({reason})", freed_weights)


def reopen_task(model: keras.Model, freed_weights: str = "zero", seed: int = 0) -> None:
    """Make all free weights candidates of the open task. Its current candidates do not change.

    Args:
        model: A model with task-aware layers.
        freed_weights: Start values of the free weights, see `begin_task`.
        seed: Seeds the random values, together with the number of the layer.

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


@checked
def commit_task(model: keras.Model) -> int:
    """Commit the open task: freeze its weights permanently, and record its witness.

    Returns:
        Number of the task (1-based).

    Raises:
        RuntimeError: If no task is open.
        DivergedError: If a weight of the task is NaN or infinite.
        FreezeError: If the outputs or weights of an earlier task have changed since its commit.
    """
    if not has_open_task(model):
        raise RuntimeError(f"no task is open in model {model.name!r}: begin one with begin_task first")
    check_finite(model)
    check_tasks(model)
    task = committed_tasks(model) + 1
    select_task(model, task)
    with strategy_scope(model):
        for layer in task_layers(model):
            layer.commit_task()
        state = {name: view_of(variable) for name, variable in bind_state(model).items()}
        records(model).keep_state(task, state)
    record_witness(model, task)
    records(model).before = None
    return task
