"""Formats predictions as a text table, CSV or JSON."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.text import csv_cell, to_json

FORMATS = ("table", "csv", "json")

# The most likely classes of one example with their probabilities, and those of all examples.
Row = list[tuple[str, float]]
Rows = list[Row]


def render(format: str, task: str, names: list[str], rows: Rows, tasks: Sequence[str] = ()) -> str:
    """Format predictions as text.

    Args:
        format: One of `FORMATS`.
        task: Name of the task.
        names: Name of each example.
        rows: For each example, its most likely classes with their probabilities, the most likely first.
        tasks: Name of the inferred task of each example; empty if the task was known.
    """
    return {"table": _table, "csv": _csv, "json": _json}[format](task, names, rows, tasks)


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


def _table(task: str, names: list[str], rows: Rows, tasks: Sequence[str]) -> str:
    from rich import box
    from rich.table import Table

    from tf_packnet.system.console import Console

    table = Table(title=f"task {task}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("example", overflow="fold")
    if tasks:
        table.add_column("task", overflow="fold")
    for rank in range(max(map(len, rows))):
        table.add_column("class" if rank == 0 else f"{rank + 1}.", overflow="fold")
        table.add_column("probability" if rank == 0 else "", justify="right")
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        cells = [cell for label, share in row for cell in (label, f"{share:.4f}")]
        table.add_row(name, *tasks[index : index + 1], *cells)
    text = io.StringIO()
    Console(file=text).print(table)
    return text.getvalue()


def _csv(task: str, names: list[str], rows: Rows, tasks: Sequence[str]) -> str:
    """Format predictions as CSV, one row per example and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["example", *(["task"] if tasks else []), "rank", "class", "probability"])
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        own_task = [csv_cell(each) for each in tasks[index : index + 1]]
        for rank, (label, share) in enumerate(row, start=1):
            writer.writerow([csv_cell(name), *own_task, rank, csv_cell(label), _digits(share)])
    return text.getvalue()


def _json(task: str, names: list[str], rows: Rows, tasks: Sequence[str]) -> str:
    predictions: list[dict[str, Any]] = [
        {"example": name, "classes": [{"class": label, "probability": _digits(share)} for label, share in row]}
        for name, row in zip(names, rows, strict=True)
    ]
    for prediction, own_task in zip(predictions, tasks, strict=False):
        prediction["task"] = own_task
    return to_json({"task": task, "predictions": predictions}) + "\n"


def _digits(share: float) -> float:
    """Round to the number of digits of a `float32`."""
    return float(f"{share:.9g}")
