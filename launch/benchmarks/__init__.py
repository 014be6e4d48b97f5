"""What training costs beside what it could cost: each module measures one thing against its floor."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: Which benchmark it belongs to.
        what: What was measured.
        value: The measurement.
        unit: Its unit.
        floor: What it is held against, in the same unit; None where there is nothing.
        bound: What `value / floor` (or `value`, without a floor) should be: `("at most", 1.15)`, `("at least", 3.5)`.
        note: How it was measured, or what the floor is.
    """

    section: str
    what: str
    value: float
    unit: str
    floor: float | None = None
    bound: tuple[str, float] | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """`value / floor`."""
        return None if self.floor is None else self.value / self.floor

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.bound is None:
            return None
        relation, limit = self.bound
        figure = self.value if self.ratio is None else self.ratio
        return figure <= limit if relation == "at most" else figure >= limit

    def to_json(self) -> dict[str, Any]:
        """The row with what follows from it."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """The inverse of `to_json`."""
        bound = values["bound"]
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "bound": None if bound is None else (bound[0], bound[1])})


def typical(function: Callable[[], Any], repeats: int = 7, calls: int = 1) -> float:
    """Seconds that a call of `function` takes, the median of `repeats` times `calls`."""
    return statistics.median(_seconds(function, repeats, calls))


def quickest(function: Callable[[], Any], repeats: int = 7, calls: int = 1) -> float:
    """Seconds that a call of `function` takes, the best of `repeats` times `calls`: what the machine can do."""
    return min(_seconds(function, repeats, calls))


def _seconds(function, repeats, calls) -> list[float]:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        seconds.append((time.perf_counter() - began) / calls)
    return seconds


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
