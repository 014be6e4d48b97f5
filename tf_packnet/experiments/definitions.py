"""The paper's experiments as runs: what each varies, with the values of the paper unless others are asked for."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.shares import rounds_that_divide
from tf_packnet.runs import corruption, output
from tf_packnet.runs.config import APPROACHES, Config
from tf_packnet.runs.corruption import Manifest
from tf_packnet.runs.paths import ExperimentPaths, expand
from tf_packnet.runs.results import read_experiment

Axes = dict[str, Sequence[Any]]

# The paper's p for its two networks: MNIST with the fully connected one, CIFAR-10 with the convolutional one.
PAPER_PRUNES = {"mlp": (0.95, 0.99, 0.995), "conv": (0.8, 0.9, 0.95)}
ROUNDS_WITHOUT_BUDGET = (1, 2, 3)

# What each experiment varies, in the order of its tables. `sweep` varies what it is told to.
VARIES = {
    "figure1": ("approach", "final_prune"),
    "figure2": ("final_prune", "prune_rounds"),
    "figure3": ("final_prune",),
    "table1": ("final_prune",),
    "figure4": ("final_prune", "prune_rounds"),
}
EXPERIMENTS = (*VARIES, "sweep")
MATCHING = ("figure3", "table1")
DEFAULT_SEEDS = {"figure2": 10, "figure4": 10, "sweep": 1}
# Runs of one experiment, at most: the paper's largest has 360.
MAX_RUNS = 10_000
# A run's results are in a file of its name: what file systems take, less a suffix.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Experiment:
    """An experiment, ready to run.

    Attributes:
        name: One of `EXPERIMENTS`.
        base: What all runs have in common.
        axes: Values of what varies, without the seeds.
        seeds: Every setting is run with each.
        configs: All runs, those of the first seed first. For a matching: those to be matched.
        evaluations: Prunings that a matching may try for each bound and `p`.
    """

    name: str
    base: Config
    axes: Axes
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]
    evaluations: int = 10

    def command(self) -> str:
        """The command line that runs it, every flag that is not at its default."""
        left_out = ("seed", "output_dir", "data_dir", *self.axes)
        fields = {name: value for name, value in self.base.to_json().items() if name not in left_out}
        given = [_as_flag(name, value) for name, value in fields.items() if value != Config().to_json()[name]]
        seeds = ",".join(map(str, self.seeds)) + ("," if len(self.seeds) == 1 else "")
        sweeps = [f"--sweep={axis}={','.join(map(str, values))}" for axis, values in self.axes.items()]
        more = [f"--evaluations={self.evaluations}"] if self.name in MATCHING else []
        lines = [f"python launch/main.py --experiment={self.name} --seeds={seeds}", *sweeps, *more, *given]
        return " \\\n    ".join(lines)


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def define(
    name: str, base: Config, axes: Axes, seeds: Sequence[int] | None = None, evaluations: int = 10
) -> Experiment:
    """Defines an experiment.

    Args:
        name: One of `EXPERIMENTS`.
        base: What all runs have in common.
        axes: Other values for what the experiment varies; for `sweep` all that varies.
        seeds: Default as many as the paper took, from the seed of `base` on.
        evaluations: Prunings that a matching may try for each bound and `p`.

    Raises:
        ArgumentError: If an axis is not one of the experiment, or a setting cannot be.
    """
    if name != "sweep":
        for axis in axes:
            if axis not in VARIES[name]:
                raise ArgumentError("sweep", f"{' or '.join(VARIES[name])} with --experiment={name}", axis)
        axes = {axis: axes.get(axis) or _paper_values(name, axis, base) for axis in VARIES[name]}
    elif not axes and seeds is None:
        raise ArgumentError("experiment", "a --sweep=NAME=VALUE,VALUE to say what it varies, or --seeds", name)
    if "seed" in axes:
        seeds = axes["seed"]
        axes = {axis: values for axis, values in axes.items() if axis != "seed"}
    if seeds is None:
        seeds = range(base.seed, base.seed + DEFAULT_SEEDS.get(name, 5))
    runs = math.prod(map(len, [seeds, *axes.values()]))
    if runs > MAX_RUNS:
        raise ArgumentError("sweep" if axes else "seeds", f"at most {MAX_RUNS:,} runs in all", f"{runs:,} runs")
    settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    configs = [_config(name, base, {**setting, "seed": seed}) for seed in seeds for setting in settings]
    longest = max((run_name(config, tuple(axes)) for config in configs), key=len)
    if len(longest.encode()) > LONGEST_NAME:
        raise ArgumentError("sweep", f"values whose names take {LONGEST_NAME} bytes at most in all", longest)
    return Experiment(name, base, axes, tuple(seeds), tuple(configs), evaluations)


def run_name(config: Config, axes: Sequence[str]) -> str:
    """What a run is called: what varies, and its seed."""
    name = ",".join(f"{axis}={getattr(config, axis)}" for axis in [*axes, "seed"])
    return name.replace("%", "%25").replace("/", "%2F")  # a file is called so


def _paper_values(name: str, axis: str, base: Config) -> Sequence[Any]:
    if axis == "approach":
        return APPROACHES
    if axis == "final_prune":
        return PAPER_PRUNES[base.model]
    return ROUNDS_WITHOUT_BUDGET if name == "figure4" else rounds_that_divide(base.retrain_epochs)


def _config(name: str, base: Config, setting: dict[str, Any]) -> Config:
    if name == "figure4":  # no budget: every round is followed by all of B
        setting["retrain_epochs"] = base.retrain_epochs * setting["prune_rounds"]
    return dataclasses.replace(base, **setting)


def experiment_folder(experiment: Experiment) -> Path:
    """Returns the output directory: `output_dir`, or `out/<dataset>-<experiment>`."""
    directory = experiment.base.directory()
    return expand(directory if experiment.base.output_dir else f"{directory}-{experiment.name}")


def experiment_identity(experiment: Experiment) -> dict[str, Any]:
    """What makes two experiments the same one; other values of what it varies, and other seeds, may come to it."""
    config = {
        name: value for name, value in experiment.base.identity().items() if name not in (*experiment.axes, "seed")
    }
    return {"experiment": experiment.name, "varies": list(experiment.axes), "config": config}


def check_experiment(experiment: Experiment, paths: ExperimentPaths) -> None:
    """Checks that an experiment may write where it wants to, and that what is there is its own.

    Raises:
        ArgumentError: If the directory cannot be written, or holds another experiment or anything else.
        CorruptionError: If something of its report is damaged, and `on_corruption` is `fail`.
    """
    if output.is_new(paths.root):
        return
    damaged = corruption.handler(experiment.base.on_corruption)
    manifest = Manifest.read(paths.manifest, damaged)
    earlier = read_experiment(paths.experiment, damaged)
    if earlier is None and manifest is not None:
        earlier = dict(manifest.identity)
    if earlier is None:
        expected = f"a new or empty folder, or that of the same --experiment={experiment.name}"
        raise ArgumentError("output_dir", expected, str(paths.root))
    ours = experiment_identity(experiment)
    same = {name: value for name, value in ours.items() if name != "config"}
    output.check_same(paths.root, "experiment", {**ours["config"], **same}, {**earlier["config"], **earlier})
    if manifest is not None:
        output.report_damage(manifest.damaged_files(paths.root), damaged)
