"""Algorithm 2 of the paper: every task releases the same fraction of its candidates, in `N` equal prune rounds.

A fraction `p` of the prunable weights is still free after all `T` tasks. Each task releases `r = p^(1/T)` of its
candidates, in `N` rounds that each prune `z = 1 - (1-r)^(1/N)` of the remaining ones. After round `n` of a task that
began with `c` candidates, `round(c * (1-z)^n)` of them remain. The count is always computed from `c`, so that rounding
errors do not accumulate.

In the paper, each round is followed by `B/N` of the `B` retraining epochs. `round_lengths` also divides them unequally.
"""

import itertools
import operator
from collections.abc import Iterable
from typing import Literal

from tf_packnet.errors import ArgumentError, check_choice

# How the retraining epochs are divided between the rounds, besides a number of epochs for each.
UNIFORM, GROWING, SHRINKING = "uniform", "growing", "shrinking"
ROUND_EPOCHS = (UNIFORM, GROWING, SHRINKING)

# Instead of a number of prune rounds: the validation loss decides when to prune and how much, see `auto_rounds`.
AUTO = "auto"
PruneRounds = int | Literal["auto"]

# Instead of one share per task: all tasks release the same fraction of their candidates.
EQUAL = "equal"


def released_fraction(final_prune: float, num_tasks: int) -> float:
    """Return `r`, the fraction of its candidates that each task releases.

    Args:
        final_prune: `p`, the fraction of the weights that is free after all tasks.
        num_tasks: `T`.
    """
    return final_prune ** (1.0 / num_tasks)


def pruned_per_round(released: float, rounds: int) -> float:
    """Return `z`, the fraction of the remaining candidates that each prune round prunes.

    Args:
        released: `r`, the fraction of the candidates that all rounds together release.
        rounds: `N`.
    """
    return 1.0 - (1.0 - released) ** (1.0 / rounds)


def remaining(num_candidates: int, kept_fraction: float) -> int:
    """Return how many of `num_candidates` remain at `kept_fraction`: `round(c * fraction)`, half to even."""
    return round(num_candidates * kept_fraction)


def rounds_that_divide(budget: int) -> list[int]:
    """Return every number of prune rounds that divides `budget` epochs evenly."""
    return [n for n in range(1, budget + 1) if budget % n == 0]


def round_lengths(epochs: int, rounds: int, round_epochs: str | tuple[int, ...] = UNIFORM) -> tuple[int, ...]:
    """Divide the retraining epochs between the prune rounds.

    Args:
        epochs: `B`, retraining epochs per task.
        rounds: `N`. For `uniform` a divisor of `epochs`, otherwise at most `epochs`.
        round_epochs: `uniform`; `growing`: in proportion to 1, 2, ..., N, rounded, but at least 1; `shrinking`: the
            reverse; or the number of epochs after each round.

    Returns:
        The number of epochs after each round.
    """
    if not isinstance(round_epochs, str):
        return round_epochs
    if round_epochs == UNIFORM:
        return (epochs // rounds,) * rounds
    whole = rounds * (rounds + 1)
    ends = [max(n, (2 * epochs * n * (n + 1) + whole) // (2 * whole)) for n in range(rounds + 1)]
    growing = tuple(sorted(end - start for start, end in itertools.pairwise(ends)))
    return growing if round_epochs == GROWING else growing[::-1]


def as_lengths(round_epochs: Iterable[int]) -> tuple[int, ...]:
    """Return the epochs after each round as a tuple of integers.

    Raises:
        ArgumentError: If they are not integers of at least 0, with a positive one last.
    """
    try:
        lengths = tuple(map(operator.index, round_epochs))
    except TypeError:
        lengths = ()
    if not lengths or min(lengths) < 0 or lengths[-1] < 1:
        expected = f"{', '.join(ROUND_EPOCHS)}, or the epochs after each round, such as (1, 2, 5); the last at least 1"
        raise ArgumentError("round_epochs", expected, round_epochs)
    return lengths


def check_rounds(epochs: int | None, rounds: PruneRounds, round_epochs: str | tuple[int, ...]) -> None:
    """Raise ArgumentError unless the retraining epochs can be divided between the prune rounds.

    Args:
        epochs: `B`; None if it is not known yet.
        rounds: `N`, or `auto`.
        round_epochs: As for `round_lengths`.
    """
    if isinstance(rounds, str):
        if round_epochs != UNIFORM:
            expected = f"{UNIFORM} with {AUTO} rounds, whose lengths the validation loss decides"
            raise ArgumentError("round_epochs", expected, round_epochs)
        return
    if not isinstance(round_epochs, str):
        if rounds != len(round_epochs):
            raise ArgumentError("rounds", f"{len(round_epochs)}, as many as in round_epochs", rounds)
        if epochs not in (None, sum(round_epochs)):
            raise ArgumentError("epochs", f"{sum(round_epochs)}, the sum of round_epochs", epochs)
        return
    check_choice("round_epochs", round_epochs, ROUND_EPOCHS)
    if epochs is not None and round_epochs == UNIFORM and epochs % rounds:
        fitting = ", ".join(map(str, rounds_that_divide(epochs)))
        raise ArgumentError("rounds", f"a divisor of the {epochs} epochs ({fitting})", rounds)
    if epochs is not None and rounds > epochs:
        raise ArgumentError("rounds", f"at most the {epochs} epochs", rounds)
