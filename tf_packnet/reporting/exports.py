"""The table of what compaction saved."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tf_packnet.export.report import BATCHES, TaskExport


def print_exports(rows: Sequence[TaskExport], console: Console | None = None) -> None:
    """Prints one line a task: exported beside dense.

    Args:
        rows: What `export_report` returned.
        console: Where to print; default standard output.
    """
    (console or Console()).print(render(rows))


def render(rows: Sequence[TaskExport]) -> Table:
    """See `print_exports`."""
    measured = bool(rows) and bool(rows[0].latency)
    table = Table(title="SavedModels: compact of dense", caption="kB raw (gzip)" + "; time of a call" * measured)
    table.add_column("task")
    for heading in ("weights", "kB", "smaller", "flops", *(f"time, batch {batch}" for batch in BATCHES if measured)):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = [f"{raw / 1000:,.0f} ({packed / 1000:,.0f})" for raw, packed in zip(row.bytes, row.gzip_bytes)]
        table.add_row(
            row.name,
            f"{row.weights[1]:,} of {row.weights[0]:,}",
            f"{sizes[1]} of {sizes[0]}",
            f"{row.times_smaller:.1f}x",
            f"{row.flops[1] / row.flops[0]:.1%}",
            *(f"{row.latency[batch]:.2f}" for batch in BATCHES if measured),
        )
    return table
