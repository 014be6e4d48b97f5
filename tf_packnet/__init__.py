"""PackNet continual learning for Keras 3, with iterative pruning on a time budget.

```python
import tf_packnet as tp

packed = tp.pack(model)
packed.begin_task("first", num_classes=2)
```

Importing the package makes its layers and models known to Keras, so that `keras.models.load_model` reads a saved pack;
all else is imported on first use.
"""

import importlib
import os
import sys
from typing import Any

from tf_packnet.version import __version__

_HOME = {
    "pack": "packing",
    "plan": "planning",
    "PackedModel": "packed_model",
    "PruneRoundScheduler": "callbacks",
    "EqualShare": "pruning.schedules",
    "GradientMask": "callbacks",
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
}
_MODULES = ("approaches", "callbacks", "experiments", "export", "layers", "lifecycle", "packfile", "reporting", "tasks")

__all__ = [*_HOME, *_MODULES, "__version__"]


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
