"""From the runs of an experiment to what is written and printed: tables, figures, and what they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from tf_packnet.experiments.definitions import MATCHING, Experiment
from tf_packnet.experiments.matching import REACHED, Match
from tf_packnet.experiments.workers import Outcome
from tf_packnet.reporting import charts, frames
from tf_packnet.reporting import report as reports
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files

TITLES = {
    "figure1": "Accuracy against the final pruning, three approaches",
    "figure2": "Accuracy against the number of prune rounds, on a fixed budget of epochs",
    "figure3": "Weights for the same accuracy: what freezing costs",
    "table1": "Weights for the same accuracy: what freezing costs",
    "figure4": "Accuracy against the number of prune rounds, every round with all of B epochs",
    "sweep": "Accuracy by setting",
}
LEADS = {
    "figure1": "PackNet freezes what a task keeps; Memory learns with the data of all tasks so far and freezes "
    "nothing; Multinet learns all tasks at once. All end with the same share of free weights, p.",
    "figure2": "Each night's B epochs are shared between N rounds of pruning and retraining.",
    "figure3": "For each p, the pruning at which Memory and Multinet are as accurate as PackNet at p. Compression is "
    "(1 - p) / (1 - the pruning that was found): how many times fewer weights they need.",
    "figure4": "N rounds of pruning, each followed by B epochs: more rounds cost more time.",
    "sweep": "Average test accuracy over the tasks, after the last one.",
}
LEADS["table1"] = LEADS["figure3"]


def report(
    experiment: Experiment, paths: ExperimentPaths, outcomes: Sequence[Outcome], matches: Sequence[Match]
) -> list[Path]:
    """Writes CSV, figures, summaries and report, and prints the main table; returns the files."""
    complete = list({id(o.results): o for o in outcomes if o.results is not None}.values())
    if not complete:
        return []
    axes = ["approach", "final_prune"] if experiment.name in MATCHING else list(experiment.axes)
    frame = frames.tidy([outcome.results for outcome in complete], axes)
    with files.replacing(paths.csv) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
    found = _matched(experiment, frame, matches) if experiment.name in MATCHING else _compared(experiment, frame, axes)
    findings = found.findings
    failed = len(outcomes) - len([o for o in outcomes if o.results is not None])
    if failed:
        findings.append(f"{failed} of {len(outcomes)} runs failed and are missing here.")
    environments = {str(_versions(o.results)): _versions(o.results) for o in complete}
    written = reports.Report(
        title=f"{TITLES[experiment.name]} ({experiment.base.dataset})",
        lead=LEADS[experiment.name],
        figures=found.figures,
        tables=found.tables,
        findings=findings,
        command=experiment.command(),
        settings={name: value for name, value in experiment.base.to_json().items() if name not in _varied(experiment)},
        environments=list(environments.values()),
        summary={"experiment": experiment.name, "seeds": list(experiment.seeds), **found.summary},
    )
    files_of_it = reports.write(written, paths.root)
    print_table(written.title, next(iter(found.tables.values())), findings, paths.root)
    return [paths.csv, *files_of_it]


class Findings(NamedTuple):
    """What an experiment adds to the report, see `reporting.report.Report`."""

    figures: dict[str, Figure]
    tables: dict[str, pd.DataFrame]
    findings: list[str]
    summary: dict[str, Any]


def _compared(experiment: Experiment, frame: pd.DataFrame, axes: list[str]) -> Findings:
    """Figures 1, 2, 4 and sweeps: settings beside each other."""
    summary = frames.by_setting(frame, axes or ["approach"])
    summary["paper"] = [_paper(experiment, row) for row in summary[axes].to_dict("records")]
    if not axes:  # seeds alone
        bars = {experiment.base.final_prune: frames.per_task(frame, ["approach"]).reset_index()}
        figure = charts.task_bars(bars, f"Accuracy by task, {experiment.base.dataset}", charts.error_bars(summary))
        return Findings(
            {experiment.name: figure}, {"Mean over the seeds": summary}, [], {"settings": _records(summary)}
        )
    x, curve = _axis_and_curve(experiment, axes)
    shown = summary if curve is None or curve in summary else summary.assign(**{curve: _joined(summary, axes, x)})
    values = ["accuracy", "error"] if experiment.name != "figure1" else ["accuracy"]
    figure = charts.curves(shown, x, curve, values, f"{TITLES[experiment.name]}, {experiment.base.dataset}")
    findings = _best_and_worst_rounds(summary) if experiment.name in ("figure2", "figure4") else []
    return Findings(
        {experiment.name: figure}, {"Mean over the seeds": summary}, findings, {"settings": _records(summary)}
    )


def _matched(experiment: Experiment, frame: pd.DataFrame, matches: Sequence[Match]) -> Findings:
    """Figure 3 and table 1: what matches, and the tasks one by one."""
    found = [match.to_json() for match in matches if match.best is not None]
    columns = ["final_prune", "approach", "target", "accuracy", "gap", "matched_prune", "compression", "reached"]
    table = pd.DataFrame([{name: match[name] for name in columns} for match in found], columns=columns)
    table["reached"] = table["reached"].map({True: "yes", False: "NO"})
    findings = [
        f"p = {match['final_prune']:g}, {match['approach']}: "
        + (
            f"as accurate as PackNet with {match['compression']:.2f} times fewer weights"
            if match["reached"]
            else f"no match: {match['gap']:+.4f} away at best, with {match['compression']:.2f} times fewer weights"
        )
        for match in found
    ]
    findings.append(
        f"A match is reached when the accuracies differ by {REACHED:g} at most. The paper: {PAPER_COMPRESSION}."
    )
    bars = {}
    for p in experiment.axes["final_prune"]:
        best = {"packnet": p} | {m["approach"]: m["matched_prune"] for m in found if m["final_prune"] == p}
        chosen = [frame[(frame["approach"] == name) & (frame["final_prune"] == prune)] for name, prune in best.items()]
        if any(len(rows) for rows in chosen):  # else all runs at this p failed
            bars[p] = frames.per_task(pd.concat(chosen), ["approach"]).reset_index()
    count = frames.by_setting(frame, ["approach", "final_prune"])
    title = f"Tasks at matched accuracy, {experiment.base.dataset}"
    figures = {experiment.name: charts.task_bars(bars, title, charts.error_bars(count))}
    if found:
        figures["matching"] = charts.matching(found, f"The search for matches, {experiment.base.dataset}")
    tables = {"Matches": table, "Every setting that was run": count}
    return Findings(figures, tables, findings, {"matches": found, "settings": _records(count)})


def _best_and_worst_rounds(summary: pd.DataFrame) -> list[str]:
    """How much `N` matters at each `p`."""
    said = []
    for p, group in summary.groupby("final_prune", sort=False):
        worst, best = group.loc[group["error"].idxmax()], group.loc[group["error"].idxmin()]
        ratio = f", {worst['error'] / best['error']:.2f} times" if best["error"] else ""
        said.append(
            f"p = {p:g}: error from {best['error']:.2%} (N = {best['prune_rounds']:g}) "
            f"to {worst['error']:.2%} (N = {worst['prune_rounds']:g}){ratio}."
        )
    return said


def _axis_and_curve(experiment: Experiment, axes: list[str]) -> tuple[str, str | None]:
    if experiment.name == "figure1":
        return "final_prune", "approach"
    if experiment.name in ("figure2", "figure4"):
        return "prune_rounds", "final_prune"
    longest = max(axes, key=lambda axis: len(experiment.axes[axis]))
    others = [axis for axis in axes if axis != longest]
    return longest, (others[0] if len(others) == 1 else "setting" if others else None)


def _joined(summary: pd.DataFrame, axes: list[str], x: str) -> list[str]:
    others = [axis for axis in axes if axis != x]
    return [", ".join(charts.describe(axis, row[axis]) for axis in others) for row in summary.to_dict("records")]


def _paper(experiment: Experiment, setting: dict) -> float | None:
    return paper_accuracy({**experiment.base.to_json(), **setting})


def _records(table: pd.DataFrame) -> list[dict]:
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]


def _varied(experiment: Experiment) -> set[str]:
    more = (
        {"approach"} if experiment.name in MATCHING else {"retrain_epochs"} if experiment.name == "figure4" else set()
    )
    return {*experiment.axes, "seed", "output_dir", "data_dir", "export", *more}


def _versions(results: dict) -> dict:
    environment = results["environment"]
    return {**{k: v for k, v in environment.items() if k != "packages"}, **environment["packages"]}


def print_table(title: str, table: pd.DataFrame, findings: Sequence[str], where: Path) -> None:
    """Prints the main table, what it says, and where everything lies."""
    printed = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    shown = reports.readable(table)
    for name in shown.columns:
        printed.add_column(name, justify="right", no_wrap=name.count(" ") == 0)
    for row in shown.itertuples(index=False):
        printed.add_row(*row)
    console = Console()
    console.print(printed)
    for finding in findings:
        console.print(finding, highlight=False, soft_wrap=True)
    console.print(f"Report  {where / 'report.html'}", highlight=False, soft_wrap=True)


# Average accuracy of PackNet with one prune round, by data set and p.
PAPER_ACCURACY = {
    ("mnist", 0.95): 0.996,
    ("mnist", 0.99): 0.989,
    ("mnist", 0.995): 0.970,
    ("cifar10", 0.8): 0.891,
}
# Its abstract: freezing can take over twice as many weights for the same performance.
PAPER_COMPRESSION = "over 2 at best (abstract)"


def paper_accuracy(setting: dict[str, Any]) -> float | None:
    """The paper's average accuracy at a setting of config fields, or None where it gives none."""
    if setting["approach"] != "packnet" or setting["prune_rounds"] != 1:
        return None
    return PAPER_ACCURACY.get((setting["dataset"], setting["final_prune"]))
