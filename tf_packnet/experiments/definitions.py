"""Experiments as lists of runs. The defaults of `EXPERIMENTS` are the paper's values."""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.experiments.named import EXPERIMENTS, NamedExperiment
from tf_packnet.pruning.shares import AUTO
from tf_packnet.runs import corruption, output, stage_folder
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import ExperimentPaths, expand
from tf_packnet.runs.results import read_experiment, read_results
from tf_packnet.runs.shared_folder import SharedLock

Axes = dict[str, Sequence[Any]]

# Limit on the runs of one experiment; the paper's largest has 360.
MAX_RUNS = 10_000
# Limit in bytes on the name of a run. It is also a file name, which file systems limit to 255 bytes.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Experiment:
    """An experiment: the runs to compare.

    Attributes:
        name: One of `EXPERIMENTS`.
        base: The config that all runs share, except for the axes and the seed.
        axes: The config fields that vary, with their values. Does not contain the seed.
        seeds: The seeds with which every setting is run.
        configs: All runs, first seed first. For a matching experiment: the PackNet runs to match.
        evaluations: How many values of `final_prune` a matching may try for each baseline and `p`.
    """

    name: str
    base: Config
    axes: Axes
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]
    evaluations: int = 10

    @property
    def named(self) -> NamedExperiment:
        """The entry of `EXPERIMENTS`."""
        return EXPERIMENTS[self.name]

    def command(self) -> str:
        """Return the command line of this experiment, with every flag that differs from its default."""
        left_out = ("seed", "output_dir", "data_dir", *self.axes)
        fields = {name: value for name, value in self.base.to_json().items() if name not in left_out}
        given = [_as_flag(name, value) for name, value in fields.items() if value != Config().to_json()[name]]
        seeds = ",".join(map(str, self.seeds)) + ("," if len(self.seeds) == 1 else "")
        sweeps = [_as_flag(f"sweep={axis}", values) for axis, values in self.axes.items()]
        more = [f"--evaluations={self.evaluations}"] if self.named.matching else []
        lines = [f"python launch/main.py --experiment={self.name} --seeds={seeds}", *sweeps, *more, *given]
        return " \\\n    ".join(lines)


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{name}"
    return shlex.quote(f"--{name}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")


def define(
    name: str, base: Config, axes: Axes, seeds: Sequence[int] | None = None, evaluations: int = 10
) -> Experiment:
    """Define an experiment.

    Args:
        name: One of `EXPERIMENTS`.
        base: The config that all runs share, except for the axes and the seed.
        axes: Values that replace the paper's, for fields that the experiment varies. For `sweep`: all fields that vary.
        seeds: Default: as many as in the paper, starting at the seed of `base`.
        evaluations: How many values of `final_prune` a matching may try for each baseline and `p`.

    Raises:
        ArgumentError: If the experiment does not vary a field of `axes`, or the config of a run is invalid.
    """
    named = EXPERIMENTS[name]
    if named.varies:
        for axis in axes:
            if axis not in named.varies:
                raise ArgumentError("sweep", f"{' or '.join(named.varies)} with --experiment={name}", axis)
        axes = {axis: axes.get(axis) or values(base) for axis, values in named.varies.items()}
    elif not axes and seeds is None:
        raise ArgumentError("experiment", "a --sweep=NAME=VALUE,VALUE that names what it varies, or --seeds", name)
    if "seed" in axes:
        seeds = axes["seed"]
        axes = {axis: values for axis, values in axes.items() if axis != "seed"}
    if seeds is None:
        seeds = range(base.seed, base.seed + named.seeds)
    runs = math.prod(map(len, [seeds, *axes.values()]))
    if runs > MAX_RUNS:
        raise ArgumentError("sweep" if axes else "seeds", f"at most {MAX_RUNS:,} runs in all", f"{runs:,} runs")
    settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    configs = [_config(named, base, {**setting, "seed": seed}) for seed in seeds for setting in settings]
    longest = max((run_name(config, tuple(axes)) for config in configs), key=len)
    if len(longest.encode()) > LONGEST_NAME:
        raise ArgumentError("sweep", f"values with at most {LONGEST_NAME} bytes together in the name of a run", longest)
    return Experiment(name, base, axes, tuple(seeds), tuple(configs), evaluations)


def axes_of(experiment: Experiment) -> tuple[str, ...]:
    """Return the config fields in which the runs of an experiment differ, besides the seed."""
    return ("approach", *experiment.axes) if experiment.named.matching else tuple(experiment.axes)


def run_name(config: Config, axes: Sequence[str]) -> str:
    """Return the name of a run: the values of the axes, and its seed."""
    name = ",".join(f"{axis}={getattr(config, axis)}" for axis in [*axes, "seed"])
    return name.replace("%", "%25").replace("/", "%2F")  # it becomes a file name


