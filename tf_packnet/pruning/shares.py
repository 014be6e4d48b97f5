"""Algorithm 2 of the paper: every task releases the same fraction of its candidates, in `N` equal prune rounds.

A fraction `p` of the prunable weights is still free after all `T` tasks. Each task releases `r = p^(1/T)` of its
candidates, in `N` rounds that each prune `z = 1 - (1-r)^(1/N)` of the remaining ones. After round `n` of a task that
began with `c` candidates, `round(c * (1-z)^n)` of them remain. The count is always computed from `c`, so that rounding
errors do not accumulate.
"""


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
