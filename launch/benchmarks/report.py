"""The table of a benchmark, its JSON, and the picture of where a run's time goes."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.benchmarks import Row
from tf_packnet.system import files
from tf_packnet.training import acceleration


def machine() -> dict[str, Any]:
    """What it was measured on."""
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
    """Prints a line a row: the figure, its floor, their ratio, and what it should be."""
    table = Table(title="what training costs", caption="ratio: figure / floor")
    for heading in ("", "measured"):
        table.add_column(heading)
    for heading in ("figure", "floor", "ratio", "should be", ""):
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
    """Writes the rows and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"machine": machine(), "rows": [row.to_json() for row in rows]})


def parts_of_the_run(rows: list[Row]) -> dict[str, float]:
    """Seconds of the whole run by what they went to; empty if it, or a gradient step, was not measured.

    Its parts were measured in the run itself. What its stages went to was not: it is shared out as in the stages that
    were measured apart.
    """
    found = {row.what: row for row in rows}
    whole = next((row for row in rows if row.section == "run" and row.floor), None)
    step, watched = (found.get(f"fit, all callbacks{more}") for more in ("", ", validation after each epoch"))
    if whole is None or step is None or watched is None:
        return {}
    needed = found["fit, all callbacks, against the products it needs"]
    compiling = found["compiling, once a run"].value
    in_epochs = found["of it stages"].value - compiling
    in_steps = in_epochs * step.value / watched.value
    in_products = in_steps * needed.floor / needed.value
    return {
        "matrix products that training needs": in_products,
        "masks, optimizer, loss, metrics": in_steps - in_products,
        "validation and Keras, each epoch": in_epochs - in_steps,
        "compiling": compiling,
        "loading the data": found["of it load"].value,
        "evaluation": found["of it evaluate"].value,
        "pack, exports, TensorBoard": found["of it save"].value + found["of it store"].value,
        "start, and the rest": found["of it start and the rest"].value,
    }


def draw_run(rows: list[Row], path: Path) -> None:
    """Draws where the time of the whole run went, as PNG; nothing if that was not measured."""
    parts = parts_of_the_run(rows)
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
    axes.set_title(f"the MNIST preset from end to end: {sum(parts.values()):.0f} s")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
