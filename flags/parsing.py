"""From the command line to a `Config`."""

from typing import Any, NamedTuple

from absl import flags

from flags.command_line import UsageError, read
from flags.definitions import define_flags
from tf_packnet.errors import ArgumentError
from tf_packnet.experiments.definitions import VARIES, Experiment, define
from tf_packnet.runs.config import Config, check_axis, check_field


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
        config: One run.
        experiment: An experiment of many runs like it; None for that one run.
        workers: How many runs of an experiment at once; None for what suits the machine.
        threads: Threads of each.
        stages_dir: Where the outcomes of stages lie; None for beside the results.
        dry_run: Whether to print what the tasks will get, and to do nothing.
    """

    config: Config
    experiment: Experiment | None = None
    workers: int | None = None
    threads: int = 1
    stages_dir: str | None = None
    dry_run: bool = False


def parse_config(argv: list[str]) -> Config:
    """The config of `parse_command`."""
    return parse_command(argv).config


def parse_command(argv: list[str]) -> Command:
    """Parses a command line (`argv[0]` is the program) and checks it.

    `--help` and `--version` print and exit with 0.

    Raises:
        UsageError: If a flag is unknown or malformed, or its value out of range.
        ArgumentError: If two flags do not fit together.
    """
    values, themes = define_flags()
    rest = read(argv, values, themes)
    if rest:
        raise UsageError(f"{rest[0]!r} is no flag: expected only --name=value (--help lists the flags)")
    axes = dict(_parse_axis(asked, values) for asked in values["sweep"].value)
    if len(axes) < len(values["sweep"].value):
        raise UsageError("--sweep: expected another flag each time it is given")
    given = {name: values[name].value for name in Config.__dataclass_fields__}
    config = Config(**given | _of_some_run(values["experiment"].value, axes))
    seeds = values["seeds"].value
    name = values["experiment"].value or ("sweep" if axes or seeds is not None else None)
    stages_dir = values["stages_dir"].value
    if name is None:
        for flag in ("workers", "threads"):
            if values[flag].present:
                raise UsageError(f"--{flag}: expected an --experiment or a --sweep with it")
        return Command(config, stages_dir=stages_dir, dry_run=values["dry_run"].value)
    if values["dry_run"].value:
        raise UsageError("--dry_run: expected no --experiment, --sweep or --seeds with it")
    if isinstance(seeds, int):
        seeds = range(config.seed, config.seed + seeds)
    if seeds is not None and "seed" in axes:
        raise UsageError("--seeds: expected no --sweep=seed=... with it")
    asked = define(name, config, axes, seeds, values["evaluations"].value)
    return Command(config, asked, values["workers"].value, values["threads"].value, stages_dir)


def _of_some_run(experiment: str | None, axes: dict[str, list[Any]]) -> dict[str, Any]:
    """Of what varies the first value: no run may have what the flags say, and it need not fit to the rest.

    But not of the data: the folder is called after those that the flags say, whatever comes first.
    """
    rounds = {"prune_rounds": 1} if "prune_rounds" in VARIES.get(experiment, ()) else {}
    return rounds | {name: listed[0] for name, listed in axes.items() if name != "dataset"}


def _parse_axis(asked: str, values: flags.FlagValues) -> tuple[str, list[Any]]:
    name, _, listed = asked.partition("=")
    check_axis(name)
    parsed = []
    for value in listed.split(","):
        try:
            parsed.append(values[name].parser.parse(value))
            check_field(name, parsed[-1])
        except ArgumentError as error:
            raise UsageError(f"--sweep={asked}: {value or 'nothing'}: expected {error.expected}") from error
        except ValueError as error:
            raise UsageError(f"--sweep={asked}: {value or 'nothing'}: {error}") from error
    if len(set(parsed)) < len(parsed):
        raise UsageError(f"--sweep={asked}: expected every value once")
    return name, parsed
