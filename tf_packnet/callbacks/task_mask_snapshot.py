"""The end of a task: commit it and save which weights belong to which task."""

import os
import warnings
from pathlib import Path

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.callbacks.prune_round_scheduler import SCHEDULER, SNAPSHOT, missing_rounds
from tf_packnet.errors import ArgumentError
from tf_packnet.system import files
from tf_packnet.system.archives import read_arrays
from tf_packnet.training.fit_checks import FitRequest

# Owner maps of four thousand million weights.
MAX_BYTES = 2**32


class TaskMaskSnapshot(keras.callbacks.Callback):
    """Commits the open task when `fit` ends, and saves the owner maps.

    From then on the task's logits are the same to the bit, whatever is trained later. `task_<k>.npz` holds one `uint8`
    owner map a kernel under its path (`0` free, `k` owned by task `k`), written atomically.

    Place it after all callbacks that change weights. A `fit` that ends with an exception commits nothing. One that
    stops before its last prune round commits nothing either, and warns: the task would keep more than its share of the
    network. The task then stays open.

    Args:
        directory: Where to write the maps; None writes nothing.
        commit_incomplete: Whether to commit a task whose prune rounds did not all run.
    """

    def __init__(self, directory: str | os.PathLike | None = None, commit_incomplete: bool = False):
        super().__init__()
        self.directory = None if directory is None else Path(directory)
        self.commit_incomplete = commit_incomplete

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raises ArgumentError if a callback after it would change the weights that it commits."""
        for other in request.callbacks[request.callbacks.index(self) + 1 :]:
            if isinstance(other, TaskMaskSnapshot):
                raise ArgumentError("callbacks", "one TaskMaskSnapshot a fit", "several")
            if getattr(other, "restore_best_weights", False) or isinstance(other, keras.callbacks.SwapEMAWeights):
                name = type(other).__name__
                raise ArgumentError("callbacks", f"TaskMaskSnapshot last: {name} changes the weights at the end", name)

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to commit: call begin_task before this fit")
        self.params[SNAPSHOT] = self
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)

    def on_train_end(self, logs: dict | None = None) -> None:
        scheduler = self.params.get(SCHEDULER)
        if scheduler is not None:
            scheduler.settle()
        if lifecycle.records(self.model).rounds_due and not self.commit_incomplete:
            advice = "or commit it as it is with TaskMaskSnapshot(commit_incomplete=True) or packed.commit_task()"
            warnings.warn(f"{missing_rounds(self.model)} {advice}", stacklevel=2)
            return
        task = lifecycle.commit_task(self.model)
        if self.directory is not None:
            save_owner_maps(self.directory / f"task_{task}.npz", lifecycle.owner_maps(self.model))


def save_owner_maps(path: str | os.PathLike, maps: dict[str, np.ndarray]) -> None:
    """Writes owner maps as one compressed `.npz`, atomically."""
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, **maps)


def load_owner_maps(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads owner maps that `TaskMaskSnapshot` wrote: `{weight path: uint8 array}`.

    The file may come from anywhere: it is read without running what it holds, or allocating what it only claims.

    Raises:
        ArgumentError: If it holds anything else than `uint8` arrays, more than 4 GiB of them, or is damaged.
        OSError: If there is no such file.
    """
    return read_arrays(path, "path", "uint8", MAX_BYTES)
