"""Colours of the tasks, the same in every picture."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb

# Okabe & Ito's colours, which colour-blind readers tell apart too; black is left for text.
_FEW = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
FREE = "#EFEFEF"


def task_colours(num_tasks: int) -> np.ndarray:
    """RGB in [0, 1], `(num_tasks + 1, 3)`: row 0 is free, row `k` is task `k`."""
    if num_tasks <= len(_FEW):
        tasks = [to_rgb(colour) for colour in _FEW[:num_tasks]]
    else:  # too many to tell apart by name: an ordered scale, old to new
        tasks = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, num_tasks))[:, :3].tolist()
    return np.array([to_rgb(FREE), *tasks])


def rgb(colours: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as `uint8`, which pictures are drawn from in a third of the time."""
    return np.round(colours * 255).astype(np.uint8)
