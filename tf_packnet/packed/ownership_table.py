"""Text tables of the weights that each task owns, for `PackedModel.summary` and `tp.plan`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_packnet.text import printable

# Largest number of tasks with a column each. With more tasks, only the last ones have a column.
_TASK_COLUMNS = 6


def ownership_table(owner_maps: Mapping[str, np.ndarray], task_names: Sequence[str]) -> str:
    """Return a table with one row per kernel: its number of weights, the weights of each task, the free weights.

    Args:
        owner_maps: `uint8` maps by the kernel's path.
        task_names: Names of the tasks, in order.
    """
    from rich.table import Table

    first = max(0, len(task_names) - _TASK_COLUMNS)
    table = Table(title="Owned and free weights", title_justify="left")
    table.add_column("kernel")
    headings = ["weights", *([f"{first} earlier"] if first else []), *task_names[first:], "free"]
    for heading in headings:
        table.add_column(heading, justify="right")
    counts = {path: np.bincount(owner.ravel(), minlength=len(task_names) + 1) for path, owner in owner_maps.items()}
    for path, count in counts.items():
        table.add_row(path, *_cells(count, first), end_section=path == list(counts)[-1])
    table.add_row("all", *_cells(np.sum(list(counts.values()), axis=0), first))
    # Wide enough for all columns: rich would truncate numbers in a narrower table.
    width = max(80, 14 * len(headings) + max(len(printable(path)) for path in counts) + 4)
    return "\n".join(_lines(table, width))


def _lines(table: Any, width: int) -> list[str]:
    """Render a `rich.table.Table`."""
    from tf_packnet.system.console import Console

    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip("\n").splitlines()]


def _cells(count: np.ndarray, first: int) -> list[str]:
    free, owned = int(count[0]), count[1:]
    total = int(count.sum())
    shown = [*([int(owned[:first].sum())] if first else []), *map(int, owned[first:])]
    return [f"{total:,}", *(f"{number:,}" for number in shown), f"{free:,} ({free / total:.1%})"]


def plan_table(plan: Any) -> str:
    """Return the table of a `tf_packnet.planning.CapacityPlan`, followed by memory, disk space and warnings."""
    from rich.table import Table

    last = plan.first_task + plan.tasks - 1
    which = f"task {last}" if plan.tasks == 1 else f"tasks {plan.first_task} to {last}"
    table = Table(
        title=f"{which}, p = {plan.final_prune:g}, N = {plan.prune_rounds}, scope {plan.scope}",
        title_justify="left",
    )
    table.add_column("kernel")
    shown = _shown(plan.tasks)
    headings = ["shape", "outputs", *(f"task {plan.first_task + index}" for index in shown), "free at the end"]
    for heading in headings:
        table.add_column(heading, justify="right")
    few = {(path, task) for path, task, _, _ in plan.too_few()}
    for layer in plan.layers:
        cells = (
            ["?"] * len(shown)
            if layer.kept is None
            else [f"{layer.kept[i]:,}" + ("!" if (layer.path, plan.first_task + i) in few else "") for i in shown]
        )
        free = "?" if layer.free is None else f"{layer.free:,}"
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.path, shape, f"{layer.outputs:,}", *cells, free, end_section=layer is plan.layers[-1])
    total = [f"{plan.kept[i]:,}" for i in shown]
    table.add_row("all", f"{plan.weights:,}", "", *total, f"{plan.free:,} ({plan.free / plan.weights:.1%})")
    lines = [
        f"Memory   {_size(plan.training_bytes)} for weights, owner maps and Adam's moments during training",
        f"Disk     {_size(plan.pack_bytes)} for the pack, {_size(plan.export_bytes)} for the weights of one task's "
        "dense SavedModel",
    ]
    if plan.too_few():
        path, task, count, outputs = min(plan.too_few(), key=lambda row: row[2] / row[3])
        lines.append(
            f"Few      ! {len(few)} times a task gets fewer weights than the layer has outputs; worst case: in {path}, "
            f"task {task} gets {count:,} weights for {outputs:,} outputs"
        )
    if plan.frees:
        lines.append(f"Forget   forgetting the last task, {plan.last_task!r}, would free {plan.frees:,} weights")
    if not all(layer.kept for layer in plan.layers):
        lines.append("?        depends on the values of the weights, because all layers are ranked together")
    width = max(100, 13 * len(headings) + max(len(printable(layer.path)) for layer in plan.layers) + 6)
    return "\n".join([*_lines(table, width), *lines])


def _shown(tasks: int) -> list[int]:
    """Return the indices of the tasks with a column: all of up to eight tasks, otherwise the first and last four."""
    return list(range(tasks)) if tasks <= 8 else [*range(4), *range(tasks - 4, tasks)]


def _size(number: int) -> str:
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} bytes"
