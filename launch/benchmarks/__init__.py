"""Benchmarks: each module measures one thing and compares it with a reference value, its floor."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of the table of results.

    Attributes:
        section: Name of the benchmark.
        what: What was measured.
        value: Measured value.
        unit: Unit of `value` and `floor`.
        floor: Reference value in the same unit, or None.
        bound: Target for `value / floor`, or for `value` without a floor: `("at most", 1.15)`, `("at least", 3.5)`.
        note: How the value was measured.
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
        """`value / floor`, or None without a floor."""
        return None if self.floor is None else self.value / self.floor

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None if there is no target."""
        if self.bound is None:
            return None
        relation, limit = self.bound
        compared = self.value if self.ratio is None else self.ratio
        return compared <= limit if relation == "at most" else compared >= limit

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the derived `ratio` and `holds`."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """Restore a row from the result of `to_json`."""
        bound = values["bound"]
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "bound": None if bound is None else (bound[0], bound[1])})


def median_seconds(function: Callable[[], Any], repeats: int = 7, calls: int = 1) -> float:
    """Return the seconds per call of `function`: the median of `repeats` measurements of `calls` calls each."""
    return statistics.median(_seconds(function, repeats, calls))


def shortest_seconds(function: Callable[[], Any], repeats: int = 7, calls: int = 1) -> float:
    """Return the seconds per call of `function`: the shortest of `repeats` measurements of `calls` calls each."""
    return min(_seconds(function, repeats, calls))


def _seconds(function: Callable[[], Any], repeats: int, calls: int) -> list[float]:
    function()  # warm-up, not measured
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        seconds.append((time.perf_counter() - began) / calls)
    return seconds


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
