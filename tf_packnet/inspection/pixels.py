"""Computes pictures of a pack as pixels, without text: owner maps, ownership strips, weight histograms, filters."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.inspection.owner_maps import in_blocks
from tf_packnet.inspection.palette import rgb
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.weights import view
from tf_packnet.packed_model import PackedModel
from tf_packnet.pruning import ownership

MAX_FILTERS = 32
BINS = 41  # odd, so that one bin is centred on 0
_CHUNK = 1 << 20


def owner_cells(owner: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Shrink an owner map to at most `most` cells per axis, with outputs on the horizontal axis.

    Args:
        owner: `uint8` owner map of any rank; candidates (255) count as free.
        most: Largest number of cells per axis.

    Returns:
        The cells, and the number of weights per cell along each axis.
    """
    grid = owner.reshape(-1, owner.shape[-1]) if owner.ndim else owner.reshape(1, 1)
    cells, block = in_blocks(grid, most)
    return ownership.without_candidates(cells), block


def strip(counts: Sequence[int], length: int) -> np.ndarray:
    """Compute a strip of cells in proportion to counts: tasks 1, 2, ... from the left, free weights at the right.

    Args:
        counts: Number of free weights, then those of tasks 1, 2, ...
        length: Number of cells.

    Returns:
        `uint8` `(1, length)`: the task of each cell, 0 for free weights.
    """
    ends = np.cumsum(counts[1:])
    middles = (np.arange(length) + 0.5) / length * max(1, sum(counts))
    task = np.searchsorted(ends, middles, side="right") + 1
    return np.where(task < len(counts), task, 0).astype(np.uint8)[np.newaxis]


def weight_counts(
    weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray], tasks: int
) -> tuple[float, np.ndarray]:
    """Compute a histogram of the weights of each task, over all layers, with equal bins centred on 0.

    Args:
        weights: Weights by path.
        maps: Owner maps by path.
        tasks: Number of tasks.

    Returns:
        The largest magnitude, at which the bins end, and the counts `(tasks, BINS)`, `int64`.
    """
    largest = max(
        (float(np.abs(v[ownership.visible(o, tasks)]).max(initial=0.0)) for o, v in _pieces(weights, maps)), default=0.0
    )
    counts = np.zeros((tasks + 1) * BINS, np.int64)
    for owner, value in _pieces(weights, maps):
        owned = (owner > 0) & (owner <= tasks)
        bins = np.clip(((value[owned] / (largest or 1.0) + 1.0) * (BINS / 2)).astype(int), 0, BINS - 1)
        counts += np.bincount(owner[owned].astype(int) * BINS + bins, minlength=counts.size)
    return largest, counts.reshape(tasks + 1, BINS)[1:]


def values_of(weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray], task: int) -> np.ndarray:
    """Return the current values of all weights of `task`, `float32` `(owned,)`."""
    return np.concatenate([value[owner == task] for owner, value in _pieces(weights, maps)])


def _pieces(
    weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield owners and current values, both flat, in pieces of limited size."""
    for path, owner in maps.items():
        arrays = [array.reshape(-1) for array in _owner_and_values(weights[path])]
        flat = owner.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            piece = slice(start, start + _CHUNK)
            yield flat[piece], _present_values(*(array[piece] for array in arrays))


def _owner_and_values(weight: MaskedWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return weight.owner_map(), weight.values(), view(weight.frozen)


def _present_values(owner: np.ndarray, trained: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    return np.where(owner == ownership.CANDIDATE, trained, frozen).astype(np.float32)


def filters(packed: PackedModel, maps: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray] | None:
    """Return the filters of the first layer of an image model, which may be a convolution or dense.

    Args:
        packed: The pack.
        maps: Owner maps by path. Weights that no task owns are 0 in the filters.

    Returns:
        The path of the kernel, and up to `MAX_FILTERS` filters with the most owned weights,
        `(n, height, width, channels)`. None if the input is not an image or the first layer cannot be drawn.
    """
    path, weight = next(iter(lifecycle.masked_weights(packed).items()))
    image = _image_shape(packed)
    if image is None:
        return None
    shape = tuple(weight.variable.shape)
    if len(shape) == 4 and shape[2] == image[2] and shape[0] * shape[1] > 1:
        tile = shape[:3]
    elif len(shape) == 2 and shape[0] == image[0] * image[1] * image[2]:
        tile = image
    else:
        return None
    grid = maps[path].reshape(-1, shape[-1])
    shown = np.sort(np.argsort(-np.count_nonzero(grid, axis=0), kind="stable")[:MAX_FILTERS])
    values = _present_values(*(array.reshape(grid.shape)[:, shown] for array in _owner_and_values(weight)))
    return path, np.where(grid[:, shown] > 0, values, 0.0).T.reshape(-1, *tile)


def _image_shape(packed: PackedModel) -> tuple[int, int, int] | None:
    if len(packed.inputs) != 1:
        return None
    shape = tuple(packed.inputs[0].shape[1:])
    shape = (*shape, 1) if len(shape) == 2 else shape
    fits = len(shape) == 3 and None not in shape and shape[2] in (1, 3) and min(shape[:2]) > 1
    return shape if fits else None


def filter_sheet(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Draw filters side by side, each scaled to its own largest weight.

    With one channel, positive weights are red and negative ones are blue. With three, they are red, green and blue.

    Args:
        tiles: `(n, height, width, channels)` with 1 or 3 channels.
        columns: Number of filters per row.

    Returns:
        `uint8` `(height, width, 3)`, with one pixel between filters.
    """
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    scaled = tiles / np.where(largest > 0, largest, 1.0) / 2 + 0.5
    pixels = matplotlib.colormaps["RdBu_r"](scaled[..., 0])[..., :3] if tiles.shape[-1] == 1 else scaled
    number, height, width = tiles.shape[:3]
    rows = -(-number // columns)
    gap = 0.6 if tiles.shape[-1] == 1 else 1.0  # differs from the colour of 0
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), gap)
    for index, tile in enumerate(pixels):
        top, left = index // columns * (height + 1) + 1, index % columns * (width + 1) + 1
        sheet[top : top + height, left : left + width] = tile
    return rgb(sheet)


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Convert numbers to colours from dark (`low`) to bright (`high`), suitable for colour-blind readers.

    Returns:
        `uint8` `(*values.shape, 3)`. NaN is white.
    """
    scaled = np.clip((values - low) / (high - low or 1.0), 0.0, 1.0)
    colours = matplotlib.colormaps["cividis"](np.nan_to_num(scaled))[..., :3]
    return rgb(np.where(np.isnan(values)[..., np.newaxis], 1.0, colours))


def is_light(colour: np.ndarray) -> bool:
    """Return whether black text is more readable than white on a colour, `uint8` `(3,)`."""
    return bool(colour @ (0.299, 0.587, 0.114) > 120)
