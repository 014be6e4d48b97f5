"""The fields of `Config` about the data."""

from dataclasses import dataclass

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.runs.options import (
    Check,
    StageKey,
    fraction,
    image_size,
    integer,
    is_text,
    names,
    one_of,
    option,
    optional,
    path,
    task_sizes,
)
from tf_packnet.system.images import RESIZES
from tf_packnet.tasks.encodings import MAX_LENGTH, MAX_VOCABULARY
from tf_packnet.tasks.orders import NATURAL, is_order
from tf_packnet.tasks.scenarios import SCENARIOS, SPLIT, check_sizes
from tf_packnet.tasks.sources import names_in
from tf_packnet.tasks.splitting import TaskSizes
from tf_packnet.tasks.tables import Columns

MAX_COLUMNS = 10_000

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
            lambda name: is_text(name) and all(names_in(name)),
            "digits, the name of a TFDS image classification set, or a folder; or several of them, separated by commas",
        ),
        StageKey.COVERED_BY_DATA,
        "digits (embedded, no network needed); a TFDS image classification set such as mnist or cifar10; or a "
        "folder of your own such as ./data, which contains one folder of images per class, or one folder per task "
        "with such folders; or a table such as ./data.csv, or a folder with one table per task. Several data sets, "
        "separated by commas, are learned one after the other.",
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
    classes_per_task: TaskSizes | None = option(
        "Data",
        None,
        optional(task_sizes()),
        StageKey.COVERED_BY_DATA,
        "Classes per task, in the order of --class_order: one number for all tasks, or one for each, such as 10,5,5; "
        "all makes each data set one task. Folders of tasks keep theirs. Default: 2, or all for several data sets and "
        "with --scenario=permuted and rotated.",
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
    test_fraction: float = option(
        "Data",
        0.2,
        Check(lambda share: 0.0 < share < 1.0, "a fraction between 0 and 1, both exclusive"),
        StageKey.COVERED_BY_DATA,
        "Fraction of each class held out for testing, by --seed, where a data set has no split named test or "
        "validation.",
        neutral=0.2,
    )
    image_size: str | None = option(
        "Data",
        None,
        optional(image_size()),
        StageKey.COVERED_BY_DATA,
        "Size that all images are resized to, N or HEIGHTxWIDTH, such as 224. Needed if they differ in size.",
        neutral=None,
    )
    resize: str = option(
        "Data",
        "stretch",
        one_of(RESIZES),
        StageKey.COVERED_BY_DATA,
        "with --image_size: change the proportions, add black borders, or cut off what is beyond the centre.",
        neutral="stretch",
    )

    label_column: str | None = option(
        "Data",
        None,
        optional(Check(lambda name: is_text(name) and bool(name), "the name of a column")),
        StageKey.COVERED_BY_DATA,
        "The column of the labels in tables. Default: label, class, target or y.",
        neutral=None,
    )
    feature_columns: tuple[str, ...] = option(
        "Data",
        (),
        names(MAX_COLUMNS),
        StageKey.COVERED_BY_DATA,
        "The columns of tables to learn from, separated by commas. Default: --text_columns, or all but the labels.",
        sweepable=False,
        neutral=[],
    )
    text_columns: tuple[str, ...] = option(
        "Data",
        (),
        names(MAX_COLUMNS),
        StageKey.COVERED_BY_DATA,
        "Columns of tables that contain text, which are joined and become ids of words. Default: the column besides "
        "the labels, if there is only one, with text.",
        sweepable=False,
        neutral=[],
    )
    text_length: int = option(
        "Data",
        128,
        integer(1, MAX_LENGTH),
        StageKey.COVERED_BY_DATA,
        "Ids in each example of text, or of a column of lists of ids. Longer ones are cut off, shorter ones padded.",
        neutral=128,
    )
    vocabulary_size: int = option(
        "Data",
        20_000,
        integer(3, MAX_VOCABULARY),
        StageKey.NETWORK,
        "Number of different ids: the most frequent words, and those for padding (0) and unknown words (1).",
        neutral=20_000,
    )

    def columns(self) -> Columns:
        """Return the columns to read from tables, and how to read them."""
        return Columns(
            self.label_column, self.feature_columns, self.text_columns, self.text_length, self.vocabulary_size
        )

    def pixels(self) -> tuple[int, int] | None:
        """Return `image_size` as height and width."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    def check_data(self) -> None:
        """Raise ArgumentError if two of these fields contradict each other."""
        if self.resize != RESIZES[0] and self.image_size is None:
            raise ArgumentError("resize", f"{RESIZES[0]} without --image_size", self.resize)
        if self.classes_per_task is not None:
            check_sizes(self.scenario, self.classes_per_task)
