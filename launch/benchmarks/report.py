"""Reports benchmark results: a table, JSON, and a chart of the time of a run by part."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from rich.table import Table

from launch.benchmarks import Row
from tf_packnet.system import files
from tf_packnet.system.console import Console
from tf_packnet.training import acceleration


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of the packages."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    packages = ("tensorflow", "keras", "numpy")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": acceleration.computes_in("mixed_bfloat16"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def print_table(rows: list[Row], console: Console | None = None) -> None:
    """Print one line per row: measured value, floor, ratio, target, and whether the target is met."""
    table = Table(title="benchmarks", caption="ratio: figure / floor")
    for heading in ("", "measured"):
        table.add_column(heading)
    for heading in ("figure", "floor", "ratio", "target", "met"):
        table.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1].section != row.section
        floor = "" if row.floor is None else f"{row.floor:.3g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        bound = "" if row.bound is None else f"{row.bound[0]} {row.bound[1]:g}"
        mark = {None: "", True: "yes", False: "[bold]NO[/bold]"}[row.holds]
        figure = f"{row.value:.3g} {row.unit}"
        table.add_row(row.section, row.what, figure, floor, ratio, bound, mark, end_section=last)
    (console or Console(width=150)).print(table)


def write_json(rows: list[Row], path: Path) -> None:
    """Write the rows and a description of the machine to a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"machine": machine(), "rows": [row.to_json() for row in rows]})


def seconds_by_part(rows: list[Row]) -> dict[str, float]:
    """Divide the time of the whole run into parts, in seconds.

    The launcher records the time of stages, loading, evaluation and so on. The time within stages is estimated from the
    proportions in the `mlp` section.

    Returns:
        Seconds by part, or an empty dictionary if the `run` or `mlp` section was not measured.
    """
    row_by_label = {row.what: row for row in rows}
    whole = next((row for row in rows if row.section == "run" and row.floor), None)
    step = row_by_label.get("fit, all callbacks")
    validated_step = row_by_label.get("fit, all callbacks, validation after each epoch")
    if whole is None or step is None or validated_step is None:
        return {}
    compared = row_by_label["fit, all callbacks, compared with the products it needs"]
    compiling = row_by_label["compilation, once per run"].value
    in_epochs = row_by_label["stages"].value - compiling
    in_steps = in_epochs * step.value / validated_step.value
    in_products = in_steps * compared.floor / compared.value
    return {
        "matrix products that training needs": in_products,
        "masks, optimizer, loss, metrics": in_steps - in_products,
        "validation and Keras after each epoch": in_epochs - in_steps,
        "compilation": compiling,
        "loading data": row_by_label["load"].value,
        "evaluation": row_by_label["evaluate"].value,
        "pack, exports, TensorBoard": row_by_label["save"].value + row_by_label["store"].value,
        "startup and other": row_by_label["startup and other"].value,
    }


def draw_run(rows: list[Row], path: Path) -> None:
    """Draw a bar chart of the time of the whole run by part, as PNG. Do nothing if it was not measured."""
    parts = seconds_by_part(rows)
    if not parts:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    bars = axes.barh(list(parts), list(parts.values()), color=["#0072B2"] + ["#E69F00"] * (len(parts) - 1))
    axes.bar_label(bars, fmt=" %.1f s")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    axes.set_title(f"complete run of the MNIST preset: {sum(parts.values()):.0f} s")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
