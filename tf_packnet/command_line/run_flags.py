"""The flags of runs, experiments and plans. Those of a run are generated from the fields of `Config`."""

from collections.abc import Callable
from typing import Any, get_type_hints

from absl import flags

from tf_packnet.command_line.parsers import (
    BooleanParser,
    FloatParser,
    IntegerListParser,
    IntegerParser,
    NameListParser,
    RoundsParser,
    TaskSizesParser,
    check_length,
)
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import fleets, gpus, ray_cluster
from tf_packnet.experiments.definitions import EXPERIMENTS, MAX_RUNS
from tf_packnet.experiments.shards import Shard
from tf_packnet.pruning.shares import PruneRounds
from tf_packnet.runs import config
from tf_packnet.runs.options import enumeration
from tf_packnet.system import objects
from tf_packnet.tasks.splitting import TaskSizes

# Limit for processes, threads and evaluations.
MAX_COUNT = 1000

# Flags that say how and where the runs of an experiment execute.
EXECUTION_FLAGS = ("workers", "threads", "fleet", "cluster", "gpus_per_run", "memory_per_run", "shard", "merge")
EXPERIMENT_FLAGS = ("experiment", "sweep", "seeds", "evaluations", *EXECUTION_FLAGS)


class SeedsParser(flags.ArgumentParser):
    """A number of seeds, which parses to an int, or comma-separated seeds, which parse to a tuple."""

    def parse(self, argument: Any) -> int | tuple[int, ...]:
        if not isinstance(argument, str):
            return argument
        try:
            numbers = tuple(int(check_length(part)) for part in argument.removesuffix(",").split(","))
        except ValueError as error:
            raise ValueError("expected a number of seeds, or comma-separated seeds such as 3,5,8") from error
        if "," not in argument:
            if not 1 <= numbers[0] <= MAX_RUNS:
                expected = f"expected at least 1 and at most {MAX_RUNS:,}"
                raise ValueError(f"{expected}, or comma-separated seeds such as 3,5,8")
            return numbers[0]
        if min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError("expected different seeds, 0 or above")
        return numbers

    def flag_type(self) -> str:
        return "a number, or comma-separated seeds"


class ClusterParser(flags.ArgumentParser):
    """`local`, `ray` or the address of a Ray cluster."""

    def parse(self, argument: Any) -> str:
        try:
            return ray_cluster.check_address(argument)
        except ArgumentError as error:
            raise ValueError(f"expected {error.expected}") from error

    def flag_type(self) -> str:
        return "local, ray, or ray://HOST:PORT"


class ShardParser(flags.ArgumentParser):
    """`I/M`, which parses to a `Shard`."""

    def parse(self, argument: Any) -> Shard:
        if isinstance(argument, Shard):
            return argument
        number, slash, count = argument.partition("/")
        try:
            shard = Shard(int(check_length(number)), int(check_length(count)))
        except ValueError:
            shard = Shard(0, 0)
        if not slash or not 1 <= shard.number <= shard.parts <= MAX_RUNS:
            raise ValueError(
                f"expected I/M with 1 <= I <= M <= {MAX_RUNS:,}, such as 2/3 for the second of three parts"
            )
        return shard

    def flag_type(self) -> str:
        return "I/M"


class MergeParser(flags.ArgumentParser):
    """Comma-separated folders, or no value. Parses to a tuple; None for `--nomerge`."""

    def parse(self, argument: Any) -> tuple[str, ...] | None:
        if argument in (None, False, "false"):
            return None
        if argument in (True, "true", ()):  # without a value
            return ()
        folders = argument.split(",") if isinstance(argument, str) else argument
        if not all(folders):
            raise ValueError("expected folders, separated by commas, or no value")
        try:
            for folder in folders:
                config.check_field("output_dir", folder)
        except ArgumentError as error:
            raise ValueError(f"expected {error.expected}") from error
        return tuple(folders)

    def flag_type(self) -> str:
        return "folders, separated by commas, or no value"


_PARSERS: dict[Any, flags.ArgumentParser] = {
    str: flags.ArgumentParser(),
    int: IntegerParser(),
    float: FloatParser(),
    bool: BooleanParser(),
    tuple[int, ...]: IntegerListParser(),
    tuple[str, ...]: NameListParser(),
    TaskSizes: TaskSizesParser(),
    PruneRounds: RoundsParser(),
}


def define_flags() -> tuple[flags.FlagValues, dict[str, list[str]]]:
    """Declare all flags in a new `FlagValues`.

    Returns:
        The flags, not parsed yet, and their names by theme.
    """
    values = flags.FlagValues()
    themes: dict[str, list[str]] = {}
    types = get_type_hints(config.Config)
    for name, option in config.OPTIONS.items():
        themes.setdefault(option.theme, []).append(name)
        _define(name, config.default(name), option.help, _parser(types[name]), values)
        flags.register_validator(name, _validator(name), flag_values=values)
    themes["Output"] += _define_output_flags(values)
    themes["Experiments"] = _define_experiment_flags(values)
    return values, themes


def _define_output_flags(values: flags.FlagValues) -> list[str]:
    dry_run = "Print how many weights each task would get, and the size in memory and on disk. Train nothing."
    _define("dry_run", False, dry_run, _PARSERS[bool], values)
    stages_dir = (
        "Folder or URL (s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, file:///FOLDER) with the results of stages, to share "
        "them between runs, experiments and hosts. Default: stages/ in --output_dir."
    )
    _define("stages_dir", None, stages_dir, _PARSERS[str], values)
    flags.register_validator("stages_dir", _checked(_check_stages_dir), flag_values=values)
    return ["dry_run", "stages_dir"]


