"""After every epoch, all that a `fit` needs to go on as if it had never been interrupted."""

import copy
import functools
import inspect
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.system import files
from tf_packnet.system.archives import BROKEN
from tf_packnet.training import training_state
from tf_packnet.training.fit_checks import FitRequest

META = "meta"


class EpochBackup(keras.callbacks.Callback):
    """Puts down the state of a `fit` after every epoch; the same `fit` in another process goes on from there.

    What goes on: weights, owner maps, the optimizer with all its slots, the random generators of the layers, the prune
    rounds that were done, the history, and what the callbacks before it remember, EarlyStopping's best weights
    included. With `tp.tasks.ResidentBatches` or `StreamedBatches`, whose order depends on the seed and the epoch alone,
    the finished `fit` has the same bits as one that was never interrupted. So it has with arrays and
    `shuffle=False`; a data set that shuffles itself begins its order again.

    ```python
    packed.begin_task("cats_dogs")
    packed.fit(batches, epochs=72, callbacks=[tp.EpochBackup("backup/cats_dogs-day")])
    ```

    While an epoch is computed the one before is written, beside the last one and over the one before that, synced and
    renamed: a crash, whenever it comes, costs the epoch that it falls into and at most the one before. Every array of a
    backup has its checksum: one that is damaged is not used.

    Place it after all callbacks but `TaskMaskSnapshot`. What these remember is what changed of their public attributes
    since the `fit` began, their arguments left out: numbers, strings, lists and dicts of them, lists of weights. One
    that has a method `resumed(history)` is called with the logs of the epochs that were done before.

    Args:
        path: Where the backup lies: `<path>.<epochs>.npz`. A name for this one `fit`, a day or a night.
        delete_at_end: Whether the backup goes when the `fit` ends. False leaves it until `remove` is called, when what
            the `fit` came to was saved.
        on_damaged: Called with the path of every backup that is damaged; default a warning on the log.

    Attributes:
        history: The logs of all epochs by name, those before the interruption included.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        delete_at_end: bool = True,
        on_damaged: Callable[[Path], None] | None = None,
    ):
        super().__init__()
        self.path = Path(path)
        self.delete_at_end = delete_at_end
        self.history: dict[str, list[float]] = {}
        self._on_damaged = on_damaged or _warn
        self._request: FitRequest | None = None
        self._beside: Sequence[keras.callbacks.Callback] | None = None
        self._spare = self.path.with_name(f".{self.path.name}.spare{files.UNFINISHED}")
        self._unwritten: tuple[int, Mapping[str, np.ndarray]] | None = None
        self._lock = threading.Lock()
        self._failed: Exception | None = None
        self._found: dict[str, np.ndarray] | None = None
        self._parts: training_state.Parts | None = None
        self._copies: dict[str, np.ndarray] = {}

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raises ArgumentError if a callback after it acts on epochs: the backup would not know what it did."""
        place = request.callbacks.index(self)
        self._request = request
        self._beside = request.callbacks[:place]
        for other in request.callbacks[place + 1 :]:
            if any(_acts_on(other, event) for event in ("on_epoch_begin", "on_epoch_end")):
                name = type(other).__name__
                raise ArgumentError("callbacks", f"{name} before EpochBackup, which keeps what it remembers", name)

    def initial_epoch(self, model: keras.Model) -> int:
        """The epoch from which this `fit` goes on, since those before were done, in this process or another one.

        Raises:
            ArgumentError: If the backup is that of another `fit`.
        """
        self.wait()
        self._found = self._read()
        self.history = {}
        if self._found is None:
            return self._request.initial_epoch
        meta = json.loads(str(self._found[META]))
        ours = self._identity(model)
        if meta["fit"] != ours:
            expected = f"a path for this fit alone ({ours}); the backup there is of another one ({meta['fit']})"
            raise ArgumentError("path", expected, str(self.path))
        missing = [name for name in meta["callbacks"] if name not in _by_name(self._beside)]
        if missing:
            expected = f"a path for this fit alone; the one that left its backup there had a {missing[0]}"
            raise ArgumentError("path", expected, str(self.path))
        self.history = meta["history"]
        self._goes_on_at = self._request.epochs if meta["stopped"] else meta["epoch"] + 1
        return self._goes_on_at

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._beside is None:
            raise RuntimeError("EpochBackup needs to be asked where to begin: it works in the `fit` of a packed model")
        self._unwritten, self._failed, self._parts, self._copies = None, None, None, {}
        self._fresh = _fresh_state(self._beside)
        if self._found is None:
            return
        found, self._found = self._found, None
        meta = json.loads(str(found.pop(META)))
        _restore_state(self._beside, meta, found)
        try:
            training_state.restore(self.model, found)
        except ValueError as error:
            expected = "a path for this model alone; the backup there is of another one"
            raise ArgumentError("path", expected, str(self.path)) from error
        self.model._initial_epoch = self._goes_on_at  # as BackupAndRestore says to Keras that a fit resumes
        for callback in self._beside:
            if hasattr(callback, "resumed"):
                callback.resumed(self.history)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        meta, arrays = _changed_state(self._beside, self._fresh)
        meta |= {
            "fit": self._identity(self.model),
            "epoch": epoch,
            "stopped": bool(self.model.stop_training),
            "history": self.history,
        }
        text = json.dumps(meta, default=_plain_number)
        self._parts = self._parts or training_state.parts(self.model)
        state = {**training_state.capture(self.model, self._parts), **arrays, META: np.array(text)}
        self.wait()
        self._unwritten = epoch + 1, {name: self._copy(name, values) for name, values in state.items()}

    def _copy(self, name: str, values: np.ndarray) -> np.ndarray:
        """`values` in the memory of the epoch before.

        Left as they are they would cost more: the next step then needs other memory for whatever it changes, which the
        system may have to find first, 0.3 s for 105 MB.
        """
        copy = self._copies.get(name)
        if copy is None or (copy.shape, copy.dtype) != (values.shape, values.dtype):
            copy = self._copies[name] = np.empty_like(values)
        np.copyto(copy, values)
        return copy

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Not before: until the next epoch is computed, Python would go to and fro between the two threads.
        if self._unwritten is not None:
            threading.Thread(target=self._write).start()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.delete_at_end:
            self.remove()  # the last epoch need not be written for that
        else:
            self.wait()
        self._copies = {}
        self._spare.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the backup: what the `fit` came to lies elsewhere by now."""
        with self._lock:
            for _, path in self._backups():
                path.unlink(missing_ok=True)
            self._unwritten = None  # after that: if a signal comes before, `fit` still writes it

    def _identity(self, model: keras.Model) -> str:
        first = self._request.initial_epoch
        begin = f" from epoch {first}" if first else ""
        return f"task {lifecycle.committed_tasks(model) + 1}, {self._request.epochs} epochs{begin}"

    def wait(self) -> None:
        """Waits until what was put down last is on disk.

        Raises:
            OSError: If it could not be written.
        """
        self._write()  # unless a thread does, or has: a signal may have come while that was being started
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _write(self) -> None:
        with self._lock:
            if self._unwritten is None:
                return
            epochs, state = self._unwritten
            try:
                earlier = [path for epoch, path in self._backups() if epoch != epochs]
                with files.rewriting(f"{self.path}.{epochs}.npz", self._spare) as file:
                    np.savez(file, **state)
                for path in earlier:
                    os.replace(path, self._spare)
            except Exception as error:  # a full disk, say: the next epoch's end tells it
                self._failed = error
            self._unwritten = None

    def _read(self) -> dict[str, np.ndarray] | None:
        """The last backup that is sound; what a killed process left beside it is removed."""
        files.remove_unfinished(self.path)
        for _, path in sorted(self._backups(), reverse=True):
            try:
                with np.load(path, allow_pickle=False) as archive:
                    return dict(archive)  # every array with its checksum
            except BROKEN:
                self._on_damaged(path)
            path.unlink(missing_ok=True)
        return None

    def _backups(self) -> list[tuple[int, Path]]:
        """Every backup that lies there, with its number of epochs."""
        pattern = re.compile(re.escape(self.path.name) + r"\.(\d+)\.npz")
        names = os.listdir(self.path.parent) if self.path.parent.is_dir() else []
        return [(int(match[1]), self.path.parent / name) for name in names if (match := pattern.fullmatch(name))]


def _acts_on(callback: keras.callbacks.Callback, event: str) -> bool:
    return getattr(type(callback), event, None) is not getattr(keras.callbacks.Callback, event)


def _warn(path: Path) -> None:
    warnings.warn(f"{path} is damaged: the fit goes on from an earlier epoch", stacklevel=2)


_CallbackState = dict[str, dict[str, Any]]


def _fresh_state(callbacks: Sequence[keras.callbacks.Callback]) -> _CallbackState:
    """What each has when a `fit` begins, a copy."""
    return {name: copy.deepcopy(_memory(callback)) for name, callback in _by_name(callbacks).items()}


def _changed_state(
    callbacks: Sequence[keras.callbacks.Callback], fresh: _CallbackState
) -> tuple[dict[str, _CallbackState], dict[str, np.ndarray]]:
    """What they remember that they had not when the `fit` began: plain values, and lists of weights.

    Returns:
        Values for JSON, and arrays by name: what `remind` takes.
    """
    plain, weights, arrays = {}, {}, {}
    for name, callback in _by_name(callbacks).items():
        values = {key: value for key, value in _memory(callback).items() if fresh[name].get(key, fresh) != value}
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
    """Gives them back what `changed` found, and takes their arrays out of `arrays`."""
    beside = _by_name(callbacks)
    for name, memory in values["callbacks"].items():
        vars(beside[name]).update(memory)
    for name, lists in values["weights"].items():
        for attribute, count in lists.items():
            setattr(beside[name], attribute, [arrays.pop(f"{name}/{attribute}/{i}") for i in range(count)])


def _by_name(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, keras.callbacks.Callback]:
    """Each by its class, numbered where there are several: the same in every process that does this `fit`."""
    found: dict[str, keras.callbacks.Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        same = sum(each.partition(" ")[0] == name for each in found)
        found[name if same == 0 else f"{name} {same + 1}"] = callback
    return found


def _memory(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What a callback remembers in plain values: counters, best values, prune rounds. Its private parts it can make."""
    return {name: value for name, value in _public(callback).items() if _is_plain(value)}


def _public(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """The public attributes of a callback, without its settings: these it was given."""
    settings = _settings(type(callback))
    return {
        name: value
        for name, value in vars(callback).items()
        if not name.startswith("_") and name != "params" and name not in settings
    }


@functools.cache  # looked up after every epoch
def _settings(kind: type[keras.callbacks.Callback]) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def _is_plain(value: Any) -> bool:
    """Whether JSON gives `value` back as it is."""
    if isinstance(value, (bool, int, float, str, type(None), np.number, np.bool_)):
        return True
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())


def _is_weights(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value)


def _plain_number(value: np.generic) -> Any:
    return value.item()
