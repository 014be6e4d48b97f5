"""The measures of continual learning, computed from the accuracy matrix of a run.

`matrix[i][j]` is the test accuracy on task `j + 1` after learning task `i`: row 0 is the network before any task. The
matrix of `t` tasks has `t + 1` rows and `t` columns; NaN means that an accuracy was not measured. A measure that needs
such an accuracy is None. So is a measure that compares tasks if there is only one task.

- Average accuracy, backward and forward transfer: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual
  Learning", 2017 (ACC, BWT, FWT).
- Forgetting: Chaudhry et al., "Riemannian Walk for Incremental Learning", 2018. The maximum is over the accuracies
  since a task was learned. Libraries that use the accuracy right after learning instead of the maximum report
  `-backward_transfer`.
- Learning accuracy: Riemer et al., "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
  Interference", 2019.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = Sequence[float | None]


def average_accuracy(matrix: np.ndarray) -> float | None:
    """Return the mean accuracy over all tasks after the last one (ACC)."""
    return _mean(matrix[-1])


def learning_accuracy(matrix: np.ndarray) -> float | None:
    """Return the mean accuracy of the tasks, each right after it was learned."""
    return _mean(_when_learned(matrix))


def backward_transfer(matrix: np.ndarray) -> float | None:
    """Return how much later tasks changed the accuracy of a task, averaged over all tasks but the last (BWT)."""
    return _mean((matrix[-1] - _when_learned(matrix))[:-1])


def forgetting(matrix: np.ndarray) -> float | None:
    """Return how far the final accuracy of a task is below its best one since it was learned.

    The result is the mean over all tasks but the last.
    """
    best = [matrix[task + 1 : -1, task].max() for task in range(len(matrix) - 2)]
    return _mean(best - matrix[-1, :-1])


def forward_transfer(matrix: np.ndarray) -> float | None:
    """Return how much earlier tasks raised the accuracy on a task not learned yet, averaged from task 2 on (FWT)."""
    before = matrix.diagonal()
    return _mean((before - matrix[0])[1:])


# The measures by their names in results, tables and TensorBoard.
MEASURES = {
    "average_accuracy": average_accuracy,
    "learning_accuracy": learning_accuracy,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
}


def matrix_of(
    accuracy: Sequence[Row], unseen: Sequence[Row | None] = (), untrained: Row | None = None
) -> np.ndarray | None:
    """Return the accuracy matrix of the tasks so far, for all tasks of the run.

    Args:
        accuracy: Row `i` has the accuracies on tasks 1 to `i + 1` after learning the last of them.
        unseen: Row `i` has the accuracies on the tasks after task `i + 1`; None if they were not measured.
        untrained: The accuracies on all tasks before the first was learned; None if they were not measured.

    Returns:
        The matrix `(learned + 1, tasks)`, NaN where nothing was measured; None if tasks were learned together.
    """
    if [len(row) for row in accuracy] != list(range(1, len(accuracy) + 1)):
        return None
    later: list[Row | None] = [*unseen, *[None] * (len(accuracy) - len(unseen))]
    widths = [len(row) + len(rest or ()) for row, rest in zip(accuracy, later, strict=True)]
    matrix = np.full((len(accuracy) + 1, max([*widths, len(untrained or ())])), np.nan)
    for index, (row, rest) in enumerate(zip([[], *accuracy], [untrained, *later], strict=True)):
        known = [*row, *(rest or ())]
        matrix[index, : len(known)] = known
    return matrix


def to_json(matrix: np.ndarray | None) -> list[list[float | None]] | None:
    """Return a matrix as JSON values: None where nothing was measured."""
    if matrix is None:
        return None
    return [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]


def matrix_in(results: dict[str, Any]) -> np.ndarray | None:
    """Return the accuracy matrix of a `results.json`; earlier versions recorded only accuracies on learned tasks."""
    rows = results.get("accuracy_matrix")
    return matrix_of(results["accuracy"]) if rows is None else np.array(rows, float)


def measures(results: dict[str, Any]) -> dict[str, float | None]:
    """Return all measures of the tasks that a run has learned so far, from the content of its `results.json`."""
    matrix = matrix_in(results)
    if matrix is None:  # tasks that are learned together have no order
        missing = dict.fromkeys(MEASURES)
        return {**missing, "average_accuracy": float(np.mean(results["accuracy"][-1])), "capacity_used": _used(results)}
    learned = len(matrix) - 1
    if not learned:
        return {**dict.fromkeys(MEASURES), "capacity_used": _used(results)}
    values = {name: measure(matrix[:, :learned]) for name, measure in MEASURES.items()}
    return {**values, "capacity_used": _used(results)}


def _used(results: dict[str, Any]) -> float:
    """Return the fraction of the prunable weights that the tasks own."""
    return 1.0 - results["free_fraction"]["overall"]


def _when_learned(matrix: np.ndarray) -> np.ndarray:
    return matrix[1:].diagonal()


def _mean(values: np.ndarray) -> float | None:
    if not len(values) or np.isnan(values).any():
        return None
    return float(np.mean(values))
