"""Records witnesses and checksums of committed tasks, and later checks that nothing has changed."""

import hashlib
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.errors import DivergedError, FreezeError, listed
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import Witness, checksum, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.lifecycle import witness
from tf_packnet.lifecycle.model_state import (
    bind_state,
    committed_tasks,
    kept_values,
    masked_weights,
    named_layers,
    records,
    select_task,
    selected_task,
    show_state,
    trained_values,
    view_of,
)
from tf_packnet.structure.layer_paths import stable_names
from tf_packnet.structure.state import metric_variables
from tf_packnet.system.arrays import content
from tf_packnet.system.keras_internals import tensorflow_variable

# Name prefix of variables that the model reads but no layer tracks, such as those in a Lambda.
CAPTURED = "captured "

# End of the name of a variable on a replica other than the first.
_COPY_OF_REPLICA = re.compile(r"/replica_\d+:\d+$")
# Weights per chunk when checksums are computed. Checksums in files depend on it.
CHUNK = 2**20


def check_committed_finite(model: keras.Model) -> None:
    """Raise DivergedError if a committed value is NaN or infinite. Such a model must not be saved or exported."""
    broken = [path for path, weight in masked_weights(model).items() if not np.isfinite(view(weight.frozen)).all()]
    broken += [path for path, _, value in kept_values(model) if not np.isfinite(value).all()]
    if broken:
        raise DivergedError(f"model {model.name!r} has committed weights that are NaN or infinite, in {listed(broken)}")


def committed_checksums(model: keras.Model) -> dict[int, dict[str, str]]:
    """Compute a checksum in hex of each value that belongs to a committed task, by task (1-based) and name."""
    state = records(model).state
    state_values = ((name, task, value) for task, values in state.items() for name, value in values.items())
    unpruned = itertools.chain(kept_values(model), state_values)
    return _checksums_by_task(masked_weights(model), unpruned, committed_tasks(model))


def shared_checksums(model: keras.Model) -> dict[str, str]:
    """Compute a checksum in hex of each variable that all tasks read, by name.

    These are pretrained values and variables that no layer tracks.
    """
    checksums = {
        f"{path} (pretrained)": checksum(view(weight.base))
        for path, weight in masked_weights(model).items()
        if weight.pretrained == "visible"
    }
    of_keras = [tensorflow_variable(variable) for variable in (*model.variables, *metric_variables(model))]
    components = model.distribute_strategy.experimental_local_results  # in a strategy, a variable has one per replica
    known = (*of_keras, *records(model).variables.values())
    tracked = {id(each) for variable in known for each in (variable, *components(variable))}
    tracked |= {id(variable) for variable in model.variables}
    captured = [each for each in witness.captured_variables(records(model)) if id(each) not in tracked]
    captured = [each for each in captured if not _COPY_OF_REPLICA.search(each.name)]
    for name, variable in zip(stable_names(f"{CAPTURED}{each.name}" for each in captured), captured, strict=True):
        if variable.dtype not in (tf.resource, tf.variant):
            checksums[name] = checksum(np.asarray(variable.value()))
    return checksums


