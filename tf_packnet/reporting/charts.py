"""The figures of the experiments.

The colours suit colour-blind readers; markers tell curves apart in greyscale prints.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from tf_packnet.inspection.palette import task_colours
from tf_packnet.text import label

_MARKERS = "osD^vPX*"
APPROACH_NAMES = {"packnet": "PackNet", "memory": "Memory", "multinet": "Multinet"}
LABELS = {
    "final_prune": "p: fraction of weights still free after all tasks",
    "prune_rounds": "N: prune rounds per task",
    "accuracy": "average test accuracy",
    "error": "average test error",
}
SHORT = {"final_prune": "p", "prune_rounds": "N", "train_epochs": "E", "retrain_epochs": "B"}


def new_figure(panels: int, width: float = 4.6, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """Create a figure with `panels` axes side by side."""
    figure = Figure(figsize=(max(width * panels, 6.2), height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(axis="y", color="0.9", linewidth=0.8)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def curves(summary: pd.DataFrame, x: str, curve: str | None, values: Sequence[str], title: str) -> Figure:
    """Draw curves: one panel per entry of `values`, one curve per value of `curve`, bars of one standard error.

    Args:
        summary: A table of `frames.by_setting`; a column `paper` has accuracies from the paper to draw as well.
        x: Column of the horizontal axis. Its values are drawn at equal distances, in order of appearance.
        curve: Column with one curve per value; None for a single curve.
        values: `accuracy`, `error` or both.
        title: Title of the figure.
    """
    figure, panels = new_figure(len(values))
    ticks = list(dict.fromkeys(summary[x]))
    groups = [(None, summary)] if curve is None else list(summary.groupby(curve, sort=False))
    colours = task_colours(len(groups))[1:]
    has_names = any(isinstance(tick, str) for tick in ticks)  # names are not ordered: no line joins their points
    reported = summary.dropna(subset=["paper"]) if "paper" in summary else summary[:0].assign(paper=[])
    for panel, value in zip(panels, values, strict=True):
        for index, (name, group) in enumerate(groups):
            panel.errorbar(
                [ticks.index(tick) for tick in group[x]],
                group[value],
                yerr=group["standard_error"].fillna(0.0),
                label=label(describe(curve, name)) if curve else None,
                color=colours[index],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
                linestyle="none" if has_names else "-",
                capsize=3,
            )
        if len(reported):
            paper_values = reported["paper"] if value == "accuracy" else 1.0 - reported["paper"]
            positions = [ticks.index(tick) for tick in reported[x]]
            panel.plot(positions, paper_values, "_", color="black", markersize=14, label="PackNet in the paper")
        panel.xaxis.set_major_locator(FixedLocator(range(len(ticks))))
        panel.set_xticklabels([label(format_value(x, tick)) for tick in ticks])
        panel.set_xlim(-0.3, len(ticks) - 0.7)
        panel.set_xlabel(LABELS.get(x, x.replace("_", " ")))
        panel.set_ylabel(LABELS[value])
        if value == "error" and (summary["error"] > 0).all():
            panel.set_yscale("log")
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(FixedLocator(_round_ticks([*summary["error"], *(1.0 - reported["paper"])])))
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    if curve or len(reported):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{label(title)}\n{error_bars(summary)}", fontsize=10)
    return figure


def task_bars(frames: dict[float, pd.DataFrame], title: str, note: str) -> Figure:
    """Draw the accuracy of each task: one panel per `p`, one bar per approach.

    Args:
        frames: A table for each `p`, with the columns `approach`, `task_name`, `accuracy` and `standard_error`.
        title: Title of the figure.
        note: Explains the error bars.
    """
    figure, panels = new_figure(len(frames), width=4.2)
    colours = task_colours(len(APPROACH_NAMES))[1:]
    for panel, (p, frame) in zip(panels, frames.items(), strict=True):
        names = list(dict.fromkeys(frame["task_name"]))
        middle = (frame["approach"].nunique() - 1) / 2
        for index, (approach, group) in enumerate(frame.groupby("approach", sort=False)):
            positions = np.arange(len(group)) + (index - middle) * 0.27
            whiskers = group["standard_error"].fillna(0.0)
            panel.bar(
                positions,
                group["accuracy"],
                0.25,
                yerr=whiskers,
                capsize=2,
                color=colours[index],
                edgecolor="white",
                hatch=("", "//", "..")[index],
                label=APPROACH_NAMES[approach],
            )
        panel.set_xticks(range(len(names)), list(map(label, names)), rotation=30 if max(map(len, names)) > 6 else 0)
        lowest = (frame["accuracy"] - frame["standard_error"].fillna(0.0)).min()
        panel.set_ylim(max(0.0, 1.0 - 1.25 * (1.0 - lowest) - 0.002), 1.0)  # only the tops of the bars differ
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_title(f"p = {p:g}", fontsize=10)
        panel.set_xlabel("task (class names)")
    panels[0].set_ylabel("test accuracy (axis does not start at 0)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{label(title)}\n{note}", fontsize=10)
    return figure


def matching(matches: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw all evaluations of a matching: accuracy by compression, with PackNet's accuracy as a line.

    Args:
        matches: `Match.to_json()` of each search.
        title: Title of the figure.
    """
    prunes = list(dict.fromkeys(match["final_prune"] for match in matches))
    figure, panels = new_figure(len(prunes), width=4.2)
    colours = task_colours(len(APPROACH_NAMES))[1:]
    for panel, p in zip(panels, prunes, strict=True):
        for match in (match for match in matches if match["final_prune"] == p):
            index = list(APPROACH_NAMES).index(match["approach"])
            panel.axhline(match["target"], color=colours[0], linewidth=1.4)
            points = sorted((each["compression"], each["accuracy"]) for each in match["evaluations"])
            name = APPROACH_NAMES[match["approach"]]
            panel.plot(
                *zip(*points, strict=True), color=colours[index], marker=_MARKERS[index], label=name, linewidth=1
            )
            if match["fitted"] is not None:
                fitted = zip(*match["fitted"]["points"], strict=True)
                panel.plot(*fitted, color=colours[index], linestyle="--", linewidth=1)
            panel.plot(
                match["compression"], match["accuracy"], "o", color="none", markeredgecolor="black", markersize=11
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}x")
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_title(f"p = {p:g}", fontsize=10)
        panel.set_xlabel("compression: (1 - p) / (1 - matched p)")
    panels[0].set_ylabel("average test accuracy")
    panels[0].plot([], [], color=colours[0], label="PackNet at p")
    panels[0].plot([], [], color="black", linestyle="--", linewidth=1, label="monotone fit")
    panels[0].plot([], [], "o", color="none", markeredgecolor="black", markersize=11, label="best match")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(label(title), fontsize=10)
    return figure


