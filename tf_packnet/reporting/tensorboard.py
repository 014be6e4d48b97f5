"""TensorBoard logs of a pack: free weights, owner maps, weights, accuracy, flags. Curves: see `callbacks.EpochLog`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_packnet import lifecycle
from tf_packnet.inspection import pixels
from tf_packnet.inspection.owner_maps import draw_owner_map, to_rgb
from tf_packnet.inspection.palette import rgb, task_colours
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning.ownership import count_by_owner
from tf_packnet.reporting import metrics
from tf_packnet.text import label, printable

PACK_RUN = "pack"
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
        _log_accuracy(results)
        tf.summary.image("ownership", to_rgb(ownership_bars(owner_maps, len(names)))[np.newaxis])
        _log_weights(packed, owner_maps, f"{task}_{names[-1]}", task)
    writer.close()


def _log_accuracy(results: dict[str, Any]) -> None:
    names = [printable(entry["name"]) for entry in results["tasks"]]
    for number, (name, score) in enumerate(zip(names, results["accuracy"][-1], strict=False), start=1):
        tf.summary.scalar(f"accuracy/{number}_{name}", score, description="test accuracy on one task after n tasks")
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


def log_hyperparameters(directory: Path, results: dict[str, Any]) -> None:
    """Log the finished run for the HPARAMS tab: all flags, and the scores."""
    from tensorboard.plugins.hparams import api as hparams

    no_effect = ("data_dir", "output_dir", "on_corruption")  # on the scores
    flags = {name: _plain(value) for name, value in results["config"].items() if name not in no_effect}
    scores = {
        "score/average_accuracy": results["average_accuracy"],
        "score/worst_accuracy": min(results["accuracy"][-1]),
        "score/free_share": results["free_fraction"]["overall"],
        **{f"score/{name}": value for name, value in _known_measures(results).items()},
    }
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default(step=len(results["tasks"])):
        hparams.hparams_config(
            hparams=[hparams.HParam(name) for name in flags],
            metrics=[hparams.Metric(tag, display_name=tag.split("/")[1].replace("_", " ")) for tag in scores],
        )
        hparams.hparams(flags, trial_id="run")
        for tag, value in scores.items():
            tf.summary.scalar(tag, value)
    writer.close()


def _plain(value: Any) -> Any:
    """Convert a value to a number, boolean or string, as HPARAMS takes them."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else printable(value) if isinstance(value, str) else value


# The most kernels that are drawn (the largest), and the most tasks with numbers in the matrix.
MAX_BARS, MAX_NUMBERS = 24, 12
_SPANS = (1, 2, 5, 10, 20, 50, 100)  # possible ends of the axis, in percent
_NAME = 40  # characters of a kernel's path that are shown, at its end


def ownership_bars(owner_maps: Mapping[str, np.ndarray], tasks: int) -> Figure:
    """Draw one bar per kernel: the weights of each task, then free weights. The axis ends soon after the owned ones.

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
    figure, axes = _figure(1.0 + 0.34 * len(shown), left=0.3 + 0.085 * max(map(len, names)))
    axes.imshow(
        rgb(task_colours(tasks))[np.concatenate(bars)],
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, span, len(shown) - 0.5, -0.5),
    )
    axes.hlines(np.arange(len(shown) - 1) + 0.5, 0.0, span, colors="white", linewidth=5)
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlabel("% of the weights: tasks in order, then free weights (grey)")
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
    few = columns <= MAX_NUMBERS
    figure, axes = _figure(1.3 + 0.4 * len(scores) if few else 4.5)
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    colours = pixels.heat(scores, min(low, high - 0.05), high)
    axes.imshow(colours, aspect="auto", interpolation="nearest", extent=(0.5, columns + 0.5, len(scores) + 0.5, 0.5))
    axes.set_xlabel(f"on task (dark {low:.3f}, bright {high:.3f})")
    axes.set_ylabel("after learning task")
    if few:
        axes.set_xticks(range(1, columns + 1), [label(name[:12]) for name in names[:columns]])
        axes.set_yticks(range(1, len(scores) + 1), [str(task) for task in after or map(len, accuracy)])
        for row, column in np.argwhere(~np.isnan(scores)):
            ink = "black" if pixels.is_light(colours[row, column]) else "white"
            axes.text(column + 1, row + 1, f"{scores[row, column]:.3f}", ha="center", va="center", color=ink)
    return figure


def _figure(height: float, left: float = 0.7) -> tuple[Figure, Axes]:
    """Create a figure with `left` inches for labels. A fixed layout takes half the time of an automatic one."""
    width, below, above = 6.4, 0.6, 0.15
    figure = Figure(figsize=(width, height), dpi=100)
    inside = (left / width, below / height, 1.0 - (left + 0.2) / width, 1.0 - (below + above) / height)
    return figure, figure.add_axes(inside)
