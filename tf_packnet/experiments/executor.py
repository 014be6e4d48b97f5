"""Does the runs of an experiment in a pool of workers, or reads their results if they are complete already."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tf_packnet.experiments.definitions import Experiment, axes_of, run_name
from tf_packnet.experiments.worker import FinishedRun, Layout
from tf_packnet.experiments.worker_pool import Pool
from tf_packnet.runs import corruption
from tf_packnet.runs import results as results_file
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths, StorePlace
from tf_packnet.system import files


class ExperimentRuns:
    """The runs of an experiment.

    Args:
        experiment: The experiment.
        paths: Its output directory.
        layout: Number of workers and their threads.
        place: Where stages and results are stored, which all runs share.
        display: Shows the progress: an `ExperimentProgress`.

    Attributes:
        computed: The runs that were done now, not read.
    """

    def __init__(self, experiment: Experiment, paths: ExperimentPaths, layout: Layout, place: StorePlace, display: Any):
        self._axes = axes_of(experiment)
        self._paths, self._display = paths, display
        self._pool = Pool(
            layout,
            place,
            name=self.name,
            on_start=lambda config: display.start_run(self.name(config), estimated_epochs(config)),
            on_epochs=lambda config, epochs: display.advance_run(self.name(config), epochs),
            on_requeue=lambda config: display.requeue_run(self.name(config)),
            on_end=self._on_end,
            log=display.log,
        )
        self._futures: dict[str, Future[FinishedRun]] = {}
        self._lock = threading.Lock()  # a matching submits from several threads
        self.computed: list[FinishedRun] = []

    def __enter__(self) -> "ExperimentRuns":
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and cancel all runs that are not finished."""
        self._pool.close()

    def name(self, config: Config) -> str:
        """Return the name of a run."""
        return run_name(config, self._axes)

    def submit(self, config: Config) -> "Future[FinishedRun]":
        """Queue a run, unless it is queued, running or complete already."""
        name = self.name(config)
        with self._lock:
            if name not in self._futures:
                results = completed_results(self._paths.run(name), config, corruption.ignore)
                if results is not None:
                    self._futures[name] = future = Future[FinishedRun]()
                    future.set_result(FinishedRun(config, results, "", 0.0))
                else:
                    self._display.add_run(estimated_epochs(config))
                    self._futures[name] = self._pool.submit(config)
            return self._futures[name]

    def get(self, configs: Sequence[Config]) -> list[FinishedRun]:
        """Do several runs and return them in order, with those that fail or that no worker is left for.

        Raises:
            ArgumentError: If the config, the data or the machine do not allow a run.
            OSError: If the output directory or the store of stages can no longer be written.
        """
        futures = [self.submit(config) for config in configs]
        runs = []
        for future in futures:
            runs.append(future.result())
            if runs[-1].refused is not None:
                raise runs[-1].refused
        return runs

    def _on_end(self, finished: FinishedRun) -> None:
        scores = ""
        if finished.results is not None:
            files.write_json(self._paths.run(self.name(finished.config)), finished.results)
            scores = f"accuracy {finished.results['average_accuracy']:.4f}"
        self.computed.append(finished)
        self._display.end_run(self.name(finished.config), finished.seconds, scores, finished.error)


def estimated_epochs(config: Config) -> int:
    """Estimate the epochs of a run, for the progress display. Without `num_tasks` it assumes five tasks."""
    tasks = 1 if config.approach == "multinet" else config.num_tasks or 5
    return tasks * (config.train_epochs + config.retrain_epochs)


def completed_results(path: Path, config: Config, on_damaged: corruption.OnDamaged) -> dict[str, Any] | None:
    """Read the results of a run; None if they are missing, damaged, incomplete or of another config.

    Raises:
        ArgumentError: If a newer version of this library wrote them.
    """
    results = results_file.read_results(path, "output_dir", on_damaged)
    if results is None or not results["complete"]:
        return None
    try:
        same = Config.from_json(results["config"]).identity() == config.identity()
    except (ValueError, TypeError):  # another version of this library wrote it
        return None
    return results if same else None
