"""What the paper reports, to stand beside what we measure: only the numbers that it gives in words or tables."""

from typing import Any

# Average accuracy of PackNet with one prune round, by data set and p.
ACCURACY = {
    ("mnist", 0.95): 0.996,
    ("mnist", 0.99): 0.989,
    ("mnist", 0.995): 0.970,
    ("cifar10", 0.8): 0.891,
}
# Its abstract: freezing can take over twice as many weights for the same performance.
COMPRESSION = "over 2 at best (abstract)"


def accuracy(setting: dict[str, Any]) -> float | None:
    """The paper's average accuracy at a setting of config fields, or None where it gives none."""
    if setting["approach"] != "packnet" or setting["prune_rounds"] != 1:
        return None
    return ACCURACY.get((setting["dataset"], setting["final_prune"]))
