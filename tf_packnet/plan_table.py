"""A capacity plan as text."""

import io
from typing import Any


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
