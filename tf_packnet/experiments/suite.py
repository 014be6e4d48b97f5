"""An experiment: its runs side by side, then its tables, figures and report. What is there is not computed again."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_packnet.errors import ArgumentError, FailedRunsError
from tf_packnet.experiments import definitions
from tf_packnet.experiments.definitions import MATCHING, Experiment, run_name
from tf_packnet.experiments.executor import Runs, axes_of, completed_results
from tf_packnet.experiments.workers import Layout, Outcome, best_layout
from tf_packnet.runs import data, output
from tf_packnet.runs import results as results_file
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files
from tf_packnet.tasks.sources import check_name

if TYPE_CHECKING:
    from tf_packnet.experiments.matching import Match


def main(experiment: Experiment, workers: int | None = None, threads: int = 1, stages_dir: str | None = None) -> None:
    """Runs what is missing of an experiment, and writes and prints what came of it.

    Raises:
        ArgumentError: Before any work, if a run cannot be, or may not write where it wants to.
        FailedRunsError: At the end, if runs failed; the report says what the others give.
    """
    for dataset, data_dir in dict.fromkeys((config.dataset, config.data_dir) for config in experiment.configs):
        check_name(dataset, data_dir)
    paths = ExperimentPaths(definitions.experiment_folder(experiment))
    definitions.check_experiment(experiment, paths)
    store = output.check_stages_dir(stages_dir) or paths.stages
    is_new = not paths.root.exists()
    with output.locked(paths.root):
        try:
            _main(experiment, paths, best_layout(workers, threads), store)
        except ArgumentError:  # only the data could tell: nothing came of it, so nothing is left behind
            if is_new:
                shutil.rmtree(paths.root)
            raise


def _main(experiment: Experiment, paths: ExperimentPaths, layout: Layout, store: Path) -> None:
    Manifest(definitions.experiment_identity(experiment), {}).write(paths.manifest)
    version = {"schema_version": results_file.SCHEMA_VERSION}
    files.write_json(paths.experiment, {**definitions.experiment_identity(experiment), **version})
    from tf_packnet.experiments import findings

    check_data(experiment, paths)
    runs, outcomes, matches = _run_all(experiment, paths, layout, store)
    written = findings.report(experiment, paths, outcomes, matches)
    Manifest(definitions.experiment_identity(experiment), checksums(paths.root, written)).write(paths.manifest)
    print_work(runs.outcomes, len({runs.name(outcome.config) for outcome in outcomes}) - len(runs.outcomes))
    failed = sorted({runs.name(outcome.config) for outcome in outcomes if outcome.results is None})
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {len(outcomes)} runs failed ({'; '.join(failed)}); the same command tries them again"
        )


def _run_all(
    experiment: Experiment, paths: ExperimentPaths, layout: Layout, store: Path
) -> tuple[Runs, list[Outcome], "list[Match]"]:
    from tf_packnet.experiments import matching
    from tf_packnet.reporting.runs_progress import RunsProgress

    with RunsProgress() as display:
        threads = "1 thread" if layout.threads == 1 else f"{layout.threads} threads"
        display.say(f"{experiment.name}: {layout.workers} runs at once with {threads} each")
        with Runs(experiment, paths, layout, store, display) as runs:
            if experiment.name not in MATCHING:
                return runs, runs.get(experiment.configs), []
            matches = matching.match_all(experiment, runs)
            return runs, [outcome for match in matches for outcome in match.outcomes], matches


def check_data(experiment: Experiment, paths: ExperimentPaths) -> None:
    """Raises ArgumentError if runs that are there were made of other data: of each data set the first tells."""
    checked: set[tuple[str, str | None]] = set()
    axes = axes_of(experiment)
    for config in experiment.configs:
        name = (config.dataset, config.data_dir)
        path = paths.run(run_name(config, axes))
        # A damaged one is told when its turn comes.
        results = None if name in checked else completed_results(path, config, damaged=lambda path: None)
        if results is not None:
            data.check_unchanged(results, config, paths.root)
            checked.add(name)


def print_work(outcomes: Sequence[Outcome], found: int) -> None:
    """Says how much was computed by this command, and how much was there: stages of others, and `found` whole runs."""
    stages = [stage for outcome in outcomes if outcome.results for stage in outcome.results["seconds"]]
    computed = sum(stage["epochs"] for stage in stages if not stage["reused"])
    reused = sum(stage["epochs"] for stage in stages if stage["reused"])
    print(f"{len(outcomes)} runs done: {computed:,} epochs computed, {reused:,} reused; {found} runs were there before")
