"""Draws owner maps, which show the task that owns each weight."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tf_packnet.inspection.palette import rgb, task_colours
from tf_packnet.pruning import ownership
from tf_packnet.text import label

# Largest number of cells per axis; larger maps are drawn in blocks.
_MAX_CELLS = 512
# With more tasks, the legend names only the first and the last one.
_MAX_LEGEND = 12
_MAX_TITLE = 40  # characters, at the end of the name
_OWNERS = 256  # number of values in an owner map


def draw_owner_map(owner: np.ndarray, title: str, task_names: list[str]) -> Figure:
    """Draw the owner map of one kernel, with a legend.

    Args:
        owner: `uint8` array of any rank. The last axis (units, filters) is horizontal, all others are vertical.
        title: Name of the kernel.
        task_names: Names of tasks 1, 2, ... so far.
    """
    grid = owner.reshape(-1, owner.shape[-1])
    cells, block = in_blocks(grid, _MAX_CELLS)
    colours = task_colours(len(task_names))
    figure = Figure(figsize=(4.0, 4.8), dpi=160, layout="constrained")  # TensorBoard shows 370 pixels of width
    axes = figure.subplots()
    axes.imshow(
        rgb(colours)[cells],
        aspect="auto",
        interpolation="nearest",
        extent=(0, grid.shape[1], grid.shape[0], 0),
    )
    axes.set_title(label(title if len(title) <= _MAX_TITLE else f"..{title[-_MAX_TITLE:]}"), fontsize=10)
    cell = "" if block == (1, 1) else f"\nmost frequent owner of {block[0]} x {block[1]} weights per cell"
    axes.set_xlabel(f"output (filter or unit){cell}")
    axes.set_ylabel("input" if owner.ndim == 2 else "input (position x channel)")
    entries = _legend(owner, task_names, colours)
    columns = 2 if max(len(str(entry.get_label())) for entry in entries) <= _MAX_TITLE // 2 else 1
    figure.legend(handles=entries, loc="outside lower center", frameon=False, ncols=columns, fontsize=9)
    return figure


def in_blocks(grid: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Shrink a 2-D owner map to at most `most` cells per axis.

    A cell shows the most frequent owner among its owned weights (the earliest task in a tie), or 0 if all its weights
    are free. Free weights do not count, because at high sparsity they would hide the owned ones.

    Returns:
        The cells, and the number of weights per cell along each axis.
    """
    block = tuple(-(-size // most) for size in grid.shape)
    if block == (1, 1):
        return grid, block
    columns = -(-grid.shape[1] // block[1])
    # One bincount over pairs of cell column and owner per row of cells: the cost does not depend on the number of
    # tasks.
    column = (np.arange(grid.shape[1]) // block[1]) * _OWNERS
    rows = []
    for top in range(0, grid.shape[0], block[0]):
        pairs = column + grid[top : top + block[0]]
        counts = np.bincount(pairs.ravel(), minlength=columns * _OWNERS).reshape(columns, _OWNERS)
        counts[:, ownership.FREE] = counts[:, ownership.CANDIDATE] = 0
        rows.append(counts.argmax(axis=1))
    return np.array(rows, grid.dtype), block


@contextlib.contextmanager
def any_characters() -> Iterator[None]:
    """Draw characters that the font lacks as boxes, without a warning for each character."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        yield


def to_rgb(figure: Figure) -> np.ndarray:
    """Render the figure as pixels, `uint8` `(height, width, 3)`."""
    canvas = FigureCanvasAgg(figure)
    with any_characters():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _legend(owner: np.ndarray, names: list[str], colours: np.ndarray) -> list[Patch]:
    share = ownership.count_by_owner(owner) / owner.size
    entries = [Patch(facecolor=colours[0], edgecolor="0.6", label=f"free  {share[0]:.1%}")]
    for task, name in enumerate(names, start=1):
        if len(names) <= _MAX_LEGEND or task in (1, len(names)):
            entries.append(Patch(facecolor=colours[task], label=f"{task}: {label(name)}  {share[task]:.2%}"))
    return entries
