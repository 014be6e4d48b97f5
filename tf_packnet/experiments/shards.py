"""Shards: the parts of an experiment that separate commands do, such as the tasks of a SLURM array.

Every command computes the division from the experiment alone. Runs with equal first stages are neighbours, and the list
is cut into parts with equal numbers of epochs. So at most `parts - 1` of these groups are in two shards: a first stage
that is computed twice costs less than a shard with one run more.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from tf_packnet.experiments.definitions import Experiment, estimated_epochs
from tf_packnet.experiments.named import BASELINES
from tf_packnet.runs.config import Config
from tf_packnet.runs.stages import shared_beginning

Item = TypeVar("Item")
# A search of a matching experiment: PackNet's `p`, and the approach that is matched.
Search = tuple[float, str]


class Shard(NamedTuple):
    """One of the parts of an experiment.

    Attributes:
        number: Which part, from 1.
        parts: How many there are.
    """

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def part(self, items: Sequence[Item], costs: Sequence[int]) -> list[Item]:
        """Return the items of this shard: neighbours, whose costs are about the same in every shard."""
        total, before, chosen = sum(costs), 0, []
        for item, cost in zip(items, costs, strict=True):
            if self.parts * (2 * before + cost) // (2 * total) == self.number - 1:  # by the middle of the item
                chosen.append(item)
            before += cost
        return chosen

    def runs(self, experiment: Experiment) -> list[Config]:
        """Return the runs of this shard. Together, the shards have every run once."""
        groups: dict[str, list[Config]] = {}
        for config in experiment.configs:
            groups.setdefault(shared_beginning(config), []).append(config)
        ordered = [config for group in groups.values() for config in group]
        return self.part(ordered, [estimated_epochs(config) for config in ordered])

    def searches(self, experiment: Experiment) -> list[Search]:
        """Return the searches of this shard in a matching experiment.

        Each shard also does PackNet's runs at the `p` of its searches, which two shards may have in common.
        """
        searches = [(p, approach) for p in experiment.axes["final_prune"] for approach in BASELINES]
        return self.part(searches, [1] * len(searches))
