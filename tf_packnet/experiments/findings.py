"""Turns the runs of an experiment into tables, figures and findings, writes the report and prints the main table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from tf_packnet.errors import listed
from tf_packnet.experiments import claims
from tf_packnet.experiments.definitions import Experiment, axes_of, run_name
from tf_packnet.experiments.matching import REACHED, Match
from tf_packnet.experiments.worker import FinishedRun
from tf_packnet.reporting import charts, comparisons, frames, rounds, tensorboard_runs
from tf_packnet.reporting import report as reports
from tf_packnet.reporting.comparisons import CONFIDENCE
from tf_packnet.reporting.summary import tensorboard_command
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files
from tf_packnet.system.console import Console
from tf_packnet.text import csv_cell

# Caption of the table of `reporting.metrics`.
MEASURES = "Measures of continual learning, mean over seeds"
# Caption of the table of `reporting.rounds`.
AUTO_ROUNDS = "Prune rounds per task that the validation loss has decided, and their epochs, mean over seeds"


def write_report(
    experiment: Experiment,
    paths: ExperimentPaths,
    runs: Sequence[FinishedRun],
    matches: Sequence[Match],
    remedy: str = "the same command",
) -> list[Path]:
    """Write CSV, figures, summaries, report and TensorBoard logs, and print the main table.

    Args:
        experiment: The experiment.
        paths: Its output directory.
        runs: Its runs. A run that several searches share occurs several times.
        matches: The searches of a matching experiment; empty for others.
        remedy: The command that executes missing runs, as the subject of a sentence.

    Returns:
        The written files; none if all runs failed.
    """
    complete = list({id(run.results): run.results for run in runs if run.results is not None}.values())
    if not complete:
        return []
    axes = ["approach", "final_prune"] if experiment.named.matching else list(experiment.axes)
    frame = frames.tidy(complete, axes)
    with files.replacing(paths.csv) as temporary:
        frame.map(csv_cell).to_csv(temporary, index=False, lineterminator="\n")
    if experiment.named.matching:
        content = _report_matches(experiment, frame, matches)
    else:
        content = _compare_settings(experiment, frame, axes)
    if len(rounds_of_auto := rounds.table(complete, axes)):
        content.tables[AUTO_ROUNDS] = rounds_of_auto
    missing = describe_missing(experiment, runs)
    content.findings.extend(f"{sentence}. They are missing here; {remedy} does them." for sentence in missing)
    report = reports.Report(
        title=f"{experiment.named.title} ({experiment.base.dataset})",
        lead=experiment.named.lead,
        figures=content.figures,
        tables=content.tables,
        findings=content.findings,
        command=experiment.command(),
        settings=_settings(experiment, complete),
        environments=_environments(complete),
        summary={"experiment": experiment.name, "seeds": list(experiment.seeds), **content.summary},
    )
    report_files = reports.write(report, paths.root)
    named = {run_name(run.config, axes_of(experiment)): run.results for run in runs if run.results is not None}
    events = tensorboard_runs.log_experiment(paths.tensorboard, named)
    print_table(report.title, next(iter(content.tables.values())), content.findings, paths.root)
    return [paths.csv, *report_files, *events]


def describe_missing(experiment: Experiment, runs: Sequence[FinishedRun]) -> list[str]:
    """Name the runs without results: those that failed, and those that no worker was left for."""
    names = {run_name(run.config, axes_of(experiment)): run for run in runs}
    failed = sorted(name for name, run in names.items() if run.results is None and not run.queued)
    queued = {name: run.error for name, run in sorted(names.items()) if run.queued}
    sentences = []
    if failed:
        sentences.append(f"{len(failed)} of {len(names)} runs failed ({'; '.join(failed)})")
    if queued:
        reason = next(iter(queued.values()))
        sentences.append(f"{len(queued)} of {len(names)} runs were not done ({'; '.join(queued)}): {reason}")
    return sentences


class Findings(NamedTuple):
    """The part of a report that depends on the kind of experiment, see `reporting.report.Report`."""

    figures: dict[str, Figure]
    tables: dict[str, pd.DataFrame]
    findings: list[str]
    summary: dict[str, Any]


def _compare_settings(experiment: Experiment, frame: pd.DataFrame, axes: list[str]) -> Findings:
    """Compare the settings, for figures 1, 2, 4 and sweeps."""
    summary = frames.by_setting(frame, axes or ["approach"])
    summary["paper"] = [_paper(experiment, row) for row in summary[axes].to_dict("records")]
    measures = frames.measures_by_setting(frame, axes or ["approach"])
    tables = {"Mean over seeds": summary, MEASURES: measures}
    content = {"settings": _records(summary), "measures": _records(measures)}
    if not axes:  # only the seed varies
        bars = {experiment.base.final_prune: frames.per_task(frame, ["approach"]).reset_index()}
        figure = charts.task_bars(bars, f"Accuracy by task, {experiment.base.dataset}", charts.error_bars(summary))
        return Findings({experiment.name: figure}, tables, [], content)
    x, curve = _axis_and_curve(experiment, axes)
    shown = summary
    if curve is not None and curve not in summary:
        shown = summary.assign(**{curve: _describe_other_axes(summary, axes, x)})
    values = ["accuracy"] if experiment.named.curve == "approach" else ["accuracy", "error"]
    figure = charts.curves(shown, x, curve, values, f"{experiment.named.title}, {experiment.base.dataset}")
    reference = experiment.named.reference or x
    differences = comparisons.differences(frame, axes, reference)
    if len(differences):
        first = charts.describe(reference, frame[reference].iloc[0])
        caption = f"Difference in accuracy to {first}, with {CONFIDENCE:.0%} bootstrap intervals over the seeds"
        tables[caption] = differences
        content["differences"] = _records(differences)
    findings = _best_and_worst_rounds(summary) if experiment.named.x == "prune_rounds" else []
    if experiment.name == "figure2":
        verdicts = claims.about_rounds(frame, experiment.base.dataset)
        findings += [verdict.sentence() for verdict in verdicts]
        content["claims"] = [verdict.to_json() for verdict in verdicts]
    return Findings({experiment.name: figure}, tables, findings, content)


def _report_matches(experiment: Experiment, frame: pd.DataFrame, matches: Sequence[Match]) -> Findings:
    """Report the best match of each search and the accuracy by task, for figure 3 and table 1."""
    best_matches = [found for match in matches if (found := match.to_json()) is not None]
    columns = ["final_prune", "approach", "target", "accuracy", "gap", "matched_prune", "compression", "reached"]
    table = pd.DataFrame([{name: match[name] for name in columns} for match in best_matches], columns=columns)
    table["fitted compression"] = [_fitted_compression(match) for match in best_matches]
    table["reached"] = table["reached"].map({True: "yes", False: "NO"})
    findings = [_describe_match(match) for match in best_matches]
    findings.append(
        f"A match is reached if the accuracies differ by {REACHED:g} at most. The fitted compression is where a "
        f"monotone curve through all evaluations falls below PackNet's accuracy, with its {CONFIDENCE:.0%} bootstrap "
        f"interval over the seeds. The paper reports {PAPER_COMPRESSION}."
    )
    curves = {f"{match.approach} at p = {match.final_prune:g}": match.curve for match in matches}
    crossing = [(name, curve.compression) for name, curve in curves.items() if curve is not None and curve.reaches]
    verdict = claims.about_compression(crossing)
    findings += [verdict.sentence()] if verdict else []
    bars = {}
    for p in experiment.axes["final_prune"]:
        best = {"packnet": p} | {m["approach"]: m["matched_prune"] for m in best_matches if m["final_prune"] == p}
        chosen = [frame[(frame["approach"] == name) & (frame["final_prune"] == prune)] for name, prune in best.items()]
        if any(len(rows) for rows in chosen):  # not if all runs at this p failed
            bars[p] = frames.per_task(pd.concat(chosen), ["approach"]).reset_index()
    settings = frames.by_setting(frame, ["approach", "final_prune"])
    title = f"Tasks at matched accuracy, {experiment.base.dataset}"
    figures = {experiment.name: charts.task_bars(bars, title, charts.error_bars(settings))}
    if best_matches:
        figures["matching"] = charts.matching(best_matches, f"Search for matches, {experiment.base.dataset}")
    measures = frames.measures_by_setting(frame, ["approach", "final_prune"])
    tables = {"Matches": table, "All settings": settings, MEASURES: measures}
    summary = {"matches": best_matches, "settings": _records(settings), "measures": _records(measures)}
    summary["claims"] = [verdict.to_json()] if verdict else []
    return Findings(figures, tables, findings, summary)


def _describe_match(match: dict[str, Any]) -> str:
    fewer = f"{match['compression']:.2f} times fewer weights"
    found = (
        f"as accurate as PackNet with {fewer}"
        if match["reached"]
        else f"no match: {match['gap']:+.4f} in accuracy at best, at {fewer}"
    )
    fitted = match["fitted"]
    if fitted is None:
        return f"p = {match['final_prune']:g}, {match['approach']}: {found}"
    points = fitted["points"]
    side = "below" if points[0][1] < match["target"] else "above"
    curve = (
        f"fitted {_fitted_compression(match)}"
        if fitted["reaches"]
        else f"the fitted curve is {side} PackNet's accuracy from {points[0][0]:.2f} to {points[-1][0]:.2f} times"
    )
    if fitted["flat"]:
        low, high = fitted["within"]
        curve += f"; the curve is flat: within {REACHED:g} of PackNet's accuracy from {low:.2f} to {high:.2f} times"
    return f"p = {match['final_prune']:g}, {match['approach']}: {found}; {curve}"


def _fitted_compression(match: dict[str, Any]) -> str:
    fitted = match["fitted"]
    if fitted is None or not fitted["reaches"]:
        return ""
    low, high = fitted["interval"]
    return f"{fitted['compression']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _best_and_worst_rounds(summary: pd.DataFrame) -> list[str]:
    """Describe how much `N` matters at each `p`."""
    sentences = []
    for p, group in summary.groupby("final_prune", sort=False):
        worst, best = group.loc[group["error"].idxmax()], group.loc[group["error"].idxmin()]
        ratio = f", {worst['error'] / best['error']:.2f} times as high" if best["error"] else ""
        sentences.append(
            f"p = {p:g}: error from {best['error']:.2%} (N = {best['prune_rounds']:g}) "
            f"to {worst['error']:.2%} (N = {worst['prune_rounds']:g}){ratio}."
        )
    return sentences


def _axis_and_curve(experiment: Experiment, axes: list[str]) -> tuple[str, str | None]:
    if experiment.named.x is not None:
        return experiment.named.x, experiment.named.curve
    longest = max(axes, key=lambda axis: len(experiment.axes[axis]))
    others = [axis for axis in axes if axis != longest]
    return longest, (others[0] if len(others) == 1 else "setting" if others else None)


def _describe_other_axes(summary: pd.DataFrame, axes: list[str], x: str) -> list[str]:
    others = [axis for axis in axes if axis != x]
    return [", ".join(charts.describe(axis, row[axis]) for axis in others) for row in summary.to_dict("records")]


def _paper(experiment: Experiment, setting: dict) -> float | None:
    return paper_accuracy({**experiment.base.to_json(), **setting})


def _records(table: pd.DataFrame) -> list[dict]:
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]


def _settings(experiment: Experiment, complete: Sequence[dict]) -> dict[str, Any]:
    """Return the settings that all runs share, and the hashes of the files of their networks."""
    varied, hashes = _varied(experiment), {}
    for results in complete:
        network, config = results.get("network") or {}, results["config"]
        for field, name in (("model", "model_source"), ("weights", "weights")):
            if name in network:
                hashes[f"SHA-256 of {field} {config[field]}"] = network[name]
    return {name: value for name, value in experiment.base.to_json().items() if name not in varied} | hashes


def _varied(experiment: Experiment) -> set[str]:
    """Return the config fields that differ between runs, or do not matter to the report."""
    varied = {*experiment.axes, "seed", "output_dir", "data_dir", "export"}
    if experiment.named.matching:
        varied.add("approach")
    if experiment.named.budget_per_round:
        varied.add("retrain_epochs")
    return varied


def _environments(complete: Sequence[dict]) -> list[dict[str, Any]]:
    """Return the versions and settings with which runs were computed, each with the hosts and the number of runs."""
    groups: dict[str, list[dict]] = {}
    for results in complete:
        groups.setdefault(str(_versions(results)), []).append(results)
    return [
        {
            **_versions(group[0]),
            "runs": len(group),
            # Earlier versions did not record the host.
            "hosts": listed(sorted({results.get("computed_on", {}).get("host", "unknown") for results in group})),
        }
        for group in groups.values()
    ]


def _versions(results: dict) -> dict:
    environment, cpu = results["environment"], results.get("computed_on", {}).get("cpu")
    named = {name: value for name, value in environment.items() if name != "packages"}
    return {**named, **environment["packages"], **({"cpu": " ".join(map(str, cpu))} if cpu else {})}


def print_table(title: str, table: pd.DataFrame, findings: Sequence[str], folder: Path) -> None:
    """Print the main table, the findings, the path of the report, and the command for TensorBoard."""
    printed = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    shown = reports.readable(table)
    for name in shown.columns:
        printed.add_column(name, justify="right", no_wrap=name.count(" ") == 0)
    for row in shown.itertuples(index=False):
        printed.add_row(*row)
    console = Console()
    console.print(printed)
    for finding in findings:
        console.print(finding, soft_wrap=True)
    console.print(f"Report       {folder / 'report.html'}", soft_wrap=True)
    console.print(f"TensorBoard  {tensorboard_command()} --logdir {folder / 'tensorboard'}", soft_wrap=True)


# The paper's average accuracy of PackNet with one prune round, by data set and p.
PAPER_ACCURACY = {
    ("mnist", 0.95): 0.996,
    ("mnist", 0.99): 0.989,
    ("mnist", 0.995): 0.970,
    ("cifar10", 0.8): 0.891,
}
# The abstract: freezing can need over twice as many weights for the same performance.
PAPER_COMPRESSION = "a compression of over 2 at best (abstract)"


def paper_accuracy(setting: dict[str, Any]) -> float | None:
    """Return the paper's average accuracy at a setting of config fields; None if it reports none."""
    if setting["approach"] != "packnet" or setting["prune_rounds"] != 1:
        return None
    return PAPER_ACCURACY.get((setting["dataset"], setting["final_prune"]))
