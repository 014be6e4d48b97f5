"""Patterns of the weights that a prune round keeps: unstructured, N:M and blocks.

- None: each weight is kept or pruned on its own.
- `N:M`, such as `2:4`: in each group of `M` consecutive weights along the input axis, the `N` with the highest scores
  are pruned last. Once a round keeps a fraction of `N/M` or less, at most `N` weights of each group remain.
- `HxW`, such as `4x4`: blocks of `H` by `W` weights along the last two axes are kept or pruned as a whole. The score of
  a block is the mean score of its candidates, or with `HxW:max` the highest one.

At the end of an axis, a group or block may be smaller.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from tf_packnet.errors import ArgumentError

_EXPECTED = (
    "None; 'N:M' with 0 < N < M, such as '2:4'; or 'HxW' or 'HxW:max' for blocks of H by W weights, such as '4x4'"
)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The unstructured pattern, and the interface of all patterns. A unit is what is kept or pruned as a whole.

    Here each weight is a unit.

    Attributes:
        densest: Largest kept fraction at which all kept weights follow the pattern.
    """

    densest = 1.0

    def scores(self, scores: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        """Return the score of each unit.

        Args:
            scores: Scores of the weights.
            eligible: Boolean array of the same shape: the candidates.
        """
        return scores

    def preferred(self, scores: np.ndarray, eligible: np.ndarray, input_axes: Sequence[int]) -> np.ndarray:
        """Return a boolean mask of the units that are pruned after all others.

        Args:
            scores: Scores of the weights.
            eligible: Boolean array of the same shape: the candidates.
            input_axes: The axes whose weights are summed into one output.
        """
        return self.units(eligible)

    def units(self, chosen: np.ndarray) -> np.ndarray:
        """Return a boolean mask of the units with a weight in the boolean mask `chosen`."""
        return chosen

    def weights(self, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a boolean mask, of the given shape, of the weights in the boolean mask `units`."""
        return units


@dataclasses.dataclass(frozen=True)
class Groups(Pattern):
    """N:M: at most `kept` weights in each group of `size` consecutive weights along the input axis."""

    kept: int
    size: int

    @property
    def densest(self) -> float:  # type: ignore[override]  # computed
        return self.kept / self.size

    def preferred(self, scores: np.ndarray, eligible: np.ndarray, input_axes: Sequence[int]) -> np.ndarray:
        last = tuple(range(-len(input_axes), 0))
        moved = np.moveaxis(np.where(eligible, scores, -np.inf), input_axes, last)
        rows = moved.reshape(-1, np.prod(moved.shape[-len(last) :], dtype=int))
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % self.size)), constant_values=-np.inf)
        groups = padded.reshape(-1, self.size)
        best = np.argsort(-groups, axis=1, kind="stable")[:, : self.kept]  # of equal scores, the lower index
        in_groups = np.zeros(groups.shape, bool)
        np.put_along_axis(in_groups, best, True, axis=1)
        chosen = in_groups.reshape(padded.shape)[:, : rows.shape[1]].reshape(moved.shape)
        return np.moveaxis(chosen, last, input_axes) & eligible


@dataclasses.dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of `height` by `width` weights along the last two axes. `pooling` of the scores is `mean` or `max`."""

    height: int
    width: int
    pooling: str = "mean"

    def scores(self, scores: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        blocks = self._blocks(np.where(eligible, scores, 0))
        if self.pooling == "max":
            return blocks.max(axis=(-3, -1))
        return blocks.sum(axis=(-3, -1)) / np.maximum(self._blocks(eligible).sum(axis=(-3, -1)), 1)

    def units(self, chosen: np.ndarray) -> np.ndarray:
        return np.any(self._blocks(chosen), axis=(-3, -1))

    def weights(self, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        expanded = units.repeat(self.height, axis=-2).repeat(self.width, axis=-1)
        return expanded[..., : shape[-2], : shape[-1]]

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Return the zero-padded values in blocks of the last two axes: `(..., rows, height, columns, width)`."""
        padding = [(0, 0)] * (values.ndim - 2) + [
            (0, -values.shape[-2] % self.height),
            (0, -values.shape[-1] % self.width),
        ]
        padded = np.pad(values, padding)
        *outer, rows, columns = padded.shape
        return padded.reshape(*outer, rows // self.height, self.height, columns // self.width, self.width)


UNSTRUCTURED = Pattern()


def parse_pattern(pattern: object) -> Pattern:
    """Return the pattern for None, `N:M`, `HxW`, `HxW:mean` or `HxW:max`.

    Raises:
        ArgumentError: If it is none of these.
    """
    if pattern is None:
        return UNSTRUCTURED
    text = pattern if isinstance(pattern, str) else ""
    if groups := re.fullmatch(r"([1-9]\d{0,5}):([1-9]\d{0,5})", text):
        kept, size = map(int, groups.groups())
        if kept < size:
            return Groups(kept, size)
    if blocks := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?::(mean|max))?", text):
        height, width, pooling = blocks.groups()
        return Blocks(int(height), int(width), pooling or "mean")
    raise ArgumentError("pattern", _EXPECTED, pattern)