def describe(column: str, value: Any) -> str:
    """Describe a setting for a legend, such as `N = 3`."""
    if column == "approach":
        return APPROACH_NAMES[value]
    return f"{SHORT.get(column, column.replace('_', ' '))} = {format_value(column, value)}"


def format_value(column: str, value: Any) -> str:
    """Format a value for an axis."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else str(value)


def error_bars(summary: pd.DataFrame) -> str:
    """Explain the error bars, with the number of seeds."""
    seeds = sorted(set(summary["n"]))
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    if seeds[-1] == 1:
        return "one seed"
    return f"mean over {count} seeds, error bars of one standard error"


def _round_ticks(errors: Sequence[float]) -> list[float]:
    """Return round numbers in the range of `errors`, spaced more closely if the range is narrow."""
    low, high = min(errors), max(errors)
    coarse = high / low > 2
    bases = (1, 1.5, 2, 3, 4, 5, 7) if coarse else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.25, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)
    margin = 1.3 if coarse else 1.15
    steps = [base * 10.0**power for power in range(-5, 1) for base in bases]
    ticks = [step for step in steps if low / margin <= step <= high * margin]
    if sum(low <= step <= high for step in ticks) < 2:  # a range so narrow that its logarithm is almost linear
        ticks = list(MaxNLocator(5).tick_values(low, high)) if high > 1.001 * low else [low]
    return ticks
