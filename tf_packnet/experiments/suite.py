"""Runs an experiment: first its runs, in parallel, then tables, figures and report. Complete runs are not repeated.

pandas, Matplotlib and SciPy are imported late, so that `--help` and refused flags do not wait for them.
"""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tf_packnet.errors import ArgumentError, FailedRunsError
from tf_packnet.experiments import definitions, fleets
from tf_packnet.experiments.definitions import Experiment, axes_of, run_name
from tf_packnet.experiments.executor import ExperimentRuns, completed_results
from tf_packnet.experiments.worker import FinishedRun, Layout
from tf_packnet.experiments.worker_pool import best_layout
from tf_packnet.runs import corruption, data, network_files, output, stage_folder
from tf_packnet.runs import results as results_file
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.paths import ExperimentPaths, StorePlace
from tf_packnet.system import files
from tf_packnet.tasks.sources import check_name

if TYPE_CHECKING:
    from tf_packnet.experiments.matching import Match


def main(
    experiment: Experiment,
    workers: int | None = None,
    threads: int = 1,
    stages_dir: str | None = None,
    fleet: str = fleets.AUTO,
) -> None:
    """Do the missing runs of an experiment, then write its report and print its main table.

    Args:
        experiment: The experiment.
        workers: Number of worker processes; default: see `best_layout`.
        threads: Threads of each worker.
        stages_dir: Folder or URL of a store of stages to share with other experiments; default: a folder in the output
            directory.
        fleet: Runs of each worker at the same time: a number, `off` or `auto`, see `fleets.size`.

    Raises:
        ArgumentError: Before any training, if data, machine or output directory do not allow a run.
        FailedRunsError: At the end, if runs failed or no worker was left for them; the report has the others.
    """
    for dataset, data_dir in dict.fromkeys((config.dataset, config.data_dir) for config in experiment.configs):
        check_name(dataset, data_dir)
    network_files.first_fingerprint.cache_clear()
    for model, weights in dict.fromkeys((config.model, config.weights) for config in experiment.configs):
        network_files.first_fingerprint(model, weights)  # raises errors
    paths = ExperimentPaths(definitions.experiment_folder(experiment))
    definitions.check_experiment(experiment, paths)
    place = output.check_stages_dir(stages_dir, paths.stages)
    output.check_shared(place)
    is_new = not paths.root.exists()
    with output.locked(paths.root) as is_locked:
        if is_locked:
            output.remove_leftovers(paths.root)
        else:
            corruption.print_line(output.WITHOUT_LOCKS)
        try:
            _main(experiment, paths, best_layout(workers, threads, fleets.size(fleet, experiment)), place)
        except ArgumentError:  # found when the data was loaded: refused arguments leave no files behind
            if is_new:
                shutil.rmtree(paths.root)
            raise


def _main(experiment: Experiment, paths: ExperimentPaths, layout: Layout, place: StorePlace) -> None:
    identity = definitions.experiment_identity(experiment)
    stage_folder.make_place(paths.stages)
    stage_folder.repair(stage_folder.folders(paths.stages))
    Manifest(identity, {}).write(paths.manifest)
    files.write_json(paths.experiment, {**identity, "schema_version": results_file.SCHEMA_VERSION})
    from tf_packnet.experiments import findings

    check_data(experiment, paths)
    runs, finished_runs, matches = _do_runs(experiment, paths, layout, place)
    written = findings.write_report(experiment, paths, finished_runs, matches)
    covered = [*written, paths.experiment, paths.runs, paths.stages]
    Manifest(identity, checksums(paths.root, covered)).write(paths.manifest)
    names = {runs.name(run.config) for run in finished_runs if not run.queued}
    print_work(runs.computed, complete_before=len(names) - len(runs.computed))
    missing = findings.describe_missing(experiment, finished_runs)
    if missing:
        raise FailedRunsError(f"{'; '.join(missing)}; the same command retries them")


def _do_runs(
    experiment: Experiment, paths: ExperimentPaths, layout: Layout, place: StorePlace
) -> tuple[ExperimentRuns, list[FinishedRun], "list[Match]"]:
    from tf_packnet.experiments import matching
    from tf_packnet.reporting.experiment_progress import ExperimentProgress

    with ExperimentProgress() as display:
        threads = "1 thread" if layout.threads == 1 else f"{layout.threads} threads"
        each = f", {layout.fleet} in each of {layout.workers} processes" if layout.fleet > 1 else ""
        display.log(f"{experiment.name}: {layout.runs} runs in parallel{each} with {threads} each")
        with ExperimentRuns(experiment, paths, layout, place, display) as runs:
            if not experiment.named.matching:
                return runs, runs.get(experiment.configs), []
            matches = matching.match_all(experiment, runs)
            return runs, [run for match in matches for run in match.runs], matches


def check_data(experiment: Experiment, paths: ExperimentPaths) -> None:
    """Raise ArgumentError if complete runs had other data or other files of the network.

    Only the first complete run of each combination is compared.
    """
    checked: set[tuple[str | None, ...]] = set()
    axes = axes_of(experiment)
    for config in experiment.configs:
        sources = (config.dataset, config.data_dir, config.model, config.weights)
        if sources in checked:
            continue
        # Damaged results are reported when the run itself is due.
        results = completed_results(paths.run(run_name(config, axes)), config, corruption.ignore)
        if results is not None:
            if sources[:2] not in checked:
                data.check_unchanged(results, config, paths.root)
            network_files.check_unchanged(results, config, paths.root)
            checked |= {sources, sources[:2]}


def print_work(computed: Sequence[FinishedRun], complete_before: int) -> None:
    """Print how much this command computed, and how much was reused: stages, and whole runs."""
    stages = [stage for run in computed if run.results for stage in run.results["seconds"]]
    epochs = sum(stage["epochs"] for stage in stages if not stage["reused"])
    reused = sum(stage["epochs"] for stage in stages if stage["reused"])
    print(
        f"{len(computed)} runs done: {epochs:,} epochs computed, {reused:,} reused; "
        f"{complete_before} runs were complete before"
    )
