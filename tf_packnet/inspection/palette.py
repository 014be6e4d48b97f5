"""Colours of tasks, which are the same in all pictures."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb

# The palette of Okabe and Ito, which colour-blind readers can distinguish, without its black.
_FEW = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
FREE = "#EFEFEF"


def task_colours(num_tasks: int) -> np.ndarray:
    """Return RGB colours in [0, 1], `(num_tasks + 1, 3)`: row 0 for free weights, row `k` for task `k`."""
    if num_tasks <= len(_FEW):
        tasks = [to_rgb(colour) for colour in _FEW[:num_tasks]]
    else:  # too many to distinguish by hue: a sequential colour map over the tasks
        tasks = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, num_tasks))[:, :3].tolist()
    return np.array([to_rgb(FREE), *tasks])


def rgb(colours: np.ndarray) -> np.ndarray:
    """Convert colours in [0, 1] to `uint8`. Pictures are drawn three times as fast from these."""
    return np.round(colours * 255).astype(np.uint8)
