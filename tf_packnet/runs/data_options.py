"""The fields of `Config` about the data."""

from dataclasses import dataclass

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.runs.options import Check, StageKey, fraction, integer, is_text, one_of, option, optional, path
from tf_packnet.tasks.orders import NATURAL, is_order
from tf_packnet.tasks.scenarios import SCENARIOS, SPLIT

_ORDER = Check(
    lambda order: is_text(order) and is_order(order),
    "natural, shuffled, or different names or numbers, separated by commas",
)


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
        "Classes per task, in the order of --class_order.",
    )
    num_tasks: int | None = option(
        "Data",
        None,
        optional(integer(1, MAX_TASKS, f"1 to {MAX_TASKS} tasks (owner maps are uint8)")),
        StageKey.COVERED_BY_DATA,
        "T, the number of tasks. Default: as many as the data set's classes allow; 10 with --scenario=permuted and "
        "rotated.",
    )
    scenario: str = option(
        "Data",
        SPLIT,
        one_of(SCENARIOS),
        StageKey.COVERED_BY_DATA,
        "each task has classes of its own, or all tasks have all classes, with the pixels permuted or rotated by an "
        "angle, in another way in each task after the first. --seed draws permutations and angles.",
        neutral=SPLIT,
    )
    class_order: str = option(
        "Data",
        NATURAL,
        _ORDER,
        StageKey.COVERED_BY_DATA,
        "The order in which classes are divided into tasks: natural (that of the data set), shuffled (by --seed), or a "
        "list of class names or of numbers from 0, such as 3,1,0,2. Classes that are not in the list are left out.",
        neutral=NATURAL,
    )
    task_order: str = option(
        "Data",
        NATURAL,
        _ORDER,
        StageKey.COVERED_BY_DATA,
        "The order in which these tasks are learned: natural, shuffled (by --seed), or a list of task names or of "
        "numbers from 1. --num_tasks takes the first ones.",
        neutral=NATURAL,
    )
    validation_fraction: float = option(
        "Data",
        0.1,
        fraction(),
        StageKey.COVERED_BY_DATA,
        "Fraction of the training examples held out for validation. The test examples are used only to report "
        "accuracy.",
    )

    def check_data(self) -> None:
        """Raise ArgumentError if two of these fields contradict each other."""
        if self.scenario != SPLIT and self.classes_per_task != DataOptions.classes_per_task:
            expected = f"no value with --scenario={self.scenario}, whose tasks have all classes"
            raise ArgumentError("classes_per_task", expected, self.classes_per_task)
