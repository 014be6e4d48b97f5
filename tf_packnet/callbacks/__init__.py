"""Keras callbacks that prune, retrain, commit and back up a task."""

from tf_packnet.callbacks.epoch_backup import EpochBackup
from tf_packnet.callbacks.epoch_log import EpochLog
from tf_packnet.callbacks.gradient_mask import GradientMask
from tf_packnet.callbacks.prune_round_scheduler import PruneRoundScheduler
from tf_packnet.callbacks.stop_when_diverged import StopWhenDiverged, StopWhenInterrupted
from tf_packnet.callbacks.task_mask_snapshot import TaskMaskSnapshot, load_owner_maps, save_owner_maps
from tf_packnet.pruning.schedules import EqualShare, GrowingShare

__all__ = [
    "EpochBackup",
    "EpochLog",
    "EqualShare",
    "GradientMask",
    "GrowingShare",
    "PruneRoundScheduler",
    "StopWhenDiverged",
    "StopWhenInterrupted",
    "TaskMaskSnapshot",
    "load_owner_maps",
    "save_owner_maps",
]
