"""The table of what compaction saved."""

import json
import math
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
        caption="less: times smaller; flops, time of a call: share of dense",
        box=box.SIMPLE_HEAD,  # without lines it has room in 80 columns
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("task", overflow="fold")
    for heading in (
        "weights",
        "of",
        "bytes",
        "of",
        "gzip",
        "less",
        "flops",
        *(f"batch\n{batch}" for batch in batches),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            in_short(row["weights"]["exported"]),
            in_short(row["weights"]["dense"]),
            in_short(row["bytes"]["exported"]),
            in_short(row["bytes"]["dense"]),
            in_short(row["gzip_bytes"]["exported"]),
            f"{row['times_smaller']:.1f}x",
            f"{row['flops']['exported'] / row['flops']['dense']:.0%}",
            *(f"{row['latency'][batch]:.2f}" for batch in batches),
        )
    return table


def in_short(count: int) -> str:
    """A count in five characters at most: three digits, in thousands (k), millions (M) or billions (G)."""
    if count < 1000:
        return str(count)
    for unit in "kMG":
        count /= 1000
        if count < 999.5 or unit == "G":
            break
    return f"{count:.{max(0, 2 - int(math.log10(count)))}f}{unit}"
