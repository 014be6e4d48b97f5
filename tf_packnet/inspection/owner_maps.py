"""Owner maps as pictures: which weights are whose."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tf_packnet.inspection.palette import rgb, task_colours
from tf_packnet.pruning import ownership

# Cells a picture shows along each axis; a larger map is drawn in blocks.
MAX_CELLS = 512
# Beyond this a legend names the first and the last tasks only.
MAX_LEGEND = 12
OWNERS = 256  # values that an owner map can hold


def draw_owner_map(owner: np.ndarray, title: str, task_names: list[str]) -> Figure:
    """One kernel's owner map with a legend.

    Args:
        owner: `uint8` array of any rank; the last axis (output units, filters) runs to the right, all others down.
        title: Name of the kernel.
        task_names: Names of tasks 1, 2, ... so far.
    """
    grid = owner.reshape(-1, owner.shape[-1])
    cells, block = in_blocks(grid, MAX_CELLS)
    colours = task_colours(len(task_names))
    figure = Figure(figsize=(6.2, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(
        rgb(colours)[cells],
        aspect="auto",
        interpolation="nearest",
        extent=(0, grid.shape[1], grid.shape[0], 0),
    )
    axes.set_title(f"{title}: who owns which weight")
    cell = "" if block == (1, 1) else f"\na cell is {block[0]} x {block[1]} weights: its most frequent owner, if any"
    axes.set_xlabel(f"output (filter or unit){cell}")
    axes.set_ylabel("input" if owner.ndim == 2 else "input (kernel position x channel)")
    figure.legend(handles=_legend(owner, task_names, colours), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def in_blocks(grid: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Shrinks a 2-D owner map to at most `most` cells an axis.

    A cell shows the most frequent owner among its owned weights (the earliest of equals), or 0 if all are free: at high
    sparsity, where nearly everything is free, the owned weights are what there is to see.

    Returns:
        The cells, and how many weights a cell spans along each axis.
    """
    block = tuple(-(-size // most) for size in grid.shape)
    if block == (1, 1):
        return grid, block
    columns = -(-grid.shape[1] // block[1])
    # One number for each pair of a cell's column and an owner; they are counted a row of cells at a time, so that what
    # it takes does not depend on how many tasks there are.
    column = (np.arange(grid.shape[1]) // block[1]) * OWNERS
    rows = []
    for top in range(0, grid.shape[0], block[0]):
        pairs = column + grid[top : top + block[0]]
        seen = np.bincount(pairs.ravel(), minlength=columns * OWNERS).reshape(columns, OWNERS)
        seen[:, ownership.FREE] = seen[:, ownership.CANDIDATE] = 0
        rows.append(seen.argmax(axis=1))
    best = np.array(rows, grid.dtype)
    return best, block


def to_rgb(figure: Figure) -> np.ndarray:
    """The figure as pixels, `uint8` `(height, width, 3)`."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _legend(owner: np.ndarray, names: list[str], colours: np.ndarray) -> list[Patch]:
    share = ownership.count_by_owner(owner) / owner.size
    entries = [Patch(facecolor=colours[0], edgecolor="0.6", label=f"free  {share[0]:.1%}")]
    for task, name in enumerate(names, start=1):
        if len(names) <= MAX_LEGEND or task in (1, len(names)):
            entries.append(Patch(facecolor=colours[task], label=f"{task}: {name}  {share[task]:.2%}"))
    return entries
