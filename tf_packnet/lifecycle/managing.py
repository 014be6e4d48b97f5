"""Abandons the open task, and forgets committed tasks."""

import re
from collections.abc import Mapping

import keras
import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.records import COUNTS, RECORDS, Before, same_bits
from tf_packnet.layers.weights import view, without_task
from tf_packnet.lifecycle.model_state import (
    STATE,
    committed_tasks,
    drop_compiled_functions,
    has_open_task,
    heads,
    load_state,
    masked_weights,
    records,
    select_task,
    selected_task,
    state,
    strategy_scope,
    task_layers,
)
from tf_packnet.lifecycle.task_checks import check_tasks, renew_checksums
from tf_packnet.pruning import ownership
from tf_packnet.structure.state import seeds

_SEED = "seed/"
# State that does not change while a task is open: the records, and the committed values of per-task weights.
_FIXED = re.compile(rf"(?!{STATE}/).*/({RECORDS}(\.\d+)?|.*\.task_\d+)")


def remember(model: keras.Model) -> None:
    """Record the state of `model` before its next task begins, for `abandon_task`. On CPU, nothing is copied."""
    task_records, committed = records(model), committed_tasks(model)
    values = {name: value for name, value in state(model).items() if not _FIXED.fullmatch(name)}
    for path, weight in masked_weights(model).items():
        del values[f"{path}.owner"]
        if committed and same_bits(values[f"{path}.variable"], weight.trained_values(committed)):
            del values[f"{path}.variable"]
    values |= {f"{_SEED}{number}": view(variable) for number, variable in enumerate(seeds(model))}
    facts = {
        **{name: getattr(task_records, name) for name in COUNTS},
        "volatile": sorted(task_records.volatile),
        "outputs": {path: head.num_outputs for path, head in heads(model).items()},
    }
    task_records.before = Before(committed + 1, facts, values)


def abandon_task(model: keras.Model) -> None:
    """Undo the begin of the open task. All bits of the model are restored, except for its optimizer.

    Raises:
        RuntimeError: If no task is open, or the state before the task began is not recorded.
    """
    if not has_open_task(model):
        raise RuntimeError(f"no task is open in model {model.name!r}, so there is none to abandon")
    before, now = records(model).before, state(model)
    if before is None:
        raise RuntimeError(
            "the open task cannot be abandoned: it was not begun with begin_task, or the pack was loaded from a file "
            "without the values from before"
        )
    try:
        _restore(model, before, now)
    except (KeyError, ValueError, TypeError) as error:  # a forged file
        load_state(model, now)
        raise RuntimeError("the open task cannot be abandoned: the values from before do not fit the model") from error


def _restore(model: keras.Model, before: Before, now: Mapping[str, np.ndarray]) -> None:
    committed, values = committed_tasks(model), {**now, **before.values}
    for path, weight in masked_weights(model).items():
        owner = weight.owner_map()
        values[f"{path}.owner"] = ownership.without_candidates(owner) if committed else ownership.new_map(owner.shape)
        if f"{path}.variable" not in before.values:
            # Only candidates change, so that the values of the last task are still there.
            values[f"{path}.variable"] = weight.trained_values(committed)
    states = seeds(model)
    drawn = [values.pop(f"{_SEED}{number}") for number in range(len(states))]
    with strategy_scope(model):
        for path, head in heads(model).items():
            head.use(before.facts["outputs"][path])
    load_state(model, {name: value for name, value in values.items() if not name.startswith(_SEED)})
    with strategy_scope(model):
        for head in heads(model).values():
            head.drop_slots()
        for variable, value in zip(states, drawn, strict=True):
            variable.assign(value)
    task_records = records(model)
    task_records.names = task_records.names[:committed]
    task_records.open_state, task_records.before = {}, None
    task_records.volatile = set(before.facts["volatile"])
    for name in COUNTS:
        setattr(task_records, name, before.facts[name])
    _drop_functions(model)


def forget_task(model: keras.Model, task: int) -> None:
    """Remove a committed task: its head, its own biases, normalization and state, and the weights that only it sees.

    Only the weights of the last task become free. Later tasks see the weights of an earlier task, so that the task
    after it becomes their owner. The numbers of later tasks decrease by one. The outputs of all remaining tasks are
    compared with their witnesses.

    Args:
        model: A model with task-aware layers.
        task: Number (1-based) of the task.

    Raises:
        ArgumentError: If there is no such task, or it is the only one.
        RuntimeError: If a task is open.
        FreezeError: If the outputs or weights of a task have changed since its commit. The model is then unchanged.
    """
    committed = committed_tasks(model)
    if has_open_task(model):
        raise RuntimeError("a task is open: commit it or abandon it before another one is forgotten")
    if not 1 <= task <= committed:
        raise ArgumentError("task", f"the number of a committed task, 1 to {committed}", task)
    if committed == 1:
        expected = "a task of a pack with other tasks; to forget the only one, pack the model again with tp.pack"
        raise ArgumentError("task", expected, records(model).name_of(task))
    check_tasks(model)
    before = state(model)
    try:
        _remove(model, task)
        check_tasks(model)
    except BaseException:  # also after an interrupt
        load_state(model, before)
        _drop_functions(model)
        raise


def _remove(model: keras.Model, task: int) -> None:
    selected, task_records = selected_task(model), records(model)
    with strategy_scope(model):
        for layer in task_layers(model):
            layer.forget_task(task)
    task_records.names = [name for number, name in enumerate(task_records.names, start=1) if number != task]
    task_records.state = without_task(task_records.state, task)
    task_records.witnesses = without_task(task_records.witnesses, task)
    task_records.calibration = without_task(task_records.calibration, task)
    select_task(model, committed_tasks(model) if selected == task else selected - (selected > task))
    for head in heads(model).values():
        head.drop_slots()
    _drop_functions(model)
    renew_checksums(model)


def _drop_functions(model: keras.Model) -> None:
    """Drop all traced functions: heads may use other variables now."""
    drop_compiled_functions(model)
    records(model).forget_functions()
