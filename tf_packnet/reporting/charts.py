"""The figures of the experiments: colours that colour-blind readers tell apart, markers that survive a grey printer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from tf_packnet.inspection.palette import task_colours

_MARKERS = "osD^vPX*"
APPROACH_NAMES = {"packnet": "PackNet", "memory": "Memory", "multinet": "Multinet"}
LABELS = {
    "final_prune": "p, share of the weights still free after all tasks",
    "prune_rounds": "N, prune rounds a task",
    "accuracy": "average test accuracy",
    "error": "average test error",
}
SHORT = {"final_prune": "p", "prune_rounds": "N", "train_epochs": "E", "retrain_epochs": "B"}


def new_figure(panels: int, width: float = 4.6, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side."""
    figure = Figure(figsize=(max(width * panels, 6.2), height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(axis="y", color="0.9", linewidth=0.8)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def curves(summary: pd.DataFrame, x: str, curve: str | None, values: Sequence[str], title: str) -> Figure:
    """One panel for each of `values` against `x`, one curve for each value of `curve`, bars of one standard error.

    Args:
        summary: As `frames.by_setting` gives it; with a column `paper`, what the paper reports is drawn too.
        x: Column of the horizontal axis; its values are set at equal distances.
        curve: Column that tells the curves apart; None for a single one.
        values: `accuracy`, `error` or both.
        title: What the figure shows.
    """
    figure, panels = new_figure(len(values))
    ticks = list(dict.fromkeys(summary[x]))
    groups = [(None, summary)] if curve is None else list(summary.groupby(curve, sort=False))
    colours = task_colours(len(groups))[1:]
    names = any(isinstance(tick, str) for tick in ticks)  # nothing lies between two names: no line joins them
    reported = summary.dropna(subset=["paper"]) if "paper" in summary else summary[:0].assign(paper=[])
    for panel, value in zip(panels, values, strict=True):
        for index, (name, group) in enumerate(groups):
            panel.errorbar(
                [ticks.index(tick) for tick in group[x]],
                group[value],
                yerr=group["standard_error"].fillna(0.0),
                label=describe(curve, name) if curve else None,
                color=colours[index],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
                linestyle="none" if names else "-",
                capsize=3,
            )
        if len(reported):
            theirs = reported["paper"] if value == "accuracy" else 1.0 - reported["paper"]
            at = [ticks.index(tick) for tick in reported[x]]
            panel.plot(at, theirs, "_", color="black", markersize=14, label="the paper's PackNet")
        panel.xaxis.set_major_locator(FixedLocator(range(len(ticks))))
        panel.set_xticklabels([format_value(x, tick) for tick in ticks])
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
    figure.suptitle(f"{title}\n{error_bars(summary)}", fontsize=10)
    return figure


def task_bars(frames: dict[float, pd.DataFrame], title: str, note: str) -> Figure:
    """Accuracy of each task, one panel a `p`, one bar an approach.

    Args:
        frames: By `p`, a table with the columns approach, task_name, accuracy, standard_error.
        title: What the figure shows.
        note: What the bars' whiskers are.
    """
    figure, panels = new_figure(len(frames), width=4.2)
    colours = task_colours(len(APPROACH_NAMES))[1:]
    for panel, (p, frame) in zip(panels, frames.items(), strict=True):
        names = list(dict.fromkeys(frame["task_name"]))
        middle = (frame["approach"].nunique() - 1) / 2
        for index, (approach, group) in enumerate(frame.groupby("approach", sort=False)):
            at = np.arange(len(group)) + (index - middle) * 0.27
            whiskers = group["standard_error"].fillna(0.0)
            panel.bar(
                at,
                group["accuracy"],
                0.25,
                yerr=whiskers,
                capsize=2,
                color=colours[index],
                edgecolor="white",
                hatch=("", "//", "..")[index],
                label=APPROACH_NAMES[approach],
            )
        panel.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 6 else 0)
        lowest = (frame["accuracy"] - frame["standard_error"].fillna(0.0)).min()
        panel.set_ylim(
            max(0.0, 1.0 - 1.25 * (1.0 - lowest) - 0.002), 1.0
        )  # the bars are cut: what differs is their tops
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_title(f"p = {p:g}", fontsize=10)
        panel.set_xlabel("task, by its classes")
    panels[0].set_ylabel("test accuracy (axis does not begin at 0)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{title}\n{note}", fontsize=10)
    return figure


def matching(matches: Sequence[dict[str, Any]], title: str) -> Figure:
    """Every evaluation of the matching: accuracy against compression, beside PackNet's accuracy that it aims at."""
    targets = list(dict.fromkeys(match["final_prune"] for match in matches))
    figure, panels = new_figure(len(targets), width=4.2)
    colours = task_colours(len(APPROACH_NAMES))[1:]
    for panel, p in zip(panels, targets, strict=True):
        for match in (match for match in matches if match["final_prune"] == p):
            index = list(APPROACH_NAMES).index(match["approach"])
            panel.axhline(match["target"], color=colours[0], linewidth=1.4)
            points = sorted((each["compression"], each["accuracy"]) for each in match["evaluations"])
            name = APPROACH_NAMES[match["approach"]]
            panel.plot(
                *zip(*points, strict=True), color=colours[index], marker=_MARKERS[index], label=name, linewidth=1
            )
            panel.plot(
                match["compression"], match["accuracy"], "o", color="none", markeredgecolor="black", markersize=11
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}x")
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.set_title(f"p = {p:g}", fontsize=10)
        panel.set_xlabel("compression, (1 - p) / (1 - its p)")
    panels[0].set_ylabel("average test accuracy")
    panels[0].plot([], [], color=colours[0], label="PackNet at p")
    panels[0].plot([], [], "o", color="none", markeredgecolor="black", markersize=11, label="best match")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def describe(column: str, value: Any) -> str:
    """A setting, as a legend names it."""
    if column == "approach":
        return APPROACH_NAMES[value]
    return f"{SHORT.get(column, column.replace('_', ' '))} = {format_value(column, value)}"


def format_value(column: str, value: Any) -> str:
    """A value, as an axis shows it."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else str(value)


def error_bars(summary: pd.DataFrame) -> str:
    """What the bars mean, with the number of seeds behind them."""
    seeds = sorted(set(summary["n"]))
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    if seeds[-1] == 1:
        return "one seed"
    return f"mean over {count} seeds, bars of one standard error"


def _round_ticks(errors: Sequence[float]) -> list[float]:
    """Round numbers around `errors`, closer together where these are."""
    low, high = min(errors), max(errors)
    coarse = high / low > 2
    bases = (1, 1.5, 2, 3, 4, 5, 7) if coarse else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.25, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)
    room = 1.3 if coarse else 1.15
    steps = [base * 10.0**power for power in range(-5, 1) for base in bases]
    return [step for step in steps if low / room <= step <= high * room]
