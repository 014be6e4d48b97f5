"""Algorithm 2 of the paper: an equal share of the room for every task, reached in `N` equal rounds.

`p` of the prunable weights are still free after all `T` tasks. Each task releases `r = p^(1/T)` of the weights that it
found free, in `N` rounds which each prune `z = 1 - (1-r)^(1/N)` of what is left. Hence after round `n` of a task that
began with `c` candidates, `round(c * (1-z)^n)` of them remain: counted from `c` each time, so that nothing drifts.
"""


def released_fraction(final_prune: float, num_tasks: int) -> float:
    """`r`: the share of the free weights that each task gives back, so that `final_prune` is free after all."""
    return final_prune ** (1.0 / num_tasks)


def pruned_per_round(released: float, rounds: int) -> float:
    """`z`: the share of the remaining candidates that each of `rounds` rounds prunes to release `released` in all."""
    return 1.0 - (1.0 - released) ** (1.0 / rounds)


def remaining(num_candidates: int, kept_fraction: float) -> int:
    """How many of `num_candidates` remain when `kept_fraction` is to be kept: `round(c * fraction)`, half to even."""
    return round(num_candidates * kept_fraction)


def rounds_that_divide(budget: int) -> list[int]:
    """Every number of prune rounds that splits `budget` epochs evenly."""
    return [n for n in range(1, budget + 1) if budget % n == 0]
