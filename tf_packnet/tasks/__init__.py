"""Loads tasks: data sets split into a stream of classification problems, or your own data."""

from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.tasks.datasets import load
from tf_packnet.tasks.folders import from_folder, from_folders
from tf_packnet.tasks.own_data import from_arrays, from_dataset
from tf_packnet.tasks.scenarios import vary
from tf_packnet.tasks.splitting import split_into_tasks
from tf_packnet.tasks.stream import Split, Task, TaskStream
from tf_packnet.tasks.tables import Columns

__all__ = [
    "Columns",
    "ResidentBatches",
    "Split",
    "StreamedBatches",
    "Task",
    "TaskStream",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_folders",
    "load",
    "split_into_tasks",
    "vary",
]