def _define_experiment_flags(values: flags.FlagValues) -> list[str]:
    flags.DEFINE_enum(
        "experiment",
        None,
        tuple(EXPERIMENTS),
        "A figure or the table of the paper, with the paper's values. "
        + " ".join(f"{names}: {shows}." for shows, names in _experiments_by("help")),
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUE,VALUE: one run per value of that flag. May be given for several flags: one run per combination. "
        "With --experiment: replaces the paper's values of a flag that the experiment varies.",
        flag_values=values,
    )
    defaults = ", ".join(f"{number} for {names}" for number, names in _experiments_by("seeds"))
    seeds = (
        "Number of seeds per setting, starting at --seed; or the seeds themselves, such as 3,5,8 (one seed: 3,). "
        f"Default: {defaults}."
    )
    _define("seeds", None, seeds, SeedsParser(), values)
    integers = {
        "evaluations": (10, "How many values of p figure3 and table1 may try per bound and p."),
        "workers": (
            None,
            "Number of worker processes; each does --fleet runs at a time. Default: what --threads, --gpus_per_run and "
            "--memory_per_run allow.",
        ),
        "threads": (1, "Threads per run. With 1, runs are fastest and results do not depend on the number of cores."),
    }
    for name, (default, text) in integers.items():
        _define(name, default, text, _PARSERS[int], values)
        flags.register_validator(name, _check_count, flag_values=values)
    fleet = (
        "Runs of the same network that each worker trains side by side: a number, off, or auto: on a GPU, with as many "
        f"as suit the network, at most {fleets.MOST}."
    )
    _define("fleet", fleets.AUTO, fleet, _PARSERS[str], values)
    flags.register_validator("fleet", _checked(fleets.check), flag_values=values)
    cluster = (
        "Where the runs are done: local, ray, or ray://HOST:PORT. local: in processes of this machine. ray: on the "
        "nodes of the Ray cluster of RAY_ADDRESS, else of the one that `ray start` has started on this machine, else "
        "of one that is started now. ray://HOST:PORT: on those of a Ray cluster elsewhere."
    )
    _define("cluster", ray_cluster.LOCAL, cluster, ClusterParser(), values)
    gpus_per_run = (
        "GPUs that each run sees. With a fraction, such as 0.25, several runs share a GPU; if its memory runs out, "
        "half as many go on. 0: runs on the CPU. Default: 1 if there are GPUs; all with --strategy=mirrored."
    )
    _define("gpus_per_run", None, gpus_per_run, _PARSERS[float], values)
    memory_per_run = "Memory of each run in GiB, which limits how many runs there are at the same time."
    _define("memory_per_run", None, memory_per_run, _PARSERS[float], values)
    for name, check in (("gpus_per_run", gpus.check_per_run), ("memory_per_run", _check_memory)):
        flags.register_validator(name, _checked(check), flag_values=values)
    shard = (
        "I/M, such as 2/20: do only part I of M of the runs, and write only their results. For the M tasks of a SLURM "
        "array. Shards may have the same --output_dir, also at the same time."
    )
    _define("shard", None, shard, ShardParser(), values)
    merge = (
        "Train nothing; write the report of the runs that shards have completed in --output_dir. --merge=DIR,DIR takes "
        "their results from these folders."
    )
    _define("merge", None, merge, MergeParser(), values)
    return list(EXPERIMENT_FLAGS)


def _experiments_by(attribute: str) -> list[tuple[Any, str]]:
    """Group the experiments by an attribute: `[(5, "figure1, figure3 and table1"), ...]`."""
    names: dict[Any, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        names.setdefault(getattr(experiment, attribute), []).append(name)
    return [(value, enumeration(group, "and")) for value, group in names.items()]


def _define(name: str, default: Any, text: str, parser: flags.ArgumentParser, values: flags.FlagValues) -> None:
    if isinstance(parser, (BooleanParser, MergeParser)):  # may be given without a value
        flag = flags.BooleanFlag(name, default, text)
        flag.parser = parser
        flags.DEFINE_flag(flag, values)
        return
    is_list = isinstance(parser, (IntegerListParser, NameListParser))
    serializer = flags.ListSerializer(",") if is_list else flags.ArgumentSerializer()
    flags.DEFINE(parser, name, default, text, values, serializer)


def _parser(field_type: Any) -> flags.ArgumentParser:
    return next(parser for type_, parser in _PARSERS.items() if field_type in (type_, type_ | None))


def _check_count(value: int | None) -> bool:
    if value is not None and not 1 <= value <= MAX_COUNT:
        raise flags.ValidationError(f"expected at least 1 and at most {MAX_COUNT:,}")
    return True


def _check_stages_dir(value: str | None) -> None:
    config.check_field("output_dir", value)
    if value is not None and objects.is_url(value):
        objects.open_url("stages_dir", value)


def _validator(name: str) -> Callable[[Any], bool]:
    return _checked(lambda value: config.check_field(name, value))


def _check_memory(value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ArgumentError("memory_per_run", "a number of GiB above 0", value)


def _checked(check: Callable[[Any], None]) -> Callable[[Any], bool]:
    def validate(value: Any) -> bool:
        try:
            check(value)
        except ArgumentError as error:
            raise flags.ValidationError(f"expected {error.expected}") from error
        return True

    return validate
