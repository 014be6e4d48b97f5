"""Runs an experiment: first its runs, in parallel, then tables, figures and report. Complete runs are not repeated.

pandas, Matplotlib and SciPy are imported late, so that `--help` and refused flags do not wait for them.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tf_packnet.errors import ArgumentError, FailedRunsError
from tf_packnet.experiments import definitions, fleets, merging, ray_cluster
from tf_packnet.experiments.definitions import Experiment, axes_of, completed_results, run_name
from tf_packnet.experiments.executor import Executor, ExperimentRuns
from tf_packnet.experiments.gpus import NONE
from tf_packnet.experiments.shards import Shard
from tf_packnet.experiments.worker import FinishedRun, Layout
from tf_packnet.experiments.worker_pool import Pool, best_layout
from tf_packnet.runs import corruption, data, network_files, output, shared_folder, stage_folder
from tf_packnet.runs import results as results_file
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files
from tf_packnet.tasks.sources import check_name

if TYPE_CHECKING:
    from tf_packnet.experiments.matching import Match

Start = Callable[..., Executor]


def main(
    experiment: Experiment,
    workers: int | None = None,
    threads: int = 1,
    stages_dir: str | None = None,
    fleet: str = fleets.AUTO,
    cluster: str = ray_cluster.LOCAL,
    gpus_per_run: float | None = None,
    memory_per_run: float | None = None,
    shard: Shard | None = None,
    merge: Sequence[str] | None = None,
) -> None:
    """Do the missing runs of an experiment, then write its report and print its main table.

    Args:
        experiment: The experiment.
        workers: Number of worker processes; default: see `best_layout`.
        threads: Threads of each worker.
        stages_dir: Folder or URL of a store of stages to share with other experiments; default: a folder in the output
            directory.
        fleet: Runs of each worker at the same time: a number, `off` or `auto`, see `fleets.size`.
        cluster: `local` for processes of this machine, or the Ray cluster whose nodes have the workers.
        gpus_per_run: GPUs of each run, a fraction if runs share one; default: see `best_layout`.
        memory_per_run: Memory of each run in GiB, which limits how many runs there are at the same time.
        shard: Execute only the runs of this shard, and write only their results.
        merge: Do no runs. Write the report of those that are complete in these folders, and in the output directory.

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
    place = output.check_stages_dir(stages_dir, paths.stages)
    place = place._replace(folder=place.folder.absolute())  # nodes of a cluster have other current folders
    if merge is not None:
        _merge(experiment, paths, merge)
        return
    if shard is None:
        definitions.check_experiment(experiment, paths)  # before any connection, which takes seconds
    output.check_shared(place)
    do = _do_all if shard is None else functools.partial(_do_shard, shard=shard)
    mirrored = any(config.strategy == "mirrored" and config.logical_devices is None for config in experiment.configs)
    if cluster == ray_cluster.LOCAL:
        size = fleets.size(fleet, experiment, on_gpus=False if gpus_per_run == 0 else None)
        layout = best_layout(workers, threads, gpus_per_run, memory_per_run, mirrored, size)
        do(experiment, paths, start=functools.partial(Pool, layout, place), description=_describe(layout))
        return
    fleets.refuse(fleet, f"because of --cluster={cluster}")
    with ray_cluster.connected(cluster, best_layout(workers, threads, 0).workers * threads):
        from tf_packnet.experiments.ray_worker import RayWorker

        resources = [node["Resources"] for node in ray_cluster.nodes()]
        needs = ray_cluster.needs(resources, threads, gpus_per_run, memory_per_run, mirrored)
        layout = ray_cluster.layout(cluster, workers, needs)
        start = functools.partial(Pool, layout, place, make_worker=functools.partial(RayWorker, needs=needs))
        used = sum(needs.room(each) > 0 for each in resources)
        on = f"{_describe(layout)} on {used} node{'' if used == 1 else 's'} of a Ray cluster"
        do(experiment, paths, start=start, description=on)


def _do_all(experiment: Experiment, paths: ExperimentPaths, start: Start, description: str) -> None:
    """Do all runs and write the report."""
    is_new = not paths.root.exists()
    with output.locked(paths.root) as is_locked:
        if not is_locked:
            corruption.print_line(output.WITHOUT_LOCKS)
        try:
            _prepare(experiment, paths, is_locked)
            check_data(experiment, paths)
            with _runs(experiment, paths, start, description) as runs:
                done = _get(experiment, runs)
        except ArgumentError:  # found when the data was loaded: refused arguments leave no files behind
            if is_new:
                shutil.rmtree(paths.root)
            raise
        _report(experiment, paths, runs, *done, "the same command")


