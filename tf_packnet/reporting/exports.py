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
    batches = BATCHES if rows and rows[0].latency else ()
    table = Table(title="SavedModels, compact of dense", caption="flops, and time of a call: share of the dense one's")
    table.add_column("task")
    for heading in (
        "weights",
        "of",
        "kB",
        "of",
        "gzip kB",
        "smaller",
        "flops",
        *(f"batch {batch}" for batch in batches),
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.weights[1]:,}",
            f"{row.weights[0]:,}",
            f"{row.bytes[1] / 1000:,.0f}",
            f"{row.bytes[0] / 1000:,.0f}",
            f"{row.gzip_bytes[1] / 1000:,.0f}",
            f"{row.times_smaller:.1f}x",
            f"{row.flops[1] / row.flops[0]:.0%}",
            *(f"{row.latency[batch]:.2f}" for batch in batches),
        )
    return table
