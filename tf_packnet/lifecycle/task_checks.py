"""Checks that committed tasks compute what they did when they were committed: witnesses and checksums."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.errors import DivergedError, FreezeError
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.records import Witness, checksum, same_bits
from tf_packnet.layers.weights import view
from tf_packnet.lifecycle import witness
from tf_packnet.lifecycle.model_tasks import (
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
from tf_packnet.structure.places import stable_names
from tf_packnet.structure.state import metric_variables

# Variables that the model reads although no layer of it holds them, such as those in a Lambda.
CAPTURED = "captured "


def check_committed_finite(model: keras.Model) -> None:
    """Raises DivergedError if a committed value is NaN or infinite: such a model is neither saved nor exported."""
    broken = [path for path, weight in masked_weights(model).items() if not np.isfinite(view(weight.frozen)).all()]
    broken += [path for path, _, value in kept_values(model) if not np.isfinite(value).all()]
    if broken:
        listed = ", ".join(dict.fromkeys(broken[:3])) + " and others" * (len(broken) > 3)
        raise DivergedError(f"model {model.name!r} has committed weights that are NaN or infinite, in {listed}")


def committed_checksums(model: keras.Model) -> dict[int, dict[str, str]]:
    """A checksum in hex of every value that a committed task has of its own, by task (1-based) and name."""
    kept = records(model)
    own = ((name, task, value) for task, values in kept.state.items() for name, value in values.items())
    return _task_checksums(masked_weights(model), itertools.chain(kept_values(model), own), committed_tasks(model))


def shared_checksums(model: keras.Model) -> dict[str, str]:
    """A checksum in hex of every variable that all tasks read, by name: pretrained values, variables of no layer."""
    found = {
        f"{path} (pretrained)": checksum(view(weight.base))
        for path, weight in masked_weights(model).items()
        if weight.pretrained == "visible"
    }
    if isinstance(model.distribute_strategy, tf.distribute.MirroredStrategy):  # its variables are several each
        return found
    known = {id(variable.value) for variable in model.variables} | {id(each) for each in model.variables}
    known |= {id(variable.value) for variable in metric_variables(model)}
    known |= {id(variable) for variable in records(model).variables.values()}
    strange = [each for each in witness.captured_variables(records(model)) if id(each) not in known]
    for name, variable in zip(stable_names(f"{CAPTURED}{each.name}" for each in strange), strange, strict=True):
        if variable.dtype not in (tf.resource, tf.variant):
            found[name] = checksum(np.asarray(variable.value()))
    return found


def _read_by(own: Mapping[str, str], shared: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The checksums of what a task reads, by names that do not depend on the process; each with its path here."""
    values = {**{path: value[:16] for path, value in own.items()}, **shared}
    return dict(zip(stable_names(values), values.items(), strict=True))


def record_witness(model: keras.Model, task: int) -> None:
    """Records the witness of the committed `task` (1-based), which must be selected."""
    kept = records(model)
    before = {name: view_of(variable) for name, variable in kept.variables.items()}
    found, how = witness.outputs(model, kept)
    kept.volatile |= {name for name, value in before.items() if not same_bits(view_of(kept.variables[name]), value)}
    show_state(model, before)
    if found and witness.differences(Witness(found, how, {}, {}), witness.outputs(model, kept, how)[0], 0.0):
        found, how = [], None  # not a function of its inputs: it draws random numbers that cannot be seeded
    show_state(model, before)
    now = _read_by(committed_checksums(model)[task], shared_checksums(model))
    kept.witnesses[task] = Witness(found, how, {name: value for name, (_, value) in now.items()}, witness.environment())


def check_tasks(model: keras.Model) -> None:
    """Checks that every committed task computes what it did when it was committed.

    To the bit on CPU, with the same versions of TensorFlow and Keras and as many threads; otherwise to
    `witness.TOLERANCES`.

    Raises:
        FreezeError: If one does not; the message names the task, and the layer and variable that have changed.
    """
    tasks = committed_tasks(model)
    if not tasks:
        return
    kept = records(model)
    _check_shown(model)
    selected = selected_task(model)
    moved: dict[int, float | None] = {}
    try:
        for task, recorded in kept.witnesses.items():
            select_task(model, task)
            found, _ = witness.outputs(model, kept, recorded.inputs) if recorded.outputs else ([], None)
            moved[task] = witness.differences(recorded, found, witness.tolerance(model, recorded.environment))
    finally:
        select_task(model, selected)
    own, shared = committed_checksums(model), shared_checksums(model)
    changes: list[str] = []
    for task, recorded in kept.witnesses.items():
        now = _read_by(own[task], shared)
        changed = [path for name, (path, value) in now.items() if recorded.checksums.get(name, value) != value]
        changed += [name for name in recorded.checksums if name not in now and not name.startswith(CAPTURED)]
        changes += [f"task {task} ({kept.name_of(task)!r}) in {name!r}" for name in changed]
    if changes:
        listed = ", ".join(changes[:5]) + " and others" * (len(changes) > 5)
        raise FreezeError(
            f"committed weights have changed, of {listed}: something assigned to them (a callback?), or the file or "
            "memory is damaged. What was trained since cannot be relied on"
        )
    for task, difference in moved.items():
        if difference is not None:
            raise FreezeError(
                f"the outputs of task {kept.name_of(task)!r} have changed since it was committed, by {difference:.2g} "
                "of their size, but none of its variables has: a layer computes something else (an attribute that is "
                "no variable, other code, another version). What was trained since cannot be relied on"
            )