def _do_shard(experiment: Experiment, paths: ExperimentPaths, shard: Shard, start: Start, description: str) -> None:
    """Do the runs of a shard, in an output directory that other shards may write to at the same time."""
    lock_file = paths.root / output.LOCK
    if not lock_file.exists():  # else it is checked below
        try:
            definitions.check_experiment(experiment, paths)  # a folder of something else gets no lock file
        except ArgumentError:
            if not lock_file.exists():  # else another shard has just begun
                raise
    with shared_folder.shared(paths.root) as lock:
        definitions.check_experiment(experiment, paths, lock)
        _prepare(experiment, paths, lock.alone)
        lock.share()
        try:
            check_data(experiment, paths)
            with _runs(experiment, paths, start, f"shard {shard}, {description}") as runs:
                finished_runs, _ = _get(experiment, runs, shard)
        except ArgumentError:
            if lock.try_alone() and _has_no_results(paths):
                shutil.rmtree(paths.root)
            raise
    _print_work(runs, finished_runs)
    _check_missing(experiment, finished_runs, "the same command")
    print(
        f"shard {shard} is complete; when all are, the same command with --merge instead of --shard writes the report"
    )


def _has_no_results(paths: ExperimentPaths) -> bool:
    """Whether an output directory has only what `_prepare` makes."""
    made = {paths.root / output.LOCK, paths.manifest, paths.experiment, paths.stages, paths.runs}
    return set(paths.root.iterdir()) <= made and not any(paths.runs.glob("*")) and not any(paths.stages.glob("*/*"))


def _merge(experiment: Experiment, paths: ExperimentPaths, folders: Sequence[str]) -> None:
    """Write the report of complete runs. Nothing is trained, and neither data nor devices are needed."""
    sources = merging.check_sources(experiment, paths, folders)
    definitions.check_experiment(experiment, paths)
    with output.locked(paths.root) as is_locked:
        _prepare(experiment, paths, is_locked)
        merging.collect(experiment, paths, sources)
        for source in [*sources, paths]:
            check_data(experiment, source)
        with _runs(experiment, paths, merging.NoTraining, "merging the results of shards") as runs:
            done = _get(experiment, runs)
        _report(experiment, paths, runs, *done, "the command of their shard")


def _prepare(experiment: Experiment, paths: ExperimentPaths, alone: bool = True) -> None:
    """Mark the report as unfinished. Clean and repair the output directory, if no other command writes to it."""
    identity = definitions.experiment_identity(experiment)
    if alone:
        output.remove_leftovers(paths.root)
    Manifest(identity, {}).write(paths.manifest)
    files.write_json(paths.experiment, {**identity, "schema_version": results_file.SCHEMA_VERSION})
    stage_folder.make_place(paths.stages)
    if alone:
        stage_folder.repair(stage_folder.folders(paths.stages))


def _describe(layout: Layout) -> str:
    threads = "1 thread" if layout.threads == 1 else f"{layout.threads} threads"
    cards = {card for gpus in layout.gpus for card in gpus.split(",")} - {NONE}
    on = f" on {len(cards)} GPU{'s' if len(cards) > 1 else ''}" if cards else ""
    each = f", {layout.fleet} in each of {layout.workers} processes" if layout.fleet > 1 else ""
    return f"{layout.runs} runs in parallel{each} with {threads} each{on}"


@contextlib.contextmanager
def _runs(experiment: Experiment, paths: ExperimentPaths, start: Start, description: str) -> Iterator[ExperimentRuns]:
    from tf_packnet.reporting.experiment_progress import ExperimentProgress

    with ExperimentProgress() as display:
        display.log(f"{experiment.name}: {description}")
        with ExperimentRuns(experiment, paths, start, display) as runs:
            yield runs


def _get(
    experiment: Experiment, runs: ExperimentRuns, shard: Shard | None = None
) -> "tuple[list[FinishedRun], list[Match]]":
    """Do all runs of an experiment, or of a shard, and for a matching experiment its searches."""
    from tf_packnet.experiments import matching

    if not experiment.named.matching:
        return runs.get(shard.runs(experiment) if shard else experiment.configs), []
    matches = matching.match_all(experiment, runs, shard.searches(experiment) if shard else None)
    return [run for match in matches for run in match.runs], matches


def _report(
    experiment: Experiment,
    paths: ExperimentPaths,
    runs: ExperimentRuns,
    finished_runs: list[FinishedRun],
    matches: "list[Match]",
    remedy: str,
) -> None:
    """Write the report of all runs, and then the checksums of all files."""
    from tf_packnet.experiments import findings

    written = findings.write_report(experiment, paths, finished_runs, matches, remedy)
    covered = [*written, paths.experiment, paths.runs, paths.stages]
    Manifest(definitions.experiment_identity(experiment), checksums(paths.root, covered)).write(paths.manifest)
    _print_work(runs, finished_runs)
    _check_missing(experiment, finished_runs, remedy)


def _print_work(runs: ExperimentRuns, finished_runs: Sequence[FinishedRun]) -> None:
    names = {runs.name(run.config) for run in finished_runs if not run.queued}
    print_work(runs.computed, complete_before=len(names) - len(runs.computed))


def _check_missing(experiment: Experiment, finished_runs: Sequence[FinishedRun], remedy: str) -> None:
    from tf_packnet.experiments import findings

    missing = findings.describe_missing(experiment, finished_runs)
    if missing:
        raise FailedRunsError(f"{'; '.join(missing)}; {remedy} retries them")


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
