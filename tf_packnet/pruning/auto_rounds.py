"""Decides from the validation loss when to prune and how much, within a budget of epochs.

The pruning of Algorithm 2 is divided into `STEPS` small steps. At the start of each epoch, `steps_at` returns how many
steps must be done by then: more while the validation loss tolerates the pruning, otherwise as many as an even pace
needs to finish in time.
"""

import math
from collections.abc import Sequence

import numpy as np

# Number of steps. A prune round does one or more of them.
STEPS = 1000


def pruning_epochs(epochs: int) -> int:
    """Return how many of the `epochs` of retraining may begin with a prune round: all but the last tenth."""
    return epochs - epochs // 10


def even_pace(epochs: int) -> list[int]:
    """Return the minimum number of steps that are done by the start of each epoch that may begin with a round.

    Args:
        epochs: `B`, retraining epochs of the task.
    """
    last = pruning_epochs(epochs)
    return [STEPS * (epoch + 1) // last for epoch in range(last)]


def steps_at(epoch: int, epochs: int, done: int, losses: Sequence[float]) -> int:
    """Return how many of the `STEPS` steps must be done when an epoch begins.

    With `left` epochs left for pruning, an even pace does `1 / left` of the remaining steps in this epoch. While the
    validation loss tolerates the pruning, the fraction is `1 / sqrt(left)`.

    Args:
        epoch: The epoch (0-based).
        epochs: `B`, retraining epochs of the task.
        done: Steps done before.
        losses: The validation loss after each epoch so far.
    """
    left = pruning_epochs(epochs) - epoch
    if left < 1:
        return STEPS
    pace = 1.0 / (math.sqrt(left) if is_tolerated(losses) else left)
    return done + math.ceil((STEPS - done) * pace)


def is_tolerated(losses: Sequence[float]) -> bool:
    """Return whether the last validation loss shows no harm from pruning.

    The last loss may exceed the lowest one so far by as much as the noise: the median absolute change between earlier
    epochs.

    Args:
        losses: The validation loss after each epoch so far.
    """
    if not losses:
        return True
    with np.errstate(invalid="ignore"):  # a loss may be infinite
        changes = np.abs(np.diff(losses[:-1]))
    return losses[-1] <= min(losses) + (float(np.median(changes)) if len(changes) else 0.0)
