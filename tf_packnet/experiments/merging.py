"""Merges the results of shards: takes them from their folders, and trains nothing."""

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import definitions
from tf_packnet.experiments.definitions import Experiment, axes_of
from tf_packnet.experiments.worker import FinishedRun
from tf_packnet.runs import corruption, output
from tf_packnet.runs import results as results_file
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths, expand
from tf_packnet.system import files


class NoTraining:
    """An executor that executes nothing: runs that are not complete are reported as missing."""

    def __init__(self, **callbacks: Any):
        pass

    def submit(self, config: Config) -> "Future[FinishedRun]":
        """Return a run without results."""
        future = Future[FinishedRun]()
        future.set_result(FinishedRun(config, None, "no shard has completed them", 0.0, queued=True))
        return future

    def close(self) -> None:
        """Do nothing."""


def check_sources(experiment: Experiment, paths: ExperimentPaths, folders: Sequence[str]) -> list[ExperimentPaths]:
    """Check that there are results to merge.

    Args:
        experiment: The experiment.
        paths: Its output directory.
        folders: The output directories of its shards; empty if all shards wrote to `paths`.

    Returns:
        The folders that are not the output directory.

    Raises:
        ArgumentError: If a folder has no results of this experiment.
    """
    sources = [ExperimentPaths(expand(folder)) for folder in folders]
    ours = definitions.comparable(definitions.experiment_identity(experiment))
    for source in sources or [paths]:
        identity = _identity(source)
        if identity is None:
            raise ArgumentError("merge", "folders with the results of shards", str(source.root))
        different = output.different_flags(ours, definitions.comparable(identity))
        if different:
            expected = f"results of the same experiment (these are of another one, with {' '.join(different)})"
            raise ArgumentError("merge", expected, str(source.root))
    return [source for source in sources if source.root.resolve() != paths.root.resolve()]


def collect(experiment: Experiment, paths: ExperimentPaths, sources: Sequence[ExperimentPaths]) -> None:
    """Copy the results of complete runs to the output directory. If several folders have a run, the first one counts.

    Raises:
        ArgumentError: If a newer version of this library wrote a results file.
        CorruptionError: If a results file is damaged, and `on_corruption` is `fail`.
    """
    axes = axes_of(experiment)
    on_damaged = corruption.handler(corruption.FAIL) if experiment.base.on_corruption == corruption.FAIL else _print
    for source in sources:
        for path in sorted(source.runs.glob("*.json")):
            results = results_file.read_results(path, "merge", on_damaged)
            if results is None or not results["complete"]:
                continue
            config = _config(results)
            if config is None or definitions.run_name(config, axes) != path.stem:
                continue  # another version of this library wrote it
            if definitions.completed_results(paths.run(path.stem), config, corruption.ignore) is None:
                files.write_json(paths.run(path.stem), results)


def _identity(paths: ExperimentPaths) -> dict[str, Any] | None:
    """Return the identity of the experiment in a folder; None if there is none."""
    content = results_file.read_experiment(paths.experiment, corruption.ignore)
    if content is not None:
        return content
    manifest = corruption.Manifest.read(paths.manifest, corruption.ignore)
    return None if manifest is None else dict(manifest.identity)


def _print(path: Path | str) -> None:
    print(f"{path} is damaged; its run counts as missing", file=sys.stderr)


def _config(results: dict[str, Any]) -> Config | None:
    try:
        return Config.from_json(results["config"])
    except (ValueError, TypeError):
        return None
