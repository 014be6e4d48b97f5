"""How many more tasks fit into a pack, if they take what the last ones took."""

from collections.abc import Sequence
from dataclasses import dataclass

from tf_packnet.pruning.ownership import MAX_TASKS
from tf_packnet.pruning.ranking import remaining

# The rate is that of so many tasks at the end: what a schedule was changed to counts, what it was does not.
LAST = 3


@dataclass(frozen=True)
class Layer:
    """What a kernel gives.

    Attributes:
        path: Its path.
        outputs: How many numbers it computes.
        owned: Weights that each task owns.
        free: Weights that none does.
    """

    path: str
    outputs: int
    owned: tuple[int, ...]
    free: int


@dataclass(frozen=True)
class Room:
    """How many more tasks fit.

    Attributes:
        released: `r`: the share of the weights that it found free which a task gave back, as the last tasks did.
        measured: How many tasks that was measured on.
        comfortable: How many more tasks get at least as many weights of every layer as that has outputs; the mark that
            `tf_packnet.plan` sets.
        at_most: How many more tasks get any weight at all, up to the 254 of a pack; `tf_packnet.plan` refuses more.
        layer: The layer in which the next task after `comfortable` ones gets too few; None if that is never.
        gets: How many weights it gets there.
        outputs: How many outputs that layer has.
    """

    released: float
    measured: int
    comfortable: int
    at_most: int
    layer: str | None = None
    gets: int | None = None
    outputs: int | None = None

    def final_prune(self, tasks: int) -> float:
        """The `p` with which a schedule of `tasks` tasks goes on at this rate."""
        return self.released**tasks

    def __str__(self) -> str:
        last = "The one task" if self.measured == 1 else f"Each of the last {self.measured} tasks"
        rate = f"{last} took {1 - self.released:.2%} of the weights that it found free (r = {self.released:.4g})."
        if self.at_most == 0:
            return f"{rate} No more task fits (a pack holds {MAX_TASKS})."
        most = f"at most {self.at_most} more get any weight (a pack holds {MAX_TASKS} tasks)"
        if self.layer is None:
            return f"{rate} At this rate {self.at_most} more fit, as many as a pack holds."
        few = f"{self.gets:,} weights of {self.layer}, which has {self.outputs:,} outputs"
        if not self.comfortable:
            return f"{rate} At this rate the next gets only {few}; {most}."
        return f"{rate} At this rate {self.comfortable} more fit before one gets only {few}; {most}."


def room_left(layers: Sequence[Layer]) -> Room | None:
    """Lets tasks come until there is nothing left: each takes of every layer what the last ones took; None before any.

    What a task took is counted against what it found free, as Algorithm 2 does: `1 - r` of it.
    """
    tasks = len(layers[0].owned)
    if not tasks:
        return None
    measured = min(LAST, tasks)
    before = [layer.free + sum(layer.owned[-measured:]) for layer in layers]
    rates = [_released(found, layer.free, measured) for found, layer in zip(before, layers, strict=True)]
    free = [layer.free for layer in layers]
    short, at_most = None, 0
    for coming in range(MAX_TASKS - tasks):
        gets = [remaining(left, 1.0 - rate) for left, rate in zip(free, rates, strict=True)]
        if short is None:
            worst = min(range(len(layers)), key=lambda index: gets[index] / layers[index].outputs)
            if gets[worst] < layers[worst].outputs:
                short = coming, layers[worst].path, gets[worst], layers[worst].outputs
        if not any(gets):
            break
        free = [left - taken for left, taken in zip(free, gets, strict=True)]
        at_most = coming + 1
    comfortable, *why = short or (at_most,)
    return Room(
        _released(sum(before), sum(layer.free for layer in layers), measured), measured, comfortable, at_most, *why
    )


def _released(before: int, after: int, tasks: int) -> float:
    """The share that each of `tasks` tasks gave back of what it found, if all gave the same."""
    return (after / before) ** (1.0 / tasks) if before else 1.0
