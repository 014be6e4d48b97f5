"""What a pack holds, as tables on a terminal."""

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tf_packnet.inspection.contents import Inspection

# Tasks with a column of their own; of more, the first and the last ones have.
COLUMNS = 8
_HEADINGS = {"when_learned": "when learned", "accuracy": "at the end", "bytes": "bytes"}


def tables(found: Inspection, console: Console) -> RenderableType:
    """The tasks, the layers, and what there is to say, as wide as `console` is."""
    parts: list[RenderableType] = [_tasks(found)] if found.tasks else []
    unlimited = console.options.update(max_width=10_000)
    drawn = (_layers(found, columns, console.width // 3) for columns in range(COLUMNS, 0, -2))
    fitting = (table for table in drawn if Measurement.get(console, unlimited, table).maximum <= console.width)
    return Group(*parts, next(fitting, None) or _layers(found, 0, None), _said(found))


def shown_tasks(count: int, columns: int = COLUMNS) -> list[int]:
    """Indices of the tasks that have a column: all of a few, else the first and the last ones."""
    half = columns // 2
    return list(range(count)) if count <= columns else [*range(half), *range(count - half, count)]


def size(number: int) -> str:
    """Bytes as people say them."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} bytes"


def score(value: float | None) -> str:
    """An accuracy, where there is one."""
    return "" if value is None else f"{value:.4f}"


def _tasks(found: Inspection) -> Table:
    table = Table(title=f"Tasks of {found.file or found.model}", title_justify="left")
    table.add_column("task", justify="right")
    for heading in ("name", "classes"):
        table.add_column(heading, overflow="fold")
    cells = {
        "own weights": lambda task: f"{task.weights:,}",
        "share": lambda task: f"{task.share:.2%}",
        "when learned": lambda task: score(task.when_learned),
        "at the end": lambda task: score(task.accuracy),
        "bytes": lambda task: "" if task.bytes is None else f"{task.bytes:,}",
    }
    known = {"own weights", "share", *(_HEADINGS[name] for name in found.known())}
    headings = [heading for heading in cells if heading in known]
    for heading in headings:
        table.add_column(heading, justify="right")
    for task in found.tasks:
        values = [cells[heading](task) for heading in headings]
        table.add_row(Text(str(task.number)), Text(task.name), Text(task.classes()), *values)
    return table


def _layers(found: Inspection, columns: int, widest: int | None) -> Table:
    shown = shown_tasks(len(found.tasks), columns)
    table = Table(title="Who owns how much of which layer", title_justify="left")
    table.add_column("kernel", overflow="fold", max_width=widest)
    for heading in ("weights", *(f"task {index + 1}" for index in shown), "free", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in found.layers:
        owned = [f"{layer.owned[index]:,}" for index in shown]
        shape = "x".join(map(str, layer.shape))
        free = [f"{layer.free:,}", f"{layer.free / layer.weights:.1%}"]
        last = layer is found.layers[-1]
        table.add_row(Text(layer.path), shape, *owned, *free, end_section=last)
    total = [f"{found.tasks[index].weights:,}" for index in shown]
    free = [f"{found.free:,}", f"{found.free / found.weights:.1%}"]
    table.add_row("all", f"{found.weights:,}", *total, *free)
    return table


def _said(found: Inspection) -> Table:
    lines = Table.grid(padding=(0, 2))
    if found.bytes is not None:
        lines.add_row("File", Text(f"{found.file}, {size(found.bytes)}"))
    lines.add_row("Room", Text(str(found.room or "no task is committed yet, so there is no rate to go by")))
    for note in found.notes:
        lines.add_row("Note", Text(note))
    return lines
