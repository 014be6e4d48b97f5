"""Tasks: a data set cut into a stream of classification problems."""

from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches
from tf_packnet.tasks.cutting import split_into_tasks
from tf_packnet.tasks.sources import EMBEDDED, load_digits, load_tfds
from tf_packnet.tasks.stream import Split, Task, TaskStream

__all__ = ["ResidentBatches", "Split", "StreamedBatches", "Task", "TaskStream", "load", "split_into_tasks"]


def load(
    name: str,
    classes_per_task: int = 2,
    num_tasks: int | None = None,
    data_dir: str | None = None,
    validation_fraction: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
) -> TaskStream:
    """Loads a data set as a stream of tasks, images scaled to [0, 1].

    Args:
        name: `digits` (embedded, no network) or the name of a TFDS image classification set, such as `mnist`.
        classes_per_task: Classes of each task.
        num_tasks: How many tasks; default as many as the classes give.
        data_dir: Where TFDS keeps its data; default TFDS's own.
        validation_fraction: Share of the training examples to hold out for choices, in [0, 1).
        batch_size: Batch size of the tasks' ready-made data sets.
        seed: Seeds the held-out choice and the order of the training batches.

    Raises:
        ArgumentError: If the data set is unknown or unavailable, or the tasks cannot be cut as asked.
    """
    train, test, class_names = load_digits() if name == EMBEDDED else load_tfds(name, data_dir)
    return split_into_tasks(
        name, train, test, class_names, classes_per_task, num_tasks, validation_fraction, batch_size, seed
    )
