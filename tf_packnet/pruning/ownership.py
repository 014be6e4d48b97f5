"""The owner algebra: which task owns which weight, as plain NumPy on `uint8` maps.

A map has the shape of its kernel. `FREE` (0) is owned by nobody and hidden from everybody, `k` in 1..254 is owned by
task `k` for ever, and `CANDIDATE` (255) is free, but open to the one task that is being learned. One byte a weight says
all there is to know; every function returns a new map.
"""

import numpy as np

FREE = 0
CANDIDATE = 255
MAX_TASKS = 254
# So many entries are counted at a time: NumPy counts in 8 bytes an entry.
_CHUNK = 1 << 20


def new_map(shape: tuple[int, ...]) -> np.ndarray:
    """A map on which every weight is a candidate of the first task."""
    return np.full(shape, CANDIDATE, np.uint8)


def begin(owner: np.ndarray) -> np.ndarray:
    """Opens the free weights: every one becomes a candidate of the task that begins.

    Raises:
        ValueError: If an earlier task's candidates are still open.
    """
    if (owner == CANDIDATE).any():
        raise ValueError("a task is still open on this owner map: commit it before the next one begins")
    return reopen(owner)


def reopen(owner: np.ndarray) -> np.ndarray:
    """Makes every free weight a candidate, beside those that are."""
    return np.where(owner == FREE, np.uint8(CANDIDATE), owner)


def prune(owner: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Frees the candidates that are not in the boolean mask `keep`; owned weights stay as they are."""
    return np.where(pruned(owner, keep), np.uint8(FREE), owner)


def pruned(owner: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Boolean mask of the candidates that are not in the boolean mask `keep`."""
    return (owner == CANDIDATE) > keep  # True > False: and not, without another array as large


def commit(owner: np.ndarray, task: int) -> np.ndarray:
    """Gives the remaining candidates to `task` (1..254).

    Raises:
        ValueError: If `task` cannot be written into a map.
    """
    if not 1 <= task <= MAX_TASKS:
        raise ValueError(f"task numbers run from 1 to {MAX_TASKS}. Received: task={task}")
    return np.where(owner == CANDIDATE, np.uint8(task), owner)


def visible(owner: np.ndarray, task: int) -> np.ndarray:
    """Boolean mask of the weights that committed `task` computes with: owner in 1..task."""
    return (owner != FREE) & (owner <= min(task, MAX_TASKS))


def candidates(owner: np.ndarray) -> np.ndarray:
    """Boolean mask of the weights that the open task may still train."""
    return owner == CANDIDATE


def without_candidates(owner: np.ndarray) -> np.ndarray:
    """The map as it is published: what is not committed is free."""
    return np.where(owner == CANDIDATE, np.uint8(FREE), owner)


def count_uncommitted(owner: np.ndarray) -> int:
    """How many weights no task has committed: free ones and candidates."""
    return int(np.count_nonzero(owner == FREE)) + int(np.count_nonzero(owner == CANDIDATE))


def free_fraction(owner: np.ndarray) -> float:
    """Share of the weights that no task has committed."""
    return count_uncommitted(owner) / owner.size


def count_by_owner(owner: np.ndarray) -> np.ndarray:
    """How many weights each task owns: `int64` `(255,)`, of which entry 0 counts what no task has committed."""
    flat = owner.reshape(-1)
    counts = sum(np.bincount(flat[at : at + _CHUNK], minlength=256) for at in range(0, flat.size, _CHUNK))
    counts = np.zeros(256, np.int64) + counts
    counts[FREE] += counts[CANDIDATE]
    return counts[:CANDIDATE]
