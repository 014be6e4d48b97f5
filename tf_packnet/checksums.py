"""Checksums of what tasks have committed, a checksum per task and weight."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.weights import view

# Owner, value, checksum: what is read at once takes some megabytes, however large the kernel.
CHUNK = 2**20


def of_tasks(
    weights: Mapping[str, MaskedWeight], kept: Iterable[tuple[str, int, np.ndarray]], tasks: int
) -> dict[int, dict[str, str]]:
    """What each committed task has in every weight: by task (1-based) and path, a checksum in hex.

    Args:
        weights: The pruned and owned weights, by path.
        kept: The committed values of other weights: path, task, value.
        tasks: How many tasks are committed.
    """
    found: dict[int, dict[str, str]] = {task: {} for task in range(1, tasks + 1)}
    for path, weight in weights.items():
        for task, checksum in _by_owner(weight, tasks).items():
            found[task][path] = checksum
    for path, task, value in kept:
        if task in found:
            found[task][path] = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    return found


def _by_owner(weight: MaskedWeight, tasks: int) -> dict[int, str]:
    """Checksums of the places and values that each of the first `tasks` owns in a kernel."""
    owners, values = view(weight.owner).ravel(), view(weight.frozen).ravel()
    found = {task: hashlib.sha256() for task in range(1, tasks + 1)}
    for first in range(0, owners.size, CHUNK):
        owner = owners[first : first + CHUNK]
        order = np.argsort(owner, kind="stable").astype(np.uint32)  # by owner, then by place
        ends = np.searchsorted(owner[order], np.arange(1, tasks + 2, dtype=np.uint8 if tasks < 255 else int))
        for task, checksum in found.items():
            own = order[ends[task - 1] : ends[task]]
            checksum.update(own + np.uint32(first % 2**32))
            checksum.update(np.ascontiguousarray(values[first : first + CHUNK][own]))
    return {task: checksum.hexdigest() for task, checksum in found.items()}
