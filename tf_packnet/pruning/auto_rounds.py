"""Decides from the validation loss when to prune and how much, within a budget of epochs.

Algorithm 2 is divided into `STEPS` small prune rounds. At the start of each epoch `steps_at` says how many of them must
be done by then: many while the validation loss tolerates what was pruned, otherwise as many as keep an even pace to the
end.
"""

import math
from collections.abc import Sequence

import numpy as np

# The rounds of Algorithm 2 that are done one or many at a time.
STEPS = 1000


def pruning_epochs(epochs: int) -> int:
    """Return how many of the `epochs` of retraining, from the first on, may begin with a round."""
    return epochs - epochs // 10


def even_pace(epochs: int) -> list[int]:
    """Return how many of the `STEPS` steps are done by the start of each epoch that may begin with a round, at least.

    Args:
        epochs: `B`, retraining epochs of the task.
    """
    last = pruning_epochs(epochs)
    return [STEPS * (epoch + 1) // last for epoch in range(last)]


def steps_at(epoch: int, epochs: int, done: int, losses: Sequence[float]) -> int:
    """Return how many of the `STEPS` steps must be done when an epoch begins.

    An even pace takes `1 / left` of the remaining steps in each of the epochs that are left for pruning. While the loss
    is tolerated, the pace is `1 / sqrt(left)`.

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

    It may exceed the lowest loss so far by the median of the changes from epoch to epoch before it, which is noise.

    Args:
        losses: The validation loss after each epoch so far.
    """
    if not losses:
        return True
    with np.errstate(invalid="ignore"):  # a loss may be infinite
        changes = np.abs(np.diff(losses[:-1]))
    return losses[-1] <= min(losses) + (float(np.median(changes)) if len(changes) else 0.0)
