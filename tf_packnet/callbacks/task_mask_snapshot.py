"""Commits the open task at the end of a `fit`, and saves owner maps to files."""

import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.callbacks.prune_round_scheduler import SCHEDULER, SNAPSHOT, missing_rounds
from tf_packnet.errors import ArgumentError
from tf_packnet.packed import task_inference
from tf_packnet.system import files
from tf_packnet.system.archives import read_arrays
from tf_packnet.training.fit_checks import FitRequest


class TaskMaskSnapshot(keras.callbacks.Callback):
    """Commits the open task when `fit` ends, and saves the owner maps.

    From then on, the logits of the task stay bit-identical, whatever is trained later. The file `task_<k>.npz` contains
    a `uint8` owner map for each kernel, by path: `0` is free, `k` is owned by task `k`. It is written atomically.

    Place it after all callbacks that change weights. A `fit` that ends with an exception commits nothing. A `fit` that
    ends before its last prune round does not commit either, because the task would keep more than its share of the
    network: it warns, and the task stays open.

    Args:
        directory: Directory for the files; None writes nothing.
        commit_incomplete: Whether to commit a task whose prune rounds did not all run.
        calibration: Validation inputs of the task. A few statistics of their outputs are recorded for `infer_task`.
            None records nothing.
    """

    @checked
    def __init__(
        self, directory: str | os.PathLike | None = None, commit_incomplete: bool = False, calibration: Any = None
    ):
        super().__init__()
        self.calibration = calibration
        self.directory = None if directory is None else Path(directory)
        self.commit_incomplete = commit_incomplete

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if a later callback would change the weights that this one commits."""
        for other in request.callbacks[request.callbacks.index(self) + 1 :]:
            if isinstance(other, TaskMaskSnapshot):
                raise ArgumentError("callbacks", "one TaskMaskSnapshot per fit", "several")
            if getattr(other, "restore_best_weights", False) or isinstance(other, keras.callbacks.SwapEMAWeights):
                name = type(other).__name__
                raise ArgumentError("callbacks", f"TaskMaskSnapshot last: {name} changes the weights at the end", name)

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to commit: call begin_task before this fit")
        if self.calibration is not None:
            task_inference.output_kind(self.model)  # raises now, not after the training
            task_inference.check_examples(self.model, "calibration", self.calibration)
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
        if self.calibration is not None:
            task_inference.calibrate(self.model, self.calibration)
        if self.directory is not None:
            save_owner_maps(self.directory / f"task_{task}.npz", lifecycle.owner_maps(self.model))


def save_owner_maps(path: str | os.PathLike, maps: dict[str, np.ndarray]) -> None:
    """Write owner maps, `{weight path: uint8 array}`, to a compressed `.npz` file, atomically."""
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, **maps)  # type: ignore[arg-type]  # no map is named like a parameter


@checked
def load_owner_maps(path: str | os.PathLike, *, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    """Read owner maps from a file that `TaskMaskSnapshot` wrote.

    Files from untrusted sources are safe to read: no code in them is executed, and no more memory is allocated than
    their contents take.

    Args:
        path: The `.npz` file.
        max_bytes: Limit in bytes on the size of all owner maps together. Default: 320 MB, or 4 times the size of the
            file if that is more.

    Returns:
        `{weight path: uint8 array}`.

    Raises:
        ArgumentError: If the file is damaged, or contains anything but `uint8` arrays of at most `max_bytes`.
        OSError: If there is no such file.
    """
    return read_arrays(path, "path", "uint8", max_bytes)