def _check_shown(model: keras.Model) -> None:
    """Raises FreezeError if the selected task is committed, and the model does not show the values it has kept."""
    task, kept = selected_task(model), records(model)
    if task > committed_tasks(model):
        return
    changed = [
        f"{place}/{weight.name}"
        for place, layer in named_layers(model)
        for weight in (*layer.masked_weights, *layer.task_weights)
        if not weight.computes_as(task)
    ]
    changed += [
        name
        for name, value in kept.state.get(task, {}).items()
        if name in kept.variables and name not in kept.volatile and not same_bits(view_of(kept.variables[name]), value)
    ]
    if changed:
        listed = ", ".join(map(repr, changed[:5])) + " and others" * (len(changed) > 5)
        raise FreezeError(
            f"{listed} changed while the committed task {kept.name_of(task)!r} was selected: something assigned to it. "
            f"select_task({kept.name_of(task)!r}) brings its values back; what the next task is to start from is set "
            "after begin_task"
        )


def complete_records(model: keras.Model) -> None:
    """Records what is missing of the committed tasks of a model that was loaded, such as from an earlier version."""
    kept, selected = records(model), selected_task(model)
    variables = bind_state(model)
    missing = [task for task in range(1, committed_tasks(model) + 1) if task not in kept.witnesses]
    for task in missing:
        if task not in kept.state:  # there was one value for all tasks
            kept.keep_state(task, {name: view_of(variable) for name, variable in variables.items()})
        select_task(model, task)
        record_witness(model, task)
    if missing:
        select_task(model, selected)


def forget_later_tasks(model: keras.Model, last: int) -> None:
    """Drops the records of tasks after `last` (1-based)."""
    kept = records(model)
    for found in (kept.state, kept.witnesses):
        for task in [task for task in found if task > last]:
            del found[task]


def check_finite(model: keras.Model) -> None:
    """Raises DivergedError if a weight that the open task trains is NaN or infinite."""
    broken = [path for path, values in trained_values(model) if not np.isfinite(values).all()]
    if broken:
        listed = ", ".join(broken[:3]) + " and others" * (len(broken) > 3)
        raise DivergedError(
            f"task {records(model).name_of(committed_tasks(model) + 1)!r} has weights that are NaN or infinite, in "
            f"{listed}: it cannot be committed. Train it again from finite weights, with a smaller learning rate"
        )


# Owner, value, checksum: what is read at once takes some megabytes, however large the kernel.
CHUNK = 2**20


def _task_checksums(
    weights: Mapping[str, MaskedWeight], kept: Iterable[tuple[str, int, np.ndarray]], tasks: int
) -> dict[int, dict[str, str]]:
    """What each committed task has in every weight: by task (1-based) and path, a checksum in hex.

    Args:
        weights: The pruned and owned weights, by path.
        kept: The committed values of other weights: path, task, value.
        tasks: How many tasks are committed.
    """
    found: dict[int, dict[str, str]] = {task: {} for task in range(1, tasks + 1)}
    for path, weight in weights.items():
        for task, digest in _by_owner(weight, tasks).items():
            found[task][path] = digest
    for path, task, value in kept:
        if task in found:
            found[task][path] = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    return found


def _by_owner(weight: MaskedWeight, tasks: int) -> dict[int, str]:
    """Checksums of the places and values that each of the first `tasks` owns in a kernel."""
    owners, values = view(weight.owner).ravel(), view(weight.frozen).ravel()
    found = {task: hashlib.sha256() for task in range(1, tasks + 1)}
    for first in range(0, owners.size, CHUNK):
        owner = owners[first : first + CHUNK]
        order = np.argsort(owner, kind="stable").astype(np.uint32)  # by owner, then by place
        ends = np.searchsorted(owner[order], np.arange(1, tasks + 2, dtype=np.uint8 if tasks < 255 else int))
        for task, digest in found.items():
            own = order[ends[task - 1] : ends[task]]
            digest.update(own + np.uint32(first % 2**32))
            digest.update(np.ascontiguousarray(values[first : first + CHUNK][own]))
    return {task: digest.hexdigest() for task, digest in found.items()}