def _checksums_of_task(own: Mapping[str, str], shared: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Combine the checksums of all values that a task reads.

    Args:
        own: Checksums of the values of the task, by path.
        shared: Result of `shared_checksums`.

    Returns:
        Path and checksum of each value, by a name that is the same in every process.
    """
    checksums = {**{path: value[:16] for path, value in own.items()}, **shared}
    return dict(zip(stable_names(checksums), checksums.items(), strict=True))


def record_witness(model: keras.Model, task: int) -> None:
    """Record the witness of the committed `task` (1-based), which must be selected."""
    task_records = records(model)
    variables = task_records.variables
    before = {name: view_of(variable) for name, variable in variables.items()}
    outputs, inputs = witness.outputs(model, task_records)
    task_records.volatile |= {name for name, value in before.items() if not same_bits(view_of(variables[name]), value)}
    show_state(model, before)
    if outputs:
        again, _ = witness.outputs(model, task_records, inputs)
        if witness.difference(outputs, again, tolerance=0.0):  # the model draws random numbers that cannot be seeded
            outputs, inputs = [], None
    show_state(model, before)
    checksums = _checksums_of_task(committed_checksums(model)[task], shared_checksums(model))
    task_records.witnesses[task] = Witness(
        outputs, inputs, {name: value for name, (_, value) in checksums.items()}, witness.environment()
    )


def check_tasks(model: keras.Model) -> None:
    """Check that the weights and outputs of every committed task have not changed since its commit.

    Outputs are compared bit by bit in the environment in which they were recorded, if that is a CPU; otherwise with a
    tolerance of `witness.TOLERANCES`. See `witness.environment`. If no variable has changed, and the outputs only by
    rounding, the check warns instead.

    Raises:
        FreezeError: If something has changed; the message names the task, and the variable if one has changed.
    """
    if not committed_tasks(model):
        return
    task_records = records(model)
    _check_shown_values(model)
    selected = selected_task(model)
    differences: dict[int, float | None] = {}
    try:
        for task, recorded in task_records.witnesses.items():
            if recorded.outputs:
                select_task(model, task)
                outputs, _ = witness.outputs(model, task_records, recorded.inputs)
                tolerance = witness.tolerance(model, recorded.environment)
                differences[task] = witness.difference(recorded.outputs, outputs, tolerance)
    finally:
        select_task(model, selected)
    own, shared = committed_checksums(model), shared_checksums(model)
    changes: list[str] = []
    for task, recorded in task_records.witnesses.items():
        now = _checksums_of_task(own[task], shared)
        changed = [path for name, (path, value) in now.items() if recorded.checksums.get(name, value) != value]
        changed += [name for name in recorded.checksums if name not in now and not name.startswith(CAPTURED)]
        changes += [f"task {task} ({task_records.name_of(task)!r}) in {name!r}" for name in changed]
    if changes:
        raise FreezeError(
            f"committed weights have changed, of {listed(changes)}: some code assigned to them (a callback?), or a "
            "file or memory is damaged. Do not rely on results of training since then"
        )
    for task, difference in differences.items():
        if difference is None:
            continue
        message = f"the outputs of task {task_records.name_of(task)!r} have changed since it was committed, by "
        message += f"{difference:.2g} relative to their size, but none of its variables has: "
        if not witness.is_rounding(model, difference):
            raise FreezeError(
                f"{message}a layer computes differently (an attribute that is not a variable, other code, another "
                "version). Do not rely on results of training since then"
            )
        warnings.warn(f"{message}TensorFlow adds in another order, and rounds differently", stacklevel=2)


def _check_shown_values(model: keras.Model) -> None:
    """Raise FreezeError if the selected task is committed and the layers do not compute with its committed values."""
    task, task_records = selected_task(model), records(model)
    if task > committed_tasks(model):
        return
    changed = [
        f"{path}/{weight.name}"
        for path, layer in named_layers(model)
        for weight in layer.routed_weights
        if not weight.computes_as(task)
    ]
    variables, volatile = task_records.variables, task_records.volatile
    changed += [
        name
        for name, value in task_records.state.get(task, {}).items()
        if name in variables and name not in volatile and not same_bits(view_of(variables[name]), value)
    ]
    if changed:
        name = task_records.name_of(task)
        raise FreezeError(
            f"{listed(map(repr, changed))} changed while the committed task {name!r} was selected: some code assigned "
            f"to it. select_task({name!r}) restores its values. To set start values for the next task, call begin_task "
            "first"
        )


def complete_records(model: keras.Model) -> None:
    """Record the states and witnesses of committed tasks that a file of an earlier version does not have."""
    task_records, selected = records(model), selected_task(model)
    variables = bind_state(model)
    missing = [task for task in range(1, committed_tasks(model) + 1) if task not in task_records.witnesses]
    for task in missing:
        if task not in task_records.state:  # all tasks shared one value
            task_records.keep_state(task, {name: view_of(variable) for name, variable in variables.items()})
        select_task(model, task)
        record_witness(model, task)
    if missing:
        select_task(model, selected)


def renew_checksums(model: keras.Model) -> None:
    """Record the checksums of all witnesses again, after a change that is known to keep the outputs."""
    own, shared = committed_checksums(model), shared_checksums(model)
    for task, recorded in records(model).witnesses.items():
        checksums = {name: value for name, value in recorded.checksums.items() if name.startswith(CAPTURED)}
        now = _checksums_of_task(own[task], shared).items()
        recorded.checksums = {**checksums, **{name: value for name, (_, value) in now}}


def forget_later_tasks(model: keras.Model, last: int) -> None:
    """Delete the states and witnesses of tasks after `last` (1-based)."""
    task_records = records(model)
    for by_task in (task_records.state, task_records.witnesses):
        for task in [task for task in by_task if task > last]:
            del by_task[task]


def check_finite(model: keras.Model) -> None:
    """Raise DivergedError if a weight that the open task trains is NaN or infinite."""
    broken = [path for path, values in trained_values(model) if not np.isfinite(values).all()]
    if broken:
        raise DivergedError(
            f"task {records(model).name_of(committed_tasks(model) + 1)!r} has weights that are NaN or infinite, in "
            f"{listed(broken)}: it cannot be committed. Train it again from finite weights, with a smaller "
            "learning rate"
        )


def _checksums_by_task(
    weights: Mapping[str, MaskedWeight], unpruned: Iterable[tuple[str, int, np.ndarray]], tasks: int
) -> dict[int, dict[str, str]]:
    """Compute a checksum in hex of each value of each committed task, by task (1-based) and path.

    Args:
        weights: Masked weights by path.
        unpruned: Path, task and value for each committed value of unpruned weights and other state.
        tasks: Number of committed tasks.
    """
    checksums: dict[int, dict[str, str]] = {task: {} for task in range(1, tasks + 1)}
    for path, weight in weights.items():
        for task, digest in _checksums_by_owner(weight, tasks).items():
            checksums[task][path] = digest
    for path, task, value in unpruned:
        if task in checksums:
            checksums[task][path] = hashlib.sha256(content(value)).hexdigest()
    return checksums


def _checksums_by_owner(weight: MaskedWeight, tasks: int) -> dict[int, str]:
    """Compute a checksum of the indices and values that each task, from 1 to `tasks`, owns in a kernel."""
    owners, values = view(weight.owner).ravel(), view(weight.frozen).ravel()
    digests = {task: hashlib.sha256() for task in range(1, tasks + 1)}
    for first in range(0, owners.size, CHUNK):
        owner = owners[first : first + CHUNK]
        order = np.argsort(owner, kind="stable")  # by owner, then by index
        ends = np.searchsorted(owner[order], np.arange(1, tasks + 2, dtype=np.uint8))
        for task, digest in digests.items():
            own = order[ends[task - 1] : ends[task]]
            digest.update(content((own + first).astype(np.uint32)))
            digest.update(content(values[first : first + CHUNK][own]))
    return {task: digest.hexdigest() for task, digest in digests.items()}
