"""Keras callbacks that prune, retrain, commit and back up a task.

A `fit` that retrains takes `PruneRoundScheduler`, `GradientMask` and, last, `TaskMaskSnapshot`.
"""

import warnings
from typing import TYPE_CHECKING, Any

from tf_packnet.callbacks.epoch_backup import EpochBackup
from tf_packnet.callbacks.epoch_log import EpochLog
from tf_packnet.callbacks.gradient_mask import GradientMask
from tf_packnet.callbacks.prune_round_scheduler import PruneRoundScheduler
from tf_packnet.callbacks.prune_step_scheduler import PruneStepScheduler
from tf_packnet.callbacks.retraining_rate import RetrainingRate
from tf_packnet.callbacks.stop_when_diverged import StopWhenDiverged, StopWhenInterrupted
from tf_packnet.callbacks.task_mask_snapshot import TaskMaskSnapshot, load_owner_maps, save_owner_maps
from tf_packnet.callbacks.time_budget import TimeBudget
from tf_packnet.pruning import schedules

__all__ = [
    "EpochBackup",
    "EpochLog",
    "GradientMask",
    "PruneRoundScheduler",
    "PruneStepScheduler",
    "RetrainingRate",
    "StopWhenDiverged",
    "StopWhenInterrupted",
    "TaskMaskSnapshot",
    "TimeBudget",
    "load_owner_maps",
    "save_owner_maps",
]

# Names that moved to `tf_packnet.pruning.schedules`, each with its replacement.
_MOVED = {"EqualShare": "tp.EqualShare", "GrowingShare": "tf_packnet.pruning.schedules.GrowingShare"}


if not TYPE_CHECKING:  # so that type checkers report unknown names

    def __getattr__(name: str) -> Any:
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        replacement = _MOVED[name]
        warnings.warn(f"tf_packnet.callbacks.{name} is deprecated: use {replacement}", DeprecationWarning, stacklevel=2)
        return getattr(schedules, name)
