"""Formats the contents of a pack as tables for a terminal."""

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table

from tf_packnet.inspection.contents import Inspection

# Largest number of tasks with a column each. With more tasks, only the first and the last tasks have a column.
_COLUMNS = 8
# Shown instead of the free capacity if no task is committed.
NO_RATE = "How many more tasks fit is unknown, because no task is committed yet."
_HEADINGS = {"when_learned": "accuracy when learned", "accuracy": "final accuracy", "bytes": "bytes"}


def tables(inspection: Inspection, console: Console) -> RenderableType:
    """Format the tasks, the layers and the notes to the width of `console`."""
    parts: list[RenderableType] = [_tasks(inspection)] if inspection.tasks else []
    unlimited = console.options.update(max_width=10_000)
    candidates = (_layers(inspection, columns, console.width // 3) for columns in range(_COLUMNS, 0, -2))
    fitting = (table for table in candidates if Measurement.get(console, unlimited, table).maximum <= console.width)
    return Group(*parts, next(fitting, None) or _layers(inspection, 0, None), _notes(inspection))


def shown_tasks(count: int, columns: int = _COLUMNS) -> list[int]:
    """Return the indices of the tasks that have a column: all tasks or, of many, the first and the last ones."""
    half = columns // 2
    return list(range(count)) if count <= columns else [*range(half), *range(count - half, count)]


def size(number: int) -> str:
    """Format a number of bytes with a unit."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} bytes"


def score(value: float | None) -> str:
    """Format an accuracy; an empty string for None."""
    return "" if value is None else f"{value:.4f}"


def _tasks(inspection: Inspection) -> Table:
    table = Table(title=f"Tasks of {inspection.file or inspection.model}", title_justify="left")
    table.add_column("task", justify="right")
    for heading in ("name", "classes"):
        table.add_column(heading, overflow="fold")
    cells = {
        "weights": lambda task: f"{task.weights:,}",
        "share": lambda task: f"{task.share:.2%}",
        _HEADINGS["when_learned"]: lambda task: score(task.when_learned),
        _HEADINGS["accuracy"]: lambda task: score(task.accuracy),
        _HEADINGS["bytes"]: lambda task: "" if task.bytes is None else f"{task.bytes:,}",
    }
    known = {"weights", "share", *(_HEADINGS[name] for name in inspection.known())}
    headings = [heading for heading in cells if heading in known]
    for heading in headings:
        table.add_column(heading, justify="right")
    for task in inspection.tasks:
        values = [cells[heading](task) for heading in headings]
        table.add_row(str(task.number), task.name, task.classes(), *values)
    return table


def _layers(inspection: Inspection, columns: int, max_path_width: int | None) -> Table:
    shown = shown_tasks(len(inspection.tasks), columns)
    table = Table(title="Weights by layer and task", title_justify="left")
    table.add_column("kernel", overflow="fold", max_width=max_path_width)
    for heading in ("weights", *(f"task {index + 1}" for index in shown), "free", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in inspection.layers:
        owned = [f"{layer.owned[index]:,}" for index in shown]
        shape = "x".join(map(str, layer.shape))
        free = [f"{layer.free:,}", f"{layer.free / layer.weights:.1%}"]
        last = layer is inspection.layers[-1]
        table.add_row(layer.path, shape, *owned, *free, end_section=last)
    total = [f"{inspection.tasks[index].weights:,}" for index in shown]
    free = [f"{inspection.free:,}", f"{inspection.free / inspection.weights:.1%}"]
    table.add_row("all", f"{inspection.weights:,}", *total, *free)
    return table


def _notes(inspection: Inspection) -> Table:
    lines = Table.grid(padding=(0, 2))
    if inspection.bytes is not None:
        lines.add_row("File", f"{inspection.file}, {size(inspection.bytes)}")
    lines.add_row("Free capacity", str(inspection.room or NO_RATE))
    if inspection.tasks and inspection.tasks[-1].frees:
        frees = f"the last task would free {inspection.tasks[-1].frees:,} weights; later tasks use those of the others"
        lines.add_row("Forgetting", frees)
    for note in inspection.notes:
        lines.add_row("Note", note)
    return lines
