"""Loading into a model with tasks: completely, or not at all. No committed task is lost, no name, no prune round."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, FreezeError
from tf_packnet.layers.base import CALLER_COMPARES_TASKS
from tf_packnet.layers.weights import view
from tf_packnet.pruning import ownership
from tf_packnet.system.keras_internals import KerasSaveable

INSTEAD = "use save and keras.models.load_model, save_weights and load_weights, or tp.save_pack and tp.load_pack"


@contextlib.contextmanager
def keeping_tasks(model: keras.Model, argument: str, value: Any) -> Iterator[None]:
    """Puts everything back as it was if what is loaded in the block is not a later state of the same tasks.

    Args:
        model: A model with task-aware layers.
        argument: Where the state comes from, for the message.
        value: What to show as received.

    Raises:
        ArgumentError: If the state has not all committed tasks of `model`, fewer prune rounds of the open one, or is
            not complete.
        FreezeError: If a committed task in it does not compute what it did when it was committed.
        OSError: If a file cannot be read.
    """
    before = _Snapshot(model)
    token = CALLER_COMPARES_TASKS.set(True)
    try:
        yield
        wrong = before.contradicted() or incomplete(model)
    except (OSError, FreezeError):
        before.restore()
        raise
    except Exception as error:  # whatever Keras raises at weights that do not fit
        before.restore()
        reason = next((line for line in reversed(str(error).splitlines()) if "Invalid `" in line), str(error))
        raise ArgumentError(argument, f"the weights of a pack like this one ({_first_line(reason)})", value) from error
    finally:
        CALLER_COMPARES_TASKS.reset(token)
    if wrong:
        before.restore()
        raise ArgumentError(argument, wrong, value)


def incomplete(model: keras.Model) -> str | None:
    """What `model` lacks if its variables were assigned without the rest of its state; None if it is whole."""
    committed, selected = lifecycle.committed_tasks(model), lifecycle.selected_task(model)
    learning = selected > committed
    for weight in lifecycle.masked_weights(model).values():
        owner = weight.owner_map()
        owned_by_later_tasks = ownership.visible(owner, ownership.MAX_TASKS) & ~ownership.visible(owner, committed)
        if bool(view(weight.learning)) != learning or np.any(owned_by_later_tasks):
            return f"a whole pack: variables alone do not hold its tasks ({INSTEAD})"
    return None


def check_whole(model: keras.Model) -> None:
    """Raises ArgumentError if `model` got its variables without the rest of its state; a glance at one of them."""
    weight = next(iter(lifecycle.masked_weights(model).values()))
    if bool(view(weight.learning)) != (lifecycle.selected_task(model) > lifecycle.committed_tasks(model)):
        wrong = incomplete(model)
        if wrong:
            raise ArgumentError("model", wrong, model.name)


def check_save_path(path: Any) -> None:
    """Raises ArgumentError for the legacy format, which holds variables alone."""
    if str(path).endswith((".h5", ".hdf5")):
        expected = f"a path that ends in .keras: HDF5 files do not hold tasks ({INSTEAD})"
        raise ArgumentError("filepath", expected, str(path))


def check_weights_path(path: Any) -> None:
    """Raises ArgumentError for weights of the legacy format."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    if name.endswith((".h5", ".hdf5")) and not name.endswith(".weights.h5"):
        raise ArgumentError("filepath", f"a path that ends in .weights.h5 or .keras ({INSTEAD})", name)


class TaskCheck(KerasSaveable):
    """Takes part in loading after the layers: completes the records of the tasks, and checks them.

    Keras collects what fails, and then reports it by its `repr`: this one raises the error itself.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = weakref.ref(model)  # Keras would follow an attribute, back to the model
        self._error: FreezeError | None = None

    def _obj_type(self) -> str:
        return "Loss"  # one of the kinds that Keras knows

    def save_own_variables(self, store: dict) -> None:
        """Keras's hook; the layers save everything."""

    def load_own_variables(self, store: dict) -> None:
        """Keras's hook."""
        self._error, model = None, self._model()
        layers = lifecycle.task_layers(model)
        complete = all(layer.was_loaded for layer in layers)
        for layer in layers:
            layer.was_loaded = False
        if not complete:  # Keras says which layers failed
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
    """The state of a model and of its optimizer. On CPU it takes no memory until that changes."""

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

    def contradicted(self) -> str | None:
        """What the model should have been loaded with instead; None if it has all that it had before."""
        model, before = self._model, len(self._committed)
        committed, names = lifecycle.committed_tasks(model), lifecycle.records(model).names
        if committed < before:
            return f"weights with the {before} committed tasks of this pack, not {committed}"
        if names[: len(self._names)] != self._names:
            return f"weights with the tasks {self._names}, in this order, not {names}"
        now = lifecycle.committed_checksums(model)
        changed = [task for task, checksums in self._committed.items() if now[task] != checksums]
        if changed:
            return f"weights in which the committed task {self._names[changed[0] - 1]!r} is as it is in this pack"
        if self._open and committed == before:
            if not lifecycle.has_open_task(model):
                return "weights in which a task is open, as in this pack"
            weights = lifecycle.masked_weights(model).items()
            more = [path for path, weight in weights if np.any(weight.owner_map()[~self._candidates[path]] == 255)]
            if more:
                return f"weights with all prune rounds that the open task has had, which {more[0]} does not have there"
        return None

    def restore(self) -> None:
        """Puts everything back."""
        lifecycle.load_state(self._model, self._state)
        lifecycle.drop_compiled_functions(self._model)
        with lifecycle.strategy_scope(self._model):
            for variable, value in self._optimizer:
                variable.assign(value)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["unknown"])[0][:300]


# To be raised when a pack is saved in a form that an earlier version would read wrongly.
# 2 since task names, state and witnesses are saved with the weights; packs of format 1 are read.
FORMAT = 2


def checked_format(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a pack's config without its `format`; packs of before there was one have none.

    Raises:
        ArgumentError: If a newer version of this library saved the pack.
    """
    config = dict(config)
    found = config.pop("format", 1)
    if found != 1:  # the names come with the weights: a config alone has no tasks
        config.pop("tasks", None)
    if type(found) is not int or not 1 <= found <= FORMAT:
        expected = f"1 to {FORMAT}, which this version reads: a newer tf_packnet saved this pack"
        raise ArgumentError("format", expected, found)
    return config
