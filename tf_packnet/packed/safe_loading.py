"""Loads weights into a pack completely or not at all, so that no committed task, name or prune round is lost."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, FreezeError, first_line
from tf_packnet.layers.base import CALLER_COMPARES_TASKS
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.system.keras_internals import KerasSaveable

INSTEAD = "use save and keras.models.load_model, save_weights and load_weights, or tp.save_pack and tp.load_pack"


@contextlib.contextmanager
def keeping_tasks(model: keras.Model, argument: str, value: Any) -> Iterator[None]:
    """Restore `model` unless the block loads the same or a later state of the same tasks.

    Args:
        model: A model with task-aware layers.
        argument: Name of the caller's argument, for error messages.
        value: Value of that argument, for error messages.

    Raises:
        ArgumentError: If the loaded state lacks committed tasks of `model` or prune rounds of the open task, or is
            incomplete.
        FreezeError: If the outputs or weights of a committed task differ from those at its commit.
        OSError: If a file cannot be read.
    """
    before = _Snapshot(model)
    token = CALLER_COMPARES_TASKS.set(True)
    try:
        yield
        expected = before.contradiction() or incompleteness(model)
    except (OSError, FreezeError):
        before.restore()
        raise
    except Exception as error:  # raised by Keras if the weights do not fit
        before.restore()
        invalid = [line.strip() for line in str(error).splitlines() if "Invalid `" in line]
        reason = invalid[-1][:300] if invalid else first_line(error)
        raise ArgumentError(argument, f"the weights of a pack like this one ({reason})", value) from error
    finally:
        CALLER_COMPARES_TASKS.reset(token)
    if expected:
        before.restore()
        raise ArgumentError(argument, expected, value)


def incompleteness(model: keras.Model) -> str | None:
    """Return an error text if the variables of `model` were assigned without the rest of its state; otherwise None."""
    committed, selected = lifecycle.committed_tasks(model), lifecycle.selected_task(model)
    learning = selected > committed
    for weight in lifecycle.masked_weights(model).values():
        owner = weight.owner_map()
        owned_by_later_tasks = ownership.visible(owner, ownership.MAX_TASKS) & ~ownership.visible(owner, committed)
        if bool(view(weight.learning)) != learning or np.any(owned_by_later_tasks):
            return f"a complete pack: variables alone do not contain the tasks ({INSTEAD})"
    return None


def check_complete(model: keras.Model) -> None:
    """Raise ArgumentError if the variables of `model` were assigned without the rest of its state.

    Checks one weight first, which is cheap and normally enough. The check runs before every validation, where finding
    the paths of all weights would take half of the time.
    """
    weights = (weight for layer in lifecycle.task_layers(model) for weight in layer.masked_weights)
    weight = next(weights, None) or next(iter(lifecycle.masked_weights(model).values()))  # raises if there is none
    if bool(view(weight.learning)) != (lifecycle.selected_task(model) > lifecycle.committed_tasks(model)):
        expected = incompleteness(model)
        if expected:
            raise ArgumentError("model", expected, model.name)


def check_save_path(path: Any) -> None:
    """Raise ArgumentError for the legacy HDF5 format, which contains only variables."""
    if str(path).endswith((".h5", ".hdf5")):
        expected = f"a path that ends in .keras: HDF5 files do not contain tasks ({INSTEAD})"
        raise ArgumentError("filepath", expected, str(path))


def check_weights_path(path: Any) -> None:
    """Raise ArgumentError for weights in the legacy HDF5 format."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    if name.endswith((".h5", ".hdf5")) and not name.endswith(".weights.h5"):
        raise ArgumentError("filepath", f"a path that ends in .weights.h5 or .keras ({INSTEAD})", name)


class TaskCheck(KerasSaveable):
    """An object that Keras loads after the layers. It completes the task records and checks the committed tasks.

    Keras collects errors during loading, and then reports the `repr` of each object that failed. `__repr__` therefore
    raises the error of the check.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = weakref.ref(model)  # weak, because Keras would traverse an attribute back to the model
        self._error: FreezeError | None = None

    def _obj_type(self) -> str:
        return "Loss"  # Keras accepts only its own kinds of objects

    def save_own_variables(self, store: dict) -> None:
        """Save nothing (Keras's hook); the layers save everything."""

    def load_own_variables(self, store: dict) -> None:
        """Check the tasks after all layers are loaded (Keras's hook)."""
        self._error, model = None, self._model()
        layers = lifecycle.task_layers(model)
        complete = all(layer.was_loaded for layer in layers)
        for layer in layers:
            layer.was_loaded = False
        if not complete:  # Keras reports the layers that failed
            return
        try:
            lifecycle.complete_records(model)
            lifecycle.check_tasks(model)
        except FreezeError as error:
            self._error = error
            raise

    def __repr__(self) -> str:
        if self._error is not None:
            raise self._error
        return "<TaskCheck>"


class _Snapshot:
    """A snapshot of a model and its optimizer. On CPU it takes no memory until their variables change."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._state = lifecycle.state(model)
        optimizer = getattr(model, "optimizer", None)
        self._optimizer = [(each, lifecycle.view_of(each)) for each in (optimizer.variables if optimizer else ())]
        self._committed = lifecycle.committed_checksums(model)
        self._names = list(lifecycle.records(model).names)
        self._open = lifecycle.has_open_task(model)
        self._candidates = {
            path: ownership.candidates(weight.owner_map()) for path, weight in lifecycle.masked_weights(model).items()
        }

    def contradiction(self) -> str | None:
        """Return what should have been loaded instead; None if the model still has everything in the snapshot."""
        model, before = self._model, len(self._committed)
        committed, names = lifecycle.committed_tasks(model), lifecycle.records(model).names
        if committed < before:
            return f"weights with the {before} committed tasks of this pack, not {committed}"
        if names[: len(self._names)] != self._names:
            return f"weights with the tasks {self._names} in this order, not {names}"
        now = lifecycle.committed_checksums(model)
        changed = [task for task, checksums in self._committed.items() if now[task] != checksums]
        if changed:
            name = self._names[changed[0] - 1]
            return f"weights in which the committed task {name!r} has the same values as in this pack"
        if self._open and committed == before:
            if not lifecycle.has_open_task(model):
                return "weights with an open task, as in this pack"
            unpruned = [
                path
                for path, weight in lifecycle.masked_weights(model).items()
                if np.any(ownership.candidates(weight.owner_map()) & ~self._candidates[path])
            ]
            if unpruned:
                return f"weights with all prune rounds of the open task; {unpruned[0]} has weights that were pruned"
        return None

    def restore(self) -> None:
        """Restore the model and its optimizer."""
        lifecycle.load_state(self._model, self._state)
        lifecycle.drop_compiled_functions(self._model)
        with lifecycle.strategy_scope(self._model):
            for variable, value in self._optimizer:
                variable.assign(value)


# Format of the config of packs. Increase it when earlier versions would read new files incorrectly.
# 1: task names are in the config. 2: task names, state and witnesses are saved with the weights.
FORMAT = 2


def checked_format(config: dict[str, Any]) -> dict[str, Any]:
    """Check the format in the config of a pack, and return the config without it.

    Raises:
        ArgumentError: If a newer version of this library has saved the pack.
    """
    config = dict(config)
    pack_format = config.pop("format", 1)  # the first version did not save it
    if pack_format != 1:  # the names are loaded with the weights
        config.pop("tasks", None)
    if type(pack_format) is not int or not 1 <= pack_format <= FORMAT:
        expected = f"1 to {FORMAT}: this pack was saved by a newer version of tf_packnet"
        raise ArgumentError("format", expected, pack_format)
    return config
