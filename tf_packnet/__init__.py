"""PackNet continual learning for Keras 3, with iterative pruning on a time budget.

```python
import tf_packnet as tp

packed = tp.pack(model)
packed.begin_task("first", num_classes=2)
```

Importing the package registers its layers and models with Keras, so that `keras.models.load_model` can load a saved
pack. Everything else is imported on first use.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tf_packnet.version import __version__

_HOME = {
    "pack": "packing",
    "plan": "planning",
    "sparsify": "sparsifying",
    "strip_pruning": "export",
    "grow": "growth",
    "PackedModel": "packed_model",
    "PruneRoundScheduler": "callbacks",
    "PruneStepScheduler": "callbacks",
    "EqualShare": "pruning.schedules",
    "Shares": "pruning.unequal_shares",
    "GradientMask": "callbacks",
    "RetrainingRate": "callbacks",
    "TimeBudget": "callbacks",
    "TaskMaskSnapshot": "callbacks",
    "EpochBackup": "callbacks",
    "StopWhenDiverged": "callbacks",
    "load_owner_maps": "callbacks",
    "export_task": "export",
    "compact_model": "export",
    "dense_model": "export",
    "save_pack": "packfile.saving",
    "load_pack": "packfile.loading",
    "load_task": "packfile.loading",
    "read_contents": "packfile",
    "export_model": "export",
    "export_pack": "export",
    "export_for_serving": "export",
    "begin_task": "lifecycle",
    "commit_task": "lifecycle",
    "select_task": "lifecycle",
    "owner_maps": "lifecycle",
    "free_fraction": "lifecycle",
    "ArgumentError": "errors",
    "DivergedError": "errors",
    "FreezeError": "errors",
    "PackFileError": "errors",
    "StepError": "errors",
}
_MODULES = ("approaches", "callbacks", "experiments", "export", "layers", "lifecycle", "packfile", "reporting", "tasks")

__all__ = [*_HOME, *_MODULES, "__version__"]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from tf_packnet import approaches as approaches
    from tf_packnet import callbacks as callbacks
    from tf_packnet import experiments as experiments
    from tf_packnet import export as export
    from tf_packnet import layers as layers
    from tf_packnet import lifecycle as lifecycle
    from tf_packnet import packfile as packfile
    from tf_packnet import reporting as reporting
    from tf_packnet import tasks as tasks
    from tf_packnet.callbacks import EpochBackup as EpochBackup
    from tf_packnet.callbacks import GradientMask as GradientMask
    from tf_packnet.callbacks import PruneRoundScheduler as PruneRoundScheduler
    from tf_packnet.callbacks import PruneStepScheduler as PruneStepScheduler
    from tf_packnet.callbacks import RetrainingRate as RetrainingRate
    from tf_packnet.callbacks import StopWhenDiverged as StopWhenDiverged
    from tf_packnet.callbacks import TaskMaskSnapshot as TaskMaskSnapshot
    from tf_packnet.callbacks import TimeBudget as TimeBudget
    from tf_packnet.callbacks import load_owner_maps as load_owner_maps
    from tf_packnet.errors import ArgumentError as ArgumentError
    from tf_packnet.errors import DivergedError as DivergedError
    from tf_packnet.errors import FreezeError as FreezeError
    from tf_packnet.errors import PackFileError as PackFileError
    from tf_packnet.errors import StepError as StepError
    from tf_packnet.export import compact_model as compact_model
    from tf_packnet.export import dense_model as dense_model
    from tf_packnet.export import export_for_serving as export_for_serving
    from tf_packnet.export import export_model as export_model
    from tf_packnet.export import export_pack as export_pack
    from tf_packnet.export import export_task as export_task
    from tf_packnet.export import strip_pruning as strip_pruning
    from tf_packnet.growth import grow as grow
    from tf_packnet.lifecycle import begin_task as begin_task
    from tf_packnet.lifecycle import commit_task as commit_task
    from tf_packnet.lifecycle import free_fraction as free_fraction
    from tf_packnet.lifecycle import owner_maps as owner_maps
    from tf_packnet.lifecycle import select_task as select_task
    from tf_packnet.packed_model import PackedModel as PackedModel
    from tf_packnet.packfile import read_contents as read_contents
    from tf_packnet.packfile.loading import load_pack as load_pack
    from tf_packnet.packfile.loading import load_task as load_task
    from tf_packnet.packfile.saving import save_pack as save_pack
    from tf_packnet.packing import pack as pack
    from tf_packnet.planning import plan as plan
    from tf_packnet.pruning.schedules import EqualShare as EqualShare
    from tf_packnet.pruning.unequal_shares import Shares as Shares
    from tf_packnet.sparsifying import sparsify as sparsify

else:

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(f"tf_packnet.{_HOME[name]}"), name)
        elif name in _MODULES:
            value = importlib.import_module(f"tf_packnet.{name}")
        else:
            raise AttributeError(f"module 'tf_packnet' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


# The command line reports --help and bad flags without importing TensorFlow: the scripts in launch/ set
# TF_PACKNET_LAZY; the installed command is recognized by its name.
_COMMAND = os.path.splitext(os.path.basename((getattr(sys, "argv", None) or [""])[0]))[0] == "tf-packnet"
if "TF_PACKNET_LAZY" not in os.environ and not _COMMAND:
    importlib.import_module("tf_packnet.system.quiet").import_keras()
    importlib.import_module("tf_packnet.packed_model")
    importlib.import_module("tf_packnet.export.compaction")
