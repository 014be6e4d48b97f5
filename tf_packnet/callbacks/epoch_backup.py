"""Saves the state of a `fit` after every epoch, so that it can resume as if it had never been interrupted."""

import copy
import functools
import inspect
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.system import files
from tf_packnet.system.archives import BROKEN, read_state
from tf_packnet.system.collectives import has_workers
from tf_packnet.system.keras_internals import resume_at
from tf_packnet.training import fleet, training_state
from tf_packnet.training.fit_checks import FitRequest

_META = "meta"
# Minimum seconds between two backups of a run in a fleet: the other runs wait for each backup.
_SECONDS_IN_FLEET = 10.0


class EpochBackup(keras.callbacks.Callback):
    """Saves the state of a `fit` after every epoch; the same `fit`, in this or another process, resumes from it.

    A backup contains the weights, the owner maps, the optimizer with all its slots, the random generators of the
    layers, the prune rounds done, the history, and the state of the callbacks before it, including EarlyStopping's best
    weights. With `tp.tasks.ResidentBatches` or `StreamedBatches`, whose order depends only on seed and epoch, the
    result of a resumed `fit` is bit-identical to that of an uninterrupted one. The same holds for arrays with
    `shuffle=False`. A data set that shuffles itself restarts its order.

    ```python
    packed.begin_task("cats_dogs")
    packed.fit(batches, epochs=72, callbacks=[tp.EpochBackup("backup/cats_dogs-train")])
    ```

    The backup of an epoch is written while the next epoch runs, and replaces an older one atomically. So a crash loses
    the current epoch and at most the one before; for runs that train side by side, it loses the epochs of about ten
    seconds. Every array has a checksum, and a damaged backup is not used.

    Place it after all callbacks except `TaskMaskSnapshot`. The state of a callback consists of its public attributes
    that have changed since the `fit` began, except its arguments: numbers, strings, lists and dicts of these, and lists
    of weights. If a callback has a method `resumed(history)`, this is called with the logs of the epochs before the
    interruption.

    Args:
        path: Prefix of the backup files, `<path>.<epochs>.npz`. Use a different prefix for each `fit`.
        delete_at_end: Whether to delete the backup when the `fit` ends. If False it stays until `remove` is called, for
            instance after the results are saved.
        on_damaged: Called with the path of every damaged backup; the default is to warn.

    Attributes:
        history: The logs of all epochs by name, including those before the interruption.
    """

    supports_workers = False  # whether several workers resume from the same epoch

    @checked
    def __init__(
        self,
        path: str | os.PathLike,
        delete_at_end: bool = True,
        on_damaged: Callable[[Path], None] | None = None,
    ):
        super().__init__()
        self.path = Path(path)
        if not self.path.name:
            raise ArgumentError("path", "a path with a name for the backup files", os.fspath(path))
        self.delete_at_end = delete_at_end
        self.history: dict[str, list[float]] = {}
        self._on_damaged = on_damaged or _warn_of_damage
        self._request: FitRequest | None = None
        self._callbacks_before: Sequence[keras.callbacks.Callback] = ()
        self._spare = self.path.with_name(f".{self.path.name}.spare{files.UNFINISHED}")
        self._unwritten: tuple[int, Mapping[str, np.ndarray]] | None = None
        self._lock = threading.Lock()
        self._write_error: Exception | None = None
        self._backup: dict[str, np.ndarray] | None = None
        self._state_parts: training_state.Parts | None = None
        self._copies: dict[str, np.ndarray] = {}

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if the `fit` could not be resumed with the same result.

        A callback after this one that acts on epochs would be missing from the backup. When one of several workers
        ends, their
        backups may be of different epochs.
        """
        if has_workers(model.distribute_strategy) and not self.supports_workers:
            name = type(self).__name__
            raise ArgumentError("callbacks", f"no {name} with several workers (use the command with --hosts)", name)
        position = request.callbacks.index(self)
        self._request = request
        self._callbacks_before = request.callbacks[:position]
        for other in request.callbacks[position + 1 :]:
            if any(_acts_on(other, event) for event in ("on_epoch_begin", "on_epoch_end")):
                name = type(other).__name__
                raise ArgumentError("callbacks", f"{name} before EpochBackup, which saves its state", name)

    def initial_epoch(self, model: keras.Model) -> int:
        """Read the backup, if there is one, and return the epoch (0-based) from which this `fit` resumes.

        Raises:
            ArgumentError: If the backup is from another `fit`.
        """
        self.wait()
        self._backup = self._read()
        self.history = {}
        if self._backup is None:
            return self._fit_request().initial_epoch
        meta = json.loads(str(self._backup[_META]))
        identity = self._identity(model)
        if meta["fit"] != identity:
            expected = f"a path for this fit only ({identity}); the backup there is from another fit ({meta['fit']})"
            raise ArgumentError("path", expected, str(self.path))
        tasks = list(lifecycle.records(model).names)
        if meta.get("tasks", tasks) != tasks:  # renamed or forgotten since; resuming would undo that
            expected = f"a path for a pack with the tasks {tasks}; the backup there is from one with {meta['tasks']}"
            raise ArgumentError("path", expected, str(self.path))
        missing = [name for name in meta["callbacks"] if name not in _by_name(self._callbacks_before)]
        if missing:
            expected = f"a path for this fit only; the backup there is from a fit with the callback {missing[0]}"
            raise ArgumentError("path", expected, str(self.path))
        self.history = meta["history"]
        self._first_epoch = self._fit_request().epochs if meta["stopped"] else meta["epoch"] + 1
        return self._first_epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._fit_request()
        self._unwritten, self._write_error, self._state_parts, self._copies = None, None, None, {}
        self._initial_state = _initial_state(self._callbacks_before)
        self._last_state = time.monotonic()
        if self._backup is None:
            return
        arrays, self._backup = self._backup, None
        meta = json.loads(str(arrays.pop(_META)))
        _restore_state(self._callbacks_before, meta, arrays)
        try:
            training_state.restore(self.model, arrays)
        except ValueError as error:
            expected = "a path for this model only; the backup there is from another model"
            raise ArgumentError("path", expected, str(self.path)) from error
        resume_at(self.model, self._first_epoch)  # tells Keras that the fit resumes, like BackupAndRestore
        for callback in self._callbacks_before:
            if hasattr(callback, "resumed"):
                callback.resumed(self.history)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        now = time.monotonic()
        if fleet.of_thread() is not None and now - self._last_state < _SECONDS_IN_FLEET:
            return
        self._last_state = now
        changed, arrays = _changed_state(self._callbacks_before, self._initial_state)
        meta = {
            **changed,
            "fit": self._identity(self.model),
            "tasks": lifecycle.records(self.model).names,
            "epoch": epoch,
            "stopped": bool(self.model.stop_training),
            "history": self.history,
        }
        text = json.dumps(meta, default=_plain_number)
        self._state_parts = self._state_parts or training_state.parts(self.model)
        state = {**training_state.capture(self.model, self._state_parts), **arrays, _META: np.array(text)}
        self.wait()
        self._unwritten = epoch + 1, {name: self._copy(name, values) for name, values in state.items()}

    def _copy(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return a copy of `values`, in the memory of the previous epoch's copy.

        Keeping `values` themselves would cost more: the next step would have to allocate new memory for every variable
        that it changes, which can take 0.3 s for 105 MB.
        """
        copy = self._copies.get(name)
        if copy is None or (copy.shape, copy.dtype) != (values.shape, values.dtype):
            copy = self._copies[name] = np.empty_like(values)
        np.copyto(copy, values)
        return copy

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Not at the end of the epoch: until the next epoch runs in TensorFlow, two threads would compete for the GIL.
        if self._unwritten is not None:
            threading.Thread(target=self._write).start()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.delete_at_end:
            self.remove()  # without writing the last epoch
        else:
            self.wait()
        self._copies = {}
        self._spare.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the backup, once the result of the `fit` is saved elsewhere."""
        with self._lock:
            for _, path in self._backups():
                path.unlink(missing_ok=True)
            self._unwritten = None  # last: if a signal arrives earlier, `fit` still writes it

    def _identity(self, model: keras.Model) -> str:
        """Identify a `fit`. Backups contain it: do not change it."""
        request = self._fit_request()
        begin = f" from epoch {request.initial_epoch}" if request.initial_epoch else ""
        return f"task {lifecycle.committed_tasks(model) + 1}, {request.epochs} epochs{begin}"

    def _fit_request(self) -> FitRequest:
        if self._request is None:
            raise RuntimeError("EpochBackup works only in the `fit` of a PackedModel, from tp.pack(model)")
        return self._request

    def wait(self) -> None:
        """Wait until the last backup is on disk.

        Raises:
            OSError: If it could not be written.
        """
        self._write()  # in case no thread did: a signal may have arrived while the thread was starting
        if self._write_error is not None:
            error, self._write_error = self._write_error, None
            raise error

    def _write(self) -> None:
        with self._lock:
            if self._unwritten is None:
                return
            epochs, state = self._unwritten
            try:
                earlier = [path for epoch, path in self._backups() if epoch != epochs]
                with files.rewriting(f"{self.path}.{epochs}.npz", self._spare) as file:
                    np.savez(file, **state)  # type: ignore[arg-type]  # no array is named like a parameter
                for path in earlier:
                    os.replace(path, self._spare)
            except Exception as error:  # such as a full disk; `wait` raises it
                self._write_error = error
            self._unwritten = None

    def _read(self) -> dict[str, np.ndarray] | None:
        """Return the last undamaged backup, None without one. Remove damaged backups and unfinished files."""
        files.remove_unfinished(self.path)
        for _, path in sorted(self._backups(), reverse=True):
            try:
                with files.open_file(path):  # no link, pipe or folder
                    return read_state(path)  # reading an array verifies its checksum
            except BROKEN:
                self._on_damaged(path)
            files.remove(path)
        return None

    def _backups(self) -> list[tuple[int, Path]]:
        """Return all backups on disk, each as its number of epochs and its path."""
        pattern = re.compile(re.escape(self.path.name) + r"\.(\d+)\.npz")
        names = os.listdir(self.path.parent) if self.path.parent.is_dir() else []
        return [(int(match[1]), self.path.parent / name) for name in names if (match := pattern.fullmatch(name))]


def _acts_on(callback: keras.callbacks.Callback, event: str) -> bool:
    return getattr(type(callback), event, None) is not getattr(keras.callbacks.Callback, event)


def _warn_of_damage(path: Path) -> None:
    warnings.warn(f"{path} is damaged: the fit resumes from an earlier epoch", stacklevel=2)


_CallbackState = dict[str, dict[str, Any]]


def _initial_state(callbacks: Sequence[keras.callbacks.Callback]) -> _CallbackState:
    """Return a copy of the plain state of each callback."""
    return {name: copy.deepcopy(_plain_state(callback)) for name, callback in _by_name(callbacks).items()}


def _changed_state(
    callbacks: Sequence[keras.callbacks.Callback], initial: _CallbackState
) -> tuple[dict[str, _CallbackState], dict[str, np.ndarray]]:
    """Return the state of callbacks that has changed since the `fit` began: plain values, and lists of weights.

    Args:
        callbacks: The callbacks.
        initial: Their `_initial_state`.

    Returns:
        Values for JSON, and arrays by name, for `_restore_state`.
    """
    plain, weights, arrays = {}, {}, {}
    for name, callback in _by_name(callbacks).items():
        values = {
            key: value for key, value in _plain_state(callback).items() if initial[name].get(key, initial) != value
        }
        lists = {key: value for key, value in _public(callback).items() if _is_weights(value)}
        if values or lists:
            plain[name] = values
            weights[name] = {key: len(value) for key, value in lists.items()}
        for key, value in lists.items():
            arrays.update({f"{name}/{key}/{i}": np.array(array) for i, array in enumerate(value)})
    return {"callbacks": plain, "weights": weights}, arrays


def _restore_state(
    callbacks: Sequence[keras.callbacks.Callback], values: Mapping[str, _CallbackState], arrays: dict[str, np.ndarray]
) -> None:
    """Restore what `_changed_state` returned, and remove the arrays of the callbacks from `arrays`."""
    by_name = _by_name(callbacks)
    for name, state in values["callbacks"].items():
        vars(by_name[name]).update(state)
    for name, lists in values["weights"].items():
        for attribute, count in lists.items():
            setattr(by_name[name], attribute, [arrays.pop(f"{name}/{attribute}/{i}") for i in range(count)])


def _by_name(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, keras.callbacks.Callback]:
    """Return the callbacks by class name, numbered if there are several of a class. Backups contain these names."""
    by_name: dict[str, keras.callbacks.Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        same = sum(each.partition(" ")[0] == name for each in by_name)
        by_name[name if same == 0 else f"{name} {same + 1}"] = callback
    return by_name


def _plain_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the public attributes of a callback with plain values, such as counters, best values and prune rounds."""
    return {name: value for name, value in _public(callback).items() if _is_plain(value)}


def _public(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the public attributes of a callback, except those that are its arguments."""
    arguments = _arguments(type(callback))  # type: ignore[arg-type]  # mypy: classes have no hash
    return {
        name: value
        for name, value in vars(callback).items()
        if not name.startswith("_") and name != "params" and name not in arguments
    }


@functools.cache  # used after every epoch
def _arguments(kind: type[keras.callbacks.Callback]) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def _is_plain(value: Any) -> bool:
    """Whether `value` can be saved as JSON without loss."""
    if isinstance(value, (bool, int, float, str, type(None), np.number, np.bool_)):
        return True
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())


def _is_weights(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value)


def _plain_number(value: np.generic) -> Any:
    return value.item()
