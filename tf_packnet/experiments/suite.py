"""An experiment: its runs side by side, then its tables, figures and report. What is there is not computed again."""

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_packnet import files
from tf_packnet.errors import ArgumentError, FailedRunsError
from tf_packnet.experiments import corruption, data, output, reading
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.corruption import Manifest, checksums
from tf_packnet.experiments.paths import ExperimentPaths
from tf_packnet.experiments.plans import MATCHING, Plan, run_name
from tf_packnet.experiments.workers import Layout, Outcome, Pool, best_layout
from tf_packnet.tasks.sources import check_name

if TYPE_CHECKING:
    from tf_packnet.experiments.matching import Match


class Runs:
    """The runs of an experiment: those that are there, and those that the workers are given.

    Args:
        plan: The experiment.
        paths: Where it lies.
        layout: How many runs at once.
        stages_dir: The store that they share.
        display: Shows how they come on.
    """

    def __init__(self, plan: Plan, paths: ExperimentPaths, layout: Layout, stages_dir: Path, display: Any):
        self._axes = axes_of(plan)
        self._paths, self._display = paths, display
        self._pool = Pool(
            layout,
            stages_dir,
            begun=lambda config: display.begun(self.name(config), epochs_of(config)),
            advanced=lambda config, epochs: display.advanced(self.name(config), epochs),
            ended=self._ended,
            said=display.say,
        )
        self._damaged = corruption.handler(plan.base.on_corruption, display.say)
        self._asked: dict[str, Future] = {}
        self._lock = threading.Lock()  # a matching asks from several threads
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> "Runs":
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, whatever they are at; whoever waits for a run is told that it is cancelled."""
        self._pool.close()

    def name(self, config: Config) -> str:
        """What a run is called."""
        return run_name(config, self._axes)

    def submit(self, config: Config) -> "Future[Outcome]":
        """The outcome of a run, once it is there."""
        name = self.name(config)
        with self._lock:
            if name not in self._asked:
                results = read_results(self._paths.run(name), config, self._damaged)
                if results is not None:
                    self._asked[name] = future = Future()
                    future.set_result(Outcome(config, results, "", 0.0))
                else:
                    self._display.asked(epochs_of(config))
                    self._asked[name] = self._pool.submit(config)
            return self._asked[name]

    def get(self, configs: Sequence[Config]) -> list[Outcome]:
        """The outcomes of several runs, in order.

        Raises:
            ArgumentError: If one of the configs cannot be had; what else may come of a run does not stop the others.
        """
        futures = [self.submit(config) for config in configs]
        outcomes = []
        for future in futures:
            outcomes.append(future.result())
            if outcomes[-1].refused is not None:
                raise outcomes[-1].refused
        return outcomes

    def _ended(self, outcome: Outcome) -> None:
        scores = ""
        if outcome.results is not None:
            files.write_json(self._paths.run(self.name(outcome.config)), outcome.results)
            scores = f"accuracy {outcome.results['average_accuracy']:.4f}"
        self.outcomes.append(outcome)
        self._display.ended(self.name(outcome.config), outcome.seconds, scores, outcome.error)


def main(plan: Plan, workers: int | None = None, threads: int = 1, stages_dir: str | None = None) -> None:
    """Runs what is missing of an experiment, and writes and prints what came of it.

    Raises:
        ArgumentError: Before any work, if a run cannot be, or may not write where it wants to.
        FailedRunsError: At the end, if runs failed; the report says what the others give.
    """
    for dataset, data_dir in dict.fromkeys((config.dataset, config.data_dir) for config in plan.configs):
        check_name(dataset, data_dir)
    paths = ExperimentPaths(output.experiment_folder(plan))
    output.check_experiment(plan, paths)
    store = output.check_stages_dir(stages_dir) or paths.stages
    is_new = not paths.root.exists()
    with output.held(paths.root):
        try:
            _main(plan, paths, best_layout(workers, threads), store)
        except ArgumentError:  # only the data could tell: nothing came of it, so nothing is left behind
            if is_new:
                shutil.rmtree(paths.root)
            raise


def _main(plan: Plan, paths: ExperimentPaths, layout: Layout, store: Path) -> None:
    Manifest(output.experiment_identity(plan), {}).write(paths.manifest)
    version = {"schema_version": reading.SCHEMA_VERSION}
    files.write_json(paths.experiment, {**output.experiment_identity(plan), **version})
    from tf_packnet.experiments import findings

    check_data(plan, paths)
    runs, outcomes, matches = _run_all(plan, paths, layout, store)
    written = findings.report(plan, paths, outcomes, matches)
    Manifest(output.experiment_identity(plan), checksums(paths.root, written)).write(paths.manifest)
    print_work(runs.outcomes, len({runs.name(outcome.config) for outcome in outcomes}) - len(runs.outcomes))
    failed = sorted({runs.name(outcome.config) for outcome in outcomes if outcome.results is None})
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {len(outcomes)} runs failed ({'; '.join(failed)}); the same command tries them again"
        )


def _run_all(
    plan: Plan, paths: ExperimentPaths, layout: Layout, store: Path
) -> tuple[Runs, list[Outcome], "list[Match]"]:
    from tf_packnet.experiments import matching
    from tf_packnet.reporting.runs_progress import RunsProgress

    with RunsProgress() as display:
        threads = "1 thread" if layout.threads == 1 else f"{layout.threads} threads"
        display.say(f"{plan.name}: {layout.workers} runs at once with {threads} each")
        with Runs(plan, paths, layout, store, display) as runs:
            if plan.name not in MATCHING:
                return runs, runs.get(plan.configs), []
            matches = matching.match_all(plan, runs)
            return runs, [outcome for match in matches for outcome in match.outcomes], matches


def check_data(plan: Plan, paths: ExperimentPaths) -> None:
    """Raises ArgumentError if runs that are there were made of other data: of each data set the first tells."""
    checked: set[tuple[str, str | None]] = set()
    axes = axes_of(plan)
    for config in plan.configs:
        name = (config.dataset, config.data_dir)
        path = paths.run(run_name(config, axes))
        # A damaged one is told when its turn comes.
        results = None if name in checked else read_results(path, config, damaged=lambda path: None)
        if results is not None:
            data.check_unchanged(results, config, paths.root)
            checked.add(name)


def axes_of(plan: Plan) -> tuple[str, ...]:
    """What the runs of an experiment differ in, besides the seed."""
    return ("approach", *plan.axes) if plan.name in MATCHING else tuple(plan.axes)


def epochs_of(config: Config) -> int:
    """Epochs of a run, the first five tasks of a data set where it is not said how many: for the display alone."""
    lessons = 1 if config.approach == "multinet" else config.num_tasks or 5
    return lessons * (config.train_epochs + config.retrain_epochs)


def read_results(path: Path, config: Config, damaged: corruption.Damaged) -> dict[str, Any] | None:
    """The results of this very run, if they are there and as they were written.

    Raises:
        ArgumentError: If a newer version of this library wrote them.
    """
    results = reading.results(path, "output_dir", damaged)
    if results is None or not results["complete"]:
        return None
    try:
        same = Config.from_json(results["config"]).identity() == config.identity()
    except (ValueError, TypeError):  # the config of another version
        return None
    return results if same else None


def print_work(outcomes: Sequence[Outcome], found: int) -> None:
    """Says how much was computed by this command, and how much was there: stages of others, and `found` whole runs."""
    stages = [stage for outcome in outcomes if outcome.results for stage in outcome.results["seconds"]]
    computed = sum(stage["epochs"] for stage in stages if not stage["reused"])
    reused = sum(stage["epochs"] for stage in stages if stage["reused"])
    print(f"{len(outcomes)} runs done: {computed:,} epochs computed, {reused:,} reused; {found} runs were there before")
