"""Estimates how many more tasks fit in a pack if they take the same share of the free weights as the last tasks did."""

from collections.abc import Sequence
from dataclasses import dataclass

from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.pruning.ranking import remaining

# The rate is measured on the last few tasks only, so that it follows changes of the schedule.
_LAST_TASKS = 3


@dataclass(frozen=True)
class Layer:
    """Ownership of one kernel.

    Attributes:
        path: Path of the kernel.
        outputs: Number of outputs (units or filters).
        owned: Number of weights that each task owns.
        free: Number of free weights.
    """

    path: str
    outputs: int
    owned: tuple[int, ...]
    free: int


@dataclass(frozen=True)
class FreeCapacity:
    """How many more tasks fit in a pack.

    Attributes:
        released: `r` of Algorithm 2: the fraction of the free weights that a task releases, measured on the last tasks.
        measured: Number of last tasks on which `released` was measured.
        comfortable: Number of further tasks that get at least one weight per output in every layer, the threshold of
            `tf_packnet.plan`.
        at_most: Number of further tasks that get any weight, up to 254 tasks per pack; `tf_packnet.plan` refuses more.
        layer: The layer in which the task after the `comfortable` ones gets too few weights; None if there is none.
        gets: Number of weights that this task gets in `layer`.
        outputs: Number of outputs of `layer`.
    """

    released: float
    measured: int
    comfortable: int
    at_most: int
    layer: str | None = None
    gets: int | None = None
    outputs: int | None = None

    def final_prune(self, tasks: int) -> float:
        """Return the final prune `p` with which a schedule of `tasks` tasks continues at this rate."""
        return self.released**tasks

    def __str__(self) -> str:
        tasks = "The only task" if self.measured == 1 else f"Each of the last {self.measured} tasks"
        rate = f"{tasks} took {1 - self.released:.2%} of the weights free before it (r = {self.released:.4g})."
        if self.at_most == 0:
            return f"{rate} No further task fits (a pack holds up to {MAX_TASKS} tasks)."
        limit = f"at most {self.at_most} further tasks get any weight (a pack holds up to {MAX_TASKS} tasks)"
        if self.layer is None:
            return f"{rate} At this rate {self.at_most} more tasks fit, the most that a pack holds."
        shortage = f"only {self.gets:,} weights of {self.layer}, which has {self.outputs:,} outputs"
        if not self.comfortable:
            return f"{rate} At this rate the next task gets {shortage}; {limit}."
        return f"{rate} At this rate {self.comfortable} more tasks fit before one gets {shortage}; {limit}."


def free_capacity(layers: Sequence[Layer]) -> FreeCapacity | None:
    """Simulate further tasks that take the same fraction of each layer's free weights as the last tasks did.

    A task takes the fraction `1 - r` (`r` as in Algorithm 2) of the weights that were free before it.

    Returns:
        The estimate; None if no task is committed yet.
    """
    tasks = len(layers[0].owned)
    if not tasks:
        return None
    measured = min(_LAST_TASKS, tasks)
    free_before = [layer.free + sum(layer.owned[-measured:]) for layer in layers]
    rates = [_released(before, layer.free, measured) for before, layer in zip(free_before, layers, strict=True)]
    free = [layer.free for layer in layers]
    shortage: tuple[int, str, int, int] | None = None
    at_most = 0
    for further in range(MAX_TASKS - tasks):
        gets = [remaining(left, 1.0 - rate) for left, rate in zip(free, rates, strict=True)]
        if shortage is None:
            worst = min(range(len(layers)), key=lambda index: gets[index] / layers[index].outputs)
            if gets[worst] < layers[worst].outputs:
                shortage = further, layers[worst].path, gets[worst], layers[worst].outputs
        if not any(gets):
            break
        free = [left - taken for left, taken in zip(free, gets, strict=True)]
        at_most = further + 1
    released = _released(sum(free_before), sum(layer.free for layer in layers), measured)
    if shortage is None:
        return FreeCapacity(released, measured, at_most, at_most)
    return FreeCapacity(released, measured, shortage[0], at_most, *shortage[1:])


def _released(before: int, after: int, tasks: int) -> float:
    """Return the fraction of the free weights that each of `tasks` tasks released, if all released the same."""
    return (after / before) ** (1.0 / tasks) if before else 1.0
