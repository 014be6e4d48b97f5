"""Pictures of a pack for TensorBoard: who owns how much of which layer, and the accuracy on every task."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tf_packnet.ownership import count_by_owner
from tf_packnet.reporting import pack_pixels
from tf_packnet.reporting.palette import rgb, task_colours

# Of more kernels the largest are drawn; of more tasks the numbers are left out.
MAX_BARS, MAX_NUMBERS = 24, 12
_SPANS = (1, 2, 5, 10, 20, 50, 100)  # where the axis may end, in percent
_NAME = 40  # letters of a kernel's path that are shown, its end


def ownership_bars(owner_maps: Mapping[str, np.ndarray], tasks: int) -> Figure:
    """A bar a kernel: task by task what it owns, then what is free; the axis ends soon after what is owned.

    Args:
        owner_maps: By weight path.
        tasks: How many tasks there are.
    """
    largest = sorted(owner_maps, key=lambda path: -owner_maps[path].size)[:MAX_BARS]
    shown = [path for path in owner_maps if path in largest]
    counts = [count_by_owner(owner_maps[path])[: tasks + 1] for path in shown]
    most = max(100.0 * count[1:].sum() / count.sum() for count in counts)
    span = next(step for step in _SPANS if step >= min(most, _SPANS[-1]))
    bars = []
    for count in counts:
        count[0] = max(0, round(count.sum() * span / 100.0) - count[1:].sum())
        bars.append(pack_pixels.strip(count, 500))
    names = [path if len(path) <= _NAME else f"..{path[-_NAME:]}" for path in shown]
    figure, axes = _figure(1.0 + 0.34 * len(shown), left=0.3 + 0.085 * max(map(len, names)))
    axes.imshow(
        rgb(task_colours(tasks))[np.concatenate(bars)],
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, span, len(shown) - 0.5, -0.5),
    )
    axes.hlines(np.arange(len(shown) - 1) + 0.5, 0.0, span, colors="white", linewidth=5)
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlabel("% of the weights: tasks in order, then free ones (grey)")
    return figure


def accuracy_matrix(accuracy: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """What was learned and what became of it: a row a lesson, a column a task, numbers in the cells.

    Args:
        accuracy: `accuracy[i][j]` on task `j` after lesson `i` (0-based).
        names: Names of the tasks.
    """
    columns = max(map(len, accuracy))
    scores = np.full((len(accuracy), columns), np.nan)
    for index, row in enumerate(accuracy):
        scores[index, : len(row)] = row
    few = columns <= MAX_NUMBERS
    figure, axes = _figure(1.3 + 0.4 * len(scores) if few else 4.5)
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    colours = pack_pixels.heat(scores, min(low, high - 0.05), high)
    axes.imshow(colours, aspect="auto", interpolation="nearest", extent=(0.5, columns + 0.5, len(scores) + 0.5, 0.5))
    axes.set_xlabel(f"on task (dark {low:.3f}, bright {high:.3f})")
    axes.set_ylabel("after lesson")
    if few:
        axes.set_xticks(range(1, columns + 1), [name[:12] for name in names[:columns]])
        axes.set_yticks(range(1, len(scores) + 1))
        for row, column in np.argwhere(~np.isnan(scores)):
            ink = "black" if pack_pixels.is_light(colours[row, column]) else "white"
            axes.text(column + 1, row + 1, f"{scores[row, column]:.3f}", ha="center", va="center", color=ink)
    return figure


def _figure(height: float, left: float = 0.7) -> tuple[Figure, Axes]:
    """A figure with room for labels, `left` inches at the left: laid out by hand, which takes half the time."""
    width, below, above = 6.4, 0.6, 0.15
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    inside = (left / width, below / height, 1.0 - (left + 0.2) / width, 1.0 - (below + above) / height)
    return figure, figure.add_axes(inside)
