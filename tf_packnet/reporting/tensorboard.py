"""TensorBoard logs of a pack: free weights, owner maps, weights, accuracy. Curves: see `callbacks.EpochLog`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tf_packnet import lifecycle
from tf_packnet.inspection import pixels
from tf_packnet.inspection.owner_maps import draw_owner_map, to_rgb
from tf_packnet.inspection.palette import rgb, task_colours
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.ownership import count_by_owner
from tf_packnet.reporting import event_files, metrics
from tf_packnet.text import file_name, label, printable

PACK_RUN = "pack"
TASK_ACCURACY = "accuracy/test_after_n_tasks"
DESCRIPTIONS = {TASK_ACCURACY: "test accuracy on the task; step: number of tasks learned"}
FILTERS_WIDTH = 640  # approximate width in pixels


def log_pack(
    directory: Path, packed: PackedModel, owner_maps: dict[str, np.ndarray], results: dict[str, Any], task: int
) -> None:
    """Log the state of the pack after `task`, at step `task`.

    Args:
        directory: The TensorBoard directory of the run.
        packed: The pack.
        owner_maps: Owner map of each kernel, by path.
        results: The content of `results.json` so far.
        task: Number (1-based) of the task that was just learned.
    """
    names = [printable(entry["name"]) for entry in results["tasks"][:task]]
    writer = tf.summary.create_file_writer(str(directory / PACK_RUN))
    with writer.as_default(step=task):
        tf.summary.scalar(
            "average_accuracy", results["average_accuracy"], description="mean test accuracy over the tasks so far"
        )
        for name, value in _known_measures(results).items():
            tf.summary.scalar(f"measures/{name}", value, description=f"{name.replace('_', ' ')} of the tasks so far")
        free = results["free_fraction"]
        for name, fraction in {"overall": free["overall"], **free["layers"]}.items():
            if task == 1:  # step 0: all weights are free
                tf.summary.scalar(f"free_share/{name}", 1.0, step=0)
            tf.summary.scalar(f"free_share/{name}", fraction, description="fraction of free weights after n tasks")
        for path, owner in owner_maps.items():
            tf.summary.image(f"owner_map/{path}", to_rgb(draw_owner_map(owner, path, names))[np.newaxis])
        _log_accuracy_matrix(results)
        tf.summary.image("ownership", to_rgb(ownership_bars(owner_maps, len(names)))[np.newaxis])
        _log_weights(packed, owner_maps, f"{task}_{names[-1]}", task)
    writer.close()
    _log_task_accuracy(directory, results, task)


def _log_task_accuracy(directory: Path, results: dict[str, Any], task: int) -> None:
    """Log the test accuracy of every task learned so far in the run of that task, so that one chart shows all tasks."""
    for number, (entry, score) in enumerate(zip(results["tasks"], results["accuracy"][-1], strict=False), start=1):
        folder = directory / f"task_{number}_{file_name(entry['name'])}"
        summary = event_files.scalars({TASK_ACCURACY: score}, DESCRIPTIONS)
        event_files.append(folder / f"{event_files.PREFIX}0.accuracy", [(task, summary)])


def _log_accuracy_matrix(results: dict[str, Any]) -> None:
    names = [printable(entry["name"]) for entry in results["tasks"]]
    matrix = metrics.matrix_in(results)
    if matrix is None:  # the tasks were learned together
        figure = accuracy_matrix(results["accuracy"], names)
    else:
        first = int(np.isnan(matrix[0]).all())  # earlier versions did not measure the network before any task
        figure = accuracy_matrix(matrix[first:], names, range(first, len(matrix)))
    tf.summary.image("accuracy_matrix", to_rgb(figure)[np.newaxis])


def _known_measures(results: dict[str, Any]) -> dict[str, float]:
    """Return the measures of `metrics` that the run has, without the average accuracy, which has a tag of its own."""
    measures = metrics.measures(results)
    return {name: value for name, value in measures.items() if value is not None and name != "average_accuracy"}


def _log_weights(packed: PackedModel, owner_maps: dict[str, np.ndarray], name: str, task: int) -> None:
    values = pixels.values_of(lifecycle.masked_weights(packed), owner_maps, task)
    if values.size:
        tf.summary.histogram(f"weights/{name}", values, description="weights that a task owns, when it was learned")
    filters = pixels.filters(packed, owner_maps)
    if filters is not None:
        path, tiles = filters
        sheet = pixels.filter_sheet(tiles, min(8, len(tiles)))
        scale = max(1, FILTERS_WIDTH // sheet.shape[1])
        tf.summary.image(f"filters/{path}", sheet.repeat(scale, axis=0).repeat(scale, axis=1)[np.newaxis])


# Limits: on the kernels that are drawn (the largest ones); on the tasks of a matrix with numbers in its cells, and of a
# # matrix with numbers of three decimals.
MAX_BARS, MAX_NUMBERS, MAX_DIGITS = 24, 12, 6
# Limit on the characters of all names below the matrix together.
_MAX_CHARACTERS = 36
_SPANS = (1, 2, 5, 10, 20, 50, 100)  # possible ends of the axis, in percent
_NAME = 18  # characters of a kernel's path that are shown, at its end


def ownership_bars(owner_maps: Mapping[str, np.ndarray], tasks: int) -> Figure:
    """Draw one bar per kernel: the weights of each task, then free weights. The axis ends just after the owned weights.

    Args:
        owner_maps: Owner map of each kernel, by path.
        tasks: Number of tasks.
    """
    largest = sorted(owner_maps, key=lambda path: -owner_maps[path].size)[:MAX_BARS]
    shown = [path for path in owner_maps if path in largest]
    counts = [count_by_owner(owner_maps[path])[: tasks + 1] for path in shown]
    most = max(100.0 * count[1:].sum() / count.sum() for count in counts)
    span = next(step for step in _SPANS if step >= min(most, _SPANS[-1]))
    bars = []
    for count in counts:
        count[0] = max(0, round(count.sum() * span / 100.0) - count[1:].sum())
        bars.append(pixels.strip(count.tolist(), 500))
    names = [label(path if len(path) <= _NAME else f"..{path[-_NAME:]}") for path in shown]
    figure, axes = _figure(0.8 + 0.3 * len(shown), left=0.2 + 0.085 * max(map(len, names)))
    axes.imshow(
        rgb(task_colours(tasks))[np.concatenate(bars)],
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, span, len(shown) - 0.5, -0.5),
    )
    axes.hlines(np.arange(len(shown) - 1) + 0.5, 0.0, span, colors="white", linewidth=5)
    axes.set_yticks(range(len(shown)), names)
    figure.supxlabel("% of the weights: tasks, then free ones (grey)", y=0.02, fontsize="medium")
    return figure


def accuracy_matrix(
    accuracy: Sequence[Sequence[float]] | np.ndarray, names: Sequence[str], after: Sequence[int] | None = None
) -> Figure:
    """Draw the accuracy matrix: a column per task, a row after each learned task.

    Args:
        accuracy: The rows of `Results.accuracy`, or of the whole matrix.
        names: Names of the tasks.
        after: The task after which each row was measured, 0 for none. Default: the last one in the row.
    """
    columns = max(map(len, accuracy))
    scores = np.full((len(accuracy), columns), np.nan)
    for index, row in enumerate(accuracy):
        scores[index, : len(row)] = row
    rows = list(after or map(len, accuracy))
    few = columns <= MAX_NUMBERS
    figure, axes = _figure(0.9 + 0.3 * len(scores) if few else 3.5)
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    colours = pixels.heat(scores, min(low, high - 0.05), high)
    axes.imshow(
        colours, aspect="auto", interpolation="nearest", extent=(0.5, columns + 0.5, rows[-1] + 0.5, rows[0] - 0.5)
    )
    axes.set_xlabel(f"on task (dark {low:.3f}, bright {high:.3f})")
    axes.set_ylabel("after task")
    if few:
        given = [label(name) for name in names[:columns]]
        fit = sum(map(len, given)) + columns <= _MAX_CHARACTERS
        axes.set_xticks(range(1, columns + 1), given if fit else [str(number + 1) for number in range(columns)])
        axes.set_yticks(rows)
        for row, column in np.argwhere(~np.isnan(scores)):
            ink = "black" if pixels.is_light(colours[row, column]) else "white"
            score = scores[row, column]
            text = f"{score:.3f}" if columns <= MAX_DIGITS else f"{100 * score:.0f}"
            axes.text(column + 1, rows[row], text, ha="center", va="center", color=ink)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _figure(height: float, left: float = 0.6) -> tuple[Figure, Axes]:
    """Create a figure with `left` inches for labels. Its text is readable at the 370 pixels that TensorBoard shows.

    A fixed layout takes half the time of an automatic one.
    """
    width, below, above = 4.0, 0.55, 0.1
    figure = Figure(figsize=(width, height), dpi=160)
    inside = (left / width, below / height, 1.0 - (left + 0.15) / width, 1.0 - (below + above) / height)
    return figure, figure.add_axes(inside)
