"""Parsing of the command lines of runs, experiments and plans."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from tf_packnet.command_line.parsing import UsageError, check_no_positional, parse_flags
from tf_packnet.command_line.run_flags import EXECUTION_FLAGS, define_flags
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments import fleets
from tf_packnet.experiments.definitions import EXPERIMENTS, Experiment, define
from tf_packnet.experiments.shards import Shard
from tf_packnet.pruning.shares import EQUAL
from tf_packnet.runs.config import Config, check_axis, check_field, default


class Command(NamedTuple):
    """A parsed command line.

    Attributes:
        config: The run; for an experiment, the settings that its runs share.
        experiment: The experiment; None for a single run.
        workers: Number of worker processes; None for the default of the machine.
        threads: Threads per run.
        stages_dir: Folder or URL of the store of stages; None for a folder in the output folder.
        dry_run: Whether to only print the plan.
        fleet: Runs that each worker trains side by side: a number, `auto` or `off`.
        cluster: Where the runs execute: `local`, `ray`, or the address of a Ray cluster.
        gpus_per_run: GPUs of each run, a fraction if runs share one; None for the default of the machine.
        memory_per_run: Memory of each run in GiB; None for no limit.
        shard: The part of the experiment to do; None for all of it.
        merge: The folders of shards to merge; None to do runs.
    """

    config: Config
    experiment: Experiment | None = None
    workers: int | None = None
    threads: int = 1
    stages_dir: str | None = None
    dry_run: bool = False
    fleet: str = fleets.AUTO
    cluster: str = "local"
    gpus_per_run: float | None = None
    memory_per_run: float | None = None
    shard: Shard | None = None
    merge: tuple[str, ...] | None = None


def parse_config(argv: Sequence[str]) -> Config:
    """Return the config of a command line; see `parse_command`."""
    return parse_command(argv).config


def parse_command(argv: Sequence[str], usage: str = "", elsewhere: Mapping[str, str] | None = None) -> Command:
    """Parse and check a command line. `--help` and `--version` print and exit with 0.

    Args:
        argv: The command line; `argv[0]` is the program's name.
        usage: The beginning of the help page.
        elsewhere: The flags that this program does not take, each with the subcommand that does.

    Raises:
        UsageError: If a flag is unknown or malformed, or its value out of range.
        ArgumentError: If two flags contradict each other.
    """
    elsewhere = elsewhere or {}
    values, themes = define_flags()
    listed = {theme: [name for name in names if name not in elsewhere] for theme, names in themes.items()}
    check_no_positional(parse_flags(argv, values, {theme: names for theme, names in listed.items() if names}, usage))
    for name, subcommand in elsewhere.items():
        if values[name].present:
            raise UsageError(f"--{name}: not a flag of {argv[0]}; expected tf-packnet {subcommand}")
    if values["experiment"].value or values["sweep"].value or values["seeds"].value is not None:
        return _experiment_command(values, argv)
    for name in EXECUTION_FLAGS:
        if values[name].present:
            raise UsageError(f"--{name}: expected an --experiment or a --sweep with it")
    _check_shares(values, argv, {"shares": [values["shares"].value]})
    fields = _fields(values)
    timed = [name for name in ("retrain_time", "deadline") if fields[name] is not None]
    if timed:  # in place of the epochs of a preset
        if _is_given("retrain_epochs", argv):
            raise ArgumentError("retrain_epochs", f"no value with --{timed[0]}", fields["retrain_epochs"])
        fields["retrain_epochs"] = default("retrain_epochs")
    config = Config(**fields)
    return Command(config, stages_dir=values["stages_dir"].value, dry_run=values["dry_run"].value)


def _experiment_command(values: flags.FlagValues, argv: Sequence[str]) -> Command:
    axes: dict[str, Sequence[Any]] = dict(_parse_axis(argument, values) for argument in values["sweep"].value)
    if len(axes) < len(values["sweep"].value):
        raise UsageError("--sweep: expected a different flag each time it is given")
    name = values["experiment"].value or "sweep"
    varied = dict.fromkeys(EXPERIMENTS[name].varies, ())
    _check_shares(values, argv, {"shares": [values["shares"].value], **varied, **axes})
    config = Config(**_fields(values) | _placeholders(name, axes))
    if config.strategy == "multiworker":
        raise ArgumentError("strategy", "auto, none or mirrored for an experiment", config.strategy)
    for flag in ("retrain_time", "deadline"):
        if values[flag].value is not None:
            expected = "no value for an experiment, whose runs share the machine"
            raise ArgumentError(flag, expected, values[flag].value)
    if values["dry_run"].value:
        raise UsageError("--dry_run: expected no --experiment, --sweep or --seeds with it")
    seeds = values["seeds"].value
    if isinstance(seeds, int):
        seeds = range(config.seed, config.seed + seeds)
    if seeds is not None and "seed" in axes:
        raise UsageError("--seeds: expected no --sweep=seed=... with it")
    if values["shard"].value is not None and values["merge"].value is not None:
        raise UsageError("--merge: expected no --shard with it")
    experiment = define(name, config, axes, seeds, values["evaluations"].value)
    given = {name: values[name].value for name in ("stages_dir", *EXECUTION_FLAGS)}
    return Command(config, experiment, **given)


def _is_given(name: str, argv: Sequence[str]) -> bool:
    """Return whether the command line itself has the flag, not only one of its flag files."""
    return any(word.startswith("-") and word.lstrip("-").partition("=")[0] == name for word in argv)


def _check_shares(values: flags.FlagValues, argv: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> None:
    """Raise an error if `final_prune` (p) is given but no run uses it, because all runs have explicit shares.

    Raises:
        UsageError: If `--sweep` varies `final_prune`.
        ArgumentError: If `final_prune` is given in another way, or the experiment varies it.
    """
    if EQUAL in axes["shares"]:
        return
    reason = "with --shares, which says what each task keeps, and so what is free after all tasks"
    if axes.get("final_prune"):
        raise UsageError(f"--sweep=final_prune=...: expected no such axis {reason}")
    if "final_prune" in axes and values["shares"].value != EQUAL:
        expected = f"{EQUAL} with --experiment={values['experiment'].value}, which varies --final_prune"
        raise ArgumentError("shares", expected, values["shares"].value)
    if _is_given("final_prune", argv):
        raise ArgumentError("final_prune", f"no value {reason}", values["final_prune"].value)


def _fields(values: flags.FlagValues) -> dict[str, Any]:
    return {name: values[name].value for name in Config.__dataclass_fields__}


def _placeholders(experiment: str, axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the first value of each sweep axis, to use instead of the flag's own value.

    No run uses the flag's own value, and it may contradict other flags. `dataset` keeps its own value, because the
    output folder is named after it.
    """
    rounds = {"prune_rounds": 1} if "prune_rounds" in EXPERIMENTS[experiment].varies else {}
    return rounds | {name: axis[0] for name, axis in axes.items() if name != "dataset"}


def _split(words: str) -> list[str]:
    """Split at commas, but not those within a JSON object."""
    parts: list[str] = []
    for part in words.split(","):
        if parts and parts[-1].startswith("{") and not _is_json(parts[-1]):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_axis(argument: str, values: flags.FlagValues) -> tuple[str, list[Any]]:
    name, _, words = argument.partition("=")
    check_axis(name)
    parsed = []
    for word in _split(words):
        try:
            parsed.append(values[name].parser.parse(word))
            check_field(name, parsed[-1])
        except ArgumentError as error:
            raise UsageError(f"--sweep={argument}: {word or 'nothing'}: expected {error.expected}") from error
        except ValueError as error:
            raise UsageError(f"--sweep={argument}: {word or 'nothing'}: {error}") from error
    if len(set(parsed)) < len(parsed):
        raise UsageError(f"--sweep={argument}: expected every value once")
    return name, parsed
