"""The table of export sizes: each task's compact SavedModel compared with a dense one."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from tf_packnet.system.console import Console

if TYPE_CHECKING:  # a stored report is printed without starting TensorFlow
    from tf_packnet.export.report import TaskExport


def print_exports(rows: Sequence["TaskExport"], console: Console | None = None) -> None:
    """Print one line per task, which compares its compact export with a dense one.

    Args:
        rows: The result of `export_report`.
        console: Where to print; default: standard output.
    """
    (console or Console()).print(render([row.to_json() for row in rows]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `report.json`; an empty list if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else []


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table from the rows of a `report.json`."""
    batches = list(rows[0]["latency"]) if rows else []
    table = Table(
        title="SavedModels, compact of dense",
        caption="less: times smaller; flops and time per call: fraction of dense",
        box=box.SIMPLE_HEAD,  # no vertical lines, so that the table fits into 80 columns
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("task", overflow="fold")
    headings = ("weights", "of", "bytes", "of", "gzip", "less", "flops", *(f"batch\n{batch}" for batch in batches))
    for heading in map(Text, headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            abbreviate(row["weights"]["exported"]),
            abbreviate(row["weights"]["dense"]),
            abbreviate(row["bytes"]["exported"]),
            abbreviate(row["bytes"]["dense"]),
            abbreviate(row["gzip_bytes"]["exported"]),
            f"{row['times_smaller']:.1f}x",
            f"{row['flops']['exported'] / row['flops']['dense']:.0%}",
            *(f"{row['latency'][batch]:.2f}" for batch in batches),
        )
    return table


def abbreviate(count: float) -> str:
    """Format a count in at most five characters: three digits, in thousands (k), millions (M) or billions (G)."""
    if count < 1000:
        return str(count)
    for unit in "kMG":
        count /= 1000
        if count < 999.5 or unit == "G":
            break
    return f"{count:.{max(0, 2 - int(math.log10(count)))}f}{unit}"
