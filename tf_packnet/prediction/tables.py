"""Formats predictions as a text table, CSV or JSON."""

import csv
import io
import os
from pathlib import Path

from tf_packnet.errors import ArgumentError
from tf_packnet.text import csv_cell, to_json

FORMATS = ("table", "csv", "json")

# For each example, its most likely classes with their probabilities.
Rows = list[list[tuple[str, float]]]


def render(format: str, task: str, names: list[str], rows: Rows) -> str:
    """Format predictions as text.

    Args:
        format: One of `FORMATS`.
        task: Name of the task.
        names: Name of each example.
        rows: Its most likely classes with their probabilities, the most likely first.
    """
    return {"table": _table, "csv": _csv, "json": _json}[format](task, names, rows)


def check_output(path: str | None) -> None:
    """Raise ArgumentError if no file can be written to `path`."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise ArgumentError("output", "a file (this is a folder)", path)
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ArgumentError("output", f"a file in a folder ({parent} is a file)", path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArgumentError("output", f"a file in a folder that can be written to ({parent} cannot)", path)


def _table(task: str, names: list[str], rows: Rows) -> str:
    from rich import box
    from rich.table import Table

    from tf_packnet.system.console import Console

    table = Table(title=f"task {task}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("example", overflow="fold")
    for rank in range(len(rows[0])):
        table.add_column("class" if rank == 0 else f"{rank + 1}.", overflow="fold")
        table.add_column("probability" if rank == 0 else "", justify="right")
    for name, row in zip(names, rows, strict=True):
        cells = [cell for label, share in row for cell in (label, f"{share:.4f}")]
        table.add_row(name, *cells)
    text = io.StringIO()
    Console(file=text).print(table)
    return text.getvalue()


def _csv(task: str, names: list[str], rows: Rows) -> str:
    """One row per example and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["example", "rank", "class", "probability"])
    for name, row in zip(names, rows, strict=True):
        for rank, (label, share) in enumerate(row, start=1):
            writer.writerow([csv_cell(name), rank, csv_cell(label), _digits(share)])
    return text.getvalue()


def _json(task: str, names: list[str], rows: Rows) -> str:
    predictions = [
        {"example": name, "classes": [{"class": label, "probability": _digits(share)} for label, share in row]}
        for name, row in zip(names, rows, strict=True)
    ]
    return to_json({"task": task, "predictions": predictions}) + "\n"


def _digits(share: float) -> float:
    """Round to the number of digits of a `float32`."""
    return float(f"{share:.9g}")
