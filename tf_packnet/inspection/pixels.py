"""Pictures of a pack as pixels: owner maps, strips of ownership, weight counts, filters. No text, so they scale."""

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
BINS = 41  # odd: one bin around 0
_CHUNK = 1 << 20


def owner_cells(owner: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An owner map in at most `most` cells an axis, outputs across, and how many weights a cell spans; 255 is free."""
    grid = owner.reshape(-1, owner.shape[-1]) if owner.ndim else owner.reshape(1, 1)
    cells, block = in_blocks(grid, most)
    return ownership.without_candidates(cells), block


def strip(counts: Sequence[int], length: int) -> np.ndarray:
    """Shares of a whole as a row of `length` cells: entry 0's are the last ones, then entry 1's come first.

    Args:
        counts: Free weights, and those of tasks 1, 2, ...
        length: How many cells.

    Returns:
        `uint8` `(1, length)`: the task whose part a cell lies in, 0 for the free.
    """
    ends = np.cumsum(counts[1:])
    middles = (np.arange(length) + 0.5) / length * max(1, sum(counts))
    task = np.searchsorted(ends, middles, side="right") + 1
    return np.where(task < len(counts), task, 0).astype(np.uint8)[np.newaxis]


def weight_counts(
    weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray], tasks: int
) -> tuple[float, np.ndarray]:
    """How large the weights of each task are: all layers together, in equal bins around 0.

    Args:
        weights: By path.
        maps: Owner maps by path.
        tasks: How many tasks.

    Returns:
        The largest magnitude, at which the bins end, and counts of shape `(tasks, BINS)`.
    """
    largest = max(
        (float(np.abs(v[ownership.visible(o, tasks)]).max(initial=0.0)) for o, v in _pieces(weights, maps)), default=0.0
    )
    counts = np.zeros((tasks + 1) * BINS, np.int64)
    for owner, value in _pieces(weights, maps):
        mine = ownership.visible(owner, tasks)
        place = np.clip(((value[mine] / (largest or 1.0) + 1.0) * (BINS / 2)).astype(int), 0, BINS - 1)
        counts += np.bincount(owner[mine].astype(int) * BINS + place, minlength=counts.size)
    return largest, counts.reshape(tasks + 1, BINS)[1:]


def values_of(weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray], task: int) -> np.ndarray:
    """The present values of all that `task` owns, `float32` `(owned,)`."""
    return np.concatenate([value[owner == task] for owner, value in _pieces(weights, maps)])


def _pieces(weights: Mapping[str, MaskedWeight], maps: Mapping[str, np.ndarray]) -> Iterator[tuple]:
    """Owners and present values, a piece at a time."""
    for path, owner in maps.items():
        present = [part.reshape(-1) for part in _parts(weights[path])]
        flat = owner.reshape(-1)
        for at in range(0, flat.size, _CHUNK):
            piece = slice(at, at + _CHUNK)
            yield flat[piece], _present(*(part[piece] for part in present))


def _parts(weight: MaskedWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return weight.owner_map(), weight.values(), view(weight.frozen)


def _present(owner: np.ndarray, trained: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    return np.where(owner == ownership.CANDIDATE, trained, frozen).astype(np.float32)


def filters(packed: PackedModel, maps: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray] | None:
    """What the first layer looks for in an image: its kernels, or what a dense unit weighs every pixel with.

    Args:
        packed: The pack.
        maps: Owner maps by path; what nobody owns is 0 in the pictures.

    Returns:
        The path of the kernel and its filters that own most, at most `MAX_FILTERS` `(n, height, width, channels)`;
        None for a model of no image, or of no first layer that could be drawn.
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
    present = _present(*(part.reshape(grid.shape)[:, shown] for part in _parts(weight)))
    return path, np.where(grid[:, shown] > 0, present, 0.0).T.reshape(-1, *tile)


def _image_shape(packed: PackedModel) -> tuple[int, int, int] | None:
    if len(packed.inputs) != 1:
        return None
    shape = tuple(packed.inputs[0].shape[1:])
    shape = (*shape, 1) if len(shape) == 2 else shape
    fits = len(shape) == 3 and None not in shape and shape[2] in (1, 3) and min(shape[:2]) > 1
    return shape if fits else None


def filter_sheet(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Filters side by side, each scaled to its own largest weight: red above 0, blue below, or the colours themselves.

    Args:
        tiles: `(n, height, width, channels)`, of 1 or 3 channels.
        columns: How many there are in a row.

    Returns:
        `uint8` `(height, width, 3)`, a pixel between two filters.
    """
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    scaled = tiles / np.where(largest > 0, largest, 1.0) / 2 + 0.5
    pixels = matplotlib.colormaps["RdBu_r"](scaled[..., 0])[..., :3] if tiles.shape[-1] == 1 else scaled
    number, height, width = tiles.shape[:3]
    rows = -(-number // columns)
    gap = 0.6 if tiles.shape[-1] == 1 else 1.0  # what no weight of 0 looks like
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), gap)
    for index, tile in enumerate(pixels):
        top, left = index // columns * (height + 1) + 1, index % columns * (width + 1) + 1
        sheet[top : top + height, left : left + width] = tile
    return rgb(sheet)


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers as colours from dark (`low`) to bright (`high`), the same for colour-blind readers; NaN is white.

    Returns:
        `uint8` `(*values.shape, 3)`.
    """
    scaled = np.clip((values - low) / (high - low or 1.0), 0.0, 1.0)
    colours = matplotlib.colormaps["cividis"](np.nan_to_num(scaled))[..., :3]
    return rgb(np.where(np.isnan(values)[..., np.newaxis], 1.0, colours))


def is_light(colour: np.ndarray) -> bool:
    """Whether black is better read on a colour (`uint8`, red, green, blue) than white."""
    return bool(colour @ (0.299, 0.587, 0.114) > 120)
