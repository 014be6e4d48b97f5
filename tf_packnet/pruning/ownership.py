"""Operations on owner maps: `uint8` NumPy arrays that say which task owns each weight of a kernel.

A map has the shape of its kernel. Each entry is one of:

- `FREE` (0): owned by no task and visible to none.
- `k` in 1..254: owned by committed task `k`, permanently.
- `CANDIDATE` (255): a free weight that the open task may still keep.

No function changes its argument; all return new arrays.
"""

from numbers import Integral
from typing import Any

import numpy as np

FREE = 0
CANDIDATE = 255
MAX_TASKS = 254
# Number of entries to count at a time, because `np.bincount` needs 8 bytes per entry.
_CHUNK = 1 << 20


def new_map(shape: tuple[int, ...]) -> np.ndarray:
    """Return a map in which every weight is a candidate of the first task."""
    return np.full(shape, CANDIDATE, np.uint8)


def begin(owner: np.ndarray) -> np.ndarray:
    """Make every free weight a candidate of a new task.

    Raises:
        ValueError: If the map already has candidates, of a task that is still open.
    """
    if (owner == CANDIDATE).any():
        raise ValueError("a task is still open in this owner map: commit it before you begin the next one")
    return reopen(owner)


def reopen(owner: np.ndarray) -> np.ndarray:
    """Make every free weight a candidate, in addition to the current candidates."""
    return np.where(owner == FREE, np.uint8(CANDIDATE), owner)


def prune(owner: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Free the candidates that are not in the boolean mask `keep`; owned weights do not change."""
    return np.where(pruned(owner, keep), np.uint8(FREE), owner)


def pruned(owner: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return a boolean mask of the candidates that are not in the boolean mask `keep`."""
    return (owner == CANDIDATE) > keep  # on booleans, `a > b` is `a and not b`, without a temporary array


def commit(owner: np.ndarray, task: int) -> np.ndarray:
    """Make `task` (1..254) the owner of the remaining candidates.

    Raises:
        ValueError: If `task` is out of range.
    """
    if not 1 <= task <= MAX_TASKS:
        raise ValueError(f"a task number must be between 1 and {MAX_TASKS}. Received: task={task}")
    return np.where(owner == CANDIDATE, np.uint8(task), owner)


def forget(owner: np.ndarray, task: int, last: int) -> np.ndarray:
    """Remove a committed task from a map without candidates; the numbers of later tasks decrease by one.

    The weights of the last task become free. The weights of an earlier task are visible to all later tasks, so the next
    task takes them over: every remaining task sees the same weights as before.

    Args:
        owner: Owner map.
        task: Number (1-based) of the task.
        last: Number of the last committed task.
    """
    if task == last:
        return np.where(owner == task, np.uint8(FREE), owner)
    return owner - (owner > task).astype(np.uint8)


def visible(owner: Any, task: Any) -> Any:
    """Return a boolean mask of the weights that committed `task` computes with: owner in 1..task.

    This is the only implementation of the rule. It works on NumPy arrays and on tensors.

    Args:
        owner: Owner map, `uint8`.
        task: Task number, an int or a `uint8` scalar tensor.

    Returns:
        Boolean array or tensor of the same shape.
    """
    if isinstance(task, Integral):
        task = np.uint8(min(int(task), MAX_TASKS))
    # In uint8, FREE - 1 wraps to 255: one comparison excludes free weights, candidates and those of later tasks.
    return (owner - np.uint8(1)) < task


def candidates(owner: np.ndarray) -> np.ndarray:
    """Return a boolean mask of the weights that the open task may still keep."""
    return owner == CANDIDATE


def without_candidates(owner: np.ndarray) -> np.ndarray:
    """Return the map with candidates marked as free, as in an exported model."""
    return np.where(owner == CANDIDATE, np.uint8(FREE), owner)


def count_uncommitted(owner: np.ndarray) -> int:
    """Count the weights that no committed task owns: free weights and candidates."""
    return int(np.count_nonzero(owner == FREE)) + int(np.count_nonzero(owner == CANDIDATE))


def free_fraction(owner: np.ndarray) -> float:
    """Return the fraction of the weights that no committed task owns."""
    return count_uncommitted(owner) / owner.size


def count_by_owner(owner: np.ndarray) -> np.ndarray:
    """Count the weights of each task.

    Returns:
        `int64` array of shape `(255,)`. Entry `k` counts the weights of task `k`; entry 0 counts free weights and
        candidates.
    """
    flat = owner.reshape(-1)
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.size, _CHUNK):
        counts += np.bincount(flat[start : start + _CHUNK], minlength=256)
    counts[FREE] += counts[CANDIDATE]
    return counts[:CANDIDATE]
