"""Who owns how many weights of a pack, as text."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

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


def plan_table(found: Any) -> str:
    """The table of a `tf_packnet.planning.CapacityPlan`, and under it what it takes and what to look out for."""
    from rich.console import Console
    from rich.table import Table

    last = found.first_task + found.tasks - 1
    which = f"task {last}" if found.tasks == 1 else f"tasks {found.first_task} to {last}"
    table = Table(
        title=f"{which}, p = {found.final_prune:g}, N = {found.prune_rounds}, scope {found.scope}",
        title_justify="left",
    )
    table.add_column("kernel")
    shown = _shown(found.tasks)
    headings = ["shape", "outputs", *(f"task {found.first_task + index}" for index in shown), "free at the end"]
    for heading in headings:
        table.add_column(heading, justify="right")
    few = {(path, task) for path, task, _, _ in found.too_few()}
    for layer in found.layers:
        cells = (
            ["?"] * len(shown)
            if layer.kept is None
            else [f"{layer.kept[i]:,}" + ("!" if (layer.path, found.first_task + i) in few else "") for i in shown]
        )
        free = "?" if layer.free is None else f"{layer.free:,}"
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.path, shape, f"{layer.outputs:,}", *cells, free, end_section=layer is found.layers[-1])
    total = [f"{found.kept[i]:,}" for i in shown]
    table.add_row("all", f"{found.weights:,}", "", *total, f"{found.free:,} ({found.free / found.weights:.1%})")
    lines = [
        f"Memory   {_size(found.training_bytes)} for weights, owners and Adam's moments while training",
        f"Disk     {_size(found.pack_bytes)} for the pack, {_size(found.export_bytes)} for the weights of one task's "
        "dense SavedModel",
    ]
    if found.too_few():
        path, task, count, outputs = min(found.too_few(), key=lambda row: row[2] / row[3])
        lines.append(
            f"Few      ! {len(few)} times a task gets fewer weights than a layer has outputs; least in {path}, where "
            f"task {task} gets {count:,} for {outputs:,}"
        )
    if found.scope == "global":
        lines.append("?        a ranking over all layers decides by the weights' values how many a layer gives")
    width = max(100, 13 * len(headings) + max(len(layer.path) for layer in found.layers) + 6)
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    drawn = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join([*drawn, *lines])


def _shown(tasks: int) -> list[int]:
    """Which tasks have a column: all up to eight, else the first and the last four."""
    return list(range(tasks)) if tasks <= 8 else [*range(4), *range(tasks - 4, tasks)]


def _size(number: int) -> str:
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} bytes"
