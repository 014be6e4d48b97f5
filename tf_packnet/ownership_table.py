"""Who owns how many weights of a pack, as text."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

# So many tasks have a column of their own each; of more, the last ones do.
COLUMNS = 6


def ownership_table(owner_maps: Mapping[str, np.ndarray], task_names: Sequence[str]) -> str:
    """A table with a row a kernel: how many weights it has, how many each task owns, how many are free.

    Args:
        owner_maps: `uint8` maps by the kernel's path.
        task_names: Names of the tasks, the first being number 1.
    """
    from rich.console import Console
    from rich.table import Table

    first = max(0, len(task_names) - COLUMNS)
    table = Table(title="Owned and free weights", title_justify="left")
    table.add_column("kernel")
    headings = ["weights", *([f"{first} earlier"] if first else []), *task_names[first:], "free"]
    for heading in headings:
        table.add_column(heading, justify="right")
    counts = {path: np.bincount(owner.ravel(), minlength=len(task_names) + 1) for path, owner in owner_maps.items()}
    for path, count in counts.items():
        table.add_row(path, *_cells(count, first), end_section=path == list(counts)[-1])
    table.add_row("all", *_cells(sum(counts.values()), first))
    # As wide as it needs to be: numbers that are cut off are worse than a line that wraps.
    width = max(80, 14 * len(headings) + max(len(path) for path in counts) + 4)
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").splitlines())


def _cells(count: np.ndarray, first: int) -> list[str]:
    free, owned = int(count[0]), count[1:]
    total = int(count.sum())
    shown = [*([int(owned[:first].sum())] if first else []), *map(int, owned[first:])]
    return [f"{total:,}", *(f"{number:,}" for number in shown), f"{free:,} ({free / total:.1%})"]
