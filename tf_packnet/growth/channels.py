"""`Channels`: maps the channels of a tensor in a wider network to those in the original network."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor in the wider network: the positions of its last axis.

    Attributes:
        old: Index of each channel in the original tensor; -1 for a new channel.
        by: Paths of the layers whose units the channels come from: layers with a width of their own.
    """

    old: np.ndarray
    by: frozenset[str] = frozenset()

    @property
    def grew(self) -> bool:
        """Whether there are new channels."""
        return bool((self.old < 0).any())

    @property
    def before(self) -> int:
        """Number of channels in the original tensor."""
        return int((self.old >= 0).sum())

    def tiled(self, times: int) -> "Channels":
        """Return the channels of `times` concatenated copies of the tensor."""
        copies = [np.where(self.old < 0, -1, self.old + number * self.before) for number in range(times)]
        return Channels(np.concatenate(copies), self.by)

    def repeated(self, times: int) -> "Channels":
        """Return the channels of a tensor that repeats each channel `times` times in succession."""
        old = self.old[:, None] * times + np.arange(times)
        return Channels(np.where(self.old[:, None] < 0, -1, old).reshape(-1), self.by)


class Axis(NamedTuple):
    """How an axis of a weight changes.

    Attributes:
        old: Index of each position in the original weight; -1 for a new position.
        reads: Whether this is the axis of the channels that the layer reads. Committed tasks must see 0 at new
            positions.
    """

    old: np.ndarray
    reads: bool = False


# The axes of a weight that change, by index.
Axes = dict[int, Axis]


def same(width: int) -> Channels:
    """Return `width` unchanged channels."""
    return Channels(np.arange(width))


def wider(before: int, now: int, path: str) -> Channels:
    """Return the units of a layer that grows from `before` to `now` units. The new units come last."""
    return Channels(np.concatenate([np.arange(before), np.full(now - before, -1)]), frozenset({path}))


def joined(parts: list[Channels]) -> Channels:
    """Return the channels of a concatenation."""
    offsets = np.cumsum([0, *(part.before for part in parts)])
    old = [np.where(part.old < 0, -1, part.old + offset) for part, offset in zip(parts, offsets, strict=False)]
    return Channels(np.concatenate(old), frozenset().union(*(part.by for part in parts)))
