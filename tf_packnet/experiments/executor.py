"""Executes the runs of an experiment in a pool of workers, and reads the results of runs that are already complete."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tf_packnet.experiments.definitions import Experiment, axes_of, completed_results, estimated_epochs, run_name
from tf_packnet.experiments.worker import FinishedRun
from tf_packnet.runs import corruption
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files


class Executor(Protocol):
    """Executes runs: in processes of this machine, on a cluster, or not at all (`merging.NoTraining`)."""

    def submit(self, config: Config) -> "Future[FinishedRun]":
        """Queue a run."""

    def close(self) -> None:
        """End all work, and cancel the runs that are not finished."""


class ExperimentRuns:
    """The runs of an experiment.

    Args:
        experiment: The experiment.
        paths: Its output directory.
        start: Creates the executor; called with the callbacks of a `worker_pool.Pool` as keyword arguments.
        display: Shows the progress: an `ExperimentProgress`.

    Attributes:
        computed: The runs that ended in this process. Excludes those whose results were already complete.
    """

    def __init__(self, experiment: Experiment, paths: ExperimentPaths, start: Callable[..., Executor], display: Any):
        self._axes = axes_of(experiment)
        self._paths, self._display = paths, display
        self._executor = start(
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
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and cancel all runs that are not finished."""
        self._executor.close()

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
                    self._futures[name] = self._executor.submit(config)
            return self._futures[name]

    def get(self, configs: Sequence[Config]) -> list[FinishedRun]:
        """Execute several runs and return them in order, including those that failed or for which no worker was left.

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
