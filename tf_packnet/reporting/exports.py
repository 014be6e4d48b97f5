"""The table of what compaction saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # a table of what is on disk is there before TensorFlow starts
    from tf_packnet.export.report import TaskExport


def print_exports(rows: Sequence["TaskExport"], console: Console | None = None) -> None:
    """Prints one line a task: exported beside dense.

    Args:
        rows: What `export_report` returned.
        console: Where to print; default standard output.
    """
    (console or Console()).print(render([row.to_json() for row in rows]))


def written(path: Path) -> list[dict[str, Any]]:
    """The rows of a `report.json`; none where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else []


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of the rows of a `report.json`."""
    batches = list(rows[0]["latency"]) if rows else []
    table = Table(
        title="SavedModels, compact of dense",
        caption="less: times smaller; flops, and time of a call: share of the dense one's",
        box=box.SIMPLE_HEAD,  # without lines it has room in 80 columns
        pad_edge=False,
    )
    table.add_column("task")
    for heading in (
        "weights",
        "of",
        "kB",
        "of",
        "gzip",
        "less",
        "flops",
        *(f"batch {batch}" for batch in batches),
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['weights']['exported']:,}",
            f"{row['weights']['dense']:,}",
            f"{row['bytes']['exported'] / 1000:,.0f}",
            f"{row['bytes']['dense'] / 1000:,.0f}",
            f"{row['gzip_bytes']['exported'] / 1000:,.0f}",
            f"{row['times_smaller']:.1f}x",
            f"{row['flops']['exported'] / row['flops']['dense']:.0%}",
            *(f"{row['latency'][batch]:.2f}" for batch in batches),
        )
    return table
