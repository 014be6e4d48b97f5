"""Runs the runs of an experiment in a pool of workers; results that exist already are read."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tf_packnet.experiments.definitions import MATCHING, Experiment, run_name
from tf_packnet.experiments.workers import Layout, Outcome, Pool
from tf_packnet.runs import corruption
from tf_packnet.runs import results as results_file
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths
from tf_packnet.system import files


class Runs:
    """The runs of an experiment: those that are there, and those that the workers are given.

    Args:
        experiment: The experiment.
        paths: Where it lies.
        layout: How many runs at once.
        stages_dir: The store that they share.
        display: Shows how they come on.
    """

    def __init__(self, experiment: Experiment, paths: ExperimentPaths, layout: Layout, stages_dir: Path, display: Any):
        self._axes = axes_of(experiment)
        self._paths, self._display = paths, display
        self._pool = Pool(
            layout,
            stages_dir,
            begun=lambda config: display.begun(self.name(config), epochs_of(config)),
            advanced=lambda config, epochs: display.advanced(self.name(config), epochs),
            ended=self._ended,
            said=display.say,
        )
        self._damaged = corruption.handler(experiment.base.on_corruption, display.say)
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
                results = completed_results(self._paths.run(name), config, self._damaged)
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


def axes_of(experiment: Experiment) -> tuple[str, ...]:
    """What the runs of an experiment differ in, besides the seed."""
    return ("approach", *experiment.axes) if experiment.name in MATCHING else tuple(experiment.axes)


def epochs_of(config: Config) -> int:
    """Epochs of a run, the first five tasks of a data set where it is not said how many: for the display alone."""
    lessons = 1 if config.approach == "multinet" else config.num_tasks or 5
    return lessons * (config.train_epochs + config.retrain_epochs)


def completed_results(path: Path, config: Config, damaged: corruption.OnDamaged) -> dict[str, Any] | None:
    """The results of this very run, if they are there and as they were written.

    Raises:
        ArgumentError: If a newer version of this library wrote them.
    """
    results = results_file.read_results(path, "output_dir", damaged)
    if results is None or not results["complete"]:
        return None
    try:
        same = Config.from_json(results["config"]).identity() == config.identity()
    except (ValueError, TypeError):  # the config of another version
        return None
    return results if same else None
