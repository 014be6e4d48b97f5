"""Domain-incremental streams: all tasks have the same classes, but permuted or rotated images.

As in the literature, the first task has the original images, and all examples of a task have the same permutation or
angle: van de Ven & Tolias, "Three scenarios for continual learning" (2019); Lopez-Paz & Ranzato, "Gradient Episodic
Memory" (2017); `PermutedMNIST` and `RotatedMNIST` of Avalanche. The permutation or angle depends only on the seed and
the number of the task.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.tasks.orders import NATURAL, SHUFFLED, Order, choose, entries, generator
from tf_packnet.tasks.splitting import ALL, TaskSizes
from tf_packnet.tasks.stored_images import StoredImages
from tf_packnet.tasks.stream import Split, Task, TaskStream

SPLIT, PERMUTED, ROTATED = "split", "permuted", "rotated"
SCENARIOS = (SPLIT, PERMUTED, ROTATED)
_DEFAULT_TASKS = 10
_MAX_TASKS = 360  # one for each angle in whole degrees


class MovedPixels(Split):
    """Examples of another split with moved pixels. They are computed when they are read: only the original takes RAM.

    Args:
        original: The examples.
        source: For each pixel, the index of the original pixel from which it takes its value; -1 for black (0).
    """

    original: Split
    source: np.ndarray

    def __init__(self, original: Split, source: np.ndarray):
        for name, value in {"original": original, "source": source}.items():
            object.__setattr__(self, name, value)  # a Split is frozen

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # by identity, for the cache below

    @property
    def images(self) -> np.ndarray:
        return _moved(self)

    @property
    def labels(self) -> np.ndarray:
        return self.original.labels

    @property
    def scale(self) -> float:
        return self.original.scale

    def take(self, index: np.ndarray) -> Split:
        """Return the examples at the integer array `index`."""
        return MovedPixels(self.original.take(index), self.source)


@functools.lru_cache(maxsize=3)  # the splits of one task, which are read several times in succession
def _moved(split: MovedPixels) -> np.ndarray:
    moved = _move(np.asarray(split.original.images), split.source)
    moved.flags.writeable = False
    return moved


def _move(images: np.ndarray, source: np.ndarray) -> np.ndarray:
    channels = math.prod(images.shape[1:]) // source.size
    moved = images.reshape(len(images), source.size, channels).take(source, axis=1, mode="clip")
    if source.min() < 0:
        moved[:, source < 0] = 0
    return moved.reshape(images.shape)


def _move_split(split: Split, source: np.ndarray) -> Split:
    if isinstance(split.images, StoredImages):  # moved one by one, when they are read from disk
        images = split.images.mapped(lambda pixels: _move(pixels[np.newaxis], source)[0])
        return dataclasses.replace(split, images=images)
    return MovedPixels(split, source)


def check_sizes(scenario: str, classes_per_task: TaskSizes) -> None:
    """Raise ArgumentError if `classes_per_task` is not `all` in a scenario whose tasks have all classes."""
    if scenario != SPLIT and classes_per_task != ALL:
        expected = f"{ALL} with scenario={scenario}, whose tasks have all classes"
        raise ArgumentError("classes_per_task", expected, classes_per_task)


@checked
def vary(
    task: Task | Sequence[Task],
    scenario: str,
    num_tasks: int | None = None,
    seed: int = 0,
    task_order: Order = NATURAL,
) -> TaskStream:
    """Make a stream of tasks from one task, each with its own permutation or rotation of the images.

    Args:
        task: The task, or several. The stream begins with the task unchanged. With several tasks, the stream has all of
            them unchanged, then all with the second permutation or angle, and so on.
        scenario: `permuted`: each task puts the pixels in an order of its own, with all channels of a pixel together.
            `rotated`: each task rotates the images counterclockwise by an angle of its own, in whole degrees, with
            nearest-neighbor interpolation. Images keep their size; pixels from outside the original are 0 (black).
        num_tasks: Number of tasks of the stream. Default: as many as `task_order` lists, or 10 for each given task.
        seed: Seeds permutations, angles and a shuffled `task_order`.
        task_order: `natural`, `shuffled`, or a list of names or numbers (from 1).

    Returns:
        The tasks. Their names consist of the scenario and the number or angle, such as `rotated-90`; with several
        tasks, they begin with the name of the original task.

    Raises:
        ArgumentError: If the scenario is unknown or does not suit the shape of the examples, or `num_tasks` or
            `task_order` is out of range.
    """
    if scenario not in (PERMUTED, ROTATED):
        raise ArgumentError("scenario", f"{PERMUTED} or {ROTATED}", scenario)
    originals = [task] if isinstance(task, Task) else list(task)
    if not originals:
        raise ArgumentError("task", "at least one task", originals)
    shape = originals[0].splits["train"].images.shape[1:]
    most = _MAX_TASKS * len(originals)
    if scenario == ROTATED and len(shape) < 2:
        raise ArgumentError("scenario", f"{SPLIT} or {PERMUTED} for examples of shape {shape}: no images", scenario)
    if num_tasks is not None and not 1 <= num_tasks <= most:
        raise ArgumentError("num_tasks", f"1 to {most}", num_tasks)
    is_listed = entries(task_order) not in ([NATURAL], [SHUFFLED])
    available = most if is_listed else num_tasks or _DEFAULT_TASKS * len(originals)
    angles = [0, *(1 + generator(seed, ROTATED).permutation(_MAX_TASKS - 1))]
    places = [divmod(index, len(originals)) for index in range(available)]
    names = [f"{scenario}-{angles[version] if scenario == ROTATED else version + 1}" for version, _ in places]
    if len(originals) > 1:
        names = [f"{originals[each].name}-{name}" for name, (_, each) in zip(names, places, strict=True)]
    tasks = []
    for index in choose(names, task_order, num_tasks, seed):
        version, each = places[index]
        original = dataclasses.replace(originals[each], name=names[index])
        if version == 0:
            tasks.append(original)
            continue
        source = _rotation(shape, angles[version]) if scenario == ROTATED else _permutation(shape, seed, version)
        splits: dict[str, Split] = {name: _move_split(split, source) for name, split in original.splits.items()}
        tasks.append(dataclasses.replace(original, splits=splits, encoding=None))  # tables are not encoded like this
    return TaskStream(",".join(each.name for each in originals), tasks)


def _permutation(shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
    """Return the source of each pixel of images `(..., channels)`, or of each number of a vector."""
    pixels = math.prod(shape[:-1]) if len(shape) > 2 else math.prod(shape)
    return generator(seed, PERMUTED, index).permutation(pixels)


def _rotation(shape: tuple[int, ...], degrees: int) -> np.ndarray:
    """Return the source of each pixel of images `(height, width[, channels])`; -1 if it is outside the image."""
    height, width = shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    y, x = np.mgrid[:height, :width].astype(np.float64) - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    # Rounded, so that a right angle, whose cosine is 6e-17, moves pixels exactly.
    row = np.floor(np.round(cosine * y + sine * x + (height - 1) / 2, 6) + 0.5).astype(int)
    column = np.floor(np.round(cosine * x - sine * y + (width - 1) / 2, 6) + 0.5).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, -1).ravel()