def estimated_epochs(config: Config) -> int:
    """Estimate the epochs of a run, for the progress display. Without `num_tasks` it assumes five tasks."""
    tasks = 1 if config.approach == "multinet" else config.num_tasks or 5
    return tasks * (config.train_epochs + config.retrain_epochs)


def completed_results(path: Path, config: Config, on_damaged: corruption.OnDamaged) -> dict[str, Any] | None:
    """Read the results of a run; None if they are missing, damaged, incomplete or of another config.

    Raises:
        ArgumentError: If a newer version of this library wrote them.
    """
    results = read_results(path, "output_dir", on_damaged)
    if results is None or not results["complete"]:
        return None
    try:
        same = Config.from_json(results["config"]).identity() == config.identity()
    except (ValueError, TypeError):  # another version of this library wrote it
        return None
    return results if same else None


def _config(named: NamedExperiment, base: Config, setting: dict[str, Any]) -> Config:
    if "prune_rounds" in named.varies and setting["prune_rounds"] == AUTO:
        expected = "numbers of prune rounds in this figure; --experiment=sweep compares them with auto"
        raise ArgumentError("prune_rounds", expected, AUTO)
    if named.budget_per_round:
        setting["retrain_epochs"] = base.retrain_epochs * setting["prune_rounds"]
    return dataclasses.replace(base, **setting)


def experiment_folder(experiment: Experiment) -> Path:
    """Return the output directory: `output_dir`, or `out/<dataset>-<experiment>`."""
    directory = experiment.base.directory()
    return expand(directory if experiment.base.output_dir else f"{directory}-{experiment.name}")


def experiment_identity(experiment: Experiment) -> dict[str, Any]:
    """Return what must be equal to continue an experiment.

    Axis values and seeds are not part of it: they can be added.
    """
    config = {
        name: value for name, value in experiment.base.identity().items() if name not in (*experiment.axes, "seed")
    }
    return {"experiment": experiment.name, "varies": list(experiment.axes), "config": config}


def check_experiment(experiment: Experiment, paths: ExperimentPaths, lock: SharedLock | None = None) -> None:
    """Check the output directory of an experiment without changing it.

    Args:
        experiment: The experiment.
        paths: Its output directory.
        lock: The lock on the directory, if this command already holds it. With a shared lock, files are not checked for
            damage.

    Raises:
        ArgumentError: If the directory cannot be written, or contains another experiment or other files.
        CorruptionError: If a file of the report is damaged, and `on_corruption` is `fail`.
    """
    if output.is_new(paths.root):
        return
    ours = experiment_identity(experiment)
    flags = comparable(ours)
    pair = output.read_pair(
        paths.manifest,
        paths.experiment,
        read_experiment(paths.experiment, corruption.ignore),
        lambda earlier: output.different_flags(flags, comparable(earlier)),
        lambda identity: output.different_flags(flags, comparable(identity)),
    )
    earlier = pair.content or (pair.manifest and pair.manifest.identity)
    if not earlier:
        expected = f"a new or empty folder, or that of the same --experiment={experiment.name}"
        raise ArgumentError("output_dir", expected, str(paths.root))
    output.check_same(paths.root, "experiment", flags, comparable(earlier))
    if lock is not None and not lock.alone:
        return
    damaged = [*pair.damaged, *_damaged_runs(experiment, paths)]
    if pair.manifest is not None and pair.manifest.files:
        damaged += pair.manifest.damaged_files(paths.root, deletable=paths.stages)
    else:
        damaged += stage_folder.damaged_files(paths.stages)
    on_damaged = corruption.handler(experiment.base.on_corruption)
    if lock is None:
        output.report(paths.root, damaged, on_damaged)
    else:
        for path in dict.fromkeys(damaged):
            on_damaged(path)


def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an identity in which two experiments are compared."""
    config = identity.get("config")
    return {
        **(config if isinstance(config, dict) else {}),
        **{name: identity.get(name) for name in ("experiment", "varies")},
    }


def _damaged_runs(experiment: Experiment, paths: ExperimentPaths) -> list[Path]:
    """Return the results of runs that are damaged, or those of another run."""
    axes = axes_of(experiment)
    damaged = []
    for path in sorted(paths.runs.glob("*.json")):
        results = read_results(path, "output_dir", corruption.ignore)
        try:
            if results is None or paths.run(run_name(Config.from_json(results["config"]), axes)) != path:
                damaged.append(path)
        except (ValueError, TypeError):  # another version of this library wrote it
            continue
    return damaged
