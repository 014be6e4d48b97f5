"""The fields of `Config` about the data."""

from dataclasses import dataclass

from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.runs.options import Check, StageKey, fraction, integer, is_text, option, optional, path


@dataclass(frozen=True)
class DataOptions:
    """The settings that choose the data of a run."""

    dataset: str = option(
        "Data",
        "digits",
        Check(
            lambda name: bool(name) and is_text(name),
            "digits, the name of a TFDS image classification set, or a folder",
        ),
        StageKey.COVERED_BY_DATA,
        "digits (embedded, no network needed); a TFDS image classification set such as mnist or cifar10; or a "
        "folder of your own such as ./data, which contains one folder per task, with one folder of images per "
        "class.",
    )
    data_dir: str | None = option(
        "Data",
        None,
        path(),
        StageKey.NO_EFFECT,
        "Where TFDS keeps its data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
        sweepable=False,
    )
    max_bytes: int | None = option(
        "Data",
        None,
        optional(integer(1)),
        StageKey.NO_EFFECT,
        "Most memory in bytes that reading the images of a task's folder may take. Default: 320 MB, or 64 times the "
        "size of the image files if that is more.",
        sweepable=False,
    )
    classes_per_task: int = option(
        "Data",
        2,
        integer(2),
        StageKey.COVERED_BY_DATA,
        "Classes per task, in the data set's order.",
    )
    num_tasks: int | None = option(
        "Data",
        None,
        optional(integer(1, MAX_TASKS, f"1 to {MAX_TASKS} tasks (owner maps are uint8)")),
        StageKey.COVERED_BY_DATA,
        "T, the number of tasks. Default: as many as the data set's classes allow.",
    )
    validation_fraction: float = option(
        "Data",
        0.1,
        fraction(),
        StageKey.COVERED_BY_DATA,
        "Fraction of the training examples held out for validation. The test examples are used only to report "
        "accuracy.",
    )
