"""One config with several values of some fields: every combination, side by side.

Rich is imported late: the launcher imports this module even for `--help`.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_packnet.errors import FailedRunsError
from tf_packnet.experiments import output
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.paths import RunPaths
from tf_packnet.experiments.workers import Outcome, best_layout, run_all
from tf_packnet.tasks.sources import check_name

Axes = dict[str, Sequence[Any]]


def combinations(config: Config, axes: Axes) -> list[Config]:
    """A config for every combination of values, each with a folder of its own under that of `config`.

    Raises:
        ArgumentError: If a combination cannot be.
    """
    made = []
    for values in itertools.product(*axes.values()):
        setting = dict(zip(axes, values, strict=True))
        folder = ",".join(f"{name}={value}" for name, value in setting.items())
        made.append(dataclasses.replace(config, **setting, output_dir=str(Path(config.where()) / folder)))
    return made


def main(config: Config, axes: Axes, workers: int | None = None) -> None:
    """Runs every combination that is not there yet, and prints what came of all.

    Raises:
        ArgumentError: Before any work, if a combination cannot be, or may not write where it wants to.
        FailedRunsError: After all the others, if runs failed.
    """
    configs = combinations(config, axes)
    for each in configs:
        check_name(each.dataset, each.data_dir)
        output.check(each)
    layout = best_layout(len(configs), workers)
    from rich.console import Console

    console = Console(stderr=True)
    threads = "1 thread" if layout.threads == 1 else f"{layout.threads} threads"
    console.print(f"{len(configs)} runs, {layout.workers} at once with {threads} each", highlight=False)
    done: list[Outcome] = []

    def finished(outcome: Outcome) -> None:
        done.append(outcome)
        said = "" if outcome.exit_code == 0 else f"  failed: {outcome.last_line}"
        where = Path(outcome.config.where()).name
        line = f"{len(done)}/{len(configs)}  {where}  {outcome.seconds:.1f} s{said}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    outcomes = run_all(configs, layout, finished)
    print_table(axes, outcomes)
    failed = [Path(outcome.config.where()).name for outcome in outcomes if outcome.exit_code]
    if failed:
        names = "; ".join(failed)
        raise FailedRunsError(
            f"{len(failed)} of {len(outcomes)} runs failed ({names}); the same command tries them again"
        )


def print_table(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Prints a row a run to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="sweep", caption="test accuracy, mean over the tasks, after the last")
    for name in axes:
        table.add_column(name, justify="right")
    for heading in ("average accuracy", "free weights"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        cells = [str(getattr(outcome.config, name)) for name in axes]
        if outcome.exit_code == 0:
            results = json.loads(RunPaths(Path(outcome.config.where()).expanduser()).results.read_text())
            cells += [f"{results['average_accuracy']:.4f}", f"{results['free_fraction']['overall']:.2%}"]
        else:
            cells += ["failed", ""]
        table.add_row(*cells)
    Console().print(table)
